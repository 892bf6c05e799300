// What must not look like leaving: a long stream that its client opens again and again, and a page that is refreshed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";

import PusherClient from "pusher-js";

import { startChromium } from "./chromium.mjs";
import { Clients, addresses, sdk, subscribe } from "./clients.mjs";
import { eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const MESSAGES = 700;
const TEXT = "x".repeat(4096);
/** pusher-js opens a stream again when it has read 256 Ki characters of it. */
const REOPENS = Math.floor((MESSAGES * TEXT.length) / (256 * 1024));
/** What passes before a session without a receiver counts as gone (5 s) and an absence is reported (3 s), and some more. */
const UNTIL_TOLD_MS = 10_000;
const AWAY_MS = 500;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let receiver;
let rehearsal;
let server;
let clients;
let pages;
let browser;

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver);
  server = sdk(rehearsal);
  clients = new Clients(rehearsal);
  pages = createServer(page);
  pages.listen(0, "127.0.0.1");
  await once(pages, "listening");
  browser = await startChromium();
});

after(async () => {
  clients?.disconnect();
  await browser?.close();
  pages?.closeAllConnections();
  pages?.close();
  const code = await rehearsal?.stop();
  receiver?.close();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly");
});

/** A customer's site: a page that connects over `transport` and subscribes to `channel`, as the member `as`. */
async function page(request, response) {
  const { pathname, searchParams } = new URL(request.url, "http://site");
  if (pathname === "/pusher.js") {
    const script = await readFile(new URL("./node_modules/pusher-js/dist/web/pusher.js", import.meta.url));
    return response.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
  }
  if (pathname === "/auth") {
    let form = "";
    for await (const chunk of request) form += chunk;
    const asked = new URLSearchParams(form);
    const member = { user_id: searchParams.get("as"), user_info: {} };
    const answer = server.authorizeChannel(asked.get("socket_id"), asked.get("channel_name"), member);
    return response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify(answer));
  }
  const options = {
    ...addresses(rehearsal, searchParams.get("transport")),
    channelAuthorization: { endpoint: `/auth?as=${searchParams.get("as")}`, transport: "ajax" },
  };
  return response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(`<!doctype html>
<meta charset=utf-8><title>page</title><script src=/pusher.js></script>
<script>
  client = new Pusher(${JSON.stringify(rehearsal.app.key)}, ${JSON.stringify(options)});
  [got, ids] = [[], []];
  client.connection.bind("connected", ({ socket_id }) => ids.push(socket_id));
  channel = client.subscribe(${JSON.stringify(searchParams.get("channel"))});
  channel.bind("numbered", ({ n, text }) => got.push([n, text.length]));
</script>`);
}

/** Opens the customer's page, and resolves when it has subscribed. */
async function open(tab, query) {
  await tab.goto(`http://127.0.0.1:${pages.address().port}/?${new URLSearchParams(query)}`);
  await tab.waitForFunction(() => channel.subscribed, undefined, { timeout: 20_000 });
  assert.equal(await tab.evaluate(() => client.connection.connection.transport.name), query.transport);
}

/** Publishes the messages in order, a few in one request. */
async function publish(channel) {
  for (let n = 0; n < MESSAGES;) {
    const batch = [];
    for (; batch.length < 10 && n < MESSAGES; n += 1) batch.push({ channel, name: "numbered", data: { n, text: TEXT } });
    await server.triggerBatch(batch);
  }
}

const EXPECTED = Array.from({ length: MESSAGES }, (_, n) => [n, TEXT.length]);

