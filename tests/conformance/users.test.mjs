// Users, last events, counts and the whole HTTP API, by pusher-js and the pusher server SDK against a rehearsed cluster.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Clients, sdk, signIn, subscribe } from "./clients.mjs";
import { counted, eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const TRANSPORTS = ["ws", "xhr_streaming", "xhr_polling"];

let receiver;
let rehearsal;
const servers = {};
let clients;

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver, counted(receiver.url));
  for (const { id } of rehearsal.serving.apps) servers[id] = sdk(rehearsal, id);
  clients = new Clients(rehearsal);
});

after(async () => {
  clients?.disconnect();
  const code = await rehearsal?.stop();
  receiver?.close();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly");
});

const connect = (transport, options) => clients.connect(transport, options);
const json = async (answer) => (await answer).json();

for (const transport of TRANSPORTS) {
  describe(`pusher-js over ${transport}`, { concurrency: true }, () => {
    test("the server sends to a user, reports it to its watchers, and terminates its connections", async () => {
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

    test("a late subscriber of a cache channel receives the last event, and a webhook reports a cache miss", async () => {
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

    test("a subscriber decrypts an encrypted event, and such an event for several channels is refused", async () => {
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

    test("clients and webhooks receive the number of connections in a channel", async () => {
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
      const reported = () => receiver.events().filter((event) => event.channel === name);
      await eventually(() => reported().length >= 4, () => JSON.stringify(reported()));
      assert.deepEqual(reported().map((event) => event.subscription_count), [1, 2, 1, 0]);
    });

    test("an unknown key ends in `disconnected` without another try", async () => {
      const client = clients.begin("nobody", transport);
      await eventually(() => client.connection.state === "disconnected", () => client.connection.state);
      const codes = client.failures.map((failure) => failure.data?.code ?? failure.error?.data?.code);
      assert.ok(codes.includes(4001), JSON.stringify(codes));
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
  await Promise.all(refused.map((answer) => assert.rejects(answer, { status: 400 })));
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
