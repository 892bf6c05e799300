// pusher-js and the npm server SDK, set up for a rehearsed cluster.
import Pusher from "pusher";
import PusherClient from "pusher-js";

import { eventually } from "./waiting.mjs";

/** What encrypted channels' keys are made of. */
export const MASTER_KEY = Buffer.alloc(32, 7).toString("base64");

/** The server SDK for an app of a rehearsal; `secret` may be a wrong one. */
export function sdk({ serving }, id = "1001", secret) {
  const { key, secret: right } = serving.apps.find((app) => app.id === id);
  const { host, port } = serving.api;
  const server = { host, port: String(port), useTLS: false };
  return new Pusher({ appId: id, key, secret: secret ?? right, ...server, encryptionMasterKeyBase64: MASTER_KEY });
}

/** What tells pusher-js where a rehearsal's servers are, and which transport alone it may take. */
export function addresses({ serving: { websocket, sockjs } }, transport) {
  return {
    cluster: "",
    wsHost: websocket.host,
    wsPort: websocket.port,
    httpHost: sockjs.host,
    httpPort: sockjs.port,
    forceTLS: false,
    enableStats: false,
    enabledTransports: [transport],
  };
}

/** The same for one port of this machine, behind which are both. */
export function loopback(port, transport, host = "127.0.0.1") {
  const at = { host, port };
  return addresses({ serving: { websocket: at, sockjs: at } }, transport);
}

/** The clients of a test file. */
export class Clients {
  constructor(rehearsal) {
    this.rehearsal = rehearsal;
    this.all = new Set();
  }

  /** A client of this key that keeps its errors in `failures`. */
  begin(key, transport, options = {}) {
    const client = new PusherClient(key, { ...addresses(this.rehearsal, transport), ...options });
    this.all.add(client);
    client.failures = [];
    client.connection.bind("error", (error) => client.failures.push(error));
    return client;
  }

  /**
   * A connected client of an app. `user` is who it signs in as, `member` who it is on presence channels (without one it
   * is who has signed in). `backend.server` signs for it, and may be changed.
   */
  async connect(transport, { app = "1001", user, member, server = sdk(this.rehearsal, app) } = {}) {
    const backend = { server };
    const data = member && { user_id: member, user_info: { name: member } };
    const client = this.begin(this.rehearsal.serving.apps.find(({ id }) => id === app).key, transport, {
      userAuthentication: {
        customHandler: async ({ socketId }, callback) => callback(null, await backend.server.authenticateUser(socketId, user)),
      },
      channelAuthorization: {
        customHandler: async ({ socketId, channelName }, callback) => {
          const own = channelName.startsWith("presence-") ? data : undefined;
          callback(null, await backend.server.authorizeChannel(socketId, channelName, own));
        },
      },
    });
    client.backend = backend;
    await eventually(
      () => client.connection.state === "connected",
      () => `${transport} is ${client.connection.state}: ${JSON.stringify(client.failures)}`,
    );
    const { name } = client.connection.connection.transport;
    if (name !== transport) throw new Error(`${name} was taken, not ${transport}`);
    return client;
  }

  disconnect() {
    for (const client of this.all) client.disconnect();
  }
}

export async function subscribe(client, name) {
  const channel = client.subscribe(name);
  await eventually(() => channel.subscribed, () => `${name}: ${JSON.stringify(client.failures)}`);
  return channel;
}

export async function signIn(client) {
  client.signin();
  await client.user.signinDonePromise;
  // The client subscribes to its own channel next.
  await eventually(() => client.user.serverToUserChannel?.subscribed, () => JSON.stringify(client.failures));
}
