// HTTP clients of a pod that drains, behind a layer-4 balancer: a connection stays on its pod, and browsers keep connections
// for their next requests. 200 clients of pusher-js in Node and two in Chromium are served by the other pod after a few requests
// each.
import assert from "node:assert/strict";
import { subscribe as onDiagnostics } from "node:diagnostics_channel";
import http from "node:http";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

import PusherClient from "pusher-js";

import { startChromium } from "../conformance/chromium.mjs";
import { loopback } from "../conformance/clients.mjs";
import { KEY, startRelayingEdges } from "../conformance/edge.mjs";
import { startRedis } from "../conformance/processes.mjs";
import { eventually } from "../conformance/rehearsal.mjs";
import { startEntry } from "./entry.mjs";

const CROWD = { xhr_streaming: 100, xhr_polling: 100 };

const PUSHER = createRequire(import.meta.url).resolve("pusher-js/dist/web/pusher.js");

/** WebSockets that the same pod closes in the same drain, which makes it longer. */
const OTHERS = 1200;

/** Most requests of one client from its close to its subscription on the other pod. */
const REQUESTS_MAX = 6;

/** Clients that connect at once. */
const GROUP = 50;

const WEBSOCKET_HEADERS = {
  Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
};

const crowd = [];
/** Pages of Chromium with a client each, one for each fallback. */
const pages = [];
const others = [];
let redis;
let edges;
let restart;
let entry;
let browser;

/** Requests by the address that they are sent to: each client has one of loopback for itself, and so its own connections. */
const requests = new Map();
onDiagnostics("http.client.request.start", ({ request }) => requests.set(request.host, (requests.get(request.host) ?? 0) + 1));

/** Requests that were sent over a connection of an earlier one. */
let reused = 0;
onDiagnostics("http.client.response.finish", ({ request }) => (reused += Number(request.reusedSocket)));

// In Node pusher-js takes a connection for each request; in browsers it cannot, and so not here.
const agent = new http.Agent({ keepAlive: true });
const sendRequest = http.request;
http.request = (options, ...rest) => sendRequest(options.agent === false ? { ...options, agent } : options, ...rest);

before(async () => {
  redis = await startRedis();
  ({ edges, restart } = await startRelayingEdges(2, redis.port, {
    REALTIME_SERVER: "edge",
    REALTIME_TRANSPORTS: "websocket,xhr_streaming,xhr_polling",
  }));
  entry = await startEntry([edges[0].port], "0.0.0.0");
  const clients = Object.entries(CROWD).flatMap(([transport, count]) => Array(count).fill(transport));
  while (crowd.length < clients.length) {
    const group = clients.slice(crowd.length, crowd.length + GROUP).map((transport, n) => begin(transport, crowd.length + n));
    crowd.push(...group);
    await eventually(() => group.every(isServed), () => `${group.filter(isServed).length} of ${group.length} are served`, 60);
  }
  browser = await startChromium();
  // Of the same address as the servers: Chromium asks before a page of another network reaches this machine.
  await browser.route(`http://127.0.0.1:${entry.port}/page`, (route) => route.fulfill({ contentType: "text/html", body: "<title>client</title>" }));
  pages.push(...await Promise.all(Object.keys(CROWD).map(openPage)));
  await eventually(async () => (await readPages()).every(({ served }) => served), () => "the clients in Chromium are not served", 60);
});

after(async () => {
  await browser?.close();
  for (const client of crowd) client.disconnect();
  for (const socket of others) socket.destroy();
  await entry?.close();
  await Promise.all((edges ?? []).map((edge) => edge.stop()));
  await redis?.stop();
  agent.destroy();
});

function begin(transport, n) {
  const host = `127.0.${2 + (n >> 7)}.${1 + (n & 127)}`;
  const client = new PusherClient(KEY, loopback(entry.port, transport, host));
  Object.assign(client, { transport, states: [], moves: 0, needed: 0 });
  client.connection.bind("state_change", ({ current }) => {
    // Counted from the first close of a drain: before it, a client that polls sends requests too.
    if (client.states.length === 0) requests.set(host, 0);
    client.states.push(current);
  });
  client.subscribe("news").bind("pusher:subscription_succeeded", () => {
    client.moves += 1;
    client.needed = requests.get(host);
  });
  return client;
}

