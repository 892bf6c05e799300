// Replays recorded statuses of a cluster or an app on an API server without an operator.
import { readFileSync } from "node:fs";

import { get, kubectl } from "../cluster/harness.mjs";

/** The recorded versions of `cluster` or `app`: `{ step, type, object }`. */
export function readRecording(name) {
  const text = readFileSync(new URL(`recorded/${name}.jsonl`, import.meta.url), "utf8");
  return text.trim().split("\n").map((line) => JSON.parse(line));
}

/** The last version of a step that a person wrote: its spec. */
export const specOf = (records, step) => records.findLast((one) => one.step === step && one.type !== "DELETED").object.spec;

/** The recorded generation becomes the live one, a former generation the one before. */
function statusFor(recorded, live) {
  const shift = live.metadata.generation - recorded.metadata.generation;
  const move = (generation) => (generation === undefined || generation < 0 ? generation : generation + shift);
  const { status } = recorded;
  const conditions = (status.conditions ?? []).map((one) => ({ ...one, observedGeneration: move(one.observedGeneration) }));
  return { ...status, observedGeneration: move(status.observedGeneration), conditions };
}

/** Writes the status of a recorded version to the live object. */
export async function writeStatus(kind, namespace, name, recorded) {
  const live = await get(kind, namespace, name);
  const status = statusFor(recorded, live);
  const patch = [{ op: "replace", path: "/status", value: status }];
  await kubectl(["patch", kind, name, "-n", namespace, "--subresource=status", "--type=json", "-p", JSON.stringify(patch)]);
  return { ...live, status };
}
