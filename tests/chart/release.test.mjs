// The script that writes the charts of a release: it shows the change of one image, and writes nothing by itself.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { test } from "node:test";

import { read, run } from "./helm.mjs";

const SCRIPT = fileURLToPath(new URL("../../release", import.meta.url));
const REPOSITORY = "registry.example.com:5000/team/realtime";
const DIGEST = `sha256:${"1f".repeat(32)}`;

test("a release shows the image that its chart would name, and changes no file", async () => {
  const values = read("charts/realtime-operator/values.yaml");
  const { code, stdout, stderr } = await run(SCRIPT, [REPOSITORY, DIGEST]);
  assert.equal(code, 0, stderr);
  const added = stdout.split("\n").filter((line) => /^\+[^+]/.test(line));
  assert.deepEqual(added.filter((line) => !line.startsWith("+|")), [`+  repository: ${REPOSITORY}`, `+  digest: ${DIGEST}`]);
  assert.equal(added.length, 4, "values and the page of the chart");
  assert.match(stdout, /\[[x ]\] version: /);
  assert.equal(read("charts/realtime-operator/values.yaml"), values);
});

test("a release refuses a tag, a digest of another form, and no words", async () => {
  for (const [args, error] of [
    [[`${REPOSITORY}:0.2.0`, DIGEST], /is no repository: HOST\/PATH without a tag/],
    [[REPOSITORY, "sha256:1"], /`sha256:1` is neither a digest/],
    [[REPOSITORY, DIGEST, "--write", "charts"], /charts exists: name a new folder/],
    [[], /^usage: \.\/release REPOSITORY DIGEST/],
  ]) {
    const { code, stderr } = await run(SCRIPT, args);
    assert.notEqual(code, 0);
    assert.match(stderr, error);
  }
});
