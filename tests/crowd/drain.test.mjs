// What pusher-js clients and webhooks see of a pod that goes: 1,000 WebSockets and 200 HTTP sessions move to two others.
import assert from "node:assert/strict";
import http from "node:http";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";

import Pusher from "pusher";
import PusherClient from "pusher-js";

import { loopback } from "../conformance/clients.mjs";
import { KEY, startDispatcher, startRelayingEdges } from "../conformance/edge.mjs";
import { kinesisPorts, spawnLogged, startRedis, waitUntilReady } from "../conformance/processes.mjs";
import { startEntry } from "./entry.mjs";
import { BIN, cleanEnvironment, eventually, startReceiver } from "../conformance/rehearsal.mjs";

const CROWD = { ws: 1000, xhr_streaming: 100, xhr_polling: 100 };
/** Members of one presence channel. */
const TOGETHER = 50;
/** Client events a second, over all clients. */
const EVENTS = 400;
/** What a second of the test may hold: closes, and milliseconds of any stretch of time that is looked at. */
const [CLOSES, STRETCH] = [20, 100];
/** Longest that a dispatcher holds back what a drain caused, in seconds. */
const HELD_BACK = 10;

const servers = [];
const clients = [];
let redis;
let kinesis;
let receiver;
let edges;
let entry;
let sdk;

before(async () => {
  http.globalAgent = new http.Agent({ keepAlive: false });
  receiver = await startReceiver();
  redis = await startRedis();
  kinesis = spawnLogged(join(dirname(BIN), "examples/kinesis"), ["127.0.0.1:0", "127.0.0.1:0"], { env: cleanEnvironment() });
  const { port: kinesisPort } = await waitUntilReady("Kinesis", kinesis, kinesisPorts);
  const stream = {
    REALTIME_STREAM_NAME: "events",
    REALTIME_AWS_IDENTITY: "StaticKeys",
    AWS_ACCESS_KEY_ID: "a",
    AWS_SECRET_ACCESS_KEY: "b",
    AWS_ENDPOINT_URL_KINESIS: `http://127.0.0.1:${kinesisPort}`,
  };
  await createStream(stream.AWS_ENDPOINT_URL_KINESIS);
  const webhooks = [{ name: "hook", url: receiver.url, events: [], channelPrefix: "", timeoutSeconds: 4 }];
  servers.push(await startDispatcher(stream, webhooks));
  ({ edges } = await startRelayingEdges(3, redis.port, {
    ...stream,
    REALTIME_SERVER: "edge",
    REALTIME_TRANSPORTS: "websocket,xhr_streaming,xhr_polling",
    REALTIME_WEBHOOKS: "kinesis",
    REALTIME_DRAIN_HOLD_SECONDS: "1",
  }, webhooks));
  servers.push(...edges);
  entry = await startEntry([edges[0].port]);
  sdk = new Pusher({ appId: "1", key: KEY, secret: "secret1", host: "127.0.0.1", port: String(edges[1].port), useTLS: false });
});

after(async () => {
  for (const client of clients) client.disconnect();
  await entry?.close();
  await Promise.all(servers.map((server) => server.stop()));
  await redis?.stop();
  await kinesis?.stop("SIGTERM");
  receiver?.close();
});

async function createStream(endpoint) {
  const call = async (action, body) => fetch(endpoint, {
    method: "POST",
    headers: {
      "content-type": "application/x-amz-json-1.1",
      "x-amz-target": `Kinesis_20131202.${action}`,
      "x-amz-date": new Date().toISOString().replace(/[-:]|\.\d+/g, ""),
      authorization: "AWS4-HMAC-SHA256 Credential=a/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host, Signature=0",
    },
    body: JSON.stringify({ StreamName: "events", ...body }),
  }).catch(() => undefined);
  let created;
  let active;
  await eventually(() => {
    call(created ? "DescribeStreamSummary" : "CreateStream", created ? {} : { ShardCount: 2 }).then(async (answer) => {
      const text = (await answer?.text()) ?? "";
      created ||= answer?.ok || text.includes("ResourceInUse");
      active ||= text.includes('"ACTIVE"');
    });
    return active;
  }, () => "no stream");
}

/** A client of whom is kept what it really sent, and the states that it went through. */
function begin(port, transport, n) {
  const client = new PusherClient(KEY, {
    ...loopback(port, transport),
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) => {
        const member = channelName.startsWith("presence-") ? { user_id: `user-${n}` } : undefined;
        callback(null, sdk.authorizeChannel(socketId, channelName, member));
      },
    },
  });
  clients.push(client);
  Object.assign(client, { n, transport, sent: [], states: [] });
  client.connection.bind("state_change", ({ current }) => {
    client.states.push(current);
    if (current === "connected") keepWhatIsSent(client);
  });
  client.own = client.subscribe(`private-own-${n}`);
  client.shared = client.subscribe(`presence-room-${Math.floor(n / TOGETHER)}`);
  return client;
}

/** pusher-js says that it has sent what it only means to send. */
function keepWhatIsSent(client) {
  const { socket } = client.connection.connection.transport;
  const send = socket.send.bind(socket);
  socket.send = (text) => {
    const went = send(text);
    const { event, data } = JSON.parse(text);
    if (event === "client-said" && went !== false) client.sent.push(data);
    return went;
  };
}

