// Flux's own controllers over recorded statuses of a real cluster: waits, failures and recoveries.
import assert from "node:assert/strict";
import { before, test } from "node:test";

import { parseObjects } from "../chart/helm.mjs";
import { apply, applyCrds, condition, diagnosed, file, get, isReady, kubectl, wait, watchObject } from "../cluster/harness.mjs";
import { applyFluxCrds, commit, NAMESPACE, pushChart, reconcile, startController } from "./flux.mjs";
import { readRecording, specOf, writeStatus } from "./replay.mjs";

const CLUSTERS = readRecording("cluster");
const APPS = readRecording("app");

/** Time for which a status stays, so that a tool that polls meets it. */
const STATUS_INTERVAL_MS = 500;

/** Timeout of the examples here: the least that Flux's poller takes for a Kustomization. */
const TIMEOUT_SECONDS = 30;

/** Without it a commit that fixes a cluster waits until the timeout of the one that broke it: docs/gitops.md asks for it. */
const NEW_REVISION_GATE = "--feature-gates=CancelHealthCheckOnNewRevision=true";

/** Time within which a commit is applied while a former one is waited for. */
const COMMIT_SECONDS = 15;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const example = (name) => parseObjects(file(`examples/flux/${name}.yaml`));
const ready = (object) => condition(object, "Ready");

before(() => diagnosed(async () => {
  for (const name of [NAMESPACE, "channels", "realtime-operator"]) await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name } });
  await Promise.all([applyCrds(), applyFluxCrds()]);
  await startController("kustomize-controller", "--requeue-dependency=2s", NEW_REVISION_GATE);
  await startController("helm-controller", NEW_REVISION_GATE);
}));

/** The statuses of Ready, each once, that a tool's object had while `act` ran. */
async function readyStatuses(kind, namespace, name, act) {
  const watch = await watchObject(kind, namespace, name);
  await act();
  await watch.stop();
  return [...new Set(watch.versions.map(({ object }) => ready(object)?.status ?? "Unknown"))];
}

const become = (kind, namespace, name, status, { pattern = /./, timeout = 30_000 } = {}) =>
  wait(async () => {
    const object = await get(kind, namespace, name);
    const found = ready(object);
    return found?.status === status && pattern.test(`${found.reason}: ${found.message}`) && found;
  }, { timeout, every: 300, what: `${kind}/${name} with Ready=${status} and ${pattern}` });

/** Replays the statuses of a step on the cluster, all but the last one or all of them. */
async function replay(step, { all = true } = {}) {
  const records = CLUSTERS.filter((one) => one.step === step && one.type !== "DELETED" && one.object.status.observedGeneration >= 0);
  for (const { object } of all ? records : records.slice(0, -1)) {
    await writeStatus("realtimecluster", "channels", "eu", object);
    await pause(STATUS_INTERVAL_MS);
  }
}

const object = (kind, name, spec) => ({ apiVersion: "realtime-operator.dev/v1alpha1", kind, metadata: { name, namespace: "channels" }, spec });
const APP = { "channels/apps/shop.yaml": object("RealtimeApp", "shop", APPS[0].object.spec) };
const files = (step) => ({ "channels/cluster/eu.yaml": object("RealtimeCluster", "eu", specOf(CLUSTERS, step)), ...APP });

/** Commits the cluster of a step and waits until its new generation is applied. */
async function commitStep(step) {
  const former = await get("realtimecluster", "channels", "eu").then(({ metadata }) => metadata.generation, () => 0);
  await commit("channels", files(step));
  await reconcile("kustomization", NAMESPACE, "channels-cluster");
  await wait(async () => (await get("realtimecluster", "channels", "eu")).metadata.generation > former, {
    timeout: COMMIT_SECONDS * 1_000, what: `the cluster of the step ${step}`,
  });
}

const kustomization = (name, status, options) => become("kustomization", NAMESPACE, name, status, options);

test("Flux's schemas accept every manifest of the examples", async () => {
  const all = ["kustomizations", "helmreleases"].flatMap(example);
  assert.equal(all.length, 7);
  for (const one of all) await kubectl(["create", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(one) });
});

