// Debian's nginx and HAProxy with the configurations of docs/load-balancers.md, and clients that come through them.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";

import Pusher from "pusher";
import PusherClient from "pusher-js";
import SockJS from "sockjs-client";

import { loopback } from "./clients.mjs";
import { spawnLogged, startOnFreePorts } from "./processes.mjs";
import { eventually } from "./waiting.mjs";

const PAGE = new URL("../../docs/load-balancers.md", import.meta.url);

/** The pod in the page's configurations. */
const POD = "eu-websocket.channels.svc:8080";

/** An address of loopback that is no proxy's, as a client has one. */
export const CLIENT_ADDRESS = "127.9.8.7";

const CHANNEL = "news";

/**
 * A fenced block of the page: the n-th of its language, with these addresses to listen on, and this one for the pod. All its
 * durations but that for a connection are multiplied by `scale`.
 */
async function configuration(language, n, { listen, pod, scale = 1 }) {
  const page = await readFile(PAGE, "utf8");
  const block = [...page.matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\``, "gm"))].map(([, text]) => text)[n];
  if (!block?.includes(POD) || !/\b(listen |bind :)80\b/.test(block)) throw new Error(`${PAGE}: block ${n} of ${language}`);
  return block
    .replace(POD, pod)
    .replace(/\b(listen |bind :)80\b/, (_, word) => word.replace(":", "") + listen.join(","))
    // One digit: the time for a connection, which stays as it is.
    .replace(/\b(\d{2,})s\b/g, (_, seconds) => `${Math.round(seconds * scale * 1000)}ms`);
}

// Both as one process: what another one kept of their output would keep the test from ending.
const nginx = {
  program: "/usr/sbin/nginx",
  args: (folder) => ["-e", "stderr", "-p", folder, "-c", `${folder}/configuration`],
  // Of the page is all that is about the edge; the rest is for a program without rights that writes to this folder alone.
  text: async (folder, at) => `
    ${userInfo().uid === 0 ? `user ${userInfo().username};` : ""}
    daemon off;
    master_process off;
    pid ${folder}/pid;
    error_log stderr notice;
    events {}
    http {
      access_log off;
      ${["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((of) => `${of}_temp_path ${folder}/${of};`).join("\n")}
      ${await configuration("nginx", 0, at)}
    }`,
};

const haproxy = (n) => ({
  program: "/usr/sbin/haproxy",
  args: (folder) => ["-db", "-f", `${folder}/configuration`],
  text: (_, at) => configuration("haproxy", n, at),
});

/** The proxies of the page. */
export const PROXIES = { nginx, HAProxy: haproxy(0), "HAProxy in TCP mode with PROXY v2": haproxy(1) };

/**
 * Starts a proxy in front of `pod`, an address with its port, on a free port of loopback and on the addresses `also`. Waits
 * until it leads to a server that is admitted.
 */
export async function startProxy(name, { pod, scale, also = [], seconds = 60 }) {
  const { program, args, text } = PROXIES[name];
  const folder = await mkdtemp(join(tmpdir(), "proxy-"));
  const proxy = await startOnFreePorts(1, async (port) => {
    await writeFile(join(folder, "configuration"), await text(folder, { listen: [`127.0.0.1:${port}`, ...also], pod, scale }));
    const spawned = spawnLogged(program, args(folder), { cwd: folder });
    try {
      await eventually(() => leadsToEdge(port, spawned), () => `${name} leads nowhere`, seconds);
    } catch (error) {
      await spawned.stop();
      throw new Error(`${error.message}; its log:\n${spawned.log()}`);
    }
    return { ...spawned, port };
  });
  const stop = async () => {
    await proxy.stop();
    await rm(folder, { recursive: true, force: true });
  };
  return { ...proxy, stop };
}

async function leadsToEdge(port, proxy) {
  if (proxy.hasEnded()) throw new Error("it ended");
  return fetch(`http://127.0.0.1:${port}/healthz`).then(({ status }) => status === 200, () => false);
}

/** Milliseconds until a client reconnects, by the hundreds of its close code, as pusher-js does. */
const RECONNECT_DELAY_MS = { 41: 1_000, 42: 0 };

/** A client: its socket id, the events of each of its subscriptions, one after the other, and how it was closed, if it was. */
const newClient = (name) => ({
  name, id: undefined, subscriptions: [], closes: [],
  get events() {
    return this.subscriptions.flat();
  },
});

/** A client of pusher-js. */
async function connectPusher(port, key, transport) {
  const client = newClient(transport);
  const pusher = new PusherClient(key, loopback(port, transport));
  client.end = () => pusher.disconnect();
  const channel = pusher.subscribe(CHANNEL)
    .bind("pusher:subscription_succeeded", () => client.subscriptions.push([]))
    .bind("tick", ({ n }) => client.subscriptions.at(-1).push(n));
  await eventually(() => channel.subscribed, () => `${transport}: ${pusher.connection.state}`);
  client.id = pusher.connection.socket_id;
  pusher.connection.bind("state_change", ({ previous, current }) => client.closes.push(`${previous} to ${current}`));
  const taken = pusher.connection.connection.transport.name;
  if (taken !== transport) throw new Error(`${transport}: it took ${taken}`);
  return client;
}

