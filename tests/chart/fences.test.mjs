// The admission policies of the operator's chart: a script with the operator's token, on an API server.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { before, test } from "node:test";

import { apply, applyCrds, get, kubectl, wait } from "../cluster/harness.mjs";
import { chartFolder, CLUSTER_VALUES, helm, IMAGE_VALUES } from "./helm.mjs";

const OPERATOR = "realtime-operator";
const NAMESPACE = "fenced";
const LABELS = { "app.kubernetes.io/managed-by": "realtime-operator", "app.kubernetes.io/instance": "eu" };

const install = (enabled) =>
  helm(["upgrade", "--install", OPERATOR, chartFolder("realtime-operator"), "--namespace", OPERATOR, "--create-namespace"], { ...IMAGE_VALUES, crds: { enabled: false }, admissionPolicies: { enabled } });

let token;
let owner;

/** Runs kubectl with the operator's token; nothing is kept. Gives the refusal, or "" for none. */
const attempt = (args, options) =>
  kubectl([...args, `--token=${token}`], options).then(() => "", ({ message }) => message.replaceAll(token, "TOKEN"));

const DRY = "--dry-run=server";
const create = (object) => attempt(["create", DRY, "-f", "-"], { input: JSON.stringify(object) });
const patch = (kind, name, value) => attempt(["patch", kind, name, "-n", NAMESPACE, DRY, "--type=merge", "-p", JSON.stringify(value)]);

/** Patches a pod or its status as the operator does, which may not read one by name; kubectl would. */
async function patchPod(name, body, { subresource = "" } = {}) {
  const { clusters } = JSON.parse(await kubectl(["config", "view", "--raw", "-o", "json"]));
  const { server, "certificate-authority": file, "certificate-authority-data": data } = clusters[0].cluster;
  const ca = data ? Buffer.from(data, "base64") : file && readFileSync(file);
  const content = JSON.stringify(body);
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/strategic-merge-patch+json", "content-length": Buffer.byteLength(content) };
  return new Promise((resolve, reject) => {
    const sent = request(`${server}/api/v1/namespaces/${NAMESPACE}/pods/${name}${subresource}?dryRun=All`, { method: "PATCH", headers, ...(ca ? { ca } : { rejectUnauthorized: false }) }, (answer) => {
      let text = "";
      answer.on("data", (chunk) => (text += chunk));
      answer.on("end", () => resolve(answer.statusCode === 200 ? "" : text));
    });
    sent.on("error", reject);
    sent.end(content);
  });
}

const setCondition = (name, type) => patchPod(name, { status: { conditions: [{ type, status: "True" }] } }, { subresource: "/status" });

const remove = (kind, name) => attempt(["delete", kind, name, "-n", NAMESPACE, DRY]);

/** An object of a cluster, as the operator writes it. */
const child = (apiVersion, kind, name, rest, metadata = {}) => ({ apiVersion, kind, metadata: { name, namespace: NAMESPACE, labels: LABELS, ownerReferences: [owner], ...metadata }, ...rest });

const CONTAINERS = [{ name: "a", image: "a" }];

const pod = (name, metadata) => ({ apiVersion: "v1", kind: "Pod", metadata: { name, namespace: NAMESPACE, ...metadata }, spec: { containers: CONTAINERS, automountServiceAccountToken: false } });

const secret = (name, metadata, rest = {}) => ({ apiVersion: "v1", kind: "Secret", metadata: { name, namespace: NAMESPACE, ...metadata }, ...rest });

const deployment = (spec, metadata) => child("apps/v1", "Deployment", "eu-websocket", {
  spec: { selector: { matchLabels: LABELS }, template: { metadata: { labels: LABELS }, spec: { containers: CONTAINERS, serviceAccountName: "eu-edge", ...spec } } },
}, metadata);

const role = (name, resources) => child("rbac.authorization.k8s.io/v1", "Role", name, { rules: [{ apiGroups: [resources === "leases" ? "coordination.k8s.io" : ""], resources: [resources], verbs: ["get"] }] });

