// Helm as the tests of the charts run it, and its output as objects.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import { parseAllDocuments } from "yaml";

import { completed, spawnBound } from "../conformance/processes.mjs";
import { BIN, DIR } from "../cluster/harness.mjs";

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

const home = mkdtempSync(`${tmpdir()}/helm-`);
process.on("exit", () => rmSync(home, { recursive: true, force: true }));

/** Runs a program to its end, whatever that is. */
export function run(program, args, { input = "", env = {} } = {}) {
  return completed(spawnBound(program, args, { stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, ...env } }), input);
}

/** Runs helm with these values, to its end, whatever that is. */
export function execute(args, values) {
  const env = { HELM_CACHE_HOME: home, HELM_CONFIG_HOME: home, HELM_DATA_HOME: home, KUBECONFIG: `${DIR}/pki/admin.kubeconfig` };
  const from = values ? ["--values", "-"] : [];
  return run(`${BIN}/helm`, [...args, ...from], { input: values ? JSON.stringify(values) : "", env });
}

/** What helm prints; fails when it does. */
export async function helm(args, values) {
  const { code, stdout, stderr } = await execute(args, values);
  assert.equal(code, 0, `helm ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** The error of helm; fails when it succeeds. */
export async function refusal(args, values) {
  const { code, stdout, stderr } = await execute(args, values);
  assert.notEqual(code, 0, `helm ${args.join(" ")} accepted ${JSON.stringify(values)}: ${stdout}`);
  return stderr;
}

const release = (chart, { name = "realtime-operator", namespace = "realtime-operator" } = {}) =>
  ["template", name, `${ROOT}charts/${chart}`, "--namespace", namespace];

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
