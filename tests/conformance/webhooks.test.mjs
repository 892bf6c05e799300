// Webhooks as a customer receives them: by the server SDK for Go, and by the receiver in examples/webhooks.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";

import { EventFilter, createReceiver, isSigned } from "../../examples/webhooks/receiver.mjs";
import { Clients, subscribe } from "./clients.mjs";
import { eventually, startReceiver, startRehearsal } from "./rehearsal.mjs";

const GO_FOLDER = new URL("./go", import.meta.url).pathname;
const ROOM = "presence-hooks";

let receiver;
let rehearsal;

before(async () => {
  receiver = await startReceiver();
  rehearsal = await startRehearsal(receiver);
  const clients = new Clients(rehearsal);
  const [ann, bob] = [await clients.connect("ws", { member: "ann" }), await clients.connect("ws", { member: "bob" })];
  const room = await subscribe(ann, ROOM);
  await subscribe(bob, ROOM);
  for (const n of [1, 2, 3]) assert.ok(room.trigger("client-said", { n }));
  const names = () => receiver.events().map(({ name }) => name);
  await eventually(() => names().filter((name) => name === "client_event").length === 3, () => names().join());
  bob.disconnect();
  ann.disconnect();
  await eventually(() => names().includes("channel_vacated"), () => names().join());
});

after(async () => {
  const how = await rehearsal?.stop();
  receiver?.close();
  assert.equal(how, 0, "Ctrl-C ends a rehearsal cleanly");
});

/** What a receiver of the example handles when it is sent these requests, and how it answered each. */
async function handle(requests, filter = new EventFilter()) {
  const handled = [];
  const { key, secret } = rehearsal.app;
  const server = createReceiver({ [key]: secret }, (event) => handled.push(event), filter);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const answers = [];
  for (const { rawBody, headers } of requests) {
    const { "x-pusher-key": by, "x-pusher-signature": signature, "content-type": type } = headers;
    const sent = { "x-pusher-key": by, "x-pusher-signature": signature, "content-type": type };
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`, { method: "POST", headers: sent, body: rawBody });
    answers.push(answer.status);
  }
  server.closeAllConnections();
  server.close();
  return { handled, answers };
}

test("the SDK for Go accepts every webhook, and none that was changed or that another app signed", () => {
  const { key, secret } = rehearsal.app;
  const lines = receiver.requests.flatMap(({ rawBody, headers }) => {
    const good = {
      Key: key, Secret: secret, SignedBy: headers["x-pusher-key"], Signature: headers["x-pusher-signature"], Body: rawBody,
    };
    return [good, { ...good, Body: rawBody.replace('"', '" ') }, { ...good, SignedBy: "another" }, { ...good, Secret: `${secret}x` }];
  });
  const input = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  const run = spawnSync("go", ["run", "."], { cwd: GO_FOLDER, input, encoding: "utf8", timeout: 240_000, env: { ...process.env, CGO_ENABLED: "0" } });
  assert.equal(run.status, 0, run.stderr || String(run.error));
  const verdicts = run.stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(verdicts.length, lines.length);
  receiver.requests.forEach(({ rawBody }, n) => {
    const [good, ...forged] = verdicts.slice(4 * n, 4 * n + 4);
    const body = JSON.parse(rawBody);
    assert.deepEqual(good, { events: body.events.map(({ name }) => name), time: body.time_ms });
    for (const verdict of forged) assert.ok(verdict.error, JSON.stringify(verdict));
  });
});

test("the receiver of the example handles each event once, whatever is repeated", async () => {
  const expected = receiver.events().map(({ id }) => id);
  assert.equal(new Set(expected).size, expected.length, "a rehearsal without failures repeats nothing");
  const filter = new EventFilter();
  const { handled, answers } = await handle([...receiver.requests, ...receiver.requests], filter);
  assert.deepEqual(handled.map(({ id }) => id), expected);
  assert.ok(answers.every((status) => status === 200), answers.join());
  assert.deepEqual(handled.map(({ name }) => name).filter((name) => name === "client_event").length, 3);
});

test("the receiver of the example ignores states that are older than the one it knows", async () => {
  const { handled } = await handle([...receiver.requests].reverse());
  const latest = new Map();
  for (const event of handled.filter(({ epoch }) => epoch !== undefined)) {
    const subject = `${event.channel} ${event.user_id ?? ""}`;
    const before = latest.get(subject);
    assert.ok(!before || event.epoch > before.epoch || (event.epoch === before.epoch && event.seq > before.seq), subject);
    latest.set(subject, event);
  }
  assert.equal(latest.get(`${ROOM} `).name, "channel_vacated");
  assert.equal(latest.get(`${ROOM} ann`).name, "member_removed");
  assert.equal(latest.get(`${ROOM} bob`).name, "member_removed");
});

test("the receiver of the example refuses what it cannot trust", async () => {
  const [{ rawBody, headers }] = receiver.requests;
  const forged = [
    { rawBody: `${rawBody} `, headers },
    { rawBody, headers: { ...headers, "x-pusher-key": "another" } },
    { rawBody, headers: { ...headers, "x-pusher-signature": "00" } },
  ];
  const { handled, answers } = await handle(forged);
  assert.deepEqual([handled, answers], [[], [401, 401, 401]]);
  assert.ok(isSigned(rehearsal.app.secret, rawBody, headers["x-pusher-signature"]));
});
