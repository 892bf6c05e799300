// A move between two clusters with the real external-dns: every weight of the record, a fault of the target under way, and the
// end. Both clusters are namespaces of one node, with one operator; the hosted zone and its authoritative server are doubles.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { test } from "node:test";

import { apply, condition, deleteNamespace, DIR, established, file, get, HOST, kubectl, OPERATOR_NAMESPACE, realtime, tearDown, wait } from "../cluster/harness.mjs";
import { is, manifest, outside, ready } from "../cluster/operator_fixtures.mjs";
import { startZone } from "../chart/zone_server.mjs";
import { startExternalDns, synced } from "../gateway/external_dns.mjs";
import { startRoute53 } from "../gateway/route53.mjs";

const [SOURCE, TARGET] = ["move-source", "move-target"];
const DOMAIN = "example.test";
const [MOVED, SOURCE_HOST, TARGET_HOST] = [`sockjs-eu.${DOMAIN}`, `sockjs.old.${DOMAIN}`, `sockjs.new.${DOMAIN}`];
const KEY = "0123456789abcdef0123456789abcdef";
const [TTL, SOURCE_WEIGHT] = [5, 20];

/** Seconds from the first broken journey to weight 0 in the hosted zone, and from there to the last answer with the target. */
const [BRAKED, ANSWERED] = [30, 2 * TTL + 10];

/** Longest wait for a phase: readings of a zone are up to 30 s apart, and a bake begins with the turn after one. */
const PHASE_TIMEOUT = 120_000;

let route53;
let zone;

tearDown(async () => {
  await outside.kinesis?.allow();
  await Promise.all([SOURCE, TARGET].map((namespace) => deleteNamespace(namespace)));
  route53?.stop();
  zone?.close();
});

/** Records of a host in the zone, as its authoritative server has them. */
function recordsOf(name) {
  if (name !== MOVED) return [SOURCE_HOST, TARGET_HOST].includes(name) ? [{ target: `lb.${DOMAIN}`, weight: 1 }] : [];
  const records = route53.records().filter((record) => record.name === `${MOVED}.` && record.type === "CNAME");
  return records.map(({ values, weight, ttl }) => ({ target: values[0].replace(/\.$/, ""), weight: Number(weight), ttl }));
}

const isTarget = ({ values }) => values[0].replace(/\.$/, "") === TARGET_HOST;

/** The weight of the target's record in the zone; `undefined` without one. */
const weightOfTarget = () => recordsOf(MOVED).find(({ target }) => target === TARGET_HOST)?.weight;

/** The weights that external-dns wrote, in their order; a deletion is `gone`. */
function writtenWeights() {
  const changes = route53.changes.filter(({ record }) => record.name === `${MOVED}.` && record.type === "CNAME" && isTarget(record));
  return changes.map(({ action, record }) => (action === "DELETE" ? "gone" : Number(record.weight))).filter((weight, at, all) => weight !== all[at - 1]);
}

const setSource = (weight) => route53.put({ name: `${MOVED}.`, type: "CNAME", ttl: TTL, identifier: "old", weight: String(weight), values: [SOURCE_HOST] });

/** A cluster of the group, with the same app as the other. */
async function applyCluster(namespace, canonicalHost) {
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: namespace } });
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "shop-pair", namespace }, stringData: { key: "shop-key", secret: "shop-secret" } });
  await apply(manifest(namespace, {
    "    type: Redis\n": "    type: Redis\n    group: fleet\n",
    "  websocket:\n": `  sockjsClients:\n    canonicalHost: ${canonicalHost}\n  websocket:\n`,
    "replicas: 2": "replicas: 1",
    "      shards: 2": "      shards: 1",
    '  appID: "1001"\n': '  appID: "1001"\n  credentials:\n    - secretRef:\n        name: shop-pair\n',
  }));
}

const move = async () => get("realtimemigration", TARGET, "move");
const track = async () => (await move()).status?.tracks?.[0];
const patch = (spec) => kubectl(["patch", "realtimemigration", "move", "-n", TARGET, "--type=merge", "-p", JSON.stringify({ spec })]);

/** Waits until the track holds. */
async function reached(what, holds, timeout = PHASE_TIMEOUT) {
  let seen;
  await wait(async () => {
    seen = await track();
    return seen && holds(seen);
  }, { timeout, what, seen: () => `${JSON.stringify(seen)}; written: ${writtenWeights().join(", ")}` });
  return seen;
}

const inPhase = (phase, desired) => (found) => found.progress.phase === phase && (desired === undefined || found.desired.startsWith(desired));

async function publishSnapshot() {
  const { code, stdout, stderr } = await realtime("snapshot", "eu", "-n", SOURCE, "--key", `${DIR}/pki/review.key`);
  assert.equal(code, 0, stderr);
  await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "source-snapshot", namespace: TARGET }, data: { "snapshot.yaml": stdout } });
}

