// The server SDK for Python against a rehearsed cluster: all that it has, and every kind of webhook, which the npm one
// must accept too.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { after, before, test } from "node:test";

import { Clients, sdk, signIn, subscribe } from "./clients.mjs";
import { startPython } from "./python.mjs";
import { counted, eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const KINDS = [
  "cache_miss", "channel_occupied", "channel_vacated", "client_event", "member_added", "member_removed", "subscription_count",
];

let receiver;
let rehearsal;
let python;
let clients;

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver, counted(receiver.url));
  python = startPython(rehearsal.serving);
  clients = new Clients(rehearsal);
});

after(async () => {
  clients?.disconnect();
  const code = await python?.stop();
  const how = await rehearsal?.stop();
  receiver?.close();
  assert.equal(code, 0, "the SDK's process ends when it is asked no more");
  assert.equal(how, 0, "Ctrl-C ends a rehearsal cleanly");
});

const ask = (method, args) => python.ask("1001", method, args);

/** A client for which Python signs. */
function connect({ user, member } = {}) {
  const server = {
    authenticateUser: (socket, data) => ask("authenticate_user", { socket_id: socket, user_data: data }),
    authorizeChannel: (socket, channel, data) => ask("authenticate", { channel, socket_id: socket, custom_data: data ?? null }),
  };
  return clients.connect("ws", { user, member, server });
}

test("a client subscribes with the signatures of the SDK", async () => {
  const client = await connect({ user: { id: "ann", user_info: { name: "Ann" } } });
  await signIn(client);
  await subscribe(client, "private-signed");
  const room = await subscribe(client, "presence-signed");
  assert.deepEqual(room.members.me, { id: "ann", info: { name: "Ann" } });
  const other = await connect({ member: "bob" });
  const seen = await subscribe(other, "presence-signed");
  assert.deepEqual(seen.members.me, { id: "bob", info: { name: "bob" } });
  assert.equal(seen.members.count, 2);
  assert.deepEqual([client.failures, other.failures], [[], []]);
});

test("an event published by the SDK reaches all but the excluded socket", async () => {
  const [one, two] = [await connect(), await connect()];
  const got = { one: [], two: [] };
  for (const [client, list] of [[one, got.one], [two, got.two]]) {
    for (const name of ["news", "sport", "private-encrypted-news"]) {
      (await subscribe(client, name)).bind("announced", (data) => list.push([name, data]));
    }
  }
  assert.deepEqual(await ask("trigger", { channels: ["news", "sport"], event_name: "announced", data: { text: "grüß dich" } }), {});
  const except = one.connection.socket_id;
  assert.deepEqual(await ask("trigger", { channels: "news", event_name: "announced", data: "two", socket_id: except }), {});
  const batch = [
    { channel: "news", name: "announced", data: 1 },
    { channel: "private-encrypted-news", name: "announced", data: { secret: 2 } },
    { channel: "sport", name: "announced", data: 3, socket_id: except },
  ];
  assert.deepEqual(await ask("trigger_batch", { batch }), {});
  await eventually(() => got.one.length >= 4 && got.two.length >= 6, () => JSON.stringify(got));
  const first = [["news", { text: "grüß dich" }], ["sport", { text: "grüß dich" }]];
  const encrypted = ["private-encrypted-news", { secret: 2 }];
  assert.deepEqual(got.one, [...first, ["news", 1], encrypted]);
  assert.deepEqual(got.two, [...first, ["news", "two"], ["news", 1], encrypted, ["sport", 3]]);
});

test("the SDK's queries of channels are answered", async () => {
  const client = await connect({ member: "bob" });
  for (const name of ["presence-asked", "cache-asked"]) await subscribe(client, name);
  await ask("trigger", { channels: "cache-asked", event_name: "kept", data: { n: 1 } });
  const { channels } = await ask("channels_info");
  assert.ok(channels["presence-asked"] && channels["cache-asked"], JSON.stringify(channels));
  assert.deepEqual(await ask("channels_info", { prefix_filter: "presence-ask", attributes: ["user_count"] }), {
    channels: { "presence-asked": { user_count: 1 } },
  });
  assert.deepEqual(await ask("channel_info", { channel: "presence-asked", attributes: ["user_count", "subscription_count"] }), {
    occupied: true, user_count: 1, subscription_count: 1,
  });
  const { cache, ...rest } = await ask("channel_info", { channel: "cache-asked", attributes: ["cache"] });
  assert.deepEqual([JSON.parse(cache.data), rest], [{ n: 1 }, { occupied: true }]);
  assert.ok(cache.ttl > 1700 && cache.ttl <= 1800, `${cache.ttl}`);
  assert.deepEqual(await ask("channel_info", { channel: "nobody-here" }), { occupied: false });
  assert.deepEqual(await ask("users_info", { channel: "presence-asked" }), { users: [{ id: "bob" }] });
});

