// Clients that we did not write, in a process that trusts the authority of the tests and finds every public host at the front.
//   FRONT            the address of the front; NODE_EXTRA_CA_CERTS is the authority
// Takes `{ id, command, argument }` from its parent, and answers with `{ id, value }` or `{ id, error }`.
import dns from "node:dns";
import http from "node:http";
import https from "node:https";

import Pusher from "pusher";
import PusherClient from "pusher-js";
import SockJS from "sockjs-client";

const { FRONT } = process.env;

// The records of public hosts are no part of these tests.
dns.lookup = (_, options, callback) => {
  const done = callback ?? options;
  setImmediate(() => (options?.all ? done(null, [{ address: FRONT, family: 4 }]) : done(null, FRONT, 4)));
};

// As many connections at once as there are streams; pusher-js's XMLHttpRequest of Node uses the agents of the process.
for (const module of [http, https]) module.globalAgent = new module.Agent({ keepAlive: false });

/** Clients by group. */
const groups = new Map();

/** Longest until a group is connected, and the time between two looks. */
const [OPEN_TIMEOUT_MS, LOOK_INTERVAL_MS] = [60_000, 50];

async function eventually(isSo, what) {
  const end = Date.now() + OPEN_TIMEOUT_MS;
  while (!isSo()) {
    if (Date.now() > end) throw new Error(what());
    await new Promise((resolve) => setTimeout(resolve, LOOK_INTERVAL_MS));
  }
}

/** A pusher-js client, by the options that a cluster's status has ready to paste. */
function openPusher({ key, options, transport, channel }) {
  const client = new PusherClient(key, { ...options, enableStats: false, enabledTransports: [transport] });
  const opened = { states: [], failures: [], heard: [], channel };
  client.connection.bind("state_change", ({ current }) => opened.states.push(current));
  client.connection.bind("error", (error) => opened.failures.push(JSON.stringify(error)));
  const subscription = client.subscribe(channel);
  subscription.bind("news", (data) => opened.heard.push(data));
  return Object.assign(opened, {
    isOpen: () => client.connection.state === "connected" && subscription.subscribed,
    transport: () => client.connection.connection?.transport.name,
    close: () => client.disconnect(),
  });
}

/** A sockjs-client that speaks as the transport `sockjs` of pusher-js does. */
function openSockjs({ key, url, transport, channel }) {
  const socket = new SockJS(url, null, { transports: [transport] });
  const opened = { states: [], failures: [], heard: [], channel };
  let isOpen = false;
  socket.onopen = () => socket.send(JSON.stringify({ path: `/app/${key}?protocol=7&client=js&version=8.6.0` }));
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.event === "pusher:connection_established") {
      socket.send(JSON.stringify({ event: "pusher:subscribe", data: { channel, auth: "" } }));
    } else if (message.event === "pusher_internal:subscription_succeeded") {
      isOpen = true;
    } else if (message.event === "news") {
      opened.heard.push(JSON.parse(message.data));
    } else if (message.event === "pusher:error") {
      opened.failures.push(data);
    }
  };
  socket.onclose = ({ code, reason }) => {
    isOpen = false;
    opened.states.push(`closed ${code} ${reason}`);
  };
  return Object.assign(opened, { isOpen: () => isOpen, transport: () => socket.transport, close: () => socket.close() });
}

const commands = {
  /** Opens `count` clients of a group, and waits until each is connected and subscribed; its states begin anew then. */
  async open({ group, count = 1, kind = "pusher", batch = 50, ...settings }) {
    const all = groups.get(group) ?? [];
    groups.set(group, all);
    for (let opened = 0; opened < count; opened += batch) {
      const some = Array.from({ length: Math.min(batch, count - opened) }, () => (kind === "pusher" ? openPusher : openSockjs)(settings));
      all.push(...some);
      await eventually(() => some.every((client) => client.isOpen()), () => {
        const missing = some.filter((client) => !client.isOpen());
        return `${group}: ${missing.length} of ${some.length} are not open: ${JSON.stringify(missing[0])}`;
      });
    }
    for (const client of all) client.states.length = 0;
    return all.length;
  },
  /** What each client of a group has seen. */
  look({ group }) {
    return groups.get(group).map(({ isOpen, transport, states, failures, heard }) => ({ open: isOpen(), transport: transport(), states, failures, heard }));
  },
  /** Publishes as a backend outside of Kubernetes does. */
  async publish({ key, secret, host, channel, data }) {
    const { status } = await new Pusher({ appId: "1001", key, secret, host, useTLS: true }).trigger(channel, "news", data);
    return status;
  },
  /** The status of an answer to a GET. */
  get({ url }) {
    return new Promise((resolve, reject) => {
      https.get(url, (response) => resolve(response.resume().statusCode)).once("error", reject);
    });
  },
  close({ group }) {
    for (const client of groups.get(group)) client.close();
    groups.delete(group);
  },
};

process.on("message", async ({ id, command, argument }) => {
  try {
    process.send({ id, value: (await commands[command](argument)) ?? null });
  } catch (error) {
    process.send({ id, error: error.message });
  }
});
process.on("disconnect", () => process.exit());
