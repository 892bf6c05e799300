// The dispatchers while the API server of their leases is away: webhooks go on for a minute, then stop; nothing is lost, and
// the receiver counts the repeats.
//   API_AWAY_SECONDS   lengths of the two outages, 50,90 by default; the first ends within the grace time of a minute or with it, the second after it
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { KEY, SECRET } from "../conformance/edge.mjs";
import { eventually } from "../conformance/rehearsal.mjs";
import { startApiSwitch } from "./api_switch.mjs";
import { assertNone, startBed } from "./bed.mjs";
import { startLoad } from "./load.mjs";
import { createRandom } from "./random.mjs";
import { firstArrivals } from "./verdict.mjs";

if (!process.env.CLUSTER) throw new Error("CLUSTER does not name an API server: run this through ./test chaos");

const KUBECONFIG = `${JSON.parse(process.env.CLUSTER).dir}/pki/admin.kubeconfig`;
const [SHORT_SECONDS, LONG_SECONDS] = (process.env.API_AWAY_SECONDS ?? "50,90").split(",").map(Number);

/** Seconds for which a dispatcher goes on without the API server: `LEASE_OUTAGE_GRACE`. */
const GRACE_SECONDS = 60;

/** Seconds around the end of that time in which it may go on or have stopped: a heartbeat every 2 s, 2.5 s a call at most, and an attempt of 4 s. */
const MARGIN_SECONDS = 10;

/** Longest pause between two arrivals while webhooks go on, in ms. */
const PAUSE_MAX_MS = 5_000;

/** Longest until webhooks arrive again after the return of the API server, in seconds: a dead member is one for 8 s. */
const RETURN_SECONDS = 40;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const SEED = process.env.CHAOS_SEED ?? "1";

let directory;
let apiSwitch;
let bed;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "api-server-"));
  const kubeconfig = join(directory, "kubeconfig");
  apiSwitch = await startApiSwitch(KUBECONFIG, kubeconfig);
  bed = await startBed({ kubeconfig, random: (part) => createRandom(SEED, part), isUnacceptable: () => false });
  bed.setFaulty(false);
});

after(async () => {
  await bed?.stop();
  apiSwitch?.close();
  if (directory) await rm(directory, { recursive: true, force: true });
});

/** The longest time without an arrival between two moments, in ms. */
function longestPause(from, to) {
  const times = bed.receiver.events.map(({ at }) => at).filter((at) => at >= from && at <= to);
  return Math.max(...[...times, to].map((at, n) => at - (n === 0 ? from : times[n - 1])));
}

const countRepeats = () => bed.receiver.events.length - firstArrivals(bed.receiver.events).length;

/** Waits until all shards are held and events arrive. */
async function waitForArrivals(what) {
  const before = bed.receiver.events.length;
  await eventually(async () => bed.receiver.events.length > before, () => what, RETURN_SECONDS);
}

test("webhooks outlive an API server that is away for less than a minute, stop after it, and lose nothing", async (context) => {
  const load = startLoad({ key: KEY, secret: SECRET }, () => bed.pods.edgePorts(), createRandom(SEED, "load"));
  try {
    await waitForArrivals("no first webhook");
    await sleep(5_000);

    let began = Date.now();
    apiSwitch.set("closes");
    await sleep(SHORT_SECONDS * 1_000);
    apiSwitch.set("works");
    const short = longestPause(began, Date.now());
    console.log(`away for ${SHORT_SECONDS} s: longest pause ${short} ms`);
    assert.ok(short < PAUSE_MAX_MS, `no webhook for ${short} ms while the API server was away for ${SHORT_SECONDS} s`);
    await sleep(10_000);
    const repeatsOfShort = countRepeats();
    console.log(`${repeatsOfShort} events twice`);
    // At the end of the grace time a shard may or may not be given up.
    if (SHORT_SECONDS < GRACE_SECONDS - MARGIN_SECONDS) {
      assert.equal(repeatsOfShort, 0, "an outage that nobody gives a shard up for repeats nothing");
    }

    began = Date.now();
    const arrived = bed.receiver.events.length;
    apiSwitch.set("silent");
    await sleep(LONG_SECONDS * 1_000);
    const [last, stopped] = [began + (GRACE_SECONDS - MARGIN_SECONDS) * 1_000, began + (GRACE_SECONDS + MARGIN_SECONDS) * 1_000];
    const long = longestPause(began, last);
    assert.ok(long < PAUSE_MAX_MS, `no webhook for ${long} ms of the first ${GRACE_SECONDS - MARGIN_SECONDS} s`);
    const late = bed.receiver.events.filter(({ at }) => at > stopped);
    const end = Math.max(...bed.receiver.events.map(({ at }) => at)) - began;
    console.log(`away for ${LONG_SECONDS} s: longest pause ${long} ms, the last webhook after ${(end / 1_000).toFixed(1)} s`);
    assert.equal(late.length, 0, `${late.length} webhook events after ${GRACE_SECONDS + MARGIN_SECONDS} s without the API server`);
    const unwritten = bed.receiver.events.length - arrived + repeatsOfShort;

    began = Date.now();
    apiSwitch.set("works");
    await waitForArrivals("no webhook after the return of the API server");
    console.log(`the first webhook ${((Date.now() - began) / 1_000).toFixed(1)} s after its return`);
    await load.stop();
    await bed.waitUntilDrained();

    const { arrivals, states, clientEvents, order } = await bed.judge(load.sent);
    const repeats = countRepeats();
    console.log(`${arrivals.length - repeats} events, ${repeats} of them twice: ${unwritten} arrived while no checkpoint could be written`);
    assertNone("signatures", bed.receiver.problems);
    assertNone("transitions", states.problems);
    assertNone("order", order.problems);
    assertNone("client events", clientEvents.problems);
    // A shard that the other dispatcher takes is repeated from its last checkpoint, which is written every 5 s; the one that held it
    // resumes where it left it.
    const perSecond = unwritten / GRACE_SECONDS;
    assert.ok(repeats <= unwritten + 15 * perSecond, `${repeats} repeats of ${unwritten} events without a checkpoint`);
    assert.match(await bed.pods.printLedger(), /every hop balances/);
  } catch (error) {
    context.diagnostic(bed.pods.complaints().slice(-40).join("\n"));
    throw error;
  } finally {
    await load.stop();
  }
});
