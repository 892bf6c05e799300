// `realtime fleet`, `snapshot` and `migrate review` on an API server: rows, filters, a context that is gone, and other servers.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";

import { parse } from "yaml";

import { apply, applyCrds, BINARIES, DIR, get, kubectl, KUBECONFIG } from "../cluster/harness.mjs";
import { CLUSTER_VALUES, parseObjects, run } from "./helm.mjs";

const NAMESPACE = "fleet";
const KEY = `${DIR}/pki/fleet.key`;

const realtime = (args, kubeconfig = KUBECONFIG) => run(`${BINARIES}/realtime`, args, { env: { ...process.env, KUBECONFIG: kubeconfig } });

/** What the operator would apply, with this owner, and with webhooks switched off by hand for the SockJS servers. */
async function applyRendered(manifests, ownerReferences) {
  const file = `${DIR}/pki/fleet-manifests.yaml`;
  writeFileSync(file, manifests.map((object) => JSON.stringify(object)).join("\n---\n"));
  const { code, stdout, stderr } = await realtime(["render", file]);
  assert.equal(code, 0, stderr);
  for (const object of parseObjects(stdout).filter(({ kind }) => ["Deployment", "Secret"].includes(kind))) {
    object.metadata.ownerReferences = ownerReferences;
    if (object.metadata.name === "eu-sockjs") {
      object.spec.template.spec.containers[0].env.find(({ name }) => name === "REALTIME_WEBHOOKS").value = "off";
    }
    await apply(object);
  }
}

before(async () => {
  await applyCrds();
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } });
  writeFileSync(KEY, "0123456789abcdef0123456789abcdef");
  const group = "realtime-operator.dev/v1alpha1";
  const cluster = { apiVersion: group, kind: "RealtimeCluster", metadata: { name: "eu", namespace: NAMESPACE }, spec: CLUSTER_VALUES.spec };
  const app = { apiVersion: group, kind: "RealtimeApp", metadata: { name: "shop", namespace: NAMESPACE }, spec: { appID: "1001" } };
  const redis = { apiVersion: "v1", kind: "Secret", metadata: { name: "eu-redis", namespace: NAMESPACE }, stringData: { url: "redis://hush@r" } };
  await apply(cluster);
  const { metadata } = await get("realtimecluster", NAMESPACE, "eu");
  await applyRendered([cluster, app, redis], [{ apiVersion: group, kind: "RealtimeCluster", name: "eu", uid: metadata.uid }]);
  const lastTransitionTime = "2026-01-01T00:00:00Z";
  const status = {
    observedGeneration: metadata.generation,
    conditions: [{ type: "Ready", status: "False", reason: "ConfigurationDrift", message: "REALTIME_WEBHOOKS differs", lastTransitionTime }],
    transports: [{ name: "xhr_streaming", server: "sockjs", state: "Failing", hop: "record", pods: "0/2" }],
  };
  await kubectl(["patch", "realtimecluster", "eu", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", JSON.stringify({ status })]);
});

test("the cluster whose SockJS servers send no webhooks is found, also beside a context that is gone", async () => {
  const config = JSON.parse(await kubectl(["config", "view", "--raw", "-o", "json"]));
  const [{ context }] = config.contexts;
  const gone = { name: "gone", cluster: { server: "https://127.0.0.1:1" } };
  const path = `${DIR}/pki/fleet.kubeconfig`;
  const contexts = [{ name: "here", context }, { name: "gone", context: { ...context, cluster: "gone" } }];
  writeFileSync(path, JSON.stringify({ ...config, clusters: [...config.clusters, gone], contexts, "current-context": "here" }));
  const fleet = async (...args) => {
    const { code, stdout } = await realtime(["fleet", "-n", NAMESPACE, "-o", "json", ...args], path);
    return { code, ...JSON.parse(stdout) };
  };
  const both = await fleet("--where", "REALTIME_WEBHOOKS=off");
  assert.equal(both.code, 2);
  assert.deepEqual(both.unread.map(({ context }) => context), ["gone"]);
  const [row] = both.clusters;
  assert.deepEqual([row.context, row.cluster, row.ready, row.reason], ["here", `${NAMESPACE}/eu`, "False", "ConfigurationDrift"]);
  assert.deepEqual([row.broken, row.variables.REALTIME_WEBHOOKS], [{ xhr_streaming: "record" }, { sockjs: "off", websocket: "kinesis" }]);
  const here = await fleet("--context", "here", "--failing");
  assert.deepEqual([here.code, here.clusters.length], [1, 1]);
  const none = await fleet("--context", "here", "--where", "REALTIME_LOG=debug");
  assert.deepEqual([none.code, none.clusters.length, none.total], [0, 0, 1]);
});

test("a move from other servers to a cluster without webhooks is blocked by them first", async () => {
  const object = (kind, data) => apply({ apiVersion: "v1", kind, metadata: { name: "legacy", namespace: NAMESPACE }, ...data });
  await object("ConfigMap", { data: { KINESIS_ENABLED: "true" } });
  await object("Secret", { stringData: { DB_PASSWORD: "hush" } });
  const selector = { app: "legacy-sockjs" };
  const envFrom = [{ configMapRef: { name: "legacy" } }, { secretRef: { name: "legacy" } }];
  const template = { metadata: { labels: selector }, spec: { containers: [{ name: "server", image: "registry.example.com/server:1", envFrom }] } };
  await apply({
    apiVersion: "apps/v1", kind: "Deployment", metadata: { name: "legacy-sockjs", namespace: NAMESPACE },
    spec: { replicas: 2, selector: { matchLabels: selector }, template },
  });
  const snapshot = async (file, ...args) => {
    const { code, stdout, stderr } = await realtime(["snapshot", "-n", NAMESPACE, "--key", KEY, ...args]);
    assert.equal(code, 0, stderr);
    assert.doesNotMatch(stdout, /hush/);
    writeFileSync(file, stdout);
  };
  const [source, target] = ["source", "target"].map((name) => `${DIR}/pki/${name}.yaml`);
  await snapshot(source, "--from-deployment", "sockjs=legacy-sockjs/server");
  await snapshot(target, "eu");
  assert.match(readFileSync(source, "utf8"), /KINESIS_ENABLED:\n\s+text: 'true'/);
  const found = parse(readFileSync(target, "utf8"));
  assert.deepEqual(Object.keys(found.apps), ["1001"], "without the app of the journeys");
  assert.match(found.servers.sockjs.variables.REALTIME_REDIS_URL.digest, /^[0-9a-f]{16}$/);
  const { code, stdout } = await realtime(["migrate", "review", source, target, "-o", "json"]);
  const { blocked, findings } = JSON.parse(stdout);
  assert.deepEqual([code, blocked], [1, true]);
  assert.deepEqual([findings[0].code, findings[0].subject, findings[0].target], ["WebhooksOff", "sockjs/REALTIME_WEBHOOKS", "off"]);
  assert.ok(findings.some(({ code, subject }) => code === "Missing" && subject === "sockjs/KINESIS_ENABLED"), stdout);
});
