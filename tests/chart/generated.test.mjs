// What is committed is what the generator writes, and what the charts say of themselves is true.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "node:test";

import { parse } from "yaml";

import { CHARTS, generateAll } from "./generate.mjs";
import { read } from "./helm.mjs";

const PATH = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

test("schemas, pages and CRDs of the charts are up to date", () => {
  const files = Object.entries(generateAll());
  assert.ok(files.length > 8, "files");
  for (const [path, text] of files) {
    assert.ok(existsSync(PATH(path)) && read(path) === text, `${path} is not what the generator writes: run \`./test --generate\``);
  }
});

test("charts and program have one version", () => {
  const version = /^version = "(.*)"$/m.exec(read("Cargo.toml"))[1];
  for (const chart of CHARTS) {
    const about = parse(read(`charts/${chart}/Chart.yaml`));
    assert.deepEqual([about.version, about.appVersion], [version, version], chart);
  }
});

test("the CRDs of both charts are one template", () => {
  const [own, apart] = ["realtime-operator", "realtime-operator-crds"].map((chart) => read(`charts/${chart}/templates/crds.yaml`));
  assert.equal(own.replace("if and .Values.enabled .Values.crds.enabled", "if .Values.crds.enabled"), apart);
});
