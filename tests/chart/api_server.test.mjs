// The charts on an API server: installed, upgraded, removed and taken over, and the operator with the permissions they grant.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { apply, applyCrds, BINARIES, DIR, get, kubectl, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE as NAMESPACE, realtime, wait } from "../cluster/harness.mjs";
import { refusedRequests } from "../cluster/permissions.mjs";
import { applyMonitoringCrds, chartFolder, CLUSTER_VALUES, find, helm, IMAGE_VALUES, parseObjects, refusal, render, renderText, run } from "./helm.mjs";
import { deleted, manifestsOf, moved, reconciled, runOperator, startStreams, withOperator } from "./operator.mjs";
import { readPermissions, unusedPermissions } from "./permissions.mjs";
import { EVERYTHING, MATRIX, NAMESPACED } from "./values.mjs";

const CRDS = ["realtimeapps", "realtimeclusters", "realtimemigrations"].map((kind) => `${kind}.realtime-operator.dev`);
const WITHOUT_CRDS = { ...IMAGE_VALUES, crds: { enabled: false } };

const namespaces = ["team-a", "team-b", "team-c", "team-d", "channels", NAMESPACE];

before(async () => {
  await applyMonitoringCrds();
  await applyCrds();
  for (const name of namespaces) {
    const labels = { "pod-security.kubernetes.io/enforce": "restricted" };
    await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name, labels } });
  }
});

/** Removes a release and what it leaves, so that the next test begins without it. */
async function uninstall(name, namespace = NAMESPACE) {
  await helm(["uninstall", name, "--namespace", namespace]);
}

const install = (name, chart, values, { namespace = NAMESPACE, flags = [] } = {}) =>
  helm(["upgrade", "--install", name, chartFolder(chart), "--namespace", namespace, ...flags], values);