describe("700 messages of 4 KB through one stream arrive, in order and on one connection", () => {
  test("in Node", async () => {
    const client = await clients.connect("xhr_streaming");
    const [got, ids] = [[], [client.connection.socket_id]];
    client.connection.bind("connected", ({ socket_id: id }) => ids.push(id));
    const channel = await subscribe(client, "long-node");
    channel.bind("numbered", ({ n, text }) => got.push([n, text.length]));
    const { Runtime } = PusherClient;
    const request = Runtime.createSocketRequest;
    let opened = 0;
    Runtime.createSocketRequest = (method, url) => {
      opened += url.includes("/xhr_streaming") ? 1 : 0;
      return request.call(Runtime, method, url);
    };
    await publish("long-node");
    await eventually(() => got.length >= MESSAGES, () => `${got.length}: ${JSON.stringify(client.failures)}`, 30);
    Runtime.createSocketRequest = request;
    assert.deepEqual(got, EXPECTED);
    assert.deepEqual(ids, [client.connection.socket_id]);
    assert.ok(opened >= REOPENS, `the stream was opened again ${opened} times`);
  });

  test("in Chromium", async () => {
    const tab = await browser.newPage();
    let opened = 0;
    tab.on("request", (request) => (opened += request.method() === "POST" && request.url().includes("/xhr_streaming") ? 1 : 0));
    await open(tab, { transport: "xhr_streaming", channel: "long-chromium" });
    const before = opened;
    await publish("long-chromium");
    await tab.waitForFunction((count) => got.length >= count, MESSAGES, { timeout: 30_000, polling: 50 });
    assert.deepEqual(await tab.evaluate(() => got), EXPECTED);
    assert.deepEqual(await tab.evaluate(() => ids), [await tab.evaluate(() => client.connection.socket_id)]);
    assert.ok(opened - before >= REOPENS, `the stream was opened again ${opened - before} times`);
    await tab.close();
  });
});

/** The webhook events of a channel, once it is vacated for good. */
async function reportedChanges(name) {
  const found = () => receiver.events().filter(({ channel }) => channel === name);
  await eventually(() => found().at(-1)?.name === "channel_vacated", () => JSON.stringify(found()));
  return found().map((event) => [event.name, event.user_id].filter(Boolean).join(" "));
}

describe("a refreshed page is never reported as gone", { concurrency: true }, () => {
  for (const transport of ["ws", "xhr_streaming"]) {
    test(`in Node over ${transport}: the connection drops and another comes half a second later`, async () => {
      const name = `presence-refresh-node-${transport}`;
      const first = await clients.connect(transport, { member: "ann" });
      await subscribe(first, name);
      first.disconnect();
      await pause(AWAY_MS);
      const second = await clients.connect(transport, { member: "ann" });
      await subscribe(second, name);
      await pause(UNTIL_TOLD_MS);
      const { users } = await (await server.get({ path: `/channels/${name}/users` })).json();
      assert.deepEqual(users, [{ id: "ann" }]);
      second.disconnect();
      assert.deepEqual(await reportedChanges(name), ["channel_occupied", "member_added ann", "member_removed ann", "channel_vacated"]);
    });

    test(`in Chromium over ${transport}: the member is still there for another`, async () => {
      const name = `presence-refresh-chromium-${transport}`;
      const watcher = await clients.connect("ws", { member: "bob" });
      const room = await subscribe(watcher, name);
      const seen = [];
      const tab = await browser.newPage();
      const query = { transport, channel: name, as: "ann" };
      await open(tab, query);
      await eventually(() => room.members.get("ann"), () => "ann is not there");
      room.bind("pusher:member_removed", ({ id }) => seen.push(`-${id}`));
      room.bind("pusher:member_added", ({ id }) => seen.push(`+${id}`));
      await tab.goto("about:blank");
      await pause(AWAY_MS);
      await open(tab, query);
      await pause(UNTIL_TOLD_MS);
      assert.ok(room.members.get("ann"), `ann is gone: ${seen}`);
      // A socket's end is seen at once; a session without a receiver waits for one.
      assert.deepEqual(seen, transport === "ws" ? ["-ann", "+ann"] : []);
      await tab.close();
      await eventually(() => !room.members.get("ann"), () => "ann is still there");
      watcher.disconnect();
      const events = await reportedChanges(name);
      assert.deepEqual(events.slice(0, 3), ["channel_occupied", "member_added bob", "member_added ann"]);
      assert.deepEqual(events.slice(3).sort(), ["channel_vacated", "member_removed ann", "member_removed bob"]);
    });
  }
});
