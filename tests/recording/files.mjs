// Writes recorded statuses: as one line of JSON per version, and as the YAML files that the tests of Argo CD's scripts read.
// The expected health is computed here from the rules of kstatus, and not by the scripts that are tested with it.
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { stringify } from "yaml";

import { condition } from "../cluster/harness.mjs";

const GROUP = "realtime-operator.dev";
const path = (name) => fileURLToPath(new URL(`../../${name}`, import.meta.url));

/** The time that the tests of actions write for the present one. */
const NOW = "0001-01-01T00:00:00Z";

/** An object without the fields of the API server's own bookkeeping, which no tool reads. */
function trim({ metadata, ...rest }) {
  const { managedFields, annotations = {}, ...kept } = metadata;
  const { "kubectl.kubernetes.io/last-applied-configuration": applied, ...left } = annotations;
  return { ...rest, metadata: Object.keys(left).length > 0 ? { ...kept, annotations: left } : kept };
}

/** Writes tests/gitops/recorded/NAME.jsonl. */
export function writeRecording(name, records) {
  mkdirSync(path("tests/gitops/recorded"), { recursive: true });
  const lines = records.map(({ object, ...rest }) => JSON.stringify({ ...rest, object: trim(object) }));
  writeFileSync(path(`tests/gitops/recorded/${name}.jsonl`), `${lines.join("\n")}\n`);
}

function writeYaml(file, value) {
  writeFileSync(file, stringify(value, { lineWidth: 0, aliasDuplicateObjects: false }));
}

/** Health of an object whose status kstatus calls by this word. */
function expectedHealth(object, word) {
  const [ready, stalled, accepted] = ["Ready", "Stalled", "Accepted"].map((type) => condition(object, type));
  if (!ready || object.status.observedGeneration !== object.metadata.generation) {
    return { status: "Progressing", message: "waiting for the operator to look at this generation" };
  }
  if (word === "Failed") return { status: "Degraded", message: stalled.message };
  if (ready.status === "True") return { status: "Healthy", message: ready.message };
  const refused = accepted?.status === "False" && accepted.reason !== "NoCluster";
  const ended = !accepted && (!condition(object, "Reconciling") || ready.reason === "DeadlineExceeded") && ready.status === "False";
  return { status: refused || ended ? "Degraded" : "Progressing", message: `${ready.reason}: ${ready.message}` };
}

/** Writes the versions of a kind and their health beside its health script; a name has step, place and the reason of Ready. */
export function writeHealthTests(kind, records, kstatus) {
  const folder = path(`examples/argocd/resource_customizations/${GROUP}/${kind}`);
  mkdirSync(`${folder}/testdata`, { recursive: true });
  for (const file of readdirSync(`${folder}/testdata`)) rmSync(`${folder}/testdata/${file}`);
  const versions = records.filter(({ type }) => type !== "DELETED");
  const words = kstatus(versions.map(({ object }) => object));
  const tests = versions.map(({ step, object }, index) => {
    const inputPath = `testdata/${String(index).padStart(2, "0")}-${step}-${condition(object, "Ready")?.reason ?? "none"}.yaml`;
    const { apiVersion, metadata, spec, status } = trim(object);
    writeYaml(`${folder}/${inputPath}`, { apiVersion, kind, metadata, spec, status });
    return { healthStatus: expectedHealth(object, words[index]), inputPath };
  });
  writeYaml(`${folder}/health_test.yaml`, { tests });
}

/** Writes the tests of the actions on a cluster that is Ready. */
export function writeActionTests(object) {
  const folder = path(`examples/argocd/resource_customizations/${GROUP}/RealtimeCluster/actions`);
  mkdirSync(`${folder}/testdata`, { recursive: true });
  const { apiVersion, kind, metadata, spec, status } = trim(object);
  const ready = { apiVersion, kind, metadata, spec, status };
  const annotated = (name) => ({ ...ready, metadata: { ...metadata, annotations: { ...metadata.annotations, [`${GROUP}/${name}`]: NOW } } });
  const files = {
    ready, "prove-now": annotated("prove-now"), restart: annotated("restarted-at"),
    suspended: { ...ready, spec: { ...spec, suspend: true } }, resumed: { ...ready, spec: { ...spec, suspend: false } },
  };
  for (const [name, content] of Object.entries(files)) writeYaml(`${folder}/testdata/${name}.yaml`, content);
  const test = (action, input, output) => ({ action, inputPath: `testdata/${input}.yaml`, expectedOutputPath: `testdata/${output}.yaml` });
  writeYaml(`${folder}/action_test.yaml`, {
    actionTests: [
      test("prove-now", "ready", "prove-now"), test("restart", "ready", "restart"), test("suspend", "ready", "suspended"), test("resume", "suspended", "resumed"),
    ],
  });
}
