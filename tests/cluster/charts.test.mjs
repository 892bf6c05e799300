// The charts on a real Kubernetes: Helm waits for the operator's verdict, and clients keep their pods when a release changes.
import assert from "node:assert/strict";
import { before, test } from "node:test";

import { apply, condition, deleteNamespace, diagnosed, get, isReady, kubectl, leaderName, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, pods, startKinesis, startReceiver, startRedis, tearDown, wait, watchObject } from "./harness.mjs";
import { chartFolder, execute, helm } from "./helm.mjs";
import { refusedRequests, usedPermissions } from "./permissions.mjs";

const NAMESPACE = "charts";
const IMAGE = { repository: "realtime-operator/realtime" };

/** A user id of a range of the namespace's own, as some platforms assign it to every pod. */
const USER_ID = 1_000_650_000 + Math.floor(Math.random() * 10_000);

/** Every permission that pods make the operator use. */
const OF_PODS = ["/pods list", "/pods watch", "/pods patch", "/pods/status patch", "apps/replicasets list", "apps/replicasets watch", "events.k8s.io/events create"];

/** Seconds after Ready within which Helm returns. */
const HELM_DELAY_MAX_SECONDS = 15;

/** A policy that runs the pods of the namespace as this user, waited for until it acts. */
async function assignUser(userID) {
  const [api, kind, name] = ["admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", "user-range"];
  const matchConstraints = {
    resourceRules: [{ apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: ["pods"] }],
    namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": NAMESPACE } },
  };
  const expression = `Object{spec: Object.spec{securityContext: Object.spec.securityContext{runAsUser: ${userID}}}}`;
  const mutations = [{ patchType: "ApplyConfiguration", applyConfiguration: { expression } }];
  await apply({ apiVersion: api, kind, metadata: { name }, spec: { matchConstraints, failurePolicy: "Fail", reinvocationPolicy: "Never", mutations } });
  await apply({ apiVersion: api, kind: `${kind}Binding`, metadata: { name }, spec: { policyName: name } });
  const container = { name: "trial", image: "localhost/pause:1", securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } } };
  const spec = { securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } }, containers: [container] };
  const trial = JSON.stringify({ apiVersion: "v1", kind: "Pod", metadata: { name: "trial", namespace: NAMESPACE }, spec });
  const created = async () => JSON.parse(await kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"], { input: trial }));
  await wait(async () => (await created()).spec.securityContext.runAsUser === userID, { what: "the policy to act" });
  return () => kubectl(["delete", `${kind}Binding/${name}`, `${kind}/${name}`]);
}

const outside = {};
const began = new Date();

before(() =>
  diagnosed(async () => {
    [outside.redis, outside.kinesis, outside.receiver] = await Promise.all([startRedis(), startKinesis(), startReceiver()]);
    await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE, labels: { "pod-security.kubernetes.io/enforce": "restricted" } } });
    for (const [name, stringData] of [["eu-redis", { url: outside.redis.url }], ["eu-aws", { accessKeyID: "test", secretAccessKey: "test" }]]) {
      await apply({ apiVersion: "v1", kind: "Secret", metadata: { name, namespace: NAMESPACE }, stringData });
    }
    outside.releaseUser = await assignUser(USER_ID);
  }));

tearDown(async () => {
  await outside.releaseUser?.();
  await kubectl(["delete", "realtimeclusters", "-A", "--all", "--timeout=100s"]);
  // Cluster-scoped objects of a release that a failed test left would bind the operators of other files.
  for (const name of ["realtime-operator", "rt"]) await execute(["uninstall", name, "-n", OPERATOR_NAMESPACE, "--ignore-not-found"]);
  await Promise.all([deleteNamespace(OPERATOR_NAMESPACE), deleteNamespace(NAMESPACE)]);
});

/** The operator's values for one namespace, or for all. */
const operatorValues = (namespaces = [NAMESPACE]) => ({
  image: IMAGE,
  watch: namespaces.length > 0 ? { scope: "Namespaces", namespaces } : {},
  platformPolicy: { rules: [{ namespaces: [NAMESPACE], endpoints: [outside.kinesis.url] }] },
});

