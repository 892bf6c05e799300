// Clusters and apps on an API server with an operator beside it and no node: what others do to them, and what commands say.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { apply, applyCrds, get, kubectl, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE as NAMESPACE, realtime, wait } from "../cluster/harness.mjs";
import { refusedRequests } from "../cluster/permissions.mjs";
import { chartFolder, find, helm, IMAGE_VALUES, render } from "./helm.mjs";
import { deleted, reconciled, startStreams, withOperator } from "./operator.mjs";

const VALUES = { ...IMAGE_VALUES, crds: { enabled: false } };

before(async () => {
  await applyCrds();
  for (const name of ["ending", "removed", "shared", NAMESPACE]) await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name } });
  await helm(["upgrade", "--install", NAMESPACE, chartFolder("realtime-operator"), "--namespace", NAMESPACE], VALUES);
});

after(async () => {
  await helm(["uninstall", NAMESPACE, "--namespace", NAMESPACE]);
  await kubectl(["delete", "lease,endpointslice", "--all", "-n", NAMESPACE]);
});

/** Runs `fn(log, url)` beside an operator of every namespace. */
async function beside(fn) {
  const { args } = find(await render("realtime-operator", VALUES), "Deployment").spec.template.spec.containers[0];
  const streams = await startStreams();
  await withOperator(args, streams.url, (log) => fn(log, streams.url)).finally(streams.stop);
}

test("in a namespace that is being deleted nothing is created, the status says so, and the cluster can go", () => beside(async (log, url) => {
  await reconciled("ending", url, log);
  await kubectl(["delete", "namespace", "ending", "--wait=false"]);
  await kubectl(["delete", "service", "eu-websocket", "-n", "ending"]);
  const ready = async () => {
    const { status } = await get("realtimecluster", "ending", "eu");
    return status.conditions.map(({ type, status: state, reason, message }) => `${type} ${state} ${reason} ${message}`).join("\n");
  };
  await wait(async () => /Deleting .*the namespace is being deleted/.test(await ready()), { timeout: 30_000, what: "the reason in the status", seen: ready });
  const began = new Date();
  await new Promise((done) => setTimeout(done, 5_000));
  const refused = refusedRequests(OPERATOR_ACCOUNT, began).filter((line) => line.includes("in ending"));
  assert.ok(refused.length <= 5, `${refused.length} refusals in 5 s, without a back-off: ${refused.join("\n")}`);
  assert.doesNotMatch(log(), /panicked/);
  await deleted("ending");
}));

test("settings that are removed from the manifest are removed from the live object", () => beside(async (log, url) => {
  await reconciled("removed", url, log);
  const patch = (sockjs) => kubectl(["patch", "realtimecluster", "eu", "-n", "removed", "--type=merge", "-p", JSON.stringify({ spec: { sockjs } })]);
  const settings = async () => {
    const { spec, metadata } = (await get("deployment", "removed", "eu-sockjs")).spec.template;
    return [spec.nodeSelector?.pool, metadata.labels.team, metadata.annotations["example.com/a"]];
  };
  const reached = (expected) => wait(async () => `${await settings()}` === `${expected}`, { what: `the settings ${expected}`, seen: async () => `${await settings()}` });
  await patch({ nodeSelector: { pool: "edge" }, podLabels: { team: "a" }, podAnnotations: { "example.com/a": "b" } });
  await reached(["edge", "a", "b"]);
  await patch({ nodeSelector: null, podLabels: null, podAnnotations: null });
  await reached([undefined, undefined, undefined]);
  await deleted("removed");
}));

test("two appliers of one list keep their own entries", () => beside(async (log, url) => {
  await reconciled("shared", url, log);
  const owned = (manager, kind, name, spec) => {
    const object = { apiVersion: "realtime-operator.dev/v1alpha1", kind, metadata: { name, namespace: "shared" }, spec };
    return kubectl(["apply", "--server-side", `--field-manager=${manager}`, "-f", "-"], { input: JSON.stringify(object) });
  };
  const hooks = async () => (await get("realtimeapp", "shared", "shop")).spec.webhooks?.map(({ name }) => name).sort();
  const appID = "1001";
  await owned("orders", "RealtimeApp", "shop", { appID, webhooks: [{ name: "orders", url: "https://orders.example.com/hook" }] });
  await owned("audit", "RealtimeApp", "shop", { appID, webhooks: [{ name: "audit", url: "https://audit.example.com/hook" }] });
  assert.deepEqual(await hooks(), ["audit", "orders"]);
  await owned("orders", "RealtimeApp", "shop", { appID, webhooks: [] });
  assert.deepEqual(await hooks(), ["audit"], "an applier removes its own entry alone");

  const names = async () => (await get("deployment", "shared", "eu-websocket")).spec.template.spec.containers[0].env.map(({ name }) => name);
  const { aws, bus } = (await get("realtimecluster", "shared", "eu")).spec;
  for (const name of ["TEAM_A", "TEAM_B"]) {
    await owned(name.toLowerCase(), "RealtimeCluster", "eu", { aws, bus, websocket: { env: [{ name, value: "on" }] } });
  }
  await wait(async () => {
    const found = await names();
    return found.includes("TEAM_A") && found.includes("TEAM_B");
  }, { what: "the variables of both appliers", seen: async () => `${await names()}` });
  await deleted("shared");
}));

test("check and prove say what is missing, and exit with its code", async () => {
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: "bare" } });
  const { stdout, stderr, code } = await realtime("check", "-o", "json");
  assert.notEqual(stdout, "", stderr);
  const checks = Object.fromEntries(JSON.parse(stdout).checks.map((one) => [one.check, one]));
  assert.deepEqual([code, checks["api-server"].state, checks.crds.state], [1, "Passed", "Passed"], stdout);
  assert.equal(checks.operator.state, "Missing", "it is installed, and none of its replicas leads");
  assert.notEqual(checks.operator.remedy ?? "", "");

  const unknown = await realtime("prove", "nobody", "-n", "bare");
  assert.equal(unknown.code, 2);
  assert.match(unknown.stderr, /"nobody" not found: check name and namespace/);
  const spec = { aws: { region: "eu-west-1", identity: { type: "PodIdentity" } }, bus: { type: "Redis", redis: { urlSecretRef: { name: "eu-redis", key: "url" } } } };
  await apply({ apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeCluster", metadata: { name: "eu", namespace: "bare" }, spec });
  const late = await realtime("prove", "eu", "-n", "bare", "--timeout", "2s");
  assert.equal(late.code, 3, late.stdout + late.stderr);
  assert.match(late.stdout + late.stderr, /operator/, "it names the process that does not answer");
  await kubectl(["delete", "realtimecluster", "eu", "-n", "bare"]);
});
