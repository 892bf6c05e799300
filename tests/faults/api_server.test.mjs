// An API server that is restarted, that answers 429 and 500 or half, and whose watches go silent: none of it is a fault of a
// cluster, so Ready is True in every version of it.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, condition, get, kubectl, OPERATOR_NAMESPACE, restartApiServer, wait, watchObject } from "../cluster/harness.mjs";
import { manifest, ready, said, spec } from "../cluster/operator_fixtures.mjs";
import { startApiProxy } from "./api_proxy.mjs";

const NAMESPACE = "api";

/** Seconds for which requests fail. */
const FAILING = Number(process.env.API_FAILING_SECONDS ?? 60);

/** Seconds within which a change is acted on whose watch is silent, and for which the silence is watched. */
const [ACTED, SILENT] = [120, 180];

let proxy;

/** A cluster whose operator reaches the API server through the proxy. */
async function startCluster() {
  proxy = await startApiProxy();
  // The variables of a pod's manifest override those that kubelet adds.
  const address = [`KUBERNETES_SERVICE_HOST=${proxy.host}`, `KUBERNETES_SERVICE_PORT=${proxy.port}`];
  await kubectl(["set", "env", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, ...address]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=120s"]);
  await apply(manifest(NAMESPACE, { "intervalSeconds: 5": "intervalSeconds: 15" }));
  await ready(NAMESPACE, "eu", 300);
  assert.ok(proxy.passed > 0, "the operator reaches the API server through the proxy");
}

const cluster = () => get("realtimecluster", NAMESPACE, "eu");
const seconds = (count) => new Promise((resolve) => setTimeout(resolve, count * 1000));

/** When Ready turned last. */
const readySince = (object) => condition(object, "Ready").lastTransitionTime;

/** Every version that a watch saw is Ready. */
function assertReady(watch) {
  assert.ok(watch.versions.length > 0, "a version was seen");
  assert.deepEqual(watch.versions.map(({ object }) => said(object)).filter((state) => !state.startsWith("True/")), []);
}

/** Edits the manifest, and returns after how many seconds the status is of the new generation. */
async function actOnEdit(deadlineSeconds) {
  const began = Date.now();
  await spec(NAMESPACE, { gate: { deadlineSeconds } });
  await wait(async () => {
    const { metadata, status } = await cluster();
    return status.observedGeneration === metadata.generation;
  }, { timeout: ACTED * 1000, what: "the status of the new generation" });
  return (Date.now() - began) / 1000;
}

/** Deletes a child, and returns after how many seconds it is there again. */
async function recreateChild() {
  const began = Date.now();
  await kubectl(["delete", "poddisruptionbudget", "eu-websocket", "-n", NAMESPACE]);
  await wait(() => get("poddisruptionbudget", NAMESPACE, "eu-websocket"), { timeout: ACTED * 1000, what: "the budget that was deleted" });
  return (Date.now() - began) / 1000;
}

let started;

/** Starts the cluster for the first of these tests that runs. */
const clusterStarted = () => (started ??= startCluster());

test("a restarted API server leaves a cluster Ready", { timeout: 900_000 }, async () => {
  await clusterStarted();
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const since = readySince(await cluster());
  assertReady(watch);
  await restartApiServer();
  // The watch ended with the API server, as expected.
  await watch.stop().catch(() => {});
  const later = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await seconds(60);
  assertReady(later);
  // No watch saw the restart itself: a condition that turned and turned back has another transition time.
  assert.equal(readySince(await cluster()), since);
  console.log(`# after a restart of the API server a deleted child was there again within ${(await recreateChild()).toFixed(1)} s`);
  await later.stop();
});

test("an API server that answers 429, 500 and half for a minute leaves a cluster Ready", { timeout: (FAILING + 600) * 1000 }, async () => {
  await clusterStarted();
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  proxy.failing = 1 / 3;
  try {
    await seconds(FAILING);
  } finally {
    proxy.failing = 0;
  }
  console.log(`# in ${FAILING} s failed: ${JSON.stringify(proxy.failed)}`);
  for (const [kind, times] of Object.entries(proxy.failed)) assert.ok(times > 0, `no request failed by ${kind}`);
  console.log(`# an edit was acted on ${(await actOnEdit(602)).toFixed(1)} s later`);
  assertReady(watch);
  await watch.stop();
});

test("a change that silent watches do not report is acted on within two minutes", { timeout: 600_000 }, async () => {
  await clusterStarted();
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const silenced = proxy.silenceWatches();
  assert.ok(silenced >= 10, `${silenced} watches were open`);
  const began = Date.now();
  const elapsed = () => (Date.now() - began) / 1000;
  const [edited, recreated] = await Promise.all([actOnEdit(601), recreateChild()]);
  console.log(`# ${silenced} watches went silent: an edit was acted on after ${edited.toFixed(0)} s, a deleted child after ${recreated.toFixed(0)} s`);
  await seconds(Math.max(0, SILENT - elapsed()));
  assertReady(watch);
  await watch.stop();
});