/** The cluster's values, with this endpoint of Kinesis. */
const clusterValues = (endpointURL = outside.kinesis.url) => ({
  spec: {
    aws: { region: "eu-west-1", endpointURL, allowInsecureEndpoint: true, identity: { type: "StaticKeys", secretRef: { name: "eu-aws" } } },
    bus: { type: "Redis", redis: { urlSecretRef: { name: "eu-redis", key: "url" } } },
    websocket: { replicas: 1, drain: { holdSeconds: 2 } },
    sockjs: { replicas: 1, drain: { holdSeconds: 2 } },
    webhooks: { allowedNetworks: ["198.18.0.0/15"], dispatcher: { replicas: 1 }, stream: { mode: "Provisioned", shards: 1 } },
    gate: { intervalSeconds: 5 },
  },
  apps: { shop: { appID: "1001", webhooks: [{ name: "orders", url: outside.receiver.url }] } },
  test: { enabled: true, image: "realtime-operator/realtime:0.2.0" },
});

/** Installs or upgrades the operator's release, and waits as Helm does. CRDs of an earlier test are taken over. */
const installOperator = (values, name = "realtime-operator") =>
  helm(["upgrade", "--install", name, chartFolder("realtime-operator"), "-n", OPERATOR_NAMESPACE, "--create-namespace", "--take-ownership", "--force-conflicts", "--wait", "--timeout", "90s"], values);

const upgradeCluster = (values, seconds = 180) =>
  execute(["upgrade", "--install", "eu", chartFolder("realtime-cluster"), "-n", NAMESPACE, "--wait", "--timeout", `${seconds}s`], values);

/** The serving objects of the cluster: ReplicaSets and pods by UID. */
async function serving() {
  const sets = (await get("replicaset", NAMESPACE)).items.map(({ metadata, spec }) => `${metadata.name} ${metadata.uid} ${spec.replicas}`);
  const running = (await pods(NAMESPACE, { "app.kubernetes.io/managed-by": "realtime-operator" })).map(({ metadata }) => metadata.uid);
  return { sets: sets.sort(), running: running.sort() };
}

test("helm install --wait returns with the operator available, and of a cluster with the first complete pass", async () => {
  await installOperator(operatorValues());
  assert.equal((await get("deployment", OPERATOR_NAMESPACE, "realtime-operator")).status.availableReplicas, 2);
  const versions = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const { code, stderr } = await upgradeCluster(clusterValues());
  const returned = Date.now();
  assert.equal(code, 0, stderr);
  const first = versions.versions.find(({ object }) => isReady(object));
  assert.ok(first, "the cluster is Ready when Helm returns");
  console.log(`# Helm returned ${((returned - first.at) / 1000).toFixed(1)} s after Ready`);
  assert.ok(returned - first.at < HELM_DELAY_MAX_SECONDS * 1000, `${returned - first.at} ms after Ready`);
  assert.ok(first.object.status.transports.every(({ state }) => state === "Passing"), "every transport has passed");
  await versions.stop();
  for (const pod of await pods(NAMESPACE, {})) {
    const { runAsNonRoot, runAsUser } = pod.spec.securityContext;
    assert.deepEqual([runAsNonRoot, runAsUser], [true, USER_ID], "admitted where restricted Pod Security is enforced, as the user of the range");
    assert.equal(pod.status.qosClass, "Burstable", "it requests CPU and memory");
  }
});

test("helm upgrade --wait fails with the reason of a fault, and succeeds on its repair", async () => {
  const before = await serving();
  const failed = await upgradeCluster(clusterValues("http://198.18.0.1:9"), 60);
  assert.notEqual(failed.code, 0, failed.stdout);
  assert.match(failed.stderr, /endpointURL.*198\.18\.0\.1:9/, "the message names the field");
  const repaired = await upgradeCluster(clusterValues());
  assert.equal(repaired.code, 0, repaired.stderr);
  assert.ok(isReady(await get("realtimecluster", NAMESPACE, "eu")));
  assert.deepEqual(await serving(), before, "a refused manifest changes no pod");
});

