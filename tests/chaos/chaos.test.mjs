// The promise of the path of an event, while its processes are killed: whatever the bus decided and the stream acknowledged
// arrives, in order, or is a dead letter. Edges, dispatchers, Redis and the emulator of Kinesis are real processes, the
// leases are objects of a real API server.
//   CHAOS_SECONDS   time of the load, 60 by default
//   CHAOS_SEED      repeats the schedule and the draws of a run
//   CHAOS_LOGS      a file for the logs of all servers of a run that fails
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { KEY, SECRET } from "../conformance/edge.mjs";
import { SHOWN_MAX, assertNone, countBy, startBed } from "./bed.mjs";
import { startLoad } from "./load.mjs";
import { planChaos } from "./plan.mjs";
import { EVENTS_STREAM } from "./pods.mjs";
import { createRandom } from "./random.mjs";
import { firstArrivals } from "./verdict.mjs";

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

/** A few client events that the endpoint never accepts: they must become dead letters. */
const isUnacceptable = ({ name, data }) => {
  if (name !== "client_event") return false;
  const { sender, n } = JSON.parse(data);
  return sender % 8 === 0 && n % 3_000 === 300;
};

let bed;

before(async () => {
  bed = await startBed({ kubeconfig: KUBECONFIG, random: (part) => createRandom(SEED, part), isUnacceptable });
});

after(() => bed?.stop());

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
      if (action !== "kill") note.change = await bed.stream[action](EVENTS_STREAM);
      else if (target === "edge" || target === "dispatcher") await bed.pods.replace(target, random, downMs);
      else {
        const process = target === "redis" ? bed.redis : bed.emulator;
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
  for (const [name, counts] of [["proxy", bed.proxy.counts], ["receiver", bed.receiver.counts]]) {
    for (const [failure, count] of Object.entries(counts)) assert.ok(count > 0, `no ${failure} at the ${name}: ${JSON.stringify(counts)}`);
  }
}

test("whatever is killed, every event arrives in order or is a dead letter", async (context) => {
  console.log(`chaos: ${SECONDS} s, seed ${SEED}`);
  const load = startLoad({ key: KEY, secret: SECRET }, () => bed.pods.edgePorts(), createRandom(SEED, "load"));
  try {
    const done = await executePlan(planChaos(SECONDS, createRandom(SEED, "plan")), createRandom(SEED, "kills"));
    await load.stop();
    bed.setFaulty(false);
    const ended = Date.now();
    await bed.waitUntilDrained();
    console.log(`drained ${Date.now() - ended} ms after the end of the load`);

    const { arrivals, acknowledged, letters, states, clientEvents, order } = await bed.judge(load.sent);
    const distinct = firstArrivals(arrivals).length;
    for (const [what, counts] of Object.entries({
      load: load.counts,
      proxy: bed.proxy.counts,
      receiver: bed.receiver.counts,
      events: { distinct, repeated: arrivals.length - distinct, ...countBy(firstArrivals(arrivals), ({ name }) => name) },
      transitions: states.counts,
      clientEvents: clientEvents.counts,
      letters: countBy(letters, ({ reason, lastAnswer }) => `${reason} ${lastAnswer ?? ""}`),
    })) console.log(`${what}: ${JSON.stringify(counts)}`);
    const ledger = await bed.pods.printLedger();
    console.log(ledger);

    assertNone("signatures", bed.receiver.problems);
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
    context.diagnostic(bed.pods.complaints().slice(-40).join("\n"));
    if (process.env.CHAOS_LOGS) await writeFile(process.env.CHAOS_LOGS, bed.pods.logs());
    throw error;
  }
});