/** A page with a client that counts its own requests as the clients in Node do. */
async function openPage(transport) {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${entry.port}/page`);
  await page.addScriptTag({ path: PUSHER });
  await page.evaluate(([key, options]) => {
    const seen = { transport: options.enabledTransports[0], states: [], moves: 0, needed: 0 };
    let requests = 0;
    const { send } = XMLHttpRequest.prototype;
    XMLHttpRequest.prototype.send = function (...body) {
      requests += 1;
      return send.apply(this, body);
    };
    const client = new window.Pusher(key, options);
    const channel = client.subscribe("news");
    client.connection.bind("state_change", ({ current }) => {
      if (seen.states.length === 0) requests = 0;
      seen.states.push(current);
    });
    channel.bind("pusher:subscription_succeeded", () => {
      seen.moves += 1;
      seen.needed = requests;
    });
    window.forget = () => Object.assign(seen, { states: [], moves: 0, needed: 0 });
    window.read = () => {
      const served = client.connection.state === "connected" && channel.subscribed;
      return { ...seen, served, used: client.connection.connection?.transport.name };
    };
  }, [KEY, loopback(entry.port, transport)]);
  return page;
}

const readPages = () => Promise.all(pages.map((page) => page.evaluate(() => window.read())));

const isServed = (client) => client.connection.state === "connected" && client.channel("news").subscribed;

/** A WebSocket of this edge that ends when the server closes it. */
function openSocket(port) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host: "127.0.0.1", port, path: `/app/${KEY}?protocol=7`, agent: false, headers: WEBSOCKET_HEADERS });
    request.on("error", reject);
    request.on("upgrade", (_, socket) => {
      socket.on("error", () => {});
      // A close frame begins with this byte; what a server sends otherwise is text.
      socket.on("data", (chunk) => chunk.includes(0x88) && socket.end());
      resolve(socket);
    });
  });
}

/** Ends the edge as a pod ends: the balancer sends new connections to the other one, and those that exist stay. */
async function drain(from, to) {
  for (const client of crowd) Object.assign(client, { states: [], moves: 0, needed: 0 });
  await Promise.all(pages.map((page) => page.evaluate(() => window.forget())));
  reused = 0;
  const began = Date.now();
  const stopped = edges[from].stop(170);
  await entry.to([edges[to].port]);
  const moved = () => crowd.filter((client) => client.moves > 0 && isServed(client));
  await eventually(() => moved().length === crowd.length, () => `${moved().length} of ${crowd.length} have moved`, 150);
  const inBrowser = await eventually(async () => {
    const seen = await readPages();
    return seen.every(({ moves, served }) => moves > 0 && served) && seen;
  }, () => "the clients in Chromium have not moved", 60);
  const seconds = (Date.now() - began) / 1000;
  assert.equal(await stopped, 0, "it ends cleanly");
  assert(reused > 0, "no connection was kept");
  const inNode = crowd.map(({ transport, states, moves, needed, connection }) => ({ transport, states, moves, needed, used: connection.connection.transport.name }));
  for (const { transport, states, moves, needed, used } of [...inNode, ...inBrowser]) {
    assert(needed <= REQUESTS_MAX, `a client of ${transport} sent ${needed} requests`);
    assert.equal(used, transport);
    assert.deepEqual([moves, states.at(-1)], [1, "connected"]);
    assert(!states.includes("failed") && !states.includes("unavailable"), states.join(" "));
  }
  const most = (clients) => Math.max(...clients.map(({ needed }) => needed));
  return { seconds, requests: `at most ${most(inNode)} requests each, in Chromium ${most(inBrowser)}` };
}

test("each client of a draining pod is served by the other one after a few requests", async (t) => {
  const { seconds, requests } = await drain(0, 1);
  t.diagnostic(`${crowd.length} clients moved in ${seconds.toFixed(1)} s, with ${requests}`);
});

test("so it is when the pod has many other sessions to close", async (t) => {
  await restart(0);
  while (others.length < OTHERS) others.push(...await Promise.all(Array.from({ length: GROUP }, () => openSocket(edges[1].port))));
  const { seconds, requests } = await drain(1, 0);
  edges.splice(1, 1);
  t.diagnostic(`${crowd.length} clients moved beside ${OTHERS} sockets in ${seconds.toFixed(1)} s, with ${requests}`);
});
