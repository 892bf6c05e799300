// EKS Pod Identity on the node: an association that is there, one that comes late, and none.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, condition, deleteNamespace, get, kubectl, OPERATOR_NAMESPACE, pods, tearDown, wait, watchObject } from "../cluster/harness.mjs";
import { is, manifest, ready } from "../cluster/operator_fixtures.mjs";
import { associate, dissociate, LABEL, startAgent, VARIABLES } from "./pod_identity.mjs";

const ACCOUNTS = ["eu-edge", "eu-dispatcher"];
const [EARLY, LATE] = ["identity-early", "identity-late"];

/**
 * Most seconds from the first pod to the reason, and from the association to Ready: a pod may just have been replaced for the
 * second time, and waits five minutes for the third.
 */
const [REASON_SECONDS_MAX, CURE_SECONDS_MAX] = [10, 420];

let agent;

const identityManifest = (namespace) =>
  manifest(namespace, { "      type: StaticKeys\n      secretRef:\n        name: eu-aws\n": "      type: PodIdentity\n" });

tearDown(async () => {
  await Promise.all([EARLY, LATE].map((namespace) => deleteNamespace(namespace)));
  await Promise.all([EARLY, LATE, OPERATOR_NAMESPACE].map(dissociate));
  agent?.stop();
});

const readyOf = (object) => condition(object, "Ready");
const lacksIdentity = (object) => readyOf(object)?.reason === "IdentityNotInjected";

/** What EKS adds to a pod. */
const INJECTED = { label: "enabled", variables: VARIABLES, volume: true };

/** What EKS adds to a pod, as this pod has it. */
function injectedInto({ metadata, spec }) {
  const [container] = spec.containers;
  const variables = Object.fromEntries(container.env.filter(({ name }) => name in VARIABLES).map(({ name, value }) => [name, value]));
  return { label: metadata.labels[LABEL], variables, volume: spec.volumes.some(({ name }) => name === "eks-pod-identity-token") };
}

async function assertInjected(namespace) {
  const all = await pods(namespace);
  assert.equal(all.length, 6, `${all.map(({ metadata }) => metadata.name)}`);
  for (const pod of all) assert.deepEqual(injectedInto(pod), INJECTED, pod.metadata.name);
  for (const account of ACCOUNTS) assert.ok(agent.served.includes(`system:serviceaccount:${namespace}:${account}`), `${account}: ${agent.served}`);
}

test("the operator's pods get an identity of their own", async () => {
  agent = await startAgent();
  await associate(OPERATOR_NAMESPACE, ["realtime-operator"]);
  await kubectl(["rollout", "restart", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=90s"]);
  for (const pod of await pods(OPERATOR_NAMESPACE)) assert.deepEqual(injectedInto(pod), INJECTED, pod.metadata.name);
});

test("pods with an association are Ready with its credentials, and none is replaced", async () => {
  await kubectl(["create", "namespace", EARLY]);
  await associate(EARLY, ACCOUNTS);
  const watch = await watchObject("realtimeclusters", EARLY, "eu");
  const born = await watchObject("pods", EARLY);
  await apply(identityManifest(EARLY));
  await ready(EARLY);
  await assertInjected(EARLY);
  assert.equal(watch.versions.filter(({ object }) => lacksIdentity(object)).length, 0);
  assert.equal(born.versions.filter(({ type }) => type === "ADDED").length, 6, "no pod was replaced");
  assert.ok(agent.served.includes(`system:serviceaccount:${OPERATOR_NAMESPACE}:realtime-operator`), "the operator has its own identity");
  await Promise.all([watch.stop(), born.stop()]);
  await kubectl(["delete", "realtimecluster", "eu", "-n", EARLY, "--timeout=100s"]);
});

test("without an association the reason is IdentityNotInjected from the first pod, with the command", async () => {
  await kubectl(["create", "namespace", LATE]);
  const watch = await watchObject("realtimeclusters", LATE, "eu");
  const born = await watchObject("pods", LATE);
  await apply(identityManifest(LATE));
  const first = await born.until(() => true, { timeout: 60_000 });
  const found = await watch.until(lacksIdentity, { timeout: 60_000 });
  const seconds = (Date.parse(readyOf(found).lastTransitionTime) - Date.parse(first.metadata.creationTimestamp)) / 1_000;
  assert.ok(seconds <= REASON_SECONDS_MAX, `${seconds} s after the first pod`);
  const { status, message } = readyOf(found);
  assert.equal(status, "False");
  const command = `aws eks create-pod-identity-association --region eu-west-1 --cluster-name EKS_CLUSTER --namespace ${LATE} --service-account eu-`;
  assert.ok(message.includes(command), message);
  // A pod that is created anew is the only cure, so that they are replaced for as long as it takes.
  await watch.until((object) => /replaced [1-9]\d* times/.test(readyOf(object)?.message), { timeout: 90_000 });
  const since = watch.versions.findIndex(({ object }) => lacksIdentity(object));
  for (const { object } of watch.versions.slice(since)) {
    assert.ok(lacksIdentity(object), JSON.stringify(readyOf(object)));
    assert.notEqual(is(object, "Stalled"), "True");
  }
  assert.ok(!agent.served.some((account) => account.includes(LATE)));
  await Promise.all([watch.stop(), born.stop()]);
});

test("an association that comes late cures every pod without a hand", async (t) => {
  await associate(LATE, ACCOUNTS);
  const began = Date.now();
  await ready(LATE, "eu", CURE_SECONDS_MAX);
  t.diagnostic(`from the association to Ready: ${((Date.now() - began) / 1_000).toFixed(0)} s`);
  await wait(async () => (await pods(LATE)).length === 6, { what: "the pods" });
  await assertInjected(LATE);
  const { status } = await get("realtimecluster", LATE, "eu");
  assert.deepEqual(status.conditions.filter(({ type }) => type === "Stalled").map(({ status }) => status), []);
});