const binding = (name, roleRef, subject) => child("rbac.authorization.k8s.io/v1", "RoleBinding", name, { roleRef: { apiGroup: "rbac.authorization.k8s.io", ...roleRef }, subjects: [subject] });

before(async () => {
  await applyCrds();
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } });
  await install(true);
  await apply({ apiVersion: "v1", kind: "ServiceAccount", metadata: { name: "default", namespace: NAMESPACE } });
  await apply({ apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeCluster", metadata: { name: "eu", namespace: NAMESPACE }, spec: CLUSTER_VALUES.spec });
  const { metadata } = await get("realtimecluster", NAMESPACE, "eu");
  owner = { apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeCluster", name: "eu", uid: metadata.uid, controller: true };
  const set = { apiVersion: "apps/v1", kind: "ReplicaSet", name: "eu-websocket-1", uid: metadata.uid, controller: true };
  await apply(pod("own", { labels: LABELS, ownerReferences: [set] }));
  await apply(pod("foreign", { labels: { app: "shop" }, ownerReferences: [set] }));
  await apply(pod("pretender", { labels: LABELS }));
  await apply(secret("foreign"));
  await apply(secret("own", { labels: LABELS }));
  await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "foreign", namespace: NAMESPACE } });
  await apply(role("foreign", "secrets"));
  await kubectl(["label", "role", "foreign", "-n", NAMESPACE, "app.kubernetes.io/managed-by-"]);
  token = (await kubectl(["create", "token", OPERATOR, "-n", OPERATOR])).trim();
  // The API server reads policies a moment after they are written.
  await wait(async () => /ValidatingAdmissionPolicy/.test(await remove("pod", "foreign")), { what: "the policies to be in force" });
});

