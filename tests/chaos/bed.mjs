// The parts of a run on the path of an event, all real processes but the receiver and the proxy of the stream; the leases are
// objects of a real API server. And the checks of what arrived.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SECRET } from "../conformance/edge.mjs";
import { eventually } from "../conformance/rehearsal.mjs";
import { startDurableRedis } from "./durable_redis.mjs";
import { EVENTS_STREAM, LETTERS_STREAM, startPods } from "./pods.mjs";
import { startFailingReceiver } from "./receiver.mjs";
import { shareTexts } from "./shared_texts.mjs";
import { connectStream, startEmulator } from "./stream.mjs";
import { startStreamProxy } from "./stream_proxy.mjs";
import { judgeClientEvents, judgeOrder, judgeTransitions } from "./verdict.mjs";

/** Shards at the start. */
const SHARDS = 4;

/** Longest time until all that was put is delivered after the end of the load, in seconds. */
const DRAIN_SECONDS = 150;

/** Time without any arrival after which no more is expected, in ms: absences are held for 3 s. */
const QUIET_MS = 6_000;

/** Problems of a check that are shown. */
export const SHOWN_MAX = 10;

/**
 * Starts all parts. `kubeconfig` names the API server of the leases; `random(part)` draws the failures of the stream and of
 * the receiver, which never accepts an event of which `isUnacceptable` holds.
 */
export async function startBed({ kubeconfig, random, isUnacceptable }) {
  const directory = await mkdtemp(join(tmpdir(), "chaos-"));
  const acknowledged = [];
  const bed = {
    setFaulty(value) {
      bed.proxy.setFaulty(value);
      bed.receiver.setFaulty(value);
    },
    waitUntilDrained: () => waitUntilDrained(bed),
    /** The events of the run, and what each check found; `sent` has the last number of each sender. */
    async judge(sent) {
      const arrivals = bed.receiver.events;
      const [stored, letters] = [[], []];
      for await (const record of bed.stream.readAll(EVENTS_STREAM)) stored.push(...transitionsOf(record));
      for await (const { text } of bed.stream.readAll(LETTERS_STREAM)) letters.push(eventOfLetter(text));
      const transitions = await bed.redis.readTransitions();
      return {
        arrivals, acknowledged, letters,
        states: judgeTransitions({ transitions, arrivals, letters, stored }),
        clientEvents: judgeClientEvents({ acknowledged, arrivals, letters, sent }),
        order: judgeOrder(arrivals, stored),
      };
    },
    async stop() {
      await bed.pods?.stop();
      bed.receiver?.close();
      bed.proxy?.close();
      await bed.redis?.stop();
      await bed.emulator?.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
  try {
    bed.emulator = await startEmulator(join(directory, "stream"));
    bed.stream = connectStream(bed.emulator.port);
    await bed.stream.create(EVENTS_STREAM, SHARDS);
    await bed.stream.create(LETTERS_STREAM, 1);
    bed.redis = await startDurableRedis(join(directory, "redis"));
    bed.proxy = await startStreamProxy(bed.emulator.port, random("proxy"), ({ text, stream }) => {
      if (stream === EVENTS_STREAM) acknowledged.push(...clientEventsOf(text));
    });
    bed.receiver = await startFailingReceiver(SECRET, random("receiver"), isUnacceptable);
    const webhooks = [{ name: "hook", url: bed.receiver.url, events: [], channelPrefix: "", timeoutSeconds: 4 }];
    bed.pods = await startPods({ redisUrl: bed.redis.url, streamUrl: bed.proxy.url, kubeconfig, webhooks });
  } catch (error) {
    await bed.stop();
    throw error;
  }
  return bed;
}

/** Waits until nothing is queued or waits, and nothing arrives any more. */
async function waitUntilDrained({ stream, pods, receiver }) {
  let report = "nothing seen";
  const shards = (await stream.openShards(EVENTS_STREAM)).map(({ ShardId }) => ShardId);
  await eventually(async () => {
    const flows = await pods.flows();
    const queued = flows.reduce((sum, { recorder }) => sum + (recorder?.queued ?? 0), 0);
    const dispatchers = flows.flatMap(({ dispatcher }) => dispatcher ?? []);
    const unfinished = dispatchers.reduce((sum, { unfinished: events }) => sum + events, 0);
    const behind = dispatchers.flatMap(({ shards: held }) => Object.values(held)).filter(({ behindMs, paused }) => behindMs > 0 || paused).length;
    const held = dispatchers.flatMap(({ shards: ids }) => Object.keys(ids));
    const missing = shards.filter((id) => !held.includes(id));
    const quietMs = Date.now() - (receiver.events.at(-1)?.at ?? 0);
    report = JSON.stringify({ queued, unfinished, behind, missing, quietMs, errors: dispatchers.map(({ lastError }) => lastError) });
    return queued + unfinished + behind + missing.length === 0 && quietMs > QUIET_MS;
  }, () => report, DRAIN_SECONDS);
}

// An hour has more than a million events: only what a check needs is kept of each.

/** The transitions of a record. */
function transitionsOf({ text, at, shard }) {
  const { channel, events } = JSON.parse(text);
  const transitions = events.filter(({ seq }) => seq !== undefined);
  return transitions.map(({ id, name, epoch, seq, time_ms, user_id: user = "" }) =>
    shareTexts({ id, name, epoch, seq, time_ms, user, channel, at, shard }));
}

/** The client events of a record. */
function clientEventsOf(text) {
  const { channel, events } = JSON.parse(text);
  const clientEvents = events.filter(({ name }) => name === "client_event");
  return clientEvents.map(({ id, name, data }) => shareTexts({ id, name, data, channel }));
}

/** The event of a dead letter; a letter that is none of an event has its reason alone. */
function eventOfLetter(text) {
  const { reason, lastAnswer, event = {} } = JSON.parse(text);
  return { ...event, reason, lastAnswer };
}

export function countBy(items, keyOf) {
  const counts = {};
  for (const item of items) counts[keyOf(item)] = (counts[keyOf(item)] ?? 0) + 1;
  return counts;
}

/** Asserts that a check found no problem, and shows the first ones otherwise. */
export function assertNone(what, problems) {
  const shown = problems.slice(0, SHOWN_MAX).join("\n  ");
  assert.equal(problems.length, 0, `${what}: ${problems.length} problems, such as\n  ${shown}`);
}
