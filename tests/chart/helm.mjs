// Helm as the tests of the charts run it, and its output as objects.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { parseAllDocuments } from "yaml";

import { established, kubectl, moduleFolder } from "../cluster/harness.mjs";
import { chartFolder, helm, refusal } from "../cluster/helm.mjs";

export { chartFolder, execute, helm, refusal } from "../cluster/helm.mjs";
export { run } from "../conformance/processes.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** A file of the project. */
export const read = (path) => readFileSync(`${ROOT}${path}`, "utf8");

/** Values without which the operator's chart cannot be rendered. */
export const IMAGE_VALUES = { image: { repository: "realtime-operator/realtime" } };

/** Values of a cluster that the API server accepts. */
export const CLUSTER_VALUES = {
  spec: {
    aws: { region: "eu-west-1", identity: { type: "PodIdentity" } },
    bus: { type: "Redis", redis: { urlSecretRef: { name: "eu-redis", key: "url" } } },
  },
};

/** Applies the CRDs of ServiceMonitor, PodMonitor and PrometheusRule, and waits until they can be used. */
export async function applyMonitoringCrds() {
  const folder = await moduleFolder(fileURLToPath(new URL("monitoring", import.meta.url)), "github.com/prometheus-operator/prometheus-operator");
  const kinds = ["servicemonitors", "podmonitors", "prometheusrules"];
  const files = kinds.flatMap((kind) => ["-f", `${folder}/example/prometheus-operator-crd/monitoring.coreos.com_${kind}.yaml`]);
  await kubectl(["apply", "--server-side", ...files]);
  await established(...kinds.map((kind) => `${kind}.monitoring.coreos.com`));
}

const release = (chart, { name = "realtime-operator", namespace = "realtime-operator" } = {}) =>
  ["template", name, chartFolder(chart), "--namespace", namespace];

/** The objects of a chart with these values, as text. */
export const renderText = (chart, values = {}, options = {}) => helm(release(chart, options), values);

/** The error with which a chart refuses these values. */
export const renderRefusal = (chart, values, options = {}) => refusal(release(chart, options), values);

/** The objects in YAML. */
export function parseObjects(text) {
  const documents = parseAllDocuments(text);
  for (const { errors } of documents) assert.deepEqual(errors, []);
  return documents.map((document) => document.toJS()).filter(Boolean);
}

/** The objects of a chart with these values. */
export const render = async (chart, values, options) => parseObjects(await renderText(chart, values, options));

/** The object of this kind and name. */
export function find(objects, kind, name) {
  const found = objects.filter((object) => object.kind === kind && (!name || object.metadata.name === name));
  assert.equal(found.length, 1, `one ${kind} ${name ?? ""} among ${objects.map((one) => `${one.kind}/${one.metadata.name}`)}`);
  return found[0];
}

/** Runs `fn` for each item, some at once: each run of helm is a process. */
export async function forEach(items, fn, atOnce = 4) {
  const left = [...items];
  await Promise.all(Array.from({ length: atOnce }, async () => {
    while (left.length > 0) await fn(left.shift());
  }));
}
