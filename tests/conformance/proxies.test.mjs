// Debian's nginx and HAProxy before an edge, with the configurations of docs/load-balancers.md: every transport stays idle
// there while a backend publishes from time to time, and clients keep their addresses.
//   PROXY_IDLE_SECONDS  length of the idle time. All durations of the page are shortened in proportion: with 300, whose
//                       limit needs BUSY=1, they are those of the page.
import assert from "node:assert/strict";
import { subscribe as onDiagnostics } from "node:diagnostics_channel";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import Pusher from "pusher";
import PusherClient from "pusher-js";
import SockJS from "sockjs-client";

import { loopback } from "./clients.mjs";
import { ADMIN_TOKEN, KEY, SECRET, startEdge } from "./edge.mjs";
import { spawnLogged, startOnFreePorts } from "./processes.mjs";
import { eventually } from "./rehearsal.mjs";

/** Idle time for which the durations of the page are used as they are. */
const FULL_IDLE_SECONDS = 300;
const IDLE_SECONDS = Number(process.env.PROXY_IDLE_SECONDS ?? 40);
const SCALE = IDLE_SECONDS / FULL_IDLE_SECONDS;

/** The fields of a cluster, as the page has them. */
const [ACTIVITY_TIMEOUT_SECONDS, KEEP_ALIVE_SECONDS] = [55, 120];

/** Time between two publishes at full length. */
const PUBLISH_INTERVAL_SECONDS = 60;

/** An address of loopback that is no proxy's, as a client has one. */
const CLIENT_ADDRESS = "127.9.8.7";

const PAGE = new URL("../../docs/load-balancers.md", import.meta.url);
const POD = "eu-websocket.channels.svc:8080";
const CHANNEL = "news";

let page;
let edge;
let log;
const started = [];

/** Answers of servers that no proxy may give. */
const failures = [];
onDiagnostics("http.client.response.finish", ({ request, response }) => {
  if (response.statusCode >= 500) failures.push(`${response.statusCode} for ${request.method} ${request.host}${request.path}`);
});

before(async () => {
  http.globalAgent = new http.Agent({ keepAlive: true });
  page = await readFile(PAGE, "utf8");
  edge = await startEdge({
    REALTIME_SERVER: "edge",
    REALTIME_TRANSPORTS: "websocket,xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource",
    REALTIME_ACTIVITY_TIMEOUT_SECONDS: String(Math.floor(ACTIVITY_TIMEOUT_SECONDS * SCALE)),
    REALTIME_KEEP_ALIVE_SECONDS: String(Math.floor(KEEP_ALIVE_SECONDS * SCALE)),
    REALTIME_PROXY_PROTOCOL: "accepted",
    REALTIME_TRUSTED_PROXIES: "127.0.0.1/32",
  });
  log = await followConnections(edge.started.admin);
});

after(async () => {
  await Promise.all(started.map((proxy) => proxy.stop()));
  log?.stop();
  const code = await edge?.stop();
  assert.equal(code, 0, "SIGTERM ends an edge cleanly");
});

/** The connection log of the edge from now on: its entries. */
async function followConnections(admin) {
  const stopping = new AbortController();
  const answer = await fetch(`http://${admin}/tail`, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` }, signal: stopping.signal });
  assert.equal(answer.status, 200);
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

/** A fenced block of the page: the n-th of its language, with this port and the edge as its pod. */
function configuration(language, n, port) {
  const blocks = [...page.matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\``, "gm"))].map(([, text]) => text);
  assert(blocks[n]?.includes(POD) && /\b(listen |bind :)80\b/.test(blocks[n]), `${PAGE}: block ${n} of ${language}`);
  return blocks[n]
    .replace(POD, `127.0.0.1:${edge.port}`)
    .replace(/\b(listen |bind :)80\b/, (_, word) => `${word.replace(":", "")}127.0.0.1:${port}`)
    // One digit: the time for a connection, which stays as it is.
    .replace(/\b(\d{2,})s\b/g, (_, seconds) => `${Math.round(seconds * SCALE * 1000)}ms`);
}