test("helm test prints every hop of a cluster, and fails while one is not Ready", async () => {
  for (const [name, namespace] of [["eu", NAMESPACE], ["realtime-operator", OPERATOR_NAMESPACE]]) {
    const printed = await helm(["test", name, "-n", namespace, "--logs", "--timeout", "60s"]);
    assert.match(printed, new RegExp(`${NAMESPACE}/eu: Ready \\(Proven\\)`), name);
    assert.match(printed, /websocket +Passing +1\/1 .*✓ connect .*✓ delivery/, name);
  }
  await apply({ apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeCluster", metadata: { name: "broken", namespace: NAMESPACE }, spec: clusterValues("http://198.18.0.1:9").spec });
  await wait(async () => condition(await get("realtimecluster", NAMESPACE, "broken"), "Ready")?.status === "False", { what: "a cluster that is not Ready" });
  const { code, stdout, stderr } = await execute(["test", "realtime-operator", "-n", OPERATOR_NAMESPACE, "--logs", "--timeout", "60s"]);
  assert.notEqual(code, 0, stdout);
  assert.match(`${stdout}${stderr}`, new RegExp(`${NAMESPACE}/broken: NOT READY`));
  await kubectl(["delete", "realtimecluster", "broken", "-n", NAMESPACE, "--timeout=30s"]);
});

test("an upgrade, a removal and a release of another name leave clusters, pods and streams as they are", async () => {
  const before = await serving();
  const streams = async () => (await outside.kinesis.call("ListStreams")).StreamNames;
  const stream = await streams();
  assert.equal(stream.length, 1);
  assert.deepEqual(refusedRequests(OPERATOR_ACCOUNT, began), [], "in scope Namespaces");
  await installOperator({ ...operatorValues([]), log: "debug" });
  await wait(async () => isReady(await get("realtimecluster", NAMESPACE, "eu")), { timeout: 60_000, what: "a Ready cluster after the upgrade" });
  assert.deepEqual(await serving(), before, "after an upgrade to another scope");
  assert.deepEqual(refusedRequests(OPERATOR_ACCOUNT, began), [], "in scope Cluster");

  await helm(["uninstall", "realtime-operator", "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s"]);
  assert.deepEqual(await serving(), before, "without an operator");
  assert.deepEqual(await streams(), stream);
  for (const name of ["eu-websocket", "eu-sockjs"]) {
    const slices = (await get("endpointslices", NAMESPACE)).items.filter(({ metadata }) => metadata.labels["kubernetes.io/service-name"] === name);
    assert.ok(slices.some(({ endpoints }) => endpoints?.some(({ conditions }) => conditions.ready)), `${name} has an endpoint`);
  }

  await installOperator(operatorValues([]), "rt");
  await wait(async () => (await leaderName())?.startsWith("rt-"), { timeout: 60_000, what: "a leader of the other release" });
  await wait(async () => isReady(await get("realtimecluster", NAMESPACE, "eu")), { timeout: 60_000, what: "a Ready cluster under another release" });
  assert.deepEqual(await serving(), before, "under another release");
});

test("the operator has used every permission that pods need", () => {
  const used = usedPermissions(OPERATOR_ACCOUNT, began);
  assert.deepEqual(OF_PODS.filter((permission) => !used.has(permission)), []);
});

test("helm uninstall of a cluster ends its pods and keeps its stream", async () => {
  await helm(["uninstall", "eu", "-n", NAMESPACE, "--wait", "--timeout", "90s"]);
  assert.deepEqual((await get("realtimecluster", NAMESPACE)).items, []);
  assert.deepEqual((await serving()).running, []);
  assert.equal((await outside.kinesis.call("ListStreams")).StreamNames.length, 1);
});