/** The same with sockjs-client, which leaves it to its page to connect again. */
async function connectSockjs(port, key, transport) {
  const client = newClient(`sockjs ${transport}`);
  let socket;
  let reconnecting;
  client.end = () => {
    clearTimeout(reconnecting);
    socket.onclose = () => {};
    socket.close();
  };
  const send = (message) => socket.send(JSON.stringify(message));
  const connect = () => {
    socket = new SockJS(`http://127.0.0.1:${port}/pusher`, null, { transports: [transport] });
    socket.onopen = () => send({ path: `/app/${key}?protocol=7&client=js&version=8.6.0` });
    socket.onclose = ({ code, reason }) => {
      client.closes.push(`${code} ${reason}`);
      const delay = RECONNECT_DELAY_MS[Math.floor(code / 100)];
      if (delay !== undefined) reconnecting = setTimeout(connect, delay);
    };
    socket.onmessage = ({ data: text }) => {
      const { event, data } = JSON.parse(text);
      if (event === "pusher:connection_established") {
        client.id = JSON.parse(data).socket_id;
        send({ event: "pusher:subscribe", data: { channel: CHANNEL } });
      }
      if (event === "pusher_internal:subscription_succeeded") client.subscriptions.push([]);
      if (event === "pusher:ping") send({ event: "pusher:pong", data: {} });
      if (event === "tick") client.subscriptions.at(-1).push(JSON.parse(data).n);
    };
  };
  connect();
  await eventually(() => client.subscriptions.length > 0, () => `${client.name}: ${client.closes}`);
  if (socket.transport !== transport) throw new Error(`${client.name}: it took ${socket.transport}`);
  return client;
}

const CONNECTORS = [
  ...["ws", "xhr_streaming", "xhr_polling"].map((name) => (port, key) => connectPusher(port, key, name)),
  ...["websocket", "xhr-streaming", "eventsource", "xhr-polling"].map((name) => (port, key) => connectSockjs(port, key, name)),
];

/** Connects a client by each transport, and subscribes it. */
export const connectClients = (port, key) => Promise.all(CONNECTORS.map((connect) => connect(port, key)));

/**
 * A backend whose requests share one connection as long as that stays open. `tick(n)` publishes to all clients; `idleCloses()`
 * counts connections that the other side closed between two requests, where the next one might have been under way.
 */
export function startBackend(port, { appId, key, secret }) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const create = agent.createConnection.bind(agent);
  let [connections, idleCloses] = [0, 0];
  agent.createConnection = (...options) => {
    connections += 1;
    const socket = create(...options);
    const isIdle = () => Object.values(agent.freeSockets).flat().includes(socket);
    return socket.once("end", () => (idleCloses += isIdle() ? 1 : 0));
  };
  const sdk = new Pusher({ appId, key, secret, host: "127.0.0.1", port: String(port), useTLS: false, agent });
  const tick = (n) => sdk.trigger(CHANNEL, "tick", { n });
  return { tick, connections: () => connections, idleCloses: () => idleCloses, end: () => agent.destroy() };
}

const UPGRADE = {
  Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
};

/** Opens a WebSocket and a streaming session from another address than the proxy's, which pretend to come from a third. */
export function openFromElsewhere(port, key) {
  const session = `at-${port}`;
  const requests = [
    { method: "GET", path: `/app/${key}?protocol=7`, headers: UPGRADE },
    { method: "POST", path: `/pusher/app/${key}/1/${session}/xhr_streaming?protocol=7`, headers: {} },
  ].map(({ method, path, headers }) => {
    const request = http.request({
      host: "127.0.0.1", port, localAddress: CLIENT_ADDRESS, method, path, agent: false,
      headers: { "X-Forwarded-For": "198.51.100.9", ...headers },
    });
    request.on("error", () => {});
    request.on("upgrade", (_, socket) => socket.on("error", () => {}));
    request.end();
    return request;
  });
  return () => requests.forEach((request) => request.destroy());
}

/** The connection log of an edge from now on: its entries. */
export async function followConnections(admin, token) {
  const stopping = new AbortController();
  const answer = await fetch(`http://${admin}/tail`, { headers: { authorization: `Bearer ${token}` }, signal: stopping.signal });
  if (answer.status !== 200) throw new Error(`/tail answers ${answer.status}`);
  const entries = [];
  const reading = (async () => {
    let rest = "";
    for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop();
      entries.push(...lines.filter(Boolean).map((line) => JSON.parse(line)));
    }
  })();
  reading.catch(() => {});
  return { entries, stop: () => stopping.abort() };
}