async function startProxy(name, build) {
  const folder = await mkdtemp(join(tmpdir(), "proxy-"));
  const proxy = await startOnFreePorts(1, async (port) => {
    const { program, args, text } = build(port, folder);
    await writeFile(join(folder, "configuration"), text);
    const spawned = spawnLogged(program, args(join(folder, "configuration")), { cwd: folder });
    try {
      await eventually(() => leadsToEdge(port, spawned), () => `${name} leads nowhere`, 60);
    } catch (error) {
      await spawned.stop();
      throw new Error(`${error.message}; its log:\n${spawned.log()}`);
    }
    return { ...spawned, port };
  });
  started.push({ stop: async () => {
    await proxy.stop();
    await rm(folder, { recursive: true, force: true });
  } });
  return proxy;
}

async function leadsToEdge(port, proxy) {
  if (proxy.hasEnded()) throw new Error("it ended");
  return fetch(`http://127.0.0.1:${port}/healthz`).then(({ status }) => status === 200, () => false);
}

// Both as one process: what another one kept of their output would keep the test from ending.
const startNginx = () => startProxy("nginx", (port, folder) => ({
  program: "/usr/sbin/nginx",
  args: (file) => ["-e", "stderr", "-p", folder, "-c", file],
  // Of the page is all that is about the edge; the rest is for a program without rights that writes to this folder alone.
  text: `
    ${userInfo().uid === 0 ? `user ${userInfo().username};` : ""}
    daemon off;
    master_process off;
    pid ${folder}/pid;
    error_log stderr notice;
    events {}
    http {
      access_log off;
      ${["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((of) => `${of}_temp_path ${folder}/${of};`).join("\n")}
      ${configuration("nginx", 0, port)}
    }`,
}));

const startHaproxy = (n) => () => startProxy("haproxy", (port) => ({
  program: "/usr/sbin/haproxy",
  args: (file) => ["-db", "-f", file],
  text: configuration("haproxy", n, port),
}));

const PROXIES = { nginx: startNginx, HAProxy: startHaproxy(0), "HAProxy in TCP mode with PROXY v2": startHaproxy(1) };

/** A client of pusher-js: its socket id, the events that it received, and how it was closed, if it was. */
async function connectPusher(port, transport) {
  const client = new PusherClient(KEY, loopback(port, transport));
  const [events, closes] = [[], []];
  const channel = client.subscribe(CHANNEL).bind("tick", ({ n }) => events.push(n));
  await eventually(() => channel.subscribed, () => `${transport}: ${client.connection.state}`);
  client.connection.bind("state_change", ({ previous, current }) => closes.push(`${previous} to ${current}`));
  assert.equal(client.connection.connection.transport.name, transport);
  return { name: transport, id: client.connection.socket_id, events, closes, end: () => client.disconnect() };
}

/** The same with sockjs-client. */
async function connectSockjs(port, transport) {
  const socket = new SockJS(`http://127.0.0.1:${port}/pusher`, null, { transports: [transport] });
  const client = { name: `sockjs ${transport}`, id: undefined, events: [], closes: [], end: () => socket.close() };
  let subscribed = false;
  const send = (message) => socket.send(JSON.stringify(message));
  socket.onopen = () => send({ path: `/app/${KEY}?protocol=7&client=js&version=8.6.0` });
  socket.onclose = ({ code, reason }) => client.closes.push(`${code} ${reason}`);
  socket.onmessage = ({ data: text }) => {
    const { event, data } = JSON.parse(text);
    if (event === "pusher:connection_established") {
      client.id = JSON.parse(data).socket_id;
      send({ event: "pusher:subscribe", data: { channel: CHANNEL } });
    }
    if (event === "pusher_internal:subscription_succeeded") subscribed = true;
    if (event === "pusher:ping") send({ event: "pusher:pong", data: {} });
    if (event === "tick") client.events.push(JSON.parse(data).n);
  };
  await eventually(() => subscribed, () => `${client.name}: ${client.closes}`);
  assert.equal(socket.transport, transport);
  return client;
}