test("a user receives events and is terminated", async () => {
  const [eve, dan] = [await connect({ user: { id: "eve" } }), await connect({ user: { id: "dan" } })];
  for (const client of [eve, dan]) await signIn(client);
  const got = [];
  for (const client of [eve, dan]) client.user.bind("hello", (data) => got.push(data));
  assert.deepEqual(await ask("send_to_user", { user_id: "eve", event_name: "hello", data: { n: 1 } }), {});
  await eventually(() => got.length > 0, () => "nothing arrived");
  assert.deepEqual(got, [{ n: 1 }]);
  assert.deepEqual(await ask("terminate_user_connections", { user_id: "eve" }), {});
  await eventually(() => eve.connection.state === "disconnected", () => eve.connection.state);
  assert.equal(dan.connection.state, "connected");
});

test("mistakes raise the SDK's own exceptions", async () => {
  const rejected = async (method, args, error, part) => {
    const answer = await python.call("1001", method, args);
    assert.equal(answer.error, error, JSON.stringify(answer));
    assert.match(answer.message, part);
  };
  await rejected("users_info", { channel: "news" }, "PusherBadRequest", /presence/);
  await rejected("channels_info", { attributes: ["user_count"] }, "PusherBadRequest", /filter_by_prefix/);
  await rejected("channel_info", { channel: "news", attributes: ["user_count"] }, "PusherBadRequest", /presence/);
  const batch = Array(11).fill({ channel: "news", name: "announced", data: 1 });
  await rejected("trigger_batch", { batch }, "PusherBadRequest", /1 to 10/);
  const large = { channels: "news", event_name: "announced", data: "x".repeat(11 * 1024) };
  await rejected("trigger", large, "PusherBadStatus", /^413: /);
  const { key, secret } = rehearsal.app;
  const wrong = startPython({ ...rehearsal.serving, apps: [{ id: "1001", key, secret: `${secret}x` }] });
  const answers = [
    await wrong.call("1001", "trigger", { channels: "news", event_name: "announced", data: 1 }),
    await wrong.call("1001", "terminate_user_connections", { user_id: "dan" }),
  ];
  await wrong.stop();
  assert.deepEqual(answers.map(({ error }) => error), ["PusherBadAuth", "PusherBadAuth"]);
});

/** Lets every kind of webhook be sent. */
async function cause() {
  const [one, two] = [await connect({ member: "ann" }), await connect({ member: "bob" })];
  const room = await subscribe(one, "presence-hooks");
  await subscribe(two, "presence-hooks");
  await subscribe(one, "private-cache-hooks");
  assert.ok(room.trigger("client-said", { text: "grüß dich \u2028" }));
  const counting = await clients.connect("ws", { app: "1002" });
  await subscribe(counting, "counted-hooks");
  const kinds = () => [...new Set(receiver.events().map(({ name }) => name))].sort();
  await eventually(() => kinds().includes("client_event"), () => kinds().join());
  for (const client of [one, two, counting]) client.disconnect();
  await eventually(() => kinds().length >= KINDS.length, () => kinds().join());
  assert.deepEqual(kinds(), KINDS);
}

test("both SDKs accept webhooks of all seven kinds, and none that is forged", async () => {
  await cause();
  const accepted = new Set();
  for (const { rawBody, headers } of receiver.requests) {
    const { id } = rehearsal.serving.apps.find((app) => app.key === headers["x-pusher-key"]);
    const webhook = { key: headers["x-pusher-key"], signature: headers["x-pusher-signature"], body: rawBody };
    assert.deepEqual(await python.ask(id, "validate_webhook", webhook), JSON.parse(rawBody));
    const theirs = sdk(rehearsal, id).webhook({ rawBody, headers });
    assert.ok(theirs.isValid(), rawBody);
    for (const { name } of theirs.getEvents()) accepted.add(name);

    const flipped = webhook.signature.replace(/^./, (digit) => (digit === "0" ? "1" : "0"));
    const changed = rawBody.replace("time_ms", "time_mS");
    const other = rehearsal.serving.apps.find((app) => app.id !== id);
    for (const forged of [
      { ...webhook, signature: flipped }, { ...webhook, body: changed }, { ...webhook, key: other.key },
    ]) {
      assert.equal(await python.ask(id, "validate_webhook", forged), null);
      const signed = { ...headers, "x-pusher-key": forged.key, "x-pusher-signature": forged.signature };
      assert.equal(sdk(rehearsal, id).webhook({ rawBody: forged.body, headers: signed }).isValid(), false);
    }
  }
  assert.deepEqual([...accepted].sort(), KINDS);
});

test("a webhook is accepted for five minutes", async () => {
  const [{ rawBody, headers }] = await eventually(() => receiver.requests.length > 0 && receiver.requests, () => "no webhook");
  const app = rehearsal.serving.apps.find(({ key }) => key === headers["x-pusher-key"]);
  const body = JSON.parse(rawBody);
  assert.ok(Math.abs(Date.now() - body.time_ms) < 60_000, "it tells when it happened");
  for (const [age, accepted] of [[290_000, true], [310_000, false], [-310_000, false]]) {
    const old = JSON.stringify({ ...body, time_ms: Date.now() - age });
    const signature = createHmac("sha256", app.secret).update(old).digest("hex");
    const answer = await python.ask(app.id, "validate_webhook", { key: app.key, signature, body: old });
    assert.equal(answer !== null, accepted, `${age} ms`);
  }
});
