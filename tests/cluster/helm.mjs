// Helm as the tests run it.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import { run } from "../conformance/processes.mjs";
import { BIN, KUBECONFIG } from "./harness.mjs";

const home = mkdtempSync(`${tmpdir()}/helm-`);
process.on("exit", () => rmSync(home, { recursive: true, force: true }));

/** Variables with which helm reads this cluster, and no file of a person. */
export const HELM_ENVIRONMENT = { HELM_CACHE_HOME: home, HELM_CONFIG_HOME: home, HELM_DATA_HOME: home, KUBECONFIG };

/** The folder of a chart. */
export const chartFolder = (name) => fileURLToPath(new URL(`../../charts/${name}`, import.meta.url));

/** Runs helm with these values, to its end, whatever that is. */
export function execute(args, values) {
  const env = { ...process.env, ...HELM_ENVIRONMENT };
  const from = values ? ["--values", "-"] : [];
  return run(`${BIN}/helm`, [...args, ...from], { input: values ? JSON.stringify(values) : "", env });
}

/** The output of helm; fails when helm does. */
export async function helm(args, values) {
  const { code, stdout, stderr } = await execute(args, values);
  assert.equal(code, 0, `helm ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** The error of helm; fails when helm succeeds. */
export async function refusal(args, values) {
  const { code, stdout, stderr } = await execute(args, values);
  assert.notEqual(code, 0, `helm ${args.join(" ")} accepted ${JSON.stringify(values)}: ${stdout}`);
  return stderr;
}