test("no record exists before the target is proven and the review approved", { timeout: 600_000 }, async () => {
  route53 = await startRoute53(DOMAIN);
  zone = await startZone({ get: recordsOf }, HOST);
  setSource(SOURCE_WEIGHT);
  await apply(file("tests/fixtures/external-dns/dnsendpoints.yaml"));
  await established("dnsendpoints.externaldns.k8s.io");
  startExternalDns(route53, DOMAIN, ["crd"]);
  const zoneServers = [{ op: "add", path: "/spec/template/spec/containers/0/args/-", value: `--zone-servers=${zone.address}` }];
  await kubectl(["patch", "deployment", "realtime-operator", "-n", OPERATOR_NAMESPACE, "--type=json", "-p", JSON.stringify(zoneServers)]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=90s"]);

  await Promise.all([applyCluster(SOURCE, SOURCE_HOST), applyCluster(TARGET, TARGET_HOST)]);
  writeFileSync(`${DIR}/pki/review.key`, KEY);
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace: TARGET }, stringData: { key: KEY } });
  const step = (weight) => ({ weight, bakeSeconds: 10 });
  await apply({
    apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeMigration", metadata: { name: "move", namespace: TARGET },
    spec: {
      clusterRef: { name: "eu" }, approval: "None",
      source: { weight: SOURCE_WEIGHT, snapshot: { configMapRef: { name: "source-snapshot", key: "snapshot.yaml" } } },
      tracks: [{ transport: "sockjs", host: MOVED, targetHost: TARGET_HOST, ttlSeconds: TTL, steps: [step(1), step(20)], cutover: { bakeSeconds: 10 } }],
    },
  });
  await Promise.all([ready(SOURCE, "eu", 180), ready(TARGET, "eu", 180)]);
  await publishSnapshot();
  let hash;
  const waiting = await reached("a review that nobody approved", (found) => {
    [, hash] = /has the hash ([0-9a-f]{32})/.exec(found.message) ?? [];
    return hash !== undefined;
  });
  assert.equal(waiting.progress.phase, "Reviewing");
  assert.deepEqual([writtenWeights(), (await get("dnsendpoints", TARGET)).items], [[], []]);
  await patch({ review: { approvedHash: hash } });
});

test("a target that fails under way loses its lookups, and goes on once it passes and a person resumes", { timeout: 900_000 }, async () => {
  const baking = await reached("the bake of weight 20", inPhase("Baking", "20"), 2 * PHASE_TIMEOUT);
  assert.deepEqual(writtenWeights(), [1, 0, 1, 20], "the brake was tested at the first step");
  assert.match(baking.applied, /%/);
  const { status } = await get("realtimecluster", TARGET, "eu");
  await outside.kinesis.deny("PutRecords", { stream: status.stream.name });
  const broken = Date.now();
  await wait(() => weightOfTarget() === 0 || weightOfTarget() === undefined, { timeout: BRAKED * 1000 + 15_000, every: 50, what: "weight 0 in the zone" });
  const braked = (Date.now() - broken) / 1000;
  const back = await reached("the end of the way back", inPhase("RolledBack"));
  const gone = (Date.now() - broken) / 1000;
  console.log(`# after the target's stream refused its records: weight 0 in the zone after ${braked.toFixed(1)} s, rolled back after ${gone.toFixed(1)} s: ${back.message}`);
  assert.ok(braked <= BRAKED, `${braked} s to weight 0`);
  assert.match(back.message, /record/);
  assert.equal(weightOfTarget(), undefined);
  assert.equal(is(await get("realtimecluster", SOURCE, "eu"), "Ready"), "True", "the source is untouched");
  assert.equal(condition(await move(), "Completed")?.status, "False");

  await outside.kinesis.allow();
  await ready(TARGET, "eu", 120);
  await publishSnapshot();
  await kubectl(["annotate", "realtimemigration", "move", "-n", TARGET, "realtime-operator.dev/resume=1"]);
  await reached("weight 1 again", (found) => /^1\b/.test(found.desired));
});

test("the cutover keeps the brake, and a complete move keeps its record when it is deleted", { timeout: 900_000 }, async () => {
  await reached("the cutover", inPhase("CuttingOver"), 3 * PHASE_TIMEOUT);
  await wait(() => weightOfTarget() === 255, { timeout: 60_000, what: "weight 255 in the zone" });
  setSource(1);
  await reached("the end", inPhase("Completed"), 2 * PHASE_TIMEOUT);
  assert.deepEqual(writtenWeights().slice(-4), [0, 1, 20, 255]);
  assert.equal(condition(await move(), "Completed").status, "True");
  await kubectl(["delete", "realtimemigration", "move", "-n", TARGET, "--timeout=60s"]);
  await synced(route53, 3);
  assert.equal(weightOfTarget(), 255, "nobody loses the last answer of the host");
  assert.deepEqual(route53.refusals, [], "nothing that Route 53 refuses was asked of it");
  console.log(`# weights of the target's record: ${writtenWeights().join(", ")}`);
});
