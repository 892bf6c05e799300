// The two runs of the README, as a pipeline would make them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { EXAMPLE, run } from "./rehearsal.mjs";

/** What the sockjs server carries. */
const FALLBACKS = [
  "xhr_streaming", "xhr_polling", "sockjs_websocket", "sockjs_xhr_streaming", "sockjs_xhr", "sockjs_eventsource",
];

const states = (verdict) => Object.fromEntries(verdict.transports.map(({ name, state, hop }) => [name, `${state} ${hop}`.trim()]));

test("the example becomes Ready over every transport within 20 s", async () => {
  const { code, stdout, stderr } = await run("rehearse", EXAMPLE, "--once", "-o", "json");
  assert.equal(code, 0, stderr);
  const verdict = JSON.parse(stdout);
  assert.equal(verdict.ready, true);
  const all = ["websocket", ...FALLBACKS];
  assert.deepEqual(states(verdict), Object.fromEntries(all.map((name) => [name, "Passing"])));
  assert.ok(verdict.elapsedMs <= 20_000, `${verdict.elapsedMs} ms`);
  for (const transport of verdict.transports) {
    assert.ok(transport.latencyMs.delivery > 0, JSON.stringify(transport));
    assert.equal(transport.server, transport.name === "websocket" ? "websocket" : "sockjs");
  }
});

test("webhooks off on the sockjs server alone is refused, with transport, hop and variable", async () => {
  const { code, stdout, stderr } = await run(
    "rehearse", EXAMPLE, "--edit", "sockjs:REALTIME_WEBHOOKS=off", "--once", "-o", "json",
  );
  assert.equal(code, 1, stderr);
  const verdict = JSON.parse(stdout);
  assert.equal(verdict.ready, false);
  assert.equal(verdict.reason, "ConfigurationDrift");
  const failing = FALLBACKS.map((name) => [name, "Failing record"]);
  assert.deepEqual(states(verdict), { websocket: "Passing", ...Object.fromEntries(failing) });
  assert.match(verdict.message, /sockjs\/xhr_streaming.*no channel_occupied record.*REALTIME_WEBHOOKS differs: want kinesis, pod runs off/);
  assert.ok(!verdict.message.includes("\n"), "one line");
});
