// Twenty clusters without a change: the operator's reads, writes and calls to AWS in five minutes.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, get, inNamespace, kubectl, leaderName, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, wait } from "../cluster/harness.mjs";
import { is, manifest, outside, ready } from "../cluster/operator_fixtures.mjs";
import { assertQuiet, countCalls } from "../cluster/permissions.mjs";

/** Seconds for which nothing changes, and the number of clusters. */
const QUIET = Number(process.env.QUIET_SECONDS ?? 300);
const CLUSTERS = Number(process.env.QUIET_CLUSTERS ?? 20);

/** Clusters of one namespace, each as small as can be: one pod for every transport and one dispatcher. */
function smallClusters(namespace) {
  const [head, cluster] = manifest(namespace, {
    "replicas: 2": "replicas: 1", "      shards: 2": "      shards: 1", "  websocket:\n": "  servers: Combined\n  websocket:\n",
    "intervalSeconds: 5": "intervalSeconds: 30",
  }).split(/(?<=---\n)(?=apiVersion: realtime-operator\.dev\/v1alpha1\nkind: RealtimeCluster\n)/);
  const names = Array.from({ length: CLUSTERS }, (_, n) => `quiet-${n + 1}`);
  const one = cluster.split("---\n")[0];
  return { names, text: [head.replace(/---\n$/, ""), ...names.map((name) => one.replace("name: eu\n", `name: ${name}\n`))].join("---\n") };
}

/** The leader's counters of calls to Kinesis, by operation; every result counts. */
async function kinesisCalls() {
  const leader = await leaderName();
  const { status } = await get("pod", OPERATOR_NAMESPACE, leader);
  const page = await fetch(`http://${status.podIP}:9090/metrics`).then((answer) => answer.text());
  const counts = {};
  for (const [, operation, count] of page.matchAll(/^realtime_operator_kinesis_calls_total\{operation="([a-z_]+)"[^}]*\} (\d+)$/gm)) {
    counts[operation] = (counts[operation] ?? 0) + Number(count);
  }
  return { leader, counts, page };
}

/** Descriptions of streams that all processes asked for, operator and servers. */
const descriptions = async () => (await outside.kinesis.calls()).DescribeStreamSummary ?? 0;

test("twenty quiet clusters cost no listing, and one status write and one description of a stream each in five minutes", { timeout: (QUIET + 1_200) * 1000 }, () => inNamespace("quiet", async (namespace) => {
  const { names, text } = smallClusters(namespace);
  const began = Date.now();
  await apply(text);
  for (const name of names) await ready(namespace, name, 900);
  console.log(`# ${names.length} clusters were Ready after ${((Date.now() - began) / 1000).toFixed(0)} s`);
  // The status of the first minutes still changes: the first complete rounds end, and pods learn of their admission.
  await new Promise((resolve) => setTimeout(resolve, 60_000));
  const [before, describedBefore] = [await kinesisCalls(), await descriptions()];
  const since = Date.now();
  await new Promise((resolve) => setTimeout(resolve, QUIET * 1000));
  const [after, described] = [await kinesisCalls(), (await descriptions()) - describedBefore];
  assert.equal(after.leader, before.leader, "one leader throughout");
  const counts = countCalls(OPERATOR_ACCOUNT, since);
  const grouped = new Map();
  for (const [call, times] of counts) {
    const kind = call.split(" ").slice(0, 2).join(" ");
    grouped.set(kind, (grouped.get(kind) ?? 0) + times);
  }
  const asked = Object.fromEntries(Object.entries(after.counts).map(([operation, count]) => [operation, count - (before.counts[operation] ?? 0)]));
  console.log(`# in ${QUIET} quiet s: ${[...grouped].map(([call, times]) => `${call}: ${times}`).join(", ")}; of Kinesis ${JSON.stringify(asked)}, ${described} descriptions by all`);
  const periods = Math.ceil(QUIET / 300);
  assertQuiet(counts, QUIET);
  assert.ok(asked.describe_stream_summary <= names.length * periods, `${asked.describe_stream_summary} descriptions of ${names.length} streams`);
  // The operator and one dispatcher of each.
  assert.ok(described <= 2 * names.length * periods, `${described} descriptions of ${names.length} streams by all processes`);
  for (const one of names) assert.equal(is(await get("realtimecluster", namespace, one), "Ready"), "True", one);
  // The gauge has the interval in force, which is the one of the manifest: twenty clusters are far from the limit.
  const intervals = [...after.page.matchAll(/^realtime_operator_round_interval_seconds\{[^}]*\} (\S+)$/gm)].map(([, seconds]) => Number(seconds));
  assert.deepEqual([...new Set(intervals)], [30]);
  await kubectl(["delete", "realtimeclusters", "--all", "-n", namespace, "--timeout=300s"]);
  await wait(async () => (await get("pods", namespace)).items.length === 0, { timeout: 120_000, what: "the end of the pods" });
}));
