// Alerts and dashboard of the operator's chart, judged by promtool; they use metrics that docs/metrics.md has, and no other.
import assert from "node:assert/strict";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import { parse } from "yaml";

import { find, IMAGE_VALUES, read, render, run } from "./helm.mjs";

const folder = mkdtempSync(`${tmpdir()}/promtool-`);
after(() => rmSync(folder, { recursive: true, force: true }));

const values = { ...IMAGE_VALUES, metrics: { prometheusRule: { enabled: true }, grafanaDashboard: { enabled: true } } };

/** The metrics and their labels in docs/metrics.md; the series of a histogram have endings. */
function documentedMetrics() {
  const rows = read("docs/metrics.md").matchAll(/^\| `(realtime_\w+)` \| (\w+) \| \w* \| ([^|]*) \|/gm);
  const metrics = new Map();
  for (const [, name, type, labels] of rows) {
    const names = type === "histogram" ? ["_bucket", "_sum", "_count"].map((ending) => `${name}${ending}`) : [name];
    for (const one of names) metrics.set(one, new Set([...labels.matchAll(/`(\w+)`/g)].map(([, label]) => label)));
  }
  assert.ok(metrics.size > 40, "metrics of the page");
  return metrics;
}

/** Labels of a series that a target or a monitor of the chart adds, or a histogram has. */
const TARGET_LABELS = ["namespace", "cluster", "job", "pod", "component", "le"];

/** Fails unless each metric of an expression is documented, and has the labels by which the expression asks for it. */
function assertDocumented(expression, metrics) {
  const used = [...expression.matchAll(/(realtime_\w+)(?:\{([^}]*)\})?/g)];
  assert.ok(used.length > 0, `a metric of ours in ${expression}`);
  const labels = new Set();
  for (const [, name, selector] of used) {
    assert.ok(metrics.has(name), `${name} is not in docs/metrics.md: ${expression}`);
    for (const label of metrics.get(name)) labels.add(label);
    for (const [, label] of (selector ?? "").matchAll(/(\w+)(?:=~|!~|!=|=)/g)) {
      assert.ok(metrics.get(name).has(label) || TARGET_LABELS.includes(label), `${name} has no label ${label}`);
    }
  }
  for (const [, list] of expression.matchAll(/\b(?:by|on) \(([^)]*)\)/g)) {
    for (const label of list.split(",").map((one) => one.trim())) {
      assert.ok(labels.has(label) || TARGET_LABELS.includes(label), `no metric of ${expression} has the label ${label}`);
    }
  }
}

async function promtool(...args) {
  const { code, stdout, stderr } = await run("promtool", args);
  assert.equal(code, 0, `promtool ${args.join(" ")}: ${stdout}${stderr}`);
}

test("each alert fires on its fault, and not on its neighbour", async () => {
  const { spec } = find(await render("realtime-operator", values), "PrometheusRule");
  writeFileSync(`${folder}/rules.yaml`, JSON.stringify(spec));
  copyFileSync(fileURLToPath(new URL("alerts.test.yaml", import.meta.url)), `${folder}/alerts.yaml`);
  await promtool("check", "rules", `${folder}/rules.yaml`);
  await promtool("test", "rules", `${folder}/alerts.yaml`);
  const { tests } = parse(read("tests/chart/alerts.test.yaml"));
  const cases = tests.flatMap(({ alert_rule_test }) => alert_rule_test);
  const fires = cases.filter(({ exp_alerts }) => exp_alerts?.length > 0).map(({ alertname }) => alertname);
  const silent = cases.filter(({ exp_alerts }) => !exp_alerts).map(({ alertname }) => alertname);
  const alerts = spec.groups.flatMap(({ rules }) => rules.map(({ alert }) => alert)).sort();
  assert.deepEqual([...new Set(fires)].sort(), alerts, "each alert fires in a test");
  assert.deepEqual([...new Set(silent)].sort(), alerts, "each alert is silent in a test");
});

test("alerts use documented metrics", async () => {
  const metrics = documentedMetrics();
  const { spec } = find(await render("realtime-operator", values), "PrometheusRule");
  const rules = spec.groups.flatMap((group) => group.rules);
  assert.ok(rules.length >= 9, "alerts");
  for (const { expr } of rules) assertDocumented(expr, metrics);
});

test("every query of the dashboard is valid and uses documented metrics", async () => {
  const metrics = documentedMetrics();
  const dashboard = JSON.parse(find(await render("realtime-operator", values), "ConfigMap", "realtime-operator-dashboard").data["realtime-operator.json"]);
  const queries = dashboard.panels.flatMap(({ id, targets }) => targets.map(({ expr }) => ({ id, expr })));
  assert.ok(queries.length >= 18, "queries");
  for (const { expr } of queries) assertDocumented(expr, metrics);
  for (const { query } of dashboard.templating.list.filter(({ type }) => type === "query")) assertDocumented(query, metrics);
  const rules = queries.map(({ id, expr }, index) => ({ record: `panel:${id}:${index}`, expr: expr.replaceAll("$__rate_interval", "5m").replace(/\$(\w+)/g, "x") }));
  writeFileSync(`${folder}/dashboard.yaml`, JSON.stringify({ groups: [{ name: "dashboard", rules }] }));
  await promtool("check", "rules", "--lint=none", `${folder}/dashboard.yaml`);
});