test("the API server accepts every object of every set of values", async () => {
  for (const [name, values] of Object.entries(MATRIX)) {
    // The pod of `helm test` needs its account, which a dry run does not keep.
    const text = await renderText("realtime-operator", { ...values, test: { enabled: false } });
    const printed = await kubectl(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"], { input: text });
    assert.equal(printed.trim().split("\n").length, parseObjects(text).length, name);
  }
  for (const [chart, values] of [["realtime-operator-crds", {}], ["realtime-cluster", { ...CLUSTER_VALUES, apps: { shop: { appID: "1001" } } }]]) {
    await kubectl(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"], { input: await renderText(chart, values, { namespace: "channels", name: "eu" }) });
  }
});

test("the operator's pod is admitted where restricted Pod Security is enforced", async () => {
  for (const values of [IMAGE_VALUES, EVERYTHING]) {
    const objects = await render("realtime-operator", values);
    await apply(find(objects, "ServiceAccount"));
    const { metadata, spec } = find(objects, "Deployment").spec.template;
    const { priorityClassName, ...rest } = spec;
    const pod = { apiVersion: "v1", kind: "Pod", metadata: { ...metadata, name: "operator", namespace: NAMESPACE }, spec: rest };
    await kubectl(["create", "--dry-run=server", "-f", "-"], { input: JSON.stringify(pod) });
    const test = find(objects, "Pod");
    await kubectl(["create", "--dry-run=server", "-f", "-"], { input: JSON.stringify({ ...test, spec: { ...test.spec, priorityClassName: undefined } }) });
    const root = { ...pod, spec: { ...rest, securityContext: {} } };
    await assert.rejects(kubectl(["create", "--dry-run=server", "-f", "-"], { input: JSON.stringify(root) }), /violates PodSecurity "restricted/);
  }
  await kubectl(["delete", "serviceaccount", "realtime-operator", "-n", NAMESPACE]);
});

test("raw manifests become a release, and a release becomes one of another name", async () => {
  await kubectl(["apply", "-f", fileURLToPath(new URL("../../examples/operator.yaml", import.meta.url))]);
  const uid = async () => (await get("deployment", NAMESPACE, "realtime-operator")).metadata.uid;
  const before = await uid();
  const own = ["upgrade", "--install", NAMESPACE, chartFolder("realtime-operator"), "--namespace", NAMESPACE];
  assert.match(await refusal(own, IMAGE_VALUES), /invalid ownership metadata/);
  await helm([...own, "--take-ownership", "--force-conflicts"], IMAGE_VALUES);
  assert.equal(await uid(), before, "the Deployment is the same object");
  const deployment = await get("deployment", NAMESPACE, "realtime-operator");
  assert.equal(deployment.metadata.labels["app.kubernetes.io/managed-by"], "Helm");

  await uninstall(NAMESPACE);
  const { items } = await get("crd");
  const left = items.map(({ metadata }) => metadata.name).filter((name) => name.endsWith(".realtime-operator.dev"));
  assert.deepEqual(left.sort(), CRDS, "CRDs stay");
  await assert.rejects(get("deployment", NAMESPACE, "realtime-operator"), /NotFound/);

  const other = ["upgrade", "--install", "rt", chartFolder("realtime-operator"), "--namespace", NAMESPACE];
  assert.match(await refusal(other, IMAGE_VALUES), /invalid ownership metadata/);
  await helm([...other, "--take-ownership", "--force-conflicts"], IMAGE_VALUES);
  assert.equal((await get("crd", undefined, CRDS[1])).metadata.annotations["meta.helm.sh/release-name"], "rt");
  await uninstall("rt");
});

test("an upgrade without another value changes no pod template", async () => {
  await install(NAMESPACE, "realtime-operator", { ...EVERYTHING, crds: { enabled: false } });
  const template = async () => (await get("deployment", NAMESPACE, NAMESPACE)).metadata.generation;
  const before = await template();
  await install(NAMESPACE, "realtime-operator", { ...EVERYTHING, crds: { enabled: false }, metrics: { ...EVERYTHING.metrics, prometheusRule: { enabled: false } } });
  assert.equal(await template(), before);
  await uninstall(NAMESPACE);
});

test("a cluster and its apps are installed, a wrong field is refused, and a kept cluster stays", async () => {
  const values = { ...CLUSTER_VALUES, keep: true, apps: { shop: { appID: "1001" } } };
  const printed = await install("eu", "realtime-cluster", values, { namespace: "channels" });
  assert.match(printed, /kubectl wait --for=condition=Ready realtimecluster\/eu -n channels/);
  assert.equal((await get("realtimecluster", "channels", "eu")).spec.websocket.replicas, 3, "the server's defaults");
  const moved = { ...values, spec: { ...values.spec, aws: { ...values.spec.aws, region: "us-east-1" } } };
  const error = await refusal(["upgrade", "eu", chartFolder("realtime-cluster"), "--namespace", "channels"], moved);
  assert.match(error, /region is immutable: create another cluster and move to it/);
  await uninstall("eu", "channels");
  assert.equal((await get("realtimeapp", "channels", "shop")).spec.appID, "1001");
  await kubectl(["delete", "realtimecluster,realtimeapp", "--all", "-n", "channels"]);
});

/** Changes of a cluster after which the operator prunes every kind of child, and a copy of a Secret. */
async function pruned(namespace, log) {
  const seen = () => log().slice(-2000);
  const gone = (kind, name) => wait(async () => (await get(kind, namespace)).items.every(({ metadata }) => metadata.name !== name), { what: `the ${kind} ${name} to be pruned`, seen });
  const patch = (kind, name, value) => kubectl(["patch", kind, name, "-n", namespace, "--type=merge", "-p", JSON.stringify(value)]);
  const copies = async () => (await get("secret", namespace)).items.map(({ metadata }) => metadata.name).filter((name) => name.startsWith("eu-copy-"));
  const before = await copies();
  assert.ok(before.length > 0, "copies of Secrets");
  await patch("secret", "eu-redis", { stringData: { url: "redis://redis.example.com:6380" } });
  await patch("realtimecluster", "eu", { spec: { sockjs: { state: "Disabled" }, webhooks: { mode: "Off", acknowledgeNoWebhooks: "eu" } } });
  for (const kind of ["deployment", "service", "ingress", "poddisruptionbudget"]) await gone(kind, "eu-sockjs");
  for (const kind of ["role", "rolebinding"]) await gone(kind, "eu-dispatcher");
  await wait(async () => {
    const now = await copies();
    return before.some((name) => !now.includes(name));
  }, { what: "the former copy of a Secret to be deleted", seen });
}

/** What `realtime diff` says of the manifests with these fields of the cluster: its exit code, its report and its errors. */
async function difference(namespace, url, spec) {
  const path = `${DIR}/pki/diff-${namespace}.yaml`;
  writeFileSync(path, manifestsOf(namespace, url, spec).map((object) => JSON.stringify(object)).join("\n---\n"));
  const { code, stdout, stderr } = await realtime("diff", path, "-o", "json");
  return { code, report: stdout ? JSON.parse(stdout) : undefined, stderr };
}

/** Compares manifests with the cluster that the operator has reconciled; nothing is written. */
async function compared(namespace, url) {
  let same;
  await wait(async () => {
    same = await difference(namespace, url);
    return same.code === 0;
  }, { what: "no difference from the manifest that was applied", seen: () => JSON.stringify(same) });
  assert.deepEqual([same.report.objects, same.report.replacesPodsOf, same.report.suspended], [[], [], false]);
  assert.match(same.stderr, /does not serve gateway.networking.k8s.io\/v1: its objects are left out/);

  const versions = async () => (await get("deployment,service,realtimecluster", namespace)).items.map(({ kind, metadata }) => `${kind}/${metadata.name} ${metadata.generation ?? metadata.resourceVersion}`);
  const before = await versions();
  const more = await difference(namespace, url, { gate: { intervalSeconds: 30 }, sockjs: { state: "Disabled" } });
  assert.equal(more.code, 1, more.stderr);
  const effects = new Map(more.report.objects.map(({ object, effect, fields }) => [object, { effect, fields }]));
  const own = (name) => effects.get(`${name.replace(" ", ` ${namespace}/`)}`);
  assert.deepEqual(own("RealtimeCluster eu").fields.find(({ field }) => field === "spec.gate.intervalSeconds"), { field: "spec.gate.intervalSeconds", live: 15, wanted: 30 });
  assert.deepEqual(["Deployment eu-sockjs", "Service eu-sockjs", "Ingress eu-sockjs"].map((name) => own(name)?.effect), ["pruned", "pruned", "pruned"]);

  const websocket = { hosts: ["ws.example.com"], expose: { type: "Gateway", controller: "Other", parentRefs: [{ name: "public" }] } };
  // What its pods run and reach is as it was; with another variable it is not.
  for (const [fields, provesAnew] of [[{ priorityClassName: "system-cluster-critical" }, false], [{ env: [{ name: "RUST_BACKTRACE", value: "1" }] }, true]]) {
    const template = await difference(namespace, url, { websocket: { ...websocket, ...fields } });
    assert.equal(template.code, 1, template.stderr);
    assert.deepEqual([template.report.replacesPodsOf, template.report.provesAnew], [["eu-websocket"], provesAnew], JSON.stringify(template.report));
  }

  const refused = await difference(namespace, url, { aws: { ...manifestsOf(namespace, url)[1].spec.aws, region: "us-east-1" } });
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /region is immutable/);
  assert.deepEqual(await versions(), before, "nothing is written");
}

/** Permissions that only pods make the operator use: tests/cluster has them. */
const OF_PODS = ["/pods patch", "/pods/status patch"];

for (const [name, values, watched, foreign] of [
  ["every namespace", WITHOUT_CRDS, "channels", undefined],
  ["two namespaces", { ...NAMESPACED, crds: { enabled: false } }, "team-a", "channels"],
]) {
  test(`an operator of ${name} uses every permission of the chart, and needs no other`, async () => {
    await install(NAMESPACE, "realtime-operator", values);
    const began = new Date();
    const { args } = find(await render("realtime-operator", values), "Deployment").spec.template.spec.containers[0];
    const streams = await startStreams();
    await withOperator(args, streams.url, async (log) => {
      await reconciled(watched, streams.url, log);
      await compared(watched, streams.url);
      await pruned(watched, log);
      await moved(watched, log);
      await deleted(watched);
    }).finally(streams.stop);
    assert.deepEqual(refusedRequests(OPERATOR_ACCOUNT, began), []);
    const roles = await renderText("realtime-operator", { ...values, rbac: { userRoles: false } });
    assert.deepEqual(unusedPermissions(roles, OPERATOR_ACCOUNT, began), OF_PODS, "granted and not used");
    const excused = readPermissions(roles).filter(({ excused: is }) => is).map(({ permission }) => permission);
    // 17 of them are for kinds of the Gateway API, which this API server lacks, and 4 for records of external-dns.
    assert.ok(excused.length < 41 && excused.every((permission) => !/ (list|watch)$|secrets/.test(permission.replace("/leases list", ""))), `${excused}`);
    const may = (...words) => kubectl(["auth", "can-i", ...words, `--as=${OPERATOR_ACCOUNT}`]).then(() => true, () => false);
    assert.equal(await may("get", "secrets", "-n", watched), true);
    assert.equal(await may("list", "secrets", "-n", watched), false, "Secrets are read by name");
    assert.equal(await may("get", "endpointslices", "-n", watched), false, "only in its own namespace");
    if (foreign) {
      const reads = ["realtimeclusters", "pods", "deployments", "services", "leases"].flatMap((kind) => [["list", kind], ["watch", kind]]);
      for (const words of [...reads, ["get", "secrets"], ["create", "deployments"], ["patch", "pods"], ["patch", "realtimeclusters"]]) {
        assert.equal(await may(...words, "-n", foreign), false, `${words.join(" ")} in ${foreign}`);
      }
    }
    await uninstall(NAMESPACE);
    await kubectl(["delete", "lease,endpointslice", "--all", "-n", NAMESPACE]);
  });
}

test("a namespace without its Role delays no other, and is reconciled once it has one", async () => {
  // Without a garbage collector the objects of an earlier cluster are still in its namespace.
  const [granted, refused] = ["team-c", "team-d"];
  const values = { ...WITHOUT_CRDS, watch: { scope: "Namespaces", namespaces: [granted, refused] } };
  await install(NAMESPACE, "realtime-operator", values);
  await kubectl(["delete", "rolebinding", "realtime-operator-clusters", "-n", refused]);
  const { args } = find(await render("realtime-operator", values), "Deployment").spec.template.spec.containers[0];
  const streams = await startStreams();
  await withOperator(args, streams.url, async (log) => {
    await reconciled(granted, streams.url, log);
    assert.match(log(), new RegExp(`"message":"watch failed: [^}]*"range":"${refused}"`));
    await install(NAMESPACE, "realtime-operator", values);
    await reconciled(refused, streams.url, log);
    await Promise.all([deleted(granted), deleted(refused)]);
  }).finally(streams.stop);
  await uninstall(NAMESPACE);
  await kubectl(["delete", "lease,endpointslice", "--all", "-n", NAMESPACE]);
});

test("an operator does not start with CRDs of an older version, and says the command", async () => {
  await install(NAMESPACE, "realtime-operator", WITHOUT_CRDS);
  const path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/suspend";
  await kubectl(["patch", "crd", CRDS[1], "--type=json", "-p", JSON.stringify([{ op: "remove", path }])]);
  try {
    const { code, log } = await runOperator(["operator"], "http://127.0.0.1:1");
    assert.equal(code, 1, log);
    assert.match(log, /the CRDs are older than this operator: they lack RealtimeCluster\.spec\.suspend\. Apply those of this version \(`realtime crd \| kubectl apply --server-side --force-conflicts -f -`\)/);
    const { stdout } = await run(`${BINARIES}/realtime`, ["crd"]);
    await kubectl(["apply", "--server-side", "--force-conflicts", "-f", "-"], { input: stdout });
    await withOperator(["operator"], "http://127.0.0.1:1", async (started) => assert.match(started(), /starting the controllers/));
  } finally {
    await applyCrds();
    await uninstall(NAMESPACE);
    await kubectl(["delete", "lease,endpointslice", "--all", "-n", NAMESPACE]);
  }
});

test("viewers read, editors write, owners of apps write apps, and those who may change the zone write moves", async () => {
  await install(NAMESPACE, "realtime-operator", WITHOUT_CRDS);
  const expected = { viewer: [false, false, false], editor: [true, true, false], "app-owner": [false, true, false], migrator: [false, false, true] };
  for (const [role, [clusters, apps, moves]] of Object.entries(expected)) {
    const binding = `test-${role}`;
    await kubectl(["create", "rolebinding", binding, "-n", "channels", `--clusterrole=${NAMESPACE}-${role}`, `--user=${role}`]);
    const may = (verb, kind) => kubectl(["auth", "can-i", verb, kind, "-n", "channels", `--as=${role}`]).then(() => true, () => false);
    await wait(() => may("get", "realtimeclusters"), { what: `the binding of ${role}` });
    const written = [await may("create", "realtimeclusters"), await may("create", "realtimeapps"), await may("create", "realtimemigrations")];
    assert.deepEqual([...written, await may("get", "secrets")], [clusters, apps, moves, false], role);
    await kubectl(["delete", "rolebinding", binding, "-n", "channels"]);
  }
  await uninstall(NAMESPACE);
});

test("CRDs of one chart are not fought over by the other", async () => {
  await kubectl(["delete", "crd", ...CRDS]);
  await install("crds", "realtime-operator-crds", {});
  assert.match(await refusal(["upgrade", "--install", NAMESPACE, chartFolder("realtime-operator"), "--namespace", NAMESPACE], IMAGE_VALUES), /invalid ownership metadata/);
  await install(NAMESPACE, "realtime-operator", WITHOUT_CRDS);
  await uninstall(NAMESPACE);
  await uninstall("crds");
  assert.equal((await get("crd", undefined, CRDS[0])).metadata.annotations["helm.sh/resource-policy"], "keep");
});
