// Users, last events, counts and the whole HTTP API, by pusher-js and the pusher server SDK against a rehearsed cluster.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import Pusher from "pusher";
import PusherClient from "pusher-js";

import { eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const TRANSPORTS = ["ws", "xhr_streaming", "xhr_polling"];

/** An app that wants to be told how many connections are in a channel. */
const counted = (url) => `
---
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: counted, namespace: channels }
spec:
  appID: "1002"
  clientEvents: Enabled
  subscriptionCount: Enabled
  webhooks: [{ name: counts, url: "${url}", events: [subscription_count] }]
`;

let receiver;
let rehearsal;
const servers = {};
const clients = new Set();

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver, counted(receiver.url));
  const { host, port } = rehearsal.serving.api;
  for (const { id, key, secret } of rehearsal.serving.apps) {
    const encryptionMasterKeyBase64 = Buffer.alloc(32, 7).toString("base64");
    servers[id] = new Pusher({ appId: id, key, secret, host, port: String(port), useTLS: false, encryptionMasterKeyBase64 });
  }
});

after(async () => {
  for (const client of clients) client.disconnect();
  const code = await rehearsal?.stop();
  receiver?.close();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly");
});

/** A connected client of an app; `user` is who it signs in as, where it is asked to. */
async function connect(transport, { app = "1001", user } = {}) {
  const { websocket, sockjs, apps } = rehearsal.serving;
  const server = servers[app];
  const client = new PusherClient(apps.find(({ id }) => id === app).key, {
    cluster: "",
    wsHost: websocket.host,
    wsPort: websocket.port,
    httpHost: sockjs.host,
    httpPort: sockjs.port,
    forceTLS: false,
    enableStats: false,
    enabledTransports: [transport],
    userAuthentication: {
      customHandler: ({ socketId }, callback) => callback(null, server.authenticateUser(socketId, user)),
    },
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) => callback(null, server.authorizeChannel(socketId, channelName)),
    },
  });
  clients.add(client);
  client.failures = [];
  client.connection.bind("error", (error) => client.failures.push(error));
  await eventually(
    () => client.connection.state === "connected",
    () => `${transport} is ${client.connection.state}: ${JSON.stringify(client.failures)}`,
  );
  return client;
}

async function subscribe(client, name) {
  const channel = client.subscribe(name);
  await eventually(() => channel.subscribed, () => `${name}: ${JSON.stringify(client.failures)}`);
  return channel;
}

async function signIn(client) {
  client.signin();
  await client.user.signinDonePromise;
  // The client subscribes to its own channel next.
  await eventually(() => client.user.serverToUserChannel?.subscribed, () => JSON.stringify(client.failures));
}

const json = async (answer) => (await answer).json();