const TRANSPORTS = [
  ...["ws", "xhr_streaming", "xhr_polling"].map((name) => (port) => connectPusher(port, name)),
  ...["websocket", "xhr-streaming", "eventsource", "xhr-polling"].map((name) => (port) => connectSockjs(port, name)),
];

/** A backend whose requests share one connection as long as that stays open. */
function startBackend(port) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const create = agent.createConnection.bind(agent);
  let connections = 0;
  agent.createConnection = (...options) => {
    connections += 1;
    return create(...options);
  };
  const sdk = new Pusher({ appId: "1", key: KEY, secret: SECRET, host: "127.0.0.1", port: String(port), useTLS: false, agent });
  return { sdk, connections: () => connections, end: () => agent.destroy() };
}

/** Opens a session from another address than the proxy's, and pretends to come from a third. */
function openFrom(localAddress, port, { method, path, headers = {} }) {
  const request = http.request({
    host: "127.0.0.1", port, localAddress, method, path, agent: false, headers: { "X-Forwarded-For": "198.51.100.9", ...headers },
  });
  request.on("error", () => {});
  request.on("upgrade", (_, socket) => socket.on("error", () => {}));
  request.end();
  return request;
}

const UPGRADE = {
  Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
};

describe("behind a real proxy", { concurrency: true }, () => {
  for (const [name, start] of Object.entries(PROXIES)) {
    test(`every transport stays open through ${name}, and addresses are right`, async (t) => {
      const proxy = await start();
      failures.length = 0;

      const session = `at-${proxy.port}`;
      const requests = [
        { method: "GET", path: `/app/${KEY}?protocol=7`, headers: UPGRADE },
        { method: "POST", path: `/pusher/app/${KEY}/1/${session}/xhr_streaming?protocol=7` },
      ].map((request) => openFrom(CLIENT_ADDRESS, proxy.port, request));
      const clients = await Promise.all(TRANSPORTS.map((connect) => connect(proxy.port)));
      const backend = startBackend(proxy.port);
      t.after(() => {
        for (const request of requests) request.destroy();
        for (const client of clients) client.end();
        backend.end();
      });

      const end = Date.now() + IDLE_SECONDS * 1000;
      let published = 0;
      do {
        await backend.sdk.trigger(CHANNEL, "tick", { n: `${proxy.port}/${published}` });
        published += 1;
        await new Promise((resolve) => setTimeout(resolve, PUBLISH_INTERVAL_SECONDS * SCALE * 1000));
      } while (Date.now() < end);

      const expected = Array.from({ length: published }, (_, n) => `${proxy.port}/${n}`);
      const own = (client) => client.events.filter((n) => n.startsWith(`${proxy.port}/`));
      for (const client of clients) {
        await eventually(() => own(client).length >= published, () => `${client.name}: ${client.events}; closes: ${client.closes}`);
        assert.deepEqual(own(client), expected, client.name);
        assert.deepEqual(client.closes, [], client.name);
      }
      const ids = new Set(clients.map(({ id }) => id));
      assert.deepEqual(log.entries.filter(({ event, socket }) => event === "closed" && ids.has(socket)), []);
      assert.deepEqual(failures, []);
      assert.equal(backend.connections(), 1, "the backend's connection was kept");
      t.diagnostic(`${clients.length} clients idle for ${IDLE_SECONDS} s, ${published} publishes, no close and no 5xx`);
    });
  }
});

test("the edge knew each client by its own address", () => {
  const opened = log.entries.filter(({ event, address }) => event === "opened" && address !== "127.0.0.1");
  const found = opened.map(({ address, transport }) => `${transport} ${address}`).sort();
  const transports = ["websocket", "xhr_streaming"];
  const expected = transports.flatMap((transport) => Object.keys(PROXIES).map(() => `${transport} ${CLIENT_ADDRESS}`)).sort();
  assert.deepEqual(found, expected);
});
