// The scripts that Argo CD runs on our kinds, over recorded statuses of a real cluster.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { parse } from "yaml";

import { apply, get, kubectl } from "../cluster/harness.mjs";
import { readRecording } from "../gitops/replay.mjs";
import { CONFIG_MAP, generateConfigMap, GROUP, KINDS, readYaml, runScripts, script, SCRIPTS } from "./argocd.mjs";
import { read } from "./helm.mjs";

const CLUSTER = "RealtimeCluster";
const PATH = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const healthTests = (kind) => readYaml(`${kind}/health_test.yaml`).tests;
const healthOf = (kind, objects) => runScripts(objects.map((object) => ({ script: script(kind, "health.lua"), object })));
const recorded = readRecording("cluster");

test("every recorded status has the health that kstatus' rules ask for", async () => {
  for (const kind of KINDS) {
    const tests = healthTests(kind);
    const files = readdirSync(`${SCRIPTS}/${kind}/testdata`).map((file) => `testdata/${file}`);
    assert.deepEqual(tests.map(({ inputPath }) => inputPath).sort(), files.sort(), kind);
    const found = await healthOf(kind, tests.map(({ inputPath }) => readYaml(`${kind}/${inputPath}`)));
    tests.forEach(({ healthStatus, inputPath }, at) => assert.deepEqual(found[at], healthStatus, `${kind}/${inputPath}`));
  }
});

test("a cluster is Progressing while it proves, Degraded when it fails in this generation, and Healthy when proven", async () => {
  const steps = new Map();
  const versions = recorded.filter(({ type }) => type !== "DELETED");
  const found = await healthOf(CLUSTER, versions.map(({ object }) => object));
  versions.forEach(({ step }, at) => {
    const words = steps.get(step) ?? [];
    if (words.at(-1) !== found[at].status) words.push(found[at].status);
    steps.set(step, words);
  });
  // Failures may change before the recovery.
  assert.equal(steps.get("recovery").at(-1), "Healthy");
  steps.delete("recovery");
  assert.deepEqual(Object.fromEntries(steps), {
    install: ["Progressing", "Healthy"],
    // A generation that breaks is in progress until the deadline of its gate.
    fault: ["Progressing", "Degraded"],
    fix: ["Progressing", "Healthy"],
    outage: ["Degraded"],
    refusal: ["Progressing", "Degraded"],
    resolution: ["Progressing", "Healthy"],
    deletion: ["Progressing"],
  });
});

test("a cluster without a status, of a former generation, or suspended", async () => {
  const { object: ready } = recorded.findLast(({ step }) => step === "resolution");
  const { object: stalled } = recorded.find(({ step, object }) => step === "refusal" && object.status.conditions.some(({ type }) => type === "Stalled"));
  const { status, ...bare } = ready;
  const next = ({ metadata, ...rest }) => ({ ...rest, metadata: { ...metadata, generation: metadata.generation + 1 } });
  const former = structuredClone(next(stalled));
  former.status.observedGeneration = former.metadata.generation;
  const suspended = { ...ready, spec: { ...ready.spec, suspend: true } };
  const broken = { ...suspended, status: stalled.status, metadata: stalled.metadata };
  const words = (await healthOf(CLUSTER, [bare, next(ready), next(stalled), former, suspended, broken])).map(({ status: word }) => word);
  assert.deepEqual(words, ["Progressing", "Progressing", "Progressing", "Progressing", "Suspended", "Degraded"]);
});

test("the ConfigMap for Argo CD has these scripts", () => {
  for (const [path, text] of Object.entries(generateConfigMap())) {
    assert.equal(read(path), text, `${path} is not what the generator writes: run \`./test --generate\``);
    const { data } = parse(text);
    for (const kind of KINDS) assert.equal(data[`resource.customizations.health.${GROUP}_${kind}`], script(kind, "health.lua"));
  }
});

test("the ConfigMap is added to the one of an installation, as docs/gitops.md has it", async () => {
  const [command] = /kubectl patch configmap .*/.exec(read("docs/gitops.md"));
  assert.ok(command.endsWith(` --patch-file ${CONFIG_MAP}`), command);
  const labels = { "app.kubernetes.io/part-of": "argocd" };
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: "argocd" } });
  await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "argocd-cm", namespace: "argocd", labels }, data: { url: "https://argocd.example.com" } });
  await kubectl(command.replace(CONFIG_MAP, PATH(CONFIG_MAP)).split(" ").slice(1));
  const { data } = await get("configmap", "argocd", "argocd-cm");
  assert.equal(data.url, "https://argocd.example.com");
  assert.equal(Object.keys(data).length, 1 + Object.keys(parse(read(CONFIG_MAP)).data).length);
});
