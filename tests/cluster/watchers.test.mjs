// The operator's own tasks on a real Kubernetes: its route, a second operator, an object that it cannot read.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, applyCrds, condition, file, get, inNamespace, kubectl, logs, OPERATOR_NAMESPACE, pods, wait } from "./harness.mjs";
import { podIs, said } from "./operator_fixtures.mjs";

const RECEIVER = "realtime-operator-receiver";

/** The leader's Lease, once somebody holds it. */
const leaderLease = () => wait(async () => {
  const lease = await get("lease", OPERATOR_NAMESPACE, "realtime-operator").catch(() => undefined);
  return lease?.spec.holderIdentity && lease;
}, { what: "a leader" });

/** A cluster whose Secrets do not exist: reconciled, and without pods. */
const cluster = (namespace, name) =>
  file("tests/fixtures/minimal-cluster.yaml", { "{ name: eu, namespace: channels }": `{ name: ${name}, namespace: ${namespace} }` });

test("the leader keeps the receiver's EndpointSlice", async () => {
  const lease = await leaderLease();
  const leader = await get("pod", OPERATOR_NAMESPACE, lease.spec.holderIdentity);
  const address = async () => (await get("endpointslice", OPERATOR_NAMESPACE, RECEIVER).catch(() => undefined))?.endpoints?.[0]?.addresses[0];
  await wait(async () => (await address()) === leader.status.podIP, { what: "the leader's address" });
  await kubectl(["delete", "endpointslice", RECEIVER, "-n", OPERATOR_NAMESPACE]);
  await wait(async () => (await address()) === leader.status.podIP, { what: "the slice after its deletion" });
  const patch = [{ op: "replace", path: "/endpoints/0/addresses", value: ["198.18.0.9"] }];
  await kubectl(["patch", "endpointslice", RECEIVER, "-n", OPERATOR_NAMESPACE, "--type=json", "-p", JSON.stringify(patch)]);
  await wait(async () => (await address()) === leader.status.podIP, { what: "the address after its change" });
});

test("of two operators of one scope the younger one does not lead and is not ready", async () => {
  const before = await leaderLease();
  const two = "operator-two";
  const manifest = file("examples/operator.yaml", {
    "kind: Namespace\nmetadata:\n  name: realtime-operator": `kind: Namespace\nmetadata:\n  name: ${two}`,
    "kind: ClusterRoleBinding\nmetadata:\n  name: realtime-operator": `kind: ClusterRoleBinding\nmetadata:\n  name: ${two}`,
    "namespace: realtime-operator": `namespace: ${two}`,
    "replicas: 2": "replicas: 1",
  });
  await apply(manifest);
  try {
    const other = await wait(async () => (await pods(two)).find((pod) => podIs(pod, "PodReadyToStartContainers") && pod.status.phase === "Running"), { timeout: 60_000, what: "the second operator" });
    const named = new RegExp(`this operator does not lead.*Lease ${OPERATOR_NAMESPACE}/realtime-operator .*--watch-namespaces`);
    await wait(async () => named.test(await logs(two, other.metadata.name)), { what: "the name of the other" });
    // Longer than the time in which a Lease without a live holder is taken.
    await new Promise((resolve) => setTimeout(resolve, 20_000));
    assert.ok((await pods(two)).every((pod) => !podIs(pod, "Ready")), "it is not ready");
    const lines = (await logs(two, other.metadata.name)).split("\n").filter((line) => named.test(line));
    assert.equal(lines.length, 1, "logged once");
    const after = await get("lease", OPERATOR_NAMESPACE, "realtime-operator");
    assert.equal(after.spec.holderIdentity, before.spec.holderIdentity, "the first one leads");
    assert.equal(after.metadata.labels["realtime-operator.dev/scope"], "all");
  } finally {
    await kubectl(["delete", "clusterrolebinding", two, "--ignore-not-found"]);
    await kubectl(["delete", "namespace", two, "--wait", "--timeout=60s"]);
  }
});

test("an object that this version cannot read gets a condition, and stops no other", () => inNamespace("unreadable", async (namespace) => {
  const path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/webhooks/properties/mode/enum/-";
  await kubectl(["patch", "crd", "realtimeclusters.realtime-operator.dev", "--type=json", "-p", JSON.stringify([{ op: "add", path, value: "Teleport" }])]);
  // Without its Secret, and then without AWS.
  const reconciled = /SecretMissing|AccessDenied/;
  const state = async (name) => {
    const object = await get("realtimecluster", namespace, name);
    return condition(object, "Ready") && `${said(object)} ${condition(object, "Ready").message}`;
  };
  const setMode = (name, mode) => kubectl(["patch", "realtimecluster", name, "-n", namespace, "--type=merge", "-p", JSON.stringify({ spec: { webhooks: { mode } } })]);
  try {
    await apply(cluster(namespace, "future"));
    await wait(async () => reconciled.test(await state("future")), { what: "a readable cluster" });
    await wait(() => setMode("future", "Teleport").then(() => true, () => false), { what: "the new word to be allowed" });
    await wait(async () => /^Unknown\/VersionUnsupported .*spec\.webhooks\.mode.*Teleport/.test(await state("future")), { what: "the field that cannot be read" });
    await apply(cluster(namespace, "other"));
    await wait(async () => reconciled.test(await state("other")), { what: "another cluster to be reconciled" });
    const notes = (await get("events.events.k8s.io", namespace)).items.filter(({ reason }) => reason === "VersionUnsupported");
    assert.match(notes[0]?.note ?? "", /spec\.webhooks\.mode/);
    await setMode("future", "Kinesis");
    await wait(async () => reconciled.test(await state("future")), { what: "the corrected cluster to be reconciled" });
  } finally {
    await kubectl(["delete", "realtimeclusters", "--all", "-n", namespace, "--timeout=60s"]);
    await applyCrds();
  }
}));
