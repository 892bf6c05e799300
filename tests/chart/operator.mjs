// The operator as a plain process beside an API server, with the account of the chart, and clusters for it.
import { writeFileSync } from "node:fs";

import { kinesisPorts, spawnLogged, startOnFreePorts, waitUntilReady } from "../conformance/processes.mjs";
import { apply, BINARIES, DIR, get, kubectl, OPERATOR_NAMESPACE as NAMESPACE, wait } from "../cluster/harness.mjs";
import { CLUSTER_VALUES } from "./helm.mjs";

/** Starts the operator with a token of the chart's account and a policy that allows this endpoint. */
async function startOperator(args, endpoint, until) {
  const token = (await kubectl(["create", "token", "realtime-operator", "-n", NAMESPACE])).trim();
  const { clusters } = JSON.parse(await kubectl(["config", "view", "--raw", "-o", "json"]));
  const config = {
    apiVersion: "v1", kind: "Config", clusters, users: [{ name: "operator", user: { token } }],
    contexts: [{ name: "operator", context: { cluster: clusters[0].name, user: "operator" } }], "current-context": "operator",
  };
  const path = `${DIR}/pki/operator.kubeconfig`;
  writeFileSync(path, JSON.stringify(config));
  const policy = `${DIR}/pki/platform-policy.yaml`;
  writeFileSync(policy, JSON.stringify({ rules: [{ namespaces: ["*"], endpoints: [endpoint] }] }));
  const own = [`--namespace=${NAMESPACE}`, "--pod=operator-0", "--address=198.18.0.9"];
  return startOnFreePorts(2, async (receiver, admin) => {
    const listeners = [`--receiver=127.0.0.1:${receiver}`, `--admin=127.0.0.1:${admin}`];
    const started = spawnLogged(`${BINARIES}/realtime`, [...args, ...own, ...listeners], { env: { ...process.env, KUBECONFIG: path, PLATFORM_POLICY: policy } });
    return until(started);
  });
}

/** The operator until `fn` ends. */
export async function withOperator(args, endpoint, fn) {
  const operator = await startOperator(args, endpoint, async (started) => {
    await waitUntilReady("the operator", started, (log) => log.includes("leading: starting the controllers"));
    return started;
  });
  try {
    return await fn(operator.log);
  } finally {
    await operator.stop("SIGTERM");
  }
}

/** The end of an operator that does not start: `{ code, log }`. */
export const runOperator = (args, endpoint) =>
  startOperator(args, endpoint, async ({ child, log, hasEnded }) => {
    await wait(() => hasEnded(), { timeout: 60_000, what: "the operator to end", seen: log });
    return { code: child.exitCode, log: log() };
  });

/** The address of a Kinesis on loopback that ends with this process. */
export async function startStreams() {
  const streams = spawnLogged(`${BINARIES}/examples/kinesis`, ["127.0.0.1:0", "127.0.0.1:0"]);
  const { port } = await waitUntilReady("Kinesis", streams, kinesisPorts);
  return { url: `http://127.0.0.1:${port}`, stop: () => streams.stop() };
}

/** An app and a cluster whose route has no kind on this API server. */
export function manifestsOf(namespace, endpointURL, spec = {}) {
  const aws = { region: "eu-west-1", endpointURL, allowInsecureEndpoint: true, identity: { type: "StaticKeys", secretRef: { name: "eu-aws" } } };
  // No Gateway API is installed here: its route is a finding, and all else is applied.
  const websocket = { ...CLUSTER_VALUES.spec.websocket, hosts: ["ws.example.com"], expose: { type: "Gateway", controller: "Other", parentRefs: [{ name: "public" }] } };
  const sockjs = { ...CLUSTER_VALUES.spec.sockjs, hosts: ["sockjs.example.com"], expose: { type: "Ingress", controller: "Traefik" } };
  const app = { apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeApp", metadata: { name: "shop", namespace }, spec: { appID: "1001" } };
  const webhooks = { stream: { mode: "Provisioned", shards: 2 } };
  const cluster = { apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeCluster", metadata: { name: "eu", namespace }, spec: { ...CLUSTER_VALUES.spec, aws, websocket, sockjs, webhooks, ...spec } };
  return [app, cluster];
}

/** Creates a cluster with its Secrets and these fields of its spec, and waits until the operator has applied its children. */
export async function reconciled(namespace, endpointURL, log, spec = {}) {
  const secret = (name, stringData) => apply({ apiVersion: "v1", kind: "Secret", metadata: { name, namespace }, stringData });
  await secret("eu-redis", { url: "redis://redis.example.com:6379" });
  await secret("eu-aws", { accessKeyID: "test", secretAccessKey: "test" });
  for (const object of manifestsOf(namespace, endpointURL, spec)) await apply(object);
  const seen = () => log().slice(-2000);
  for (const kind of ["deployment", "service", "ingress", "serviceaccount", "poddisruptionbudget", "role", "rolebinding"]) {
    await wait(async () => (await get(kind, namespace)).items.some(({ metadata }) => metadata.ownerReferences?.length > 0), { what: `a ${kind} in ${namespace}`, seen });
  }
  await wait(async () => {
    const { status } = await get("realtimecluster", namespace, "eu");
    const exposed = status?.conditions?.find(({ type }) => type === "Exposed");
    return exposed?.reason === "ExposureUnavailable" && /HTTPRoute eu-websocket of gateway.networking.k8s.io\/v1/.test(exposed.message);
  }, { what: `the missing kind to be reported in ${namespace}`, seen });
  await wait(async () => (await get("realtimeapp", namespace)).items.every(({ status }) => status?.conditions?.length > 0), { what: `a status of the app in ${namespace}`, seen });
}

/** Creates a move whose snapshot is missing, and deletes it once the operator has looked for it. */
export async function moved(namespace, log) {
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace }, stringData: { key: "0123456789abcdef" } });
  const source = { snapshot: { configMapRef: { name: "absent", key: "snapshot.yaml" } } };
  const tracks = [{ transport: "sockjs", host: "sockjs-eu.example.com", targetHost: "sockjs.new.example.com", engine: "External" }];
  await apply({ apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeMigration", metadata: { name: "move", namespace }, spec: { clusterRef: { name: "eu" }, source, tracks } });
  await wait(async () => (await get("realtimemigration", namespace, "move")).status?.tracks?.length === 1, { what: `a status of the move in ${namespace}`, seen: () => log().slice(-2000) });
  await kubectl(["delete", "realtimemigration/move", "-n", namespace, "--timeout=60s"]);
}

/** Deletes the cluster while its operator runs. */
export const deleted = (namespace) => kubectl(["delete", "realtimecluster/eu", "realtimeapp/shop", "-n", namespace, "--timeout=60s"]);
