// pusher-js and the pusher server SDK against a rehearsed cluster, on every transport.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Clients, sdk, subscribe } from "./clients.mjs";
import { eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const TRANSPORTS = ["ws", "xhr_streaming", "xhr_polling"];
const THOUSAND = 1000;
const COUNTED = Array.from({ length: THOUSAND }, (_, n) => n);

let receiver;
let rehearsal;
let server;
let clients;

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver);
  server = sdk(rehearsal);
  clients = new Clients(rehearsal);
});

after(async () => {
  clients?.disconnect();
  const code = await rehearsal?.stop();
  receiver?.close();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly");
});

const connect = (transport, member) => clients.connect(transport, { member });

/** Webhook events of a channel, once there are `count`. */
async function webhooks(name, count, seconds) {
  const found = () => receiver.events().filter(({ channel }) => channel === name);
  await eventually(
    () => found().length >= count,
    () => `${found().length} of ${count} webhook events: ${JSON.stringify(found().slice(-10))}`,
    seconds,
  );
  return found();
}

/**
 * The data of a channel's client events, once its last client has left. A channel's webhooks come in order, so a
 * client event that is reported once more would stand before `channel_vacated`.
 */
async function delivered(name) {
  const found = () => receiver.events().filter(({ channel }) => channel === name);
  await eventually(
    () => found().at(-1)?.name === "channel_vacated",
    () => `${found().length} webhook events, the last ${JSON.stringify(found().at(-1))}`,
    60,
  );
  const events = found().filter((event) => event.name === "client_event");
  const once = new Set(events.map(({ id }) => id)).size;
  assert.equal(events.length, once, `${events.length - once} of ${events.length} client events were delivered twice`);
  return events.map(({ data }) => JSON.parse(data));
}

for (const transport of TRANSPORTS) {
  describe(`pusher-js over ${transport}`, { concurrency: true }, () => {
    test("client events reach the others and never the sender, and become webhooks", async () => {
      const name = `private-events-${transport}`;
      const [one, two] = [await connect(transport), await connect("ws")];
      const [sender, other] = [await subscribe(one, name), await subscribe(two, name)];
      const [own, got] = [[], []];
      sender.bind("client-greet", (data) => own.push(data));
      other.bind("client-greet", (data) => got.push(data));
      assert.ok(sender.trigger("client-greet", { text: "grüß dich", n: 1 }));
      await eventually(() => got.length > 0, () => "no client event arrived");
      assert.deepEqual(got, [{ text: "grüß dich", n: 1 }]);
      assert.deepEqual(own, []);
      const socketId = one.connection.socket_id;
      one.disconnect();
      two.disconnect();
      const events = await webhooks(name, 3);
      assert.deepEqual(events.map((event) => event.name), ["channel_occupied", "client_event", "channel_vacated"]);
      assert.equal(events[1].data, JSON.stringify({ text: "grüß dich", n: 1 }), "data is a string");
      assert.equal(events[1].socket_id, socketId);
    });

    test("presence: members see each other come and go, and webhooks tell of it", async () => {
      const name = `presence-room-${transport}`;
      const [one, two] = [await connect(transport, "ann"), await connect(transport, "bob")];
      const room = await subscribe(one, name);
      const seen = [];
      room.bind("pusher:member_added", (member) => seen.push(`+${member.id}`));
      room.bind("pusher:member_removed", (member) => seen.push(`-${member.id}`));
      const second = await subscribe(two, name);
      assert.equal(second.members.count, 2);
      assert.equal(second.members.me.id, "bob");
      assert.deepEqual(second.members.get("ann").info, { name: "ann" });
      await eventually(() => seen.includes("+bob"), () => seen.join());
      two.unsubscribe(name);
      await eventually(() => seen.includes("-bob"), () => seen.join());
      one.unsubscribe(name);
      const events = await webhooks(name, 6);
      const changes = events.map((event) => [event.name, event.user_id].filter(Boolean).join(" "));
      assert.deepEqual(changes.slice(0, 3), ["channel_occupied", "member_added ann", "member_added bob"]);
      assert.deepEqual(changes.slice(3).sort(), ["channel_vacated", "member_removed ann", "member_removed bob"]);
      assert.equal(changes.at(-1), "channel_vacated", "the channel is vacated after its members left");
    });

    test("a publish through the server SDK reaches the subscriber", async () => {
      const client = await connect(transport);
      const channel = await subscribe(client, `news-${transport}`);
      const got = [];
      channel.bind("headline", (data) => got.push(data));
      await server.trigger(`news-${transport}`, "headline", { title: "It works" });
      await eventually(() => got.length > 0, () => "nothing arrived");
      assert.deepEqual(got, [{ title: "It works" }]);
    });

    test("a subscription with a wrong signature is refused and the connection goes on", async () => {
      const client = await connect(transport);
      client.backend.server = sdk(rehearsal, "1001", "wrong");
      const refused = client.subscribe(`private-refused-${transport}`);
      client.backend.server = server;
      await eventually(() => client.failures.length > 0, () => "no error");
      assert.equal(refused.subscribed, false);
      await subscribe(client, `private-accepted-${transport}`);
      assert.equal(client.connection.state, "connected");
    });

    test("an 11 KB client event is refused and the connection goes on", async () => {
      const name = `private-large-${transport}`;
      const [one, two] = [await connect(transport), await connect("ws")];
      const [sender, other] = [await subscribe(one, name), await subscribe(two, name)];
      const got = [];
      other.bind("client-size", (data) => got.push(data.length));
      sender.trigger("client-size", "x".repeat(11 * 1024));
      await eventually(() => one.failures.length > 0, () => "no error");
      sender.trigger("client-size", "small");
      await eventually(() => got.length > 0, () => "the next event did not arrive");
      assert.deepEqual(got, [5]);
      assert.equal(one.connection.state, "connected");
    });
  });
}