const settled = (client) => client.connection.state === "connected" && client.own.subscribed && client.shared.subscribed;

/** Most of these times that lie within any stretch of so many milliseconds. */
function densest(times, stretch) {
  let [most, first] = [0, 0];
  for (let last = 0; last < times.length; last++) {
    while (times[last] - times[first] >= stretch) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

test("the largest number of events within a window is found", () => {
  assert.equal(densest([], 100), 0);
  assert.equal(densest([0, 99, 100, 150, 198, 199.5], 100), 4);
});

test("a terminating pod closes its clients a few at a time, and no departure is reported", async (t) => {
  const crowd = [];
  for (const [transport, count] of Object.entries(CROWD)) {
    for (let n = 0; n < count; n += 50) {
      const group = Array.from({ length: 50 }, () => crowd[crowd.push(begin(entry.port, transport, crowd.length)) - 1]);
      await eventually(() => group.every(settled), () => `${group.filter(settled).length} of ${group.length} over ${transport}`, 60);
    }
  }
  const ticks = [[], []];
  for (const [n, heard] of ticks.entries()) {
    const watcher = begin(edges[n + 1].port, "ws", `watcher-${n}`);
    watcher.subscribe("ticks").bind("tick", ({ n }) => heard.push(n));
    await eventually(() => settled(watcher) && watcher.channel("ticks").subscribed, () => `watcher ${n}: ${watcher.connection.state}`);
  }

  let [turn, ticked] = [0, 0];
  const talking = setInterval(() => {
    for (let n = 0; n < EVENTS / 100; n++) {
      const client = crowd[turn % crowd.length];
      if (settled(client)) client.own.trigger("client-said", turn);
      turn += 1;
    }
  }, 10);
  const publishing = (async () => {
    while (ticked >= 0) {
      await sdk.trigger("ticks", "tick", { n: ticked });
      ticked += 1;
      await new Promise((resolve) => setTimeout(resolve, 25));
      if (publishing.over) return ticked;
    }
  })();
  // What goes on would keep the process from ending when something fails.
  t.after(() => {
    clearInterval(talking);
    publishing.over = true;
  });
  await eventually(() => crowd.some((client) => client.sent.length > 1), () => "nobody has said anything twice");

  // As in a cluster: a pod that is not ready gets no new connections, and what it has lasts.
  for (const client of crowd) client.states.length = 0;
  const stopped = edges[0].stop(170);
  await entry.to([edges[1].port, edges[2].port]);
  const began = Date.now();
  const back = (client) => client.states.length > 0 && settled(client);
  await eventually(() => crowd.every(back), () => `${crowd.filter(back).length} of ${crowd.length} are back`, 120);
  const took = Date.now() - began;
  assert.equal(await stopped, 0, "it ends cleanly");
  servers.splice(servers.indexOf(edges[0]), 1);
  const ended = Date.now();

  for (const client of crowd) {
    assert.deepEqual(client.states, ["connecting", "connected"], `${client.transport} ${client.n}`);
    const { name } = client.connection.connection.transport;
    assert.equal(name, client.transport, "each comes back on its own transport");
  }
  const farewells = (await entry.farewells()).sort((a, b) => a - b);
  assert.equal(farewells.length, crowd.length);
  const most = densest(farewells, STRETCH);
  assert(most <= CLOSES, `${most} closes within ${STRETCH} ms`);

  clearInterval(talking);
  publishing.over = true;
  const published = await publishing;
  for (const heard of ticks) {
    await eventually(() => heard.length >= published, () => `${heard.length} of ${published} ticks`);
    assert.deepEqual(heard, Array.from({ length: published }, (_, n) => n), "who stays misses nothing");
  }
  const sent = crowd.flatMap((client) => client.sent);
  const said = () => receiver.events().filter(({ name }) => name === "client_event").map(({ data }) => Number(data));
  const missing = () => {
    const arrived = new Set(said());
    return crowd.flatMap(({ n, transport, sent }) => sent.filter((data) => !arrived.has(data)).map((data) => ({ n, transport, data, sent })));
  };
  await eventually(() => missing().length === 0, () => `of ${sent.length} events: ${JSON.stringify(missing().slice(0, 3))}`, 60);

  // What the drain had caused would have come before what a client causes that leaves now.
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, HELD_BACK * 1000 - (Date.now() - ended))));
  const gone = () => receiver.events().filter(({ name }) => ["channel_vacated", "member_removed"].includes(name));
  crowd[0].disconnect();
  await eventually(() => gone().some(({ channel }) => channel === crowd[0].own.name), () => "the last one has not left");
  await eventually(() => gone().some(({ name }) => name === "member_removed"), () => "the last member has not left");
  const expected = [crowd[0].own.name, crowd[0].shared.name];
  const wrong = gone().filter(({ channel }) => !expected.includes(channel));
  assert(gone().length === 2 && wrong.length === 0, `${gone().length} were reported as gone: ${JSON.stringify(wrong.slice(0, 3))}`);
  t.diagnostic(`${crowd.length} clients moved in ${(took / 1000).toFixed(1)} s, at most ${most} closes within ${STRETCH} ms, ${sent.length} events`);
});