test("with the fences on, a script that holds the operator's token writes objects of clusters only", async () => {
  const user = { kind: "User", apiGroup: "rbac.authorization.k8s.io", name: "mallory" };
  const account = { kind: "ServiceAccount", name: "eu-dispatcher", namespace: NAMESPACE };
  const lease = (namespace) => ({ apiVersion: "coordination.k8s.io/v1", kind: "Lease", metadata: { name: "taken", namespace } });
  for (const [name, refusal, message] of [
    ["annotate a foreign pod", await patchPod("foreign", { metadata: { annotations: { "realtime-operator.dev/admitted": "x" } } }), /pods of its clusters only/],
    ["change the image of a foreign pod", await patchPod("foreign", { spec: { containers: [{ name: "a", image: "b" }] } }), /pods of its clusters only/],
    ["delete a foreign pod", await remove("pod", "foreign"), /pods of its clusters only/],
    ["delete a pod that no ReplicaSet owns", await remove("pod", "pretender"), /pods of its clusters only/],
    ["change the image of its own pod", await patchPod("own", { spec: { containers: [{ name: "a", image: "b" }] } }), /own annotations and conditions only/],
    ["change a label of its own pod", await patchPod("own", { metadata: { labels: { app: "shop" } } }), /own annotations and conditions only/],
    ["write another annotation", await patchPod("own", { metadata: { annotations: { "cni.example.com/address": "x" } } }), /own annotations and conditions only/],
    ["declare a pod ready", await setCondition("own", "Ready"), /own conditions only/],
    ["list Secrets", await attempt(["get", "secrets", "-n", NAMESPACE]), /cannot list resource "secrets"/],
    ["write a Secret without the label", await create(secret("new")), /label app.kubernetes.io\/managed-by only/],
    ["take a foreign Secret", await patch("secret", "foreign", { metadata: { labels: LABELS } }), /no Secret that is another's/],
    ["delete a foreign Secret", await remove("secret", "foreign"), /no Secret that is another's/],
    ["have a token made for another account", await create(secret("new", { labels: LABELS, annotations: { "kubernetes.io/service-account.name": "default" } }, { type: "kubernetes.io/service-account-token" })), /type Opaque only/],
    ["write a ConfigMap that no cluster owns", await create(child("v1", "ConfigMap", "new", {}, { ownerReferences: [] })), /ConfigMaps that a cluster owns/],
    ["take a foreign ConfigMap", await patch("configmap", "foreign", { metadata: { labels: LABELS, ownerReferences: [owner] } }), /no ConfigMap that is another's/],
    ["create a Deployment that no cluster owns", await create(deployment({}, { ownerReferences: [] })), /that a cluster owns/],
    ["run pods with another account", await create(deployment({ serviceAccountName: "default" })), /accounts of their cluster only/],
    ["run pods in the network of the node", await create(deployment({ hostNetwork: true })), /network nor files of their node/],
    ["mount files of the node", await create(deployment({ volumes: [{ name: "a", hostPath: { path: "/" } }] })), /network nor files of their node/],
    ["grant Secrets by a Role", await create(role("eu-dispatcher", "secrets")), /Roles grant Leases only/],
    ["widen a foreign Role", await patch("role", "foreign", { rules: [{ apiGroups: [""], resources: ["secrets"], verbs: ["get", "patch"] }] }), /Roles grant Leases only|that a cluster owns/],
    ["bind another Role", await create(binding("eu-dispatcher", { kind: "Role", name: "foreign" }, account)), /own Role to the account of the same name only/],
    ["bind a Role to a user", await create(binding("foreign", { kind: "Role", name: "foreign" }, user)), /own Role to the account of the same name only/],
    ["bind a ClusterRole", await create(binding("view", { kind: "ClusterRole", name: "view" }, account)), /own Role to the account|attempting to grant/],
    ["write a Lease of another namespace", await create(lease(NAMESPACE)), /Lease of its own namespace only/],
    ["change the spec of a cluster", await patch("realtimecluster", "eu", { spec: { websocket: { replicas: 9 } } }), /finalizers and the status only/],
  ]) {
    assert.match(refusal, message, name);
  }
  for (const [name, refusal] of [
    ["annotate its own pod", await patchPod("own", { metadata: { annotations: { "realtime-operator.dev/admitted": "x" } } })],
    ["open the gate of its own pod", await setCondition("own", "realtime-operator.dev/webhooks-delivered")],
    ["delete its own pod", await remove("pod", "own")],
    ["write a Secret with the label", await create(secret("new", { labels: LABELS }))],
    ["change a Secret with the label", await patch("secret", "own", { stringData: { a: "b" } })],
    ["publish the snapshot of a cluster", await create(child("v1", "ConfigMap", "eu-snapshot", {}))],
    ["create a Deployment of a cluster", await create(deployment({}))],
    ["grant Leases", await create(role("eu-dispatcher", "leases"))],
    ["write the Lease of its own namespace", await create(lease(OPERATOR))],
    ["write a finalizer", await patch("realtimecluster", "eu", { metadata: { finalizers: ["realtime-operator.dev/x"] } })],
  ]) {
    assert.equal(refusal, "", name);
  }
  // Binding needs the Role of the same name.
  await apply(role("eu-dispatcher", "leases"));
  assert.equal(await create(binding("eu-dispatcher", { kind: "Role", name: "eu-dispatcher" }, account)), "");
});

test("the fences bind the operator's account alone, and can be switched off", async () => {
  await kubectl(["annotate", "pod", "foreign", "-n", NAMESPACE, DRY, "realtime-operator.dev/admitted=x"]);
  await install(false);
  const annotated = () => patchPod("foreign", { metadata: { annotations: { "realtime-operator.dev/admitted": "x" } } });
  await wait(async () => (await annotated()) === "", { what: "the policies to be gone" });
  assert.equal(await create(secret("new")), "", "RBAC alone does not refuse it");
  await helm(["uninstall", OPERATOR, "--namespace", OPERATOR]);
  await kubectl(["delete", "namespace", NAMESPACE, "--wait=false"]);
});