for (const transport of TRANSPORTS) {
  // One after the other: together they would take the time that the tests above wait for.
  describe(`a thousand client events over ${transport}`, () => {
    test("those that wait for one another become 1,000 webhooks, in order", async () => {
      const name = `private-order-${transport}`;
      const [one, two] = [await connect(transport), await connect("ws")];
      const [sender, other] = [await subscribe(one, name), await subscribe(two, name)];
      const got = [];
      other.bind("client-count", (n) => {
        got.push(n);
        if (n < THOUSAND - 1) sender.trigger("client-count", n + 1);
      });
      sender.trigger("client-count", 0);
      await eventually(() => got.length >= THOUSAND, () => `${got.length} of ${THOUSAND}`, 60);
      one.disconnect();
      two.disconnect();
      assert.deepEqual(got, COUNTED);
      assert.deepEqual(await delivered(name), COUNTED);
    });

    test("those sent at once become 1,000 webhooks, in the order in which others got them", async () => {
      const name = `private-burst-${transport}`;
      const [one, two] = [await connect(transport), await connect("ws")];
      const [sender, other] = [await subscribe(one, name), await subscribe(two, name)];
      const got = [];
      other.bind("client-count", (n) => got.push(n));
      for (const n of COUNTED) assert.ok(sender.trigger("client-count", n));
      await eventually(() => got.length >= THOUSAND, () => `${got.length} of ${THOUSAND}`, 60);
      one.disconnect();
      two.disconnect();
      // A fallback client sends each event in a request of its own, side by side: the server sees them in any order.
      const order = transport === "ws" ? COUNTED : got;
      assert.deepEqual([...got].sort((a, b) => a - b), COUNTED);
      assert.deepEqual(await delivered(name), order);
    });
  });
}

test("a publish with a wrong secret, and one of 11 KB, are refused as Pusher refuses them, and reach nobody", async () => {
  const client = await connect("ws");
  const channel = await subscribe(client, "news");
  const got = [];
  channel.bind("headline", (data) => got.push(data));
  await assert.rejects(sdk(rehearsal, "1001", "wrong").trigger("news", "headline", "forged"), { status: 401 });
  await assert.rejects(server.trigger("news", "headline", "x".repeat(11 * 1024)), { status: 413 });
  await server.trigger("news", "headline", "right");
  await eventually(() => got.length > 0, () => "the right one did not arrive");
  assert.deepEqual(got, ["right"]);
  assert.equal(client.connection.state, "connected");
});

test("the pusher SDK accepts every webhook that arrived, and none that was changed", async () => {
  await eventually(() => receiver.requests.length > 20, () => `${receiver.requests.length} webhooks`);
  for (const request of receiver.requests) {
    assert.ok(server.webhook(request).isValid(), request.rawBody);
  }
  const [request] = receiver.requests;
  const changed = { ...request, rawBody: request.rawBody.replace('"', '" ') };
  assert.notEqual(changed.rawBody, request.rawBody);
  assert.equal(server.webhook(changed).isValid(), false);
  assert.equal(sdk(rehearsal, "1001", "wrong").webhook(request).isValid(), false);
});
