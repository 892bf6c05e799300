// pusher-js against three edges behind a round-robin without keep-alive: each request reaches the next one.
import assert from "node:assert/strict";
import http from "node:http";
import net from "node:net";
import { after, before, test } from "node:test";

import Pusher from "pusher";
import PusherClient from "pusher-js";

import { loopback } from "./clients.mjs";
import { KEY, startRelayingEdges } from "./edge.mjs";
import { startRedis } from "./processes.mjs";
import { eventually } from "./rehearsal.mjs";

const TRANSPORTS = ["xhr_streaming", "xhr_polling"];
const COUNTED = Array.from({ length: 1000 }, (_, n) => n);

let redis;
let edges;
let restart;
let entry;
let sdk;
const clients = new Set();

before(async () => {
  // Each request on a connection of its own.
  http.globalAgent = new http.Agent({ keepAlive: false });
  redis = await startRedis();
  ({ edges, restart } = await startRelayingEdges(3, redis.port));
  entry = await roundRobin();
  sdk = new Pusher({ appId: "1", key: KEY, secret: "secret1", host: "127.0.0.1", port: String(entry.port), useTLS: false });
});

after(async () => {
  for (const client of clients) client.disconnect();
  entry?.close();
  await Promise.all((edges ?? []).map((edge) => edge.stop()));
  await redis?.stop();
});

/** Each connection goes to the next edge; one that is gone is passed over. */
async function roundRobin() {
  let turn = 0;
  const open = new Set();
  const server = net.createServer((client) => {
    open.add(client);
    client.once("close", () => open.delete(client));
    client.on("error", () => client.destroy());
    const first = turn++;
    const dial = (n) => {
      if (n === edges.length) return client.destroy();
      const edge = net.connect(edges[(first + n) % edges.length].port, "127.0.0.1");
      let connected = false;
      edge.once("connect", () => {
        connected = true;
        client.pipe(edge).pipe(client);
      });
      edge.on("error", () => (connected ? client.destroy() : dial(n + 1)));
      client.once("close", () => edge.destroy());
      edge.once("close", () => connected && client.destroy());
    };
    dial(0);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  return {
    port: server.address().port,
    close() {
      server.close();
      for (const client of open) client.destroy();
    },
  };
}

async function connect(transport) {
  const client = new PusherClient(KEY, {
    ...loopback(entry.port, transport),
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) => callback(null, sdk.authorizeChannel(socketId, channelName)),
    },
  });
  clients.add(client);
  client.states = [];
  client.connection.bind("state_change", ({ current }) => client.states.push(current));
  await eventually(() => client.connection.state === "connected", () => `${transport}: ${client.connection.state}`);
  return client;
}

async function subscribed(client, name) {
  const channel = client.subscribe(name);
  await eventually(() => channel.subscribed, () => `no subscription to ${name}`);
  return channel;
}

for (const transport of TRANSPORTS) {
  test(`a thousand messages each way arrive once and in order over ${transport}`, async () => {
    const name = `private-${transport}`;
    const [sender, watcher] = [await connect(transport), await connect("xhr_streaming")];
    const [sending, watching] = [await subscribed(sender, name), await subscribed(watcher, name)];
    const [up, down] = [[], []];
    watching.bind("client-up", ({ n }) => up.push(n));
    sending.bind("down", ({ n }) => down.push(n));
    for (const n of COUNTED) {
      assert(sending.trigger("client-up", { n }));
      if (n % 20 === 19) await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await eventually(() => up.length >= COUNTED.length, () => `${up.length} of ${COUNTED.length} came up`);
    assert.deepEqual(up, COUNTED);
    // 4 KB each: pusher-js opens its stream again about every 60 of them.
    const filling = "x".repeat(4000);
    // Published at one edge: what two edges publish has no order between them.
    for (const n of COUNTED) await edges[0].sdk.trigger(name, "down", { n, filling });
    await eventually(() => down.length >= COUNTED.length, () => `${down.length} of ${COUNTED.length} came down`);
    assert.deepEqual(down, COUNTED);
    assert.deepEqual([sender.states.at(-1), watcher.states.at(-1)], ["connected", "connected"]);
    assert.equal(sender.states.filter((state) => state === "connected").length, 1, "one connection from the first to the last");
    for (const client of [sender, watcher]) client.disconnect();
  });
}

test("clients of a killed edge are connected again soon, and none has failed", async () => {
  for (const n of [0, 1, 2]) {
    const several = await Promise.all(Array(6).fill(TRANSPORTS).flat().map((transport) => connect(transport)));
    // Each of them receives through whichever edge it reached by now.
    await new Promise((resolve) => setTimeout(resolve, 500));
    for (const client of several) client.states.length = 0;
    await edges[n].kill();
    // Those whose session was elsewhere notice nothing. The others hear of it within a second, by their server or by
    // pusher-js itself, which waits for another second; what it takes for a failure, it waits for 15 s.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const all = () => several.map((client) => client.states.join(" ")).join("; ");
    await eventually(() => several.every((client) => client.connection.state === "connected"), all, 5);
    assert(several.some((client) => client.states.length > 0), "some were there");
    for (const client of several) {
      assert(!client.states.includes("failed") && !client.states.includes("unavailable"), all());
      assert(client.states.filter((state) => state === "connected").length <= 1, all());
      client.disconnect();
    }
    await restart(n);
  }
});
