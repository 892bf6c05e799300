// Records the statuses of one cluster and one app from their installation to their deletion on a real Kubernetes: the test
// data of the GitOps tools. `./test record` writes tests/gitops/recorded/ and the test data beside the health scripts.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, condition, inNamespace, isReady, kubectl, startRedis, watchObject } from "../cluster/harness.mjs";
import { eventSays, is, kstatus, manifest, outside, rotateSecret, said, spec } from "../cluster/operator_fixtures.mjs";
import { writeActionTests, writeHealthTests, writeRecording } from "./files.mjs";

const NAMESPACE = "channels";

/** Longest wait for one status. */
const STATUS_TIMEOUT_MS = 150_000;

/** The state of an object for deployment tools, as far as it is in conditions. */
const stateOf = ({ metadata, status }) => {
  const conditions = (status?.conditions ?? []).filter(({ type }) => ["Accepted", "Ready", "Reconciling", "Stalled"].includes(type));
  const words = conditions.map(({ type, status: value, reason }) => `${type}=${value}/${reason}`);
  return [metadata.generation, status?.observedGeneration, Boolean(metadata.deletionTimestamp), ...words].join(" ");
};

/** Waits for the first version from `at` on that matches, and returns its index. */
async function until(watch, at, what, matches) {
  const found = await watch.until((object) => watch.versions.findIndex((one) => one.object === object) >= at && matches(object), {
    timeout: STATUS_TIMEOUT_MS, what,
  });
  return watch.versions.findIndex(({ object }) => object === found);
}

/** The versions in which the state changed, each with its step. */
function reduce(versions, steps) {
  const kept = [];
  versions.forEach(({ type, object }, at) => {
    const step = steps.findLast((one) => one.from <= at).step;
    const state = `${type === "DELETED"} ${stateOf(object)}`;
    if (kept.at(-1)?.state !== state) kept.push({ state, record: { step, type, object } });
  });
  return kept.map(({ record }) => record);
}

test("the life of a cluster: installed, broken, fixed, failed, mended, stalled, resolved, deleted", { timeout: 900_000 }, () => inNamespace(NAMESPACE, async () => {
  const [watch, apps] = await Promise.all([watchObject("realtimeclusters", NAMESPACE, "eu"), watchObject("realtimeapps", NAMESPACE, "shop")]);
  const own = await startRedis();
  const steps = [];
  const next = async (step, act, what, matches) => {
    const from = watch.versions.length;
    steps.push({ step, from });
    const began = Date.now();
    await act();
    const at = await until(watch, from, `${step}: ${what}`, matches);
    await eventSays(NAMESPACE, watch.versions[at].object);
    console.log(`# ${step}: ${said(watch.versions[at].object)} after ${((Date.now() - began) / 1000).toFixed(1)} s`);
  };

  await next("install", () => apply(manifest(NAMESPACE, { [outside.redis.url]: own.url })), "Ready", isReady);
  const wrong = { bus: { redis: { urlSecretRef: { name: "eu-redis", key: "nowhere" } } }, gate: { deadlineSeconds: 20 } };
  await rotateSecret(NAMESPACE, "eu-redis", "nowhere", "redis://198.18.0.1:1");
  await next("fault", () => spec(NAMESPACE, wrong), "the deadline", (object) => said(object) === "False/DeadlineExceeded");
  const right = { bus: { redis: { urlSecretRef: { name: "eu-redis", key: "url" } } }, gate: { deadlineSeconds: 600 } };
  await next("fix", () => spec(NAMESPACE, right), "Ready", isReady);
  await next("outage", own.pause, "a closed gate", (object) => is(object, "Ready") === "False");
  await next("recovery", own.resume, "Ready", isReady);
  await next("refusal", () => spec(NAMESPACE, { image: { repository: "registry.example.com/another" } }), "Stalled", (object) => is(object, "Stalled") === "True");
  await next("resolution", () => spec(NAMESPACE, { image: null }), "Ready", isReady);
  steps.push({ step: "deletion", from: watch.versions.length });
  await kubectl(["delete", "realtimecluster", "eu", "-n", NAMESPACE, "--wait=false"]);
  await watch.until(() => watch.versions.at(-1).type === "DELETED", { timeout: STATUS_TIMEOUT_MS, what: "the end of the deletion" });
  await apps.until((object) => said(object) === "False/NoCluster", { timeout: STATUS_TIMEOUT_MS });

  const [clusters, served] = [reduce(watch.versions, steps), reduce(apps.versions, [{ step: "life", from: 0 }])];
  const words = (step) => [...new Set(kstatus(clusters.filter((one) => one.step === step && one.type !== "DELETED").map(({ object }) => object)))];
  assert.deepEqual(words("install"), ["InProgress", "Current"]);
  assert.deepEqual(words("fault"), ["InProgress"], "nothing before the fault belongs to it, and a deadline is no end");
  assert.deepEqual(words("fix"), ["InProgress", "Current"]);
  assert.deepEqual(words("outage"), ["InProgress"]);
  assert.deepEqual(words("refusal"), ["InProgress", "Failed"]);
  assert.deepEqual(words("resolution"), ["InProgress", "Current"]);
  assert.deepEqual(words("deletion"), ["Terminating"]);
  await Promise.all([watch.stop(), apps.stop(), own.stop()]);
  assert.equal(condition(clusters[0].object, "Ready"), undefined, "the first version is that of the schema");
  writeRecording("cluster", clusters);
  writeRecording("app", served);
  writeHealthTests("RealtimeCluster", clusters, kstatus);
  writeHealthTests("RealtimeApp", served, kstatus);
  writeActionTests(clusters.find(({ step, object }) => step === "install" && isReady(object)).object);
}));
