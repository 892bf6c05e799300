// The promise of the path of an event, while its processes are killed: whatever the bus decided and the stream acknowledged
// arrives, in order, or is a dead letter. Edges, dispatchers, Redis and the emulator of Kinesis are real processes, the
// leases are objects of a real API server.
//   CHAOS_SECONDS   time of the load, 60 by default
//   CHAOS_SEED      repeats the schedule and the draws of a run
//   CHAOS_LOGS      a file for the logs of all servers of a run that fails
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { KEY, SECRET } from "../conformance/edge.mjs";
import { eventually } from "../conformance/rehearsal.mjs";
import { startDurableRedis } from "./durable_redis.mjs";
import { startLoad } from "./load.mjs";
import { planChaos } from "./plan.mjs";
import { EVENTS_STREAM, LETTERS_STREAM, startPods } from "./pods.mjs";
import { createRandom } from "./random.mjs";
import { startFailingReceiver } from "./receiver.mjs";
import { connectStream, startEmulator } from "./stream.mjs";
import { startStreamProxy } from "./stream_proxy.mjs";
import { firstArrivals, judgeClientEvents, judgeOrder, judgeTransitions } from "./verdict.mjs";

if (!process.env.CLUSTER) throw new Error("CLUSTER does not name an API server: run this through ./test chaos");

const SECONDS = Number(process.env.CHAOS_SECONDS ?? 60);
const SEED = process.env.CHAOS_SEED ?? "1";
if (!(SECONDS >= 60)) throw new Error(`CHAOS_SECONDS is ${process.env.CHAOS_SECONDS}: at least 60, so that each kind is killed three times`);
const KUBECONFIG = `${JSON.parse(process.env.CLUSTER).dir}/pki/admin.kubeconfig`;

/** Events of a minute. */
const EVENTS_PER_MINUTE = 20_000;

/** Shortest and longest time until a killed process starts again, in ms. */
const DOWN_MS = [300, 2_500];

/** Kills of each kind in a run of a minute. */
const KILLS_MIN = 3;

/** Shards at the start. */
const SHARDS = 4;

/** Longest time until all that was put is delivered after the end of the load, in seconds. */
const DRAIN_SECONDS = 150;

/** Time without any arrival after which no more is expected, in ms: absences are held for 3 s. */
const QUIET_MS = 6_000;

/** Problems of a check that are shown. */
const SHOWN_MAX = 10;

/** A few client events that the endpoint never accepts: they must become dead letters. */
const isUnacceptable = ({ name, data }) => {
  if (name !== "client_event") return false;
  const { sender, n } = JSON.parse(data);
  return sender % 8 === 0 && n % 3_000 === 300;
};

const outside = {};
let directory;
let pods;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "chaos-"));
  outside.emulator = await startEmulator(join(directory, "stream"));
  outside.stream = connectStream(outside.emulator.port);
  await outside.stream.create(EVENTS_STREAM, SHARDS);
  await outside.stream.create(LETTERS_STREAM, 1);
  outside.redis = await startDurableRedis(join(directory, "redis"));
  outside.proxy = await startStreamProxy(outside.emulator.port, createRandom(SEED, "proxy"));
  outside.receiver = await startFailingReceiver(SECRET, createRandom(SEED, "receiver"), isUnacceptable);
  const webhooks = [{ name: "hook", url: outside.receiver.url, events: [], channelPrefix: "", timeoutSeconds: 4 }];
  pods = await startPods({ redisUrl: outside.redis.url, streamUrl: outside.proxy.url, kubeconfig: KUBECONFIG, webhooks });
});

