// The commands of a page, adapted to this machine and run as a person runs them.
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import { run } from "../conformance/processes.mjs";
import { BIN, BINARIES } from "../cluster/harness.mjs";
import { HELM_ENVIRONMENT } from "../cluster/helm.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** The folder in which the commands run: a copy, since they write and change files. */
export const FOLDER = mkdtempSync(`${tmpdir()}/newcomer-`);
process.on("exit", () => rmSync(FOLDER, { recursive: true, force: true }));
for (const name of ["charts", "crds", "examples"]) cpSync(`${ROOT}${name}`, `${FOLDER}/${name}`, { recursive: true });

/** The blocks of commands below a heading of a page, up to the next heading of its rank. */
export function readCommands(page, heading) {
  const text = readFileSync(`${ROOT}${page}`, "utf8");
  const parts = text.split(/^(?=## )/m).filter((part) => part.startsWith(`## ${heading}\n`));
  assert.equal(parts.length, 1, `${page} has one heading "${heading}"`);
  const blocks = [...parts[0].matchAll(/^```sh\n(.*?)^```$/gms)].map(([, commands]) => commands);
  assert.ok(blocks.length > 0, `${page} has commands below "${heading}"`);
  return blocks;
}

/** A text with others in place of some, each of which must occur. */
export function adapt(text, replacements) {
  return Object.entries(replacements).reduce((adapted, [from, to]) => {
    assert.ok(adapted.includes(from), `the page holds ${from}`);
    return adapted.replaceAll(from, to);
  }, text);
}

/** Runs commands in a shell of their own that ends at the first failure; prints them with their time. */
export async function runCommands(commands) {
  const began = Date.now();
  const env = { ...process.env, ...HELM_ENVIRONMENT, PATH: `${BIN}:${BINARIES}:${process.env.PATH}` };
  const { code, stdout, stderr } = await run("bash", ["-euo", "pipefail", "-c", commands], { cwd: FOLDER, env });
  const seconds = (Date.now() - began) / 1000;
  console.log(`# ${seconds.toFixed(1).padStart(6)} s  ${commands.trim().split("\n")[0]}`);
  assert.equal(code, 0, `${commands}\n${stdout}${stderr}`);
  return stdout;
}