test("a Kustomization waits for the proof, and the apps wait for it", { timeout: 120_000 }, async () => {
  for (const one of example("kustomizations")) {
    if (one.kind === "Kustomization") Object.assign(one.spec, { timeout: `${TIMEOUT_SECONDS}s`, retryInterval: "3s" });
    await apply(one);
  }
  await commitStep("install");
  assert.equal((await get("realtimecluster", "channels", "eu")).status.observedGeneration, -1, "no operator has seen it");
  const seen = await readyStatuses("kustomizations", NAMESPACE, "channels-cluster", async () => {
    await kustomization("channels-cluster", "Unknown");
    await kustomization("channels-apps", "False", { pattern: /^DependencyNotReady/ });
    await replay("install", { all: false });
  });
  assert.ok(!seen.includes("True"), `${seen} before the proof`);
  await assert.rejects(get("realtimeapp", "channels", "shop"), /NotFound/);
  await replay("install");
  await kustomization("channels-cluster", "True");
  await wait(() => get("realtimeapp", "channels", "shop"), { what: "the app" });
  await kustomization("channels-apps", "Unknown");
  await writeStatus("realtimeapp", "channels", "shop", APPS.find(({ object: one }) => isReady(one)).object);
  await kustomization("channels-apps", "True");
});

test("a generation that breaks is never Ready, and its fix is", { timeout: 180_000 }, async () => {
  await commitStep("fault");
  const seen = await readyStatuses("kustomizations", NAMESPACE, "channels-cluster", async () => {
    await kustomization("channels-cluster", "Unknown");
    await replay("fault");
    await kustomization("channels-cluster", "False", { timeout: 60_000, pattern: /^HealthCheckFailed: .*RealtimeCluster\/channels\/eu status: 'InProgress'/ });
  });
  assert.ok(!seen.slice(1).includes("True"), `${seen} while it is broken`);
  await commitStep("fix");
  await replay("fix", { all: false });
  await replay("fix");
  await kustomization("channels-cluster", "True");
});

test("a cluster that fails later is found at the next interval or on request", { timeout: 180_000 }, async () => {
  await replay("outage");
  await pause(6_000);
  assert.equal(ready(await get("kustomization", NAMESPACE, "channels-cluster")).status, "True", "Flux polls no object between two intervals");
  await reconcile("kustomization", NAMESPACE, "channels-cluster");
  await kustomization("channels-cluster", "False", { timeout: 60_000, pattern: /HealthCheckFailed/ });
  await replay("recovery");
  await kustomization("channels-cluster", "True", { timeout: 60_000 });
});

test("a cluster that needs a person fails at once, and the next commit goes on", { timeout: 120_000 }, async () => {
  await commitStep("refusal");
  await replay("refusal");
  const began = Date.now();
  await kustomization("channels-cluster", "False", { pattern: /failed early due to stalled resources: .*RealtimeCluster\/channels\/eu status: 'Failed'/ });
  assert.ok(Date.now() - began < (TIMEOUT_SECONDS * 1_000) / 2, "long before the timeout");
  await commitStep("resolution");
  await replay("resolution");
  await kustomization("channels-cluster", "True");
});

test("a removed file deletes no cluster, and a cluster that is deleted is waited for", { timeout: 180_000 }, async () => {
  const { finalizers } = CLUSTERS.find(({ step }) => step === "deletion").object.metadata;
  assert.ok(finalizers.length > 0);
  // Not by kubectl's own name: Flux takes over the fields of a person.
  const operator = ["--type=merge", "--field-manager=realtime-operator"];
  await kubectl(["patch", "realtimecluster", "eu", "-n", "channels", ...operator, "-p", JSON.stringify({ metadata: { finalizers } })]);
  await kubectl(["delete", "realtimecluster", "eu", "-n", "channels", "--wait=false"]);
  await replay("deletion");
  await reconcile("kustomization", NAMESPACE, "channels-cluster");
  await kustomization("channels-cluster", "False", { timeout: 60_000 });
  const gone = (await get("realtimecluster", "channels", "eu")).metadata.uid;
  await kubectl(["patch", "realtimecluster", "eu", "-n", "channels", "--type=merge", "-p", JSON.stringify({ metadata: { finalizers: null } })]);
  await wait(async () => (await get("realtimecluster", "channels", "eu")).metadata.uid !== gone, { timeout: 60_000, what: "the cluster that the repository still names" });
  await replay("install");
  await kustomization("channels-cluster", "True", { timeout: 60_000 });

  const note = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "note", namespace: "channels" } };
  const revision = await commit("channels", { "channels/cluster/note.yaml": note, ...APP });
  await reconcile("kustomization", NAMESPACE, "channels-cluster");
  await wait(async () => (await get("kustomization", NAMESPACE, "channels-cluster")).status.lastAppliedRevision === revision, { what: "the commit without the file" });
  assert.equal((await get("realtimecluster", "channels", "eu")).metadata.deletionTimestamp, undefined);
  await kubectl(["delete", "kustomization", "channels-apps", "channels-cluster", "-n", NAMESPACE]);
  await kubectl(["delete", "realtimecluster,realtimeapp", "--all", "-n", "channels"]);
});