for (const transport of TRANSPORTS) {
  describe(`pusher-js over ${transport}`, { concurrency: true }, () => {
    test("a user is spoken to, watched, and ended by the server", async () => {
      const [ann, bob] = [`ann-${transport}`, `bob-${transport}`];
      const watcher = await connect("ws", { user: { id: `w-${transport}`, watchlist: [ann, bob] } });
      const seen = [];
      watcher.user.watchlist.bind("online", ({ user_ids: ids }) => seen.push(...ids.map((id) => `+${id}`)));
      watcher.user.watchlist.bind("offline", ({ user_ids: ids }) => seen.push(...ids.map((id) => `-${id}`)));
      await signIn(watcher);
      await eventually(() => seen.length >= 2, () => seen.join());
      assert.deepEqual(seen.splice(0), [`-${ann}`, `-${bob}`]);
      const client = await connect(transport, { user: { id: ann, user_info: { name: "Ann" } } });
      await signIn(client);
      await eventually(() => seen.includes(`+${ann}`), () => seen.join());
      const got = [];
      client.user.bind("hello", (data) => got.push(data));
      await servers[1001].sendToUser(ann, "hello", { n: 1 });
      await eventually(() => got.length > 0, () => "nothing arrived");
      assert.deepEqual(got, [{ n: 1 }]);
      const room = await subscribe(client, `presence-signed-in-${transport}`);
      assert.deepEqual(room.members.me, { id: ann, info: { name: "Ann" } });
      await servers[1001].terminateUserConnections(ann);
      await eventually(() => client.connection.state === "disconnected", () => client.connection.state);
      await eventually(() => seen.includes(`-${ann}`), () => seen.join());
    });

    test("a cache channel has its last event for those who come, and a webhook says when it has none", async () => {
      const name = `private-cache-room-${transport}`;
      const early = await connect(transport);
      const missed = [];
      const channel = early.subscribe(name);
      channel.bind("pusher:cache_miss", () => missed.push(name));
      await eventually(() => missed.length > 0, () => JSON.stringify(early.failures));
      const misses = () => receiver.events().filter((event) => event.name === "cache_miss" && event.channel === name);
      await eventually(() => misses().length > 0, () => "no webhook");
      await servers[1001].trigger(name, "score", { n: 1 });
      await servers[1001].trigger(name, "score", { n: 2 });
      const late = await connect(transport);
      const got = [];
      late.subscribe(name).bind("score", (data) => got.push(data));
      await eventually(() => got.length > 0, () => "the last event did not come");
      assert.deepEqual(got, [{ n: 2 }]);
      const { cache } = await json(servers[1001].get({ path: `/channels/${name}`, params: { info: "cache" } }));
      assert.equal(cache.data, JSON.stringify({ n: 2 }));
      assert.equal(misses().length, 1);
    });

    test("an encrypted event is read by who may, and may be for one channel only", async () => {
      const name = `private-encrypted-${transport}`;
      const client = await connect(transport);
      const channel = await subscribe(client, name);
      const got = [];
      channel.bind("secret", (data) => got.push(data));
      await servers[1001].trigger(name, "secret", { n: 1 });
      await eventually(() => got.length > 0, () => JSON.stringify(client.failures));
      assert.deepEqual(got, [{ n: 1 }]);
      const several = { name: "e", data: "{}", channels: [name, "other"] };
      await assert.rejects(servers[1001].post({ path: "/events", body: several }), { status: 400 });
    });

    test("clients and webhooks are told how many connections are in a channel", async () => {
      const name = `counted-${transport}`;
      const [one, two] = [await connect(transport, { app: "1002" }), await connect("ws", { app: "1002" })];
      const counts = [];
      const channel = one.subscribe(name);
      channel.bind("pusher:subscription_count", ({ subscription_count: count }) => counts.push(count));
      await eventually(() => counts.length > 0, () => JSON.stringify(one.failures));
      await subscribe(two, name);
      await eventually(() => counts.includes(2), () => counts.join());
      assert.equal(channel.subscriptionCount, 2);
      two.unsubscribe(name);
      await eventually(() => counts.length > 2, () => counts.join());
      one.unsubscribe(name);
      assert.deepEqual(counts, [1, 2, 1]);
      const told = () => receiver.events().filter((event) => event.channel === name);
      await eventually(() => told().length >= 4, () => JSON.stringify(told()));
      assert.deepEqual(told().map((event) => event.subscription_count), [1, 2, 1, 0]);
    });

    test("an unknown key ends in `disconnected` without another try", async () => {
      const { websocket, sockjs } = rehearsal.serving;
      const client = new PusherClient("nobody", {
        cluster: "", wsHost: websocket.host, wsPort: websocket.port, httpHost: sockjs.host, httpPort: sockjs.port,
        forceTLS: false, enableStats: false, enabledTransports: [transport],
      });
      clients.add(client);
      const errors = [];
      client.connection.bind("error", (error) => errors.push(error.data?.code ?? error.error?.data?.code));
      await eventually(() => client.connection.state === "disconnected", () => client.connection.state);
      assert.ok(errors.includes(4001), JSON.stringify(errors));
    });
  });
}

test("the server SDK is answered as Pusher answers it", async () => {
  const server = servers[1001];
  const client = await connect("ws", { user: { id: "ann" } });
  await signIn(client);
  await subscribe(client, "presence-api");
  await subscribe(client, "api-news");
  const got = [];
  client.bind_global((name, data) => name.startsWith("api-") && got.push([name, data]));
  const info = await json(server.trigger(["presence-api", "api-news"], "api-one", 1, { info: "user_count,subscription_count" }));
  assert.deepEqual(info.channels, {
    "presence-api": { user_count: 1, subscription_count: 1 }, "api-news": { subscription_count: 1 },
  });
  const batch = [
    { channel: "presence-api", name: "api-two", data: 2 },
    { channel: "api-news", name: "api-three", data: 3, socket_id: client.connection.socket_id },
    { channel: "api-news", name: "api-four", data: 4, info: "subscription_count" },
  ];
  assert.deepEqual(await json(server.triggerBatch(batch)), { batch: [{}, {}, { subscription_count: 1 }] });
  await eventually(() => got.length >= 4, () => JSON.stringify(got));
  assert.deepEqual(got, [["api-one", 1], ["api-one", 1], ["api-two", 2], ["api-four", 4]]);
  const query = { filter_by_prefix: "presence-a", info: "user_count" };
  const { channels } = await json(server.get({ path: "/channels", params: query }));
  assert.deepEqual(channels, { "presence-api": { user_count: 1 } });
  const channel = await json(server.get({ path: "/channels/presence-api", params: { info: "user_count" } }));
  assert.deepEqual(channel, { user_count: 1, occupied: true });
  assert.deepEqual(await json(server.get({ path: "/channels/presence-api/users" })), { users: [{ id: "ann" }] });
  const refused = [
    server.get({ path: "/channels", params: { info: "user_count" } }),
    server.get({ path: "/channels/api-news/users" }),
    server.triggerBatch(Array(11).fill(batch[0])),
  ];
  for (const answer of refused) await assert.rejects(answer, { status: 400 });
});

test("the pusher SDK accepts every webhook that arrived", async () => {
  for (const request of receiver.requests) {
    const key = request.headers["x-pusher-key"];
    const { id } = rehearsal.serving.apps.find((app) => app.key === key);
    assert.ok(servers[id].webhook(request).isValid(), request.rawBody);
  }
  const names = new Set(receiver.events().map(({ name }) => name));
  assert.ok(names.has("cache_miss") && names.has("subscription_count"), [...names].join());
  assert.equal(receiver.events().some(({ channel }) => channel.startsWith("#")), false);
});
