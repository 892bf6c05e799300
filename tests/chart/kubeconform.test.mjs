// kubeconform, as pipelines run it before anything is applied, over everything that a person may apply.
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { stringify } from "yaml";

import { applyCrds, BIN } from "../cluster/harness.mjs";
import { applyMonitoringCrds, CLUSTER_VALUES, forEach, parseObjects, read, renderText, run } from "./helm.mjs";
import { writeSchemas } from "./schemas.mjs";
import { MATRIX } from "./values.mjs";

/** Kinds of tools that examples are for, and that no API server of this tier serves. */
const FOREIGN = /^(kustomize|source|helm)\.toolkit\.fluxcd\.io\/|^kustomize\.config\.k8s\.io\/|^argoproj\.io\//;

const folder = mkdtempSync(`${tmpdir()}/schemas-`);
after(() => rmSync(folder, { recursive: true, force: true }));

let location;

before(async () => {
  await applyMonitoringCrds();
  await applyCrds();
  const written = await writeSchemas(folder);
  assert.ok(written.count > 150, `${written.count} schemas`);
  location = written.location;
});

/** The answer of kubeconform for YAML: `{ code, valid, messages }`. */
async function check(text) {
  const { code, stdout, stderr } = await run(`${BIN}/kubeconform`, ["-strict", "-summary", "-output", "json", "-schema-location", location], { input: text });
  assert.equal(stderr, "");
  const { resources, summary } = JSON.parse(stdout);
  return { code, valid: summary.valid, messages: (resources ?? []).map(({ kind, name, msg }) => `${kind} ${name}: ${msg}`) };
}

/** Checks that every object of this YAML is valid. */
async function assertValid(name, text) {
  const expected = parseObjects(text).length;
  assert.deepEqual(await check(text), { code: 0, valid: expected, messages: [] }, name);
  assert.ok(expected > 0, `${name} has objects`);
}

const filesBelow = (path) =>
  readdirSync(fileURLToPath(new URL(`../../${path}`, import.meta.url)), { recursive: true }).map((name) => `${path}/${name}`)
    .filter((name) => /\.ya?ml$/.test(name) && statSync(fileURLToPath(new URL(`../../${name}`, import.meta.url))).isFile());

test("examples and CRDs are valid", async () => {
  const files = ["examples", "crds"].flatMap(filesBelow);
  assert.ok(files.length >= 5, `${files}`);
  await forEach(files, async (path) => {
    const served = parseObjects(read(path)).filter(({ apiVersion }) => apiVersion && !FOREIGN.test(apiVersion));
    if (served.length > 0) await assertValid(path, served.map((object) => `---\n${stringify(object)}`).join(""));
  });
});

test("every chart is valid with every set of values", async () => {
  await forEach(Object.entries(MATRIX), async ([name, values]) => assertValid(name, await renderText("realtime-operator", values)));
  await assertValid("the CRDs' chart", await renderText("realtime-operator-crds"));
  const values = { ...CLUSTER_VALUES, apps: { shop: { appID: "1001" } } };
  await assertValid("a cluster", await renderText("realtime-cluster", values, { namespace: "channels", name: "eu" }));
});

test("a wrong word, an unknown field, a wrong type and an unknown kind are found", async () => {
  const { spec } = CLUSTER_VALUES;
  const cluster = (changed, apiVersion = "realtime-operator.dev/v1alpha1") =>
    JSON.stringify({ apiVersion, kind: "RealtimeCluster", metadata: { name: "eu", namespace: "channels" }, spec: { ...spec, ...changed } });
  for (const [text, message] of [
    [cluster({ webhooks: { mode: "Teleport" } }), /webhooks\/mode.*value must be one of/],
    [cluster({ websockets: {} }), /additional properties 'websockets' not allowed/],
    [cluster({ websocket: { replicas: "3" } }), /websocket\/replicas.*got string, want integer/],
    [cluster({}, "realtime-operator.dev/v1"), /could not find schema for RealtimeCluster/],
    [(await renderText("realtime-operator", MATRIX["the defaults"])).replaceAll("imagePullPolicy", "imagePulPolicy"), /'imagePulPolicy' not allowed/],
  ]) {
    const { code, messages } = await check(text);
    assert.notEqual(code, 0, text);
    assert.match(messages.join("\n"), message);
  }
});
