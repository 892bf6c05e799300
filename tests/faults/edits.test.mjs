// Edits that come in bulk or too fast: two thousand apps of one apply, and a Secret that changes twice within a second, to a
// wrong value, and is deleted and created again.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, condition, get, kubectl, pods, startRedis, wait, watchObject } from "../cluster/harness.mjs";
import { edges, is, manifest, outside, ready, rotateSecret, said } from "../cluster/operator_fixtures.mjs";

const NAMESPACE = "edits";

/** Apps of one `kubectl apply`. */
const APPS = Number(process.env.APPS ?? 2_000);

/** Seconds within which the operator, once it has them all, has given every app its credentials and every pod the apps. */
const SERVED = 300;

let started;

/** Starts the cluster for the first of these tests that runs. */
const clusterStarted = () => (started ??= apply(manifest(NAMESPACE)).then(() => ready(NAMESPACE, "eu", 300)));

const cluster = () => get("realtimecluster", NAMESPACE, "eu");
const text = (object) => `${said(object)} ${condition(object, "Ready").message}`;
const uids = async () => (await edges(NAMESPACE)).map(({ metadata }) => metadata.uid).sort();

test("two thousand apps of one apply never turn a Ready cluster, and every pod serves them", { timeout: 1_500_000 }, async () => {
  await clusterStarted();
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await watch.until((object) => is(object, "Ready") === "True");
  const [since, before] = [watch.versions.length - 1, await uids()];
  const items = Array.from({ length: APPS }, (_, number) => ({
    apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeApp",
    metadata: { name: `bulk-${number}`, namespace: NAMESPACE, labels: { test: "bulk" } }, spec: { appID: String(100_000 + number) },
  }));
  const began = Date.now();
  await apply({ apiVersion: "v1", kind: "List", items });
  const applied = Date.now();
  const states = async () => (await get("realtimeapps", NAMESPACE)).items.filter(({ metadata }) => metadata.labels?.test === "bulk");
  const served = (app) => is(app, "Accepted") === "True" && is(app, "Ready") === "True";
  let seen = [];
  await wait(async () => {
    seen = await states();
    return seen.length === APPS && seen.every(served);
  }, { timeout: SERVED * 1000, every: 2_000, what: `${APPS} served apps`, seen: () => `${seen.filter(served).length} of ${seen.length} are` });
  console.log(`# ${APPS} apps were applied in ${((applied - began) / 1000).toFixed(0)} s, and served by every pod ${((Date.now() - applied) / 1000).toFixed(0)} s later`);
  await wait(async () => is(await cluster(), "AppsSynced") === "True", { timeout: 60_000, what: "the apps of the cluster to be in sync" });
  await kubectl(["delete", "realtimeapps", "-n", NAMESPACE, "-l", "test=bulk", "--wait=false"]);
  const left = async () => (await get("secrets", NAMESPACE)).items.filter(({ metadata }) => /^bulk-\d+-credentials$/.test(metadata.name)).length;
  await wait(async () => (await left()) === 0, { timeout: SERVED * 1000, what: "the end of the generated Secrets" });
  await wait(async () => is(await cluster(), "AppsSynced") === "True", { timeout: 60_000, what: "the removed apps to be in sync" });
  const versions = watch.versions.slice(since).map(({ object }) => text(object));
  console.log(`# ${versions.length} versions of the cluster`);
  assert.deepEqual(versions.filter((state) => !state.startsWith("True/")), []);
  assert.deepEqual(await uids(), before, "apps restart no pod");
  await watch.stop();
});

test("a Secret that changes twice within a second is proven as it was left, and never before", { timeout: 600_000 }, async () => {
  await clusterStarted();
  const others = await Promise.all([startRedis(), startRedis()]);
  const former = (await cluster()).status.gate.fingerprint;
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const began = Date.now();
  await rotateSecret(NAMESPACE, "eu-redis", "url", others[0].url);
  await rotateSecret(NAMESPACE, "eu-redis", "url", others[1].url);
  console.log(`# two changes within ${Date.now() - began} ms`);
  const isDone = (object) => object.status.gate.fingerprint !== former && is(object, "Ready") === "True";
  await watch.until((object) => object.status.gate.fingerprint !== former, { timeout: 60_000 });
  const proven = await watch.until(isDone, { timeout: 180_000 });
  // The copy that pods run is the one of the latest value.
  const copies = (await get("secrets", NAMESPACE)).items.filter(({ metadata }) => metadata.name.startsWith("eu-copy-"));
  const values = (secret) => Object.values(secret.data ?? {}).map((value) => Buffer.from(value, "base64").toString());
  const current = copies.find((secret) => values(secret).includes(others[1].url));
  assert.ok(current, "a copy of the latest value");
  for (const pod of await edges(NAMESPACE)) {
    if (pod.metadata.deletionTimestamp) continue;
    assert.ok(JSON.stringify(pod.spec).includes(current.metadata.name), `${pod.metadata.name} reads the latest value`);
  }
  // Between the first change and the proof of the latest value there is no True of another fingerprint.
  const changed = watch.versions.findIndex(({ object }) => object.status.gate.fingerprint !== former);
  for (const { object } of watch.versions.slice(changed)) {
    if (is(object, "Ready") === "True") assert.equal(object.status.gate.fingerprint, proven.status.gate.fingerprint, text(object));
  }
  await watch.stop();
  await rotateSecret(NAMESPACE, "eu-redis", "url", outside.redis.url);
  await wait(async () => (await cluster()).status.gate.fingerprint !== proven.status.gate.fingerprint, { what: "the Secret's first value" });
  await ready(NAMESPACE, "eu", 180);
  await Promise.all(others.map((redis) => redis.stop()));
});

test("a Secret that is wrong stops the rollout with its reason, and its former value is Ready again without a hand", { timeout: 600_000 }, async () => {
  await clusterStarted();
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await rotateSecret(NAMESPACE, "eu-redis", "url", "redis://198.18.0.1:1");
  const broken = await watch.until((object) => said(object) === "False/FanoutBroken", { timeout: 180_000 });
  assert.match(condition(broken, "Ready").message, /bus/);
  assert.ok((await pods(NAMESPACE, {})).some(({ status }) => status.phase === "Running"));
  await rotateSecret(NAMESPACE, "eu-redis", "url", outside.redis.url);
  await ready(NAMESPACE, "eu", 180);
  await watch.stop();
});

test("a Secret that is deleted is named, restarts no pod, and created again leaves the cluster as it was", { timeout: 600_000 }, async () => {
  await clusterStarted();
  const [former, before] = [(await cluster()).status.gate.fingerprint, await uids()];
  const { metadata: { name }, stringData, data, type } = await get("secret", NAMESPACE, "eu-redis");
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await kubectl(["delete", "secret", name, "-n", NAMESPACE]);
  // An edit of its user has the operator read a Secret at once.
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "--overwrite", "realtime-operator.dev/rotated-at=deleted"]);
  const missing = await watch.until((object) => /SecretMissing/.test(said(object)), { timeout: 120_000 });
  assert.match(condition(missing, "Ready").message, /Secret edits\/eu-redis .*create it/);
  assert.deepEqual(await uids(), before, "pods read their copy");
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name, namespace: NAMESPACE }, type, data, stringData });
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "--overwrite", "realtime-operator.dev/rotated-at=created"]);
  await ready(NAMESPACE, "eu", 60);
  assert.equal((await cluster()).status.gate.fingerprint, former);
  assert.deepEqual(await uids(), before, "pods read their copy");
  await watch.stop();
});
