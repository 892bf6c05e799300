// The checks of a run find each kind of loss and of disorder.
import assert from "node:assert/strict";
import { test } from "node:test";

import { readCommands, readOutboxEntries } from "./durable_redis.mjs";
import { planChaos } from "./plan.mjs";
import { createRandom } from "./random.mjs";
import { judgeClientEvents, judgeOrder, judgeTransitions } from "./verdict.mjs";

const state = (seq, name, user = "") => ({ channel: "a", name, user, epoch: 5, seq, time: 700 * seq });
const arrival = (seq, name, user) => ({ id: `id-${seq}`, channel: "a", name, ...(user && { user_id: user }), epoch: 5, seq });
const HISTORY = [state(1, "channel_occupied"), state(2, "channel_vacated"), state(3, "channel_occupied"), state(4, "channel_vacated")];
const STORED = HISTORY.map((transition) => ({ ...transition, at: 10 * transition.seq }));

function judge({ delivered, letters = [], stored = STORED }) {
  const arrivals = HISTORY.filter(({ seq }) => delivered.includes(seq)).map(({ seq, name }) => arrival(seq, name));
  return judgeTransitions({ transitions: HISTORY, arrivals, letters: letters.map((seq) => state(seq)), stored });
}

test("a transition that does not arrive is a loss, unless it is cancelled, superseded or a dead letter", () => {
  assert.deepEqual(judge({ delivered: [1, 2, 3, 4] }).problems, []);
  assert.deepEqual(judge({ delivered: [1, 4] }).counts, { decided: 4, delivered: 2, deadLettered: 0, cancelled: 2, superseded: 0, longestCancelledMs: 700 });
  assert.deepEqual(judge({ delivered: [1, 4] }).problems, []);
  assert.deepEqual(judge({ delivered: [1, 2, 3], letters: [4] }).problems, []);
  for (const [delivered, lost] of [[[1, 2, 3], "vacated of a (5:4)"], [[2, 3, 4], "occupied of a (5:1)"], [[1, 3, 4], "vacated of a (5:2)"]]) {
    assert.deepEqual(judge({ delivered }).problems, [`channel_${lost} is neither delivered nor dead-lettered`]);
  }
  const late = STORED.map((event) => (event.seq === 2 ? { ...event, at: 35 } : event));
  assert.deepEqual(judge({ delivered: [1, 3, 4], stored: late }).problems, []);
  assert.equal(judge({ delivered: [1, 3, 4], stored: late }).counts.superseded, 1);
  const missing = judge({ delivered: [1, 2, 3], stored: STORED.slice(0, 3) });
  assert.deepEqual(missing.problems, ["channel_vacated of a (5:4) is not in the stream"]);
});

test("a transition that arrives changed, or that the bus did not decide, is found", () => {
  const run = (events) => judgeTransitions({ transitions: [state(1, "member_added", "u")], arrivals: events, letters: [], stored: [] }).problems;
  assert.deepEqual(run([arrival(1, "member_added", "u")]), []);
  assert.deepEqual(run([arrival(1, "member_added", "v")]), ["member_added of u in a (5:1) arrived as member_added of v in a (5:1)"]);
  assert.deepEqual(run([arrival(1, "member_added", "u"), arrival(2, "member_removed", "u")]), [
    "member_removed of u in a (5:2) arrived, and the bus did not decide it",
  ]);
});

test("first arrivals out of the bus's order and a second id are found, repeats are not", () => {
  const [one, two] = [arrival(1, "channel_occupied"), arrival(2, "channel_vacated")];
  assert.deepEqual(judgeOrder([one, two, one, two]).problems, []);
  assert.deepEqual(judgeOrder([two, one]).problems, ["channel_occupied of a (5:1) arrived after channel_vacated of a (5:2)"]);
  assert.deepEqual(judgeOrder([two, arrival(1, "member_added", "u")]).problems, [], "another subject");
  assert.deepEqual(judgeOrder([one, { ...one, id: "other" }]).problems, ["channel_occupied of a (5:1) has the ids id-1 and other"]);
});

test("a client event that is lost, out of order, repeated under another id or invented is found", () => {
  const event = (n, id = `id-${n}`) => ({ id, name: "client_event", channel: "a", socket_id: "1.2", data: JSON.stringify({ sender: 0, n }) });
  const run = (arrivals, letters = []) =>
    judgeClientEvents({ acknowledged: [event(1), event(2), event(2)], arrivals, letters, sent: [2] });
  assert.deepEqual(run([event(1), event(2), event(1)]), { problems: [], counts: { put: 2, delivered: 2 } });
  assert.deepEqual(run([event(1)], [event(2)]).problems, []);
  assert.match(run([event(1)]).problems.join(), /"n":2} in a \(id-2\) was put, and is neither delivered nor dead-lettered/);
  assert.deepEqual(run([event(2), event(1)]).problems, ["the number 1 of the socket 1.2 in a arrived after 2"]);
  assert.deepEqual(run([event(1), event(2), event(2, "other")]).problems, ["the number 2 of the sender 0 has the ids id-2 and other"]);
  assert.deepEqual(run([event(1), event(2), event(3)]).problems, ["the sender 0 did not send the number 3"]);
});

test("the transitions of an append-only file are read, without a command that was cut", () => {
  const command = (...words) => `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`;
  const written = command("HSET", "rt:{c:1:presence-é}:outbox", "5:1", "p occupied 17  ", "5:2", "p added 18  a user");
  const other = command("HSET", "rt:{c:1:a}:counter", "epoch", "5");
  const text = command("SELECT", "0") + other + written + written.slice(0, -4);
  assert.deepEqual([...readCommands(Buffer.from(text))].flatMap(readOutboxEntries), [
    { channel: "presence-é", name: "channel_occupied", user: "", epoch: 5, seq: 1, time: 17 },
    { channel: "presence-é", name: "member_added", user: "a user", epoch: 5, seq: 2, time: 18 },
  ]);
});

test("a seed repeats its schedule, and two kills of a kind are far apart", () => {
  for (const seconds of [60, 3_600]) {
    const plan = planChaos(seconds, createRandom(7, "plan"));
    assert.deepEqual(plan, planChaos(seconds, createRandom(7, "plan")));
    assert.notDeepEqual(plan, planChaos(seconds, createRandom(8, "plan")));
    for (const kind of ["edge", "dispatcher", "stream", "redis"]) {
      const times = plan.filter(({ action, target }) => action === "kill" && target === kind).map(({ at }) => at);
      assert.ok(times.length >= (seconds === 60 ? 3 : 100), `${times.length} kills of ${kind}`);
      assert.ok(times.slice(1).every((at, n) => at - times[n] >= 20), `${times}`);
      assert.ok(times.every((at) => at > 0 && at < seconds), `${times}`);
    }
    const changes = plan.filter(({ action }) => action !== "kill").map(({ action }) => action);
    assert.deepEqual(changes.slice(0, 2), ["split", "merge"]);
  }
});