after(async () => {
  await pods?.stop();
  outside.receiver?.close();
  outside.proxy?.close();
  await outside.redis?.stop();
  await outside.emulator?.stop();
  if (directory) await rm(directory, { recursive: true, force: true });
});

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Executes the schedule; answers with what happened. */
async function executePlan(plan, random) {
  const began = Date.now();
  const done = [];
  // The emulator is not killed while it changes a stream.
  let lastOfStream = Promise.resolve();
  const steps = [];
  for (const { at, action, target } of plan) {
    await sleep(Math.max(0, began + at * 1_000 - Date.now()));
    const downMs = random.between(...DOWN_MS);
    const execute = async () => {
      const note = { action, target, at: Date.now() };
      if (action !== "kill") note.change = await outside.stream[action](EVENTS_STREAM);
      else if (target === "edge" || target === "dispatcher") await pods.replace(target, random, downMs);
      else {
        const process = target === "redis" ? outside.redis : outside.emulator;
        await process.kill();
        await sleep(downMs);
        await process.restart();
      }
      done.push(note);
      const change = note.change ? ` ${note.change.closed} → ${note.change.opened}` : ` back after ${Date.now() - note.at} ms`;
      console.log(`${((note.at - began) / 1_000).toFixed(1)} s: ${action} ${target}${change}`);
    };
    const step = target === "stream" ? (lastOfStream = lastOfStream.then(execute)) : execute();
    step.catch(() => {});
    steps.push(step);
  }
  await sleep(Math.max(0, began + SECONDS * 1_000 - Date.now()));
  await Promise.all(steps);
  return done;
}

/** Waits until nothing is queued or waits, and nothing arrives any more. */
async function waitUntilDrained() {
  let report = "nothing seen";
  const shards = (await outside.stream.openShards(EVENTS_STREAM)).map(({ ShardId }) => ShardId);
  await eventually(async () => {
    const flows = await pods.flows();
    const queued = flows.reduce((sum, { recorder }) => sum + (recorder?.queued ?? 0), 0);
    const dispatchers = flows.flatMap(({ dispatcher }) => dispatcher ?? []);
    const unfinished = dispatchers.reduce((sum, { unfinished: events }) => sum + events, 0);
    const behind = dispatchers.flatMap(({ shards: held }) => Object.values(held)).filter(({ behindMs, paused }) => behindMs > 0 || paused).length;
    const held = dispatchers.flatMap(({ shards: ids }) => Object.keys(ids));
    const missing = shards.filter((id) => !held.includes(id));
    const quietMs = Date.now() - (outside.receiver.events.at(-1)?.at ?? 0);
    report = JSON.stringify({ queued, unfinished, behind, missing, quietMs, errors: dispatchers.map(({ lastError }) => lastError) });
    return queued + unfinished + behind + missing.length === 0 && quietMs > QUIET_MS;
  }, () => report, DRAIN_SECONDS);
}

/** The events of records, with the channel and the time of each. */
function eventsOf(records) {
  return records.flatMap(({ text, at, shard }) => {
    const { channel, events } = JSON.parse(text);
    return events.map(({ user_id: user = "", ...event }) => ({ ...event, user, channel, at, shard }));
  });
}

/** The events of dead letters; a letter that is none of an event has its reason alone. */
function eventsOfLetters(texts) {
  return texts.map((text) => {
    const { reason, lastAnswer, event = {} } = JSON.parse(text);
    return { ...event, reason, lastAnswer };
  });
}

function countBy(items, keyOf) {
  const counts = {};
  for (const item of items) counts[keyOf(item)] = (counts[keyOf(item)] ?? 0) + 1;
  return counts;
}

/** Asserts that a check found no problem, and shows the first ones otherwise. */
function assertNone(what, problems) {
  const shown = problems.slice(0, SHOWN_MAX).join("\n  ");
  assert.equal(problems.length, 0, `${what}: ${problems.length} problems, such as\n  ${shown}`);
}