test("a HelmRelease waits for the proof, fails when a person is needed, and tries again", { timeout: 240_000 }, async () => {
  const parts = example("helmreleases").filter(({ metadata }) => ["realtime-cluster", "eu"].includes(metadata.name));
  assert.equal(parts.length, 2);
  const release = parts.find(({ kind }) => kind === "HelmRelease");
  // No operator becomes ready on an API server alone.
  delete release.spec.dependsOn;
  const timings = { timeout: "120s", install: { strategy: { name: "RetryOnFailure", retryInterval: "3s" } }, upgrade: { strategy: { name: "RetryOnFailure", retryInterval: "3s" } } };
  for (const action of ["install", "upgrade"]) assert.equal(release.spec[action].strategy.name, "RetryOnFailure");
  Object.assign(release.spec, timings);
  const update = async (spec) => {
    release.spec.values = { keep: true, spec, apps: { shop: APPS[0].object.spec } };
    await apply(release);
  };
  const becomes = (status, options) => become("helmrelease", "channels", "eu", status, options);
  await apply(parts[0]);
  await pushChart("realtime-cluster");
  await update(specOf(CLUSTERS, "install"));
  await wait(() => get("realtimeapp", "channels", "shop"), { what: "the objects of the release" });
  const seen = await readyStatuses("helmreleases", "channels", "eu", () => replay("install", { all: false }));
  assert.deepEqual(seen, ["Unknown"], "before the proof");
  await replay("install");
  await writeStatus("realtimeapp", "channels", "shop", APPS.find(({ object: one }) => isReady(one)).object);
  await becomes("True", { pattern: /^InstallSucceeded/ });

  await update(specOf(CLUSTERS, "refusal"));
  await wait(async () => (await get("realtimecluster", "channels", "eu")).metadata.generation === 2, { what: "the second generation" });
  await replay("refusal");
  await becomes("False", { pattern: /^UpgradeFailed: .*stalled/ });
  await replay("recovery");
  await becomes("True", { timeout: 60_000, pattern: /^UpgradeSucceeded/ });
  await kubectl(["delete", "helmrelease", "eu", "-n", "channels"]);
  assert.equal((await get("realtimecluster", "channels", "eu")).metadata.deletionTimestamp, undefined, "keep: true");
});

test("a HelmRelease without a strategy stops for good when a person is needed once", { timeout: 120_000 }, async () => {
  const release = example("helmreleases").find(({ kind, metadata }) => kind === "HelmRelease" && metadata.name === "eu");
  const { dependsOn, install, upgrade, ...spec } = release.spec;
  const values = { keep: true, spec: specOf(CLUSTERS, "refusal") };
  await apply({ ...release, metadata: { ...release.metadata, name: "us" }, spec: { ...spec, timeout: "60s", values } });
  await wait(() => get("realtimecluster", "channels", "us"), { what: "the cluster of the release" });
  const last = (step) => CLUSTERS.findLast((one) => one.step === step).object;
  await writeStatus("realtimecluster", "channels", "us", last("refusal"));
  await become("helmrelease", "channels", "us", "False", { pattern: /stalled/i });
  await wait(async () => condition(await get("helmrelease", "channels", "us"), "Stalled")?.status === "True", { what: "a HelmRelease that has stopped" });
  await writeStatus("realtimecluster", "channels", "us", last("recovery"));
  await pause(10_000);
  assert.equal(ready(await get("helmrelease", "channels", "us")).status, "False", "though the cluster is Ready: hence the strategy of the example");
});