/** Asserts that the run was as violent as its schedule says. */
function assertViolence(done) {
  for (const target of ["edge", "dispatcher", "stream", "redis"]) {
    const times = done.filter((step) => step.action === "kill" && step.target === target).map(({ at }) => at);
    assert.ok(times.length >= KILLS_MIN, `${times.length} kills of ${target}`);
    assert.ok(times.slice(1).every((at, n) => at - times[n] >= 20_000), `kills of ${target} at ${times}`);
  }
  for (const [action, closed, opened] of [["split", 1, 2], ["merge", 2, 1]]) {
    const changes = done.filter((step) => step.action === action);
    assert.ok(changes.length >= 1, `no ${action}`);
    for (const { change } of changes) {
      assert.deepEqual([change.closed.length, change.opened.length], [closed, opened], `${action}: ${JSON.stringify(change)}`);
    }
  }
  for (const [name, counts] of [["proxy", outside.proxy.counts], ["receiver", outside.receiver.counts]]) {
    for (const [failure, count] of Object.entries(counts)) assert.ok(count > 0, `no ${failure} at the ${name}: ${JSON.stringify(counts)}`);
  }
}

test("whatever is killed, every event arrives in order or is a dead letter", async (context) => {
  console.log(`chaos: ${SECONDS} s, seed ${SEED}`);
  const load = startLoad({ key: KEY, secret: SECRET }, () => pods.edgePorts(), createRandom(SEED, "load"));
  try {
    const done = await executePlan(planChaos(SECONDS, createRandom(SEED, "plan")), createRandom(SEED, "kills"));
    await load.stop();
    outside.proxy.setFaulty(false);
    outside.receiver.setFaulty(false);
    const ended = Date.now();
    await waitUntilDrained();
    console.log(`drained ${Date.now() - ended} ms after the end of the load`);

    const arrivals = outside.receiver.events;
    const acknowledged = eventsOf(outside.proxy.log.filter(({ stream }) => stream === EVENTS_STREAM));
    const stored = eventsOf(await outside.stream.readAll(EVENTS_STREAM));
    const letters = eventsOfLetters((await outside.stream.readAll(LETTERS_STREAM)).map(({ text }) => text));
    const transitions = await outside.redis.readTransitions();
    const states = judgeTransitions({ transitions, arrivals, letters, stored });
    const clientEvents = judgeClientEvents({ acknowledged, arrivals, letters, sent: load.sent });
    const distinct = firstArrivals(arrivals).length;
    for (const [what, counts] of Object.entries({
      load: load.counts,
      proxy: outside.proxy.counts,
      receiver: outside.receiver.counts,
      events: { distinct, repeated: arrivals.length - distinct, ...countBy(firstArrivals(arrivals), ({ name }) => name) },
      transitions: states.counts,
      clientEvents: clientEvents.counts,
      letters: countBy(letters, ({ reason, lastAnswer }) => `${reason} ${lastAnswer ?? ""}`),
    })) console.log(`${what}: ${JSON.stringify(counts)}`);
    const ledger = await pods.printLedger();
    console.log(ledger);

    assertNone("signatures", outside.receiver.problems);
    const order = judgeOrder(arrivals, stored);
    for (const trace of [...states.traces, ...order.traces].slice(0, SHOWN_MAX)) console.log(`trace: ${trace}`);
    assertNone("transitions", states.problems);
    assertNone("order", order.problems);
    assertNone("client events", clientEvents.problems);
    const unacceptable = firstArrivals(acknowledged.filter(isUnacceptable)).map(({ id }) => id);
    const lettered = new Set(letters.map(({ id }) => id));
    assertNone("dead letters", unacceptable.filter((id) => !lettered.has(id)));
    assert.match(ledger, /every hop balances/);
    assert.ok(distinct >= (EVENTS_PER_MINUTE * SECONDS) / 60, `${distinct} events arrived`);
    assertViolence(done);
  } catch (error) {
    context.diagnostic(pods.complaints().slice(-40).join("\n"));
    if (process.env.CHAOS_LOGS) await writeFile(process.env.CHAOS_LOGS, pods.logs());
    throw error;
  }
});
