// A move between two clusters with the real external-dns: every weight of the record, a fault of the target under way, and the
// end, while pusher-js clients look the host up. Source and target are in two Kubernetes clusters, each with an operator of its own;
// they share a Redis, and the hosted zone and its authoritative server are doubles.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { test } from "node:test";

import Pusher from "pusher";

import {
  apply, condition, deleteNamespace, DIR, established, file, get, HOST, kubectl, KUBECONFIG, onCluster, OPERATOR_NAMESPACE, realtime, SECOND_KUBECONFIG, service, tearDown, wait,
} from "../cluster/harness.mjs";
import { installOperator, is, manifest, outside, ready, removeOperator } from "../cluster/operator_fixtures.mjs";
import { startZone } from "../chart/zone_server.mjs";
import { startExternalDns, synced } from "../gateway/external_dns.mjs";
import { startRoute53 } from "../gateway/route53.mjs";
import { openResidents, resolveByZone, startPairs, startVisitors } from "./visitors.mjs";

/** The Kubernetes of either cluster. In both the realtime cluster has the same name and namespace. */
const [SOURCE, TARGET] = [KUBECONFIG, SECOND_KUBECONFIG];
const [NAMESPACE, SIDES] = ["channels", [SOURCE, TARGET]];
const DOMAIN = "example.test";
const [MOVED, SOURCE_HOST, TARGET_HOST] = [`sockjs-eu.${DOMAIN}`, `sockjs.old.${DOMAIN}`, `sockjs.new.${DOMAIN}`];
/** The host of the websocket track, which does not move, and the canonical hosts of its servers. */
const [UNMOVED, SOURCE_SOCKETS, TARGET_SOCKETS] = [`ws-eu.${DOMAIN}`, `ws.old.${DOMAIN}`, `ws.new.${DOMAIN}`];

const KEY = "0123456789abcdef0123456789abcdef";
const [APP_KEY, APP_SECRET] = ["shop-key", "shop-secret"];
const [TTL, SOURCE_WEIGHT] = [5, 20];

/** Seconds from the first broken journey to weight 0 in the hosted zone, and from there to the last answer with the target. */
const [BRAKED, ANSWERED] = [30, 2 * TTL + 10];

/** Share of new connections, in percent, that must be at the source after the last answer with the target. */
const BACK_PERCENT = 99;

/** Seconds from the fault until every session that was open at the target is at the source. */
const DRAINED = 300;

/** Sessions that are open at the target when it fails, at least. */
const STRANDED = 10;

/** Longest, in ms, until the operator of the source has published a snapshot: it looks each 15 s. */
const PUBLISHED_TIMEOUT = 90_000;

/** Bake of the step at which both clusters have the same weight, in which clients are counted and the fault begins. */
const BAKE_AT_20 = 100;

/** Clients that visit the moved host at once, and visits by which a share is judged. */
const [VISITORS, VISITS] = [8, 100];

/** Residents of each kind, and the shares in percent between which the target's connections lie at equal weights. */
const [RESIDENTS, EQUAL_SHARES] = [4, [25, 75]];

/** Longest until a webhook of a client that left has arrived: the delay of departures, the other cluster, and the stream. */
const WEBHOOK_TIMEOUT = 60_000;

/** Longest, in ms, until the source calls a target silent: six minutes after the copied snapshot, and a look. */
const SILENT_TIMEOUT = 400_000;

/** Longest wait for a phase: readings of a zone are up to 30 s apart, and a bake begins with the turn after one. */
const PHASE_TIMEOUT = 120_000;

let route53;
let zone;
let clients;
let externalDns;

tearDown(async () => {
  await clients?.stop();
  await outside.kinesis?.allow();
  await Promise.all(SIDES.map((side) => onCluster(side, () => deleteNamespace(NAMESPACE))));
  await onCluster(TARGET, removeOperator);
  route53?.stop();
  zone?.close();
});

/** Records of a host in the zone, as its authoritative server has them. */
function recordsOf(name) {
  if ([SOURCE_HOST, TARGET_HOST].includes(name)) return [{ target: `lb.${DOMAIN}`, weight: 1 }];
  const records = route53.records().filter((record) => record.name === `${name}.` && record.type === "CNAME");
  return records.map(({ values, weight, ttl }) => ({ target: values[0].replace(/\.$/, ""), weight: Number(weight ?? 1), ttl }));
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
async function applyCluster(canonicalHost) {
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } });
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "shop-pair", namespace: NAMESPACE }, stringData: { key: APP_KEY, secret: APP_SECRET } });
  await apply(manifest(NAMESPACE, {
    "    type: Redis\n": "    type: Redis\n    group: fleet\n",
    "  websocket:\n": `  sockjsClients:\n    canonicalHost: ${canonicalHost}\n  websocket:\n`,
    "replicas: 2": "replicas: 1",
    "      shards: 2": "      shards: 1",
    '  appID: "1001"\n': '  appID: "1001"\n  credentials:\n    - secretRef:\n        name: shop-pair\n',
  }));
}

const move = () => onCluster(TARGET, () => get("realtimemigration", NAMESPACE, "move"));
const track = async () => (await move()).status?.tracks?.[0];
const patch = (spec) => onCluster(TARGET, () => kubectl(["patch", "realtimemigration", "move", "-n", NAMESPACE, "--type=merge", "-p", JSON.stringify({ spec })]));
const clusterOf = (side) => onCluster(side, () => get("realtimecluster", NAMESPACE, "eu"));

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

/**
 * Starts clients of both clusters: visitors and residents that look their host up, residents of the websocket track, and pairs with a
 * client in each cluster. `publish` publishes at one of the clusters; `hear` waits until every resident has heard that.
 */
async function startClients() {
  const servicesOf = (name) => Promise.all(SIDES.map((side) => onCluster(side, () => service(NAMESPACE, name))));
  const [[oldSockets, newSockets], [oldSockjs, newSockjs]] = await Promise.all(["eu-websocket", "eu-sockjs"].map(servicesOf));
  const addresses = { [SOURCE_SOCKETS]: oldSockets, [TARGET_SOCKETS]: newSockets, [SOURCE_HOST]: oldSockjs, [TARGET_HOST]: newSockjs };
  resolveByZone(zone.address, DOMAIN, Object.fromEntries(Object.entries(addresses).map(([host, { host: address }]) => [host, address])));
  const moved = { host: MOVED, port: oldSockjs.port, key: APP_KEY, transport: "xhr_streaming" };
  const sockets = { host: UNMOVED, port: oldSockets.port, key: APP_KEY, transport: "ws" };
  const open = (settings) => openResidents(zone.address, RESIDENTS, { ...settings, channel: "everyone" });
  const residents = [...(await open(moved)), ...(await open(sockets)), ...(await open({ ...sockets, host: TARGET_SOCKETS }))];
  const visitors = startVisitors(zone.address, VISITORS, { ...moved, prefix: "visit" });
  const socketVisitors = startVisitors(zone.address, RESIDENTS, { ...sockets, prefix: "socket-visit" });
  const pairs = startPairs([SOURCE_HOST, TARGET_HOST], moved);
  const added = [];
  let published = 0;
  const publish = async ({ host, port }) => {
    published += 1;
    await new Pusher({ appId: "1001", key: APP_KEY, secret: APP_SECRET, host, port: String(port), useTLS: false }).trigger("everyone", "news", { number: published });
  };
  return {
    residents, visitors, socketVisitors, pairs,
    /** Opens further residents that look the moved host up now, until enough of them are at the target. */
    async add() {
      while (added.filter(isAtTarget).length < STRANDED) added.push(...(await open(moved)));
    },
    /** The further residents whose session is at the target now. */
    atTarget: () => added.filter(isAtTarget),
    /** Publishes once at each cluster, and waits until every resident has heard both. */
    async hear() {
      const all = [...residents, ...added];
      await publish(oldSockets);
      await publish(newSockets);
      const missing = () => all.filter(({ heard }) => ![published - 1, published].every((number) => heard.includes(number)));
      await wait(() => missing().length === 0, { what: "an event of each cluster at every resident", seen: () => JSON.stringify(missing().map(({ found, states, heard, failures }) => ({ found, states, heard, failures }))) });
    },
    async leave() {
      await Promise.all([visitors.stop(), socketVisitors.stop(), pairs.stop()]);
    },
    async stop() {
      await this.leave();
      for (const { client } of [...residents, ...added]) client.disconnect();
    },
  };
}

/** Whether the latest lookup of a client led it to the target. */
const isAtTarget = ({ found }) => found.at(-1) === TARGET_HOST;

/** Waits until clients that were at the target when it failed have a session at the source, while nobody closed them. */
async function sessionsAreBack(clientsOfTarget, broken) {
  const isBack = (client) => !isAtTarget(client) && client.client.connection.state === "connected";
  await wait(() => clientsOfTarget.every(isBack), {
    timeout: DRAINED * 1000 - (Date.now() - broken), what: "the sessions of the target at the source",
    seen: () => JSON.stringify(clientsOfTarget.map(({ found, states }) => ({ found, states }))),
  });
  const seconds = (Date.now() - broken) / 1000;
  console.log(`# ${clientsOfTarget.length} sessions that were open at the target were at the source ${seconds.toFixed(1)} s after the fault`);
}

/** The share, in percent, of visits with these times that were led to the target. */
function targetShare(visits, begin, end) {
  const within = visits.filter(({ at, found }) => found && at >= begin && at < end);
  return { percent: (100 * within.filter(({ found }) => found === TARGET_HOST).length) / Math.max(1, within.length), count: within.length };
}

/** Waits until new connections show that at most 1 % of them are at the target once the last answer with it is too old. */
async function connectionsAreBack(brakedAt) {
  const left = brakedAt + ANSWERED * 1000;
  const after = () => targetShare(clients.visitors.visits, left, Infinity);
  await wait(() => after().count >= VISITS, { timeout: ANSWERED * 1000 + 60_000, what: "visits after the brake" });
  const { percent, count } = after();
  console.log(`# new connections at the target from ${ANSWERED} s after weight 0 on: ${percent.toFixed(1)} % of ${count}`);
  assert.ok(percent <= 100 - BACK_PERCENT, `${percent} % of ${count} visits at the target`);
}

/** Channels without exactly one `channel_occupied` and one `channel_vacated`, a repeat of the same id counted once. */
function unevenChannels(channels) {
  const ids = new Map(channels.map((channel) => [channel, { channel_occupied: new Set(), channel_vacated: new Set() }]));
  for (const { name, channel, id } of outside.receiver.events()) ids.get(channel)?.[name]?.add(id);
  return [...ids].filter(([, found]) => Object.values(found).some(({ size }) => size !== 1)).map(([channel, found]) => `${channel}: ${Object.values(found).map(({ size }) => size)}`);
}

/** Carries the source's snapshot to the target, as a job or a pipeline does. */
async function publishSnapshot() {
  const { code, stdout, stderr } = await onCluster(SOURCE, () => realtime("snapshot", "eu", "-n", NAMESPACE, "--key", `${DIR}/pki/review.key`));
  assert.equal(code, 0, stderr);
  const map = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "source-snapshot", namespace: NAMESPACE }, data: { "snapshot.yaml": stdout } };
  await onCluster(TARGET, () => apply(map));
}

/** The rows of `realtime fleet` over the contexts `old` and `new` of one kubeconfig. */
async function readFleet(...args) {
  const path = `${DIR}/pki/fleet.kubeconfig`;
  const views = await Promise.all(SIDES.map((side) => onCluster(side, async () => JSON.parse(await kubectl(["config", "view", "--raw", "-o", "json"])))));
  const named = (list) => views.map((view, side) => ({ ...view[list][0], name: ["old", "new"][side] }));
  const contexts = ["old", "new"].map((name) => ({ name, context: { cluster: name, user: name } }));
  writeFileSync(path, JSON.stringify({ apiVersion: "v1", kind: "Config", clusters: named("clusters"), users: named("users"), contexts }));
  const { code, stdout, stderr } = await onCluster(path, () => realtime("fleet", ...args, "-o", "json"));
  assert.ok(stdout, `exit code ${code}: ${stderr}`);
  return JSON.parse(stdout);
}

/** Prepares the Kubernetes of the target: an operator that asks the zone's server, and external-dns. */
async function prepareTarget() {
  await installOperator();
  await apply(file("tests/fixtures/external-dns/dnsendpoints.yaml"));
  await established("dnsendpoints.externaldns.k8s.io");
  externalDns = startExternalDns(route53, DOMAIN, ["crd"], TARGET);
  const zoneServers = [{ op: "add", path: "/spec/template/spec/containers/0/args/-", value: `--zone-servers=${zone.address}` }];
  await kubectl(["patch", "deployment", "realtime-operator", "-n", OPERATOR_NAMESPACE, "--type=json", "-p", JSON.stringify(zoneServers)]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=90s"]);
}

/** Applies the move, with the key of the snapshots. */
async function applyMove() {
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace: NAMESPACE }, stringData: { key: KEY } });
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "realtime-operator.dev/publish-snapshot=realtime-migration"]);
  const [first, second] = [{ weight: 1, bakeSeconds: 10 }, { weight: 20, bakeSeconds: BAKE_AT_20 }];
  await apply({
    apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeMigration", metadata: { name: "move", namespace: NAMESPACE },
    spec: {
      clusterRef: { name: "eu" }, approval: "None",
      source: { weight: SOURCE_WEIGHT, snapshot: { configMapRef: { name: "source-snapshot", key: "snapshot.yaml" } } },
      tracks: [{ transport: "sockjs", host: MOVED, targetHost: TARGET_HOST, ttlSeconds: TTL, steps: [first, second], cutover: { bakeSeconds: 10 } }],
    },
  });
}

/** The condition of the source about its target, once it has a reason. */
async function reporting(reason, timeout) {
  let found;
  await wait(async () => {
    found = condition(await clusterOf(SOURCE), "TargetReporting");
    return found?.reason === reason;
  }, { timeout, what: `${reason} at the source`, seen: () => JSON.stringify(found) });
  return found;
}

test("no record exists before the target is proven and the review approved", { timeout: 600_000 }, async () => {
  route53 = await startRoute53(DOMAIN);
  zone = await startZone({ get: recordsOf }, HOST);
  setSource(SOURCE_WEIGHT);
  route53.put({ name: `${UNMOVED}.`, type: "CNAME", ttl: TTL, values: [SOURCE_SOCKETS] });
  await onCluster(TARGET, prepareTarget);
  await Promise.all([onCluster(SOURCE, () => applyCluster(SOURCE_HOST)), onCluster(TARGET, () => applyCluster(TARGET_HOST))]);
  writeFileSync(`${DIR}/pki/review.key`, KEY);
  await onCluster(TARGET, applyMove);
  await Promise.all(SIDES.map((side) => onCluster(side, () => ready(NAMESPACE, "eu", 180))));
  await publishSnapshot();
  let hash;
  const waiting = await reached("a review that nobody approved", (found) => {
    [, hash] = /has the hash ([0-9a-f]{32})/.exec(found.message) ?? [];
    return hash !== undefined;
  });
  assert.equal(waiting.progress.phase, "Reviewing");
  assert.deepEqual([writtenWeights(), (await onCluster(TARGET, () => get("dnsendpoints", NAMESPACE))).items], [[], []]);
  clients = await startClients();
  await clients.hear();
  await patch({ review: { approvedHash: hash } });
});

test("a target that fails under way loses its lookups, and goes on once it passes and a person resumes", { timeout: 900_000 }, async () => {
  const baking = await reached("the bake of weight 20", inPhase("Baking", "20"), 2 * PHASE_TIMEOUT);
  assert.deepEqual(writtenWeights(), [1, 0, 1, 20], "the brake was tested at the first step");
  assert.match(baking.applied, /%/);
  const [endpoint] = (await onCluster(TARGET, () => get("dnsendpoints", NAMESPACE))).items;
  assert.equal(endpoint.status.observedGeneration, endpoint.metadata.generation, "external-dns says which object it has read");
  const { clusters, moves, total } = await readFleet();
  assert.deepEqual([total, clusters.map(({ context, cluster, ready }) => [context, cluster, ready])], [2, ["old", "new"].map((side) => [side, `${NAMESPACE}/eu`, "True"])]);
  assert.deepEqual(moves.map(({ context, name, host, desired }) => [context, name, host, desired]), [["new", `${NAMESPACE}/move`, MOVED, "20"]]);
  const baked = Date.now();
  await publishSnapshot();
  await clients.add();
  await clients.hear();
  await wait(() => targetShare(clients.visitors.visits, baked, Infinity).count >= VISITS, { timeout: 60_000, what: "visits at weight 20" });
  const { percent, count } = targetShare(clients.visitors.visits, baked, Date.now());
  console.log(`# at weights ${SOURCE_WEIGHT} and 20 ${percent.toFixed(0)} % of ${count} new connections were at the target`);
  assert.ok(percent >= EQUAL_SHARES[0] && percent <= EQUAL_SHARES[1], `${percent} % of ${count} visits at the target`);
  await publishSnapshot();
  // Until the operator has read this snapshot, the share is that of the time before, with smaller weights.
  const isEqual = ({ observed }) => parseFloat(observed) >= EQUAL_SHARES[0] && parseFloat(observed) <= EQUAL_SHARES[1];
  const { observed } = await reached("the observed share of equal weights", isEqual);
  console.log(`# the operator observed ${observed} of the new connections at the target`);
  const stranded = clients.atTarget();
  const { status } = await clusterOf(TARGET);
  await outside.kinesis.deny("PutRecords", { stream: status.stream.name });
  const broken = Date.now();
  await wait(() => weightOfTarget() === 0 || weightOfTarget() === undefined, { timeout: BRAKED * 1000 + 15_000, every: 50, what: "weight 0 in the zone" });
  const brakedAt = Date.now();
  const braked = (brakedAt - broken) / 1000;
  const back = await reached("the end of the way back", inPhase("RolledBack"));
  // A client alone in its channel would be seen to leave by one cluster and to come by the other, in any order.
  await clients.pairs.pause();
  const gone = (Date.now() - broken) / 1000;
  console.log(`# after the target's stream refused its records: weight 0 in the zone after ${braked.toFixed(1)} s, rolled back after ${gone.toFixed(1)} s: ${back.message}`);
  assert.ok(braked <= BRAKED, `${braked} s to weight 0`);
  assert.match(back.message, /record/);
  assert.equal(weightOfTarget(), undefined);
  assert.equal(is(await clusterOf(SOURCE), "Ready"), "True", "the source is untouched");
  assert.equal(condition(await move(), "Completed")?.status, "False");
  const [{ phase, reason }, ...others] = (await readFleet("--failing")).moves;
  assert.deepEqual([phase, others], ["RolledBack", []]);
  assert.ok(["RecordDeleted", "DrainingSessions"].includes(reason), reason);
  const under = targetShare(clients.visitors.visits, broken, brakedAt + ANSWERED * 1000);
  console.log(`# new connections at the target from the fault to ${ANSWERED} s after weight 0: ${under.percent.toFixed(0)} % of ${under.count}`);
  await connectionsAreBack(brakedAt);
  await sessionsAreBack(stranded, broken);
  assert.ok(Number.isInteger((await track()).sessionsLeft), "the status counts the sessions that are left");
  await clients.hear();

  await outside.kinesis.allow();
  await onCluster(TARGET, () => ready(NAMESPACE, "eu", 120));
  await publishSnapshot();
  await onCluster(TARGET, () => kubectl(["annotate", "realtimemigration", "move", "-n", NAMESPACE, "realtime-operator.dev/resume=1"]));
  await reached("weight 1 again", (found) => /^1\b/.test(found.desired));
  clients.pairs.resume();
});

test("a source that fails keeps the weight, also once the target fails at the same hop, and the step is repeated after it", { timeout: 900_000 }, async () => {
  await reached("the bake of weight 20", inPhase("Baking", "20"), 2 * PHASE_TIMEOUT);
  const streamOf = async (side) => (await clusterOf(side)).status.stream.name;
  await outside.kinesis.deny("PutRecords", { stream: await streamOf(SOURCE) });
  const failsAtRecord = ({ status }) => status.transports.some(({ server, state, hop }) => server === "sockjs" && state === "Failing" && hop === "record");
  await wait(async () => failsAtRecord(await clusterOf(SOURCE)), { what: "a source that fails" });
  await publishSnapshot();
  const frozen = (reason) => (found) => found.progress.phase === "Frozen" && found.reason === reason;
  await reached("a freeze, since the source fails", frozen("SourceFailing"));
  await outside.kinesis.deny("PutRecords", { stream: await streamOf(TARGET) });
  const { message } = await reached("a freeze, since both fail", frozen("SharedFailure"));
  console.log(`# ${message}`);
  assert.deepEqual([weightOfTarget(), writtenWeights().at(-1)], [20, 20], "moving cannot help");
  await outside.kinesis.allow();
  await Promise.all(SIDES.map((side) => onCluster(side, () => ready(NAMESPACE, "eu", 120))));
  await publishSnapshot();
  await reached("weight 20 again", inPhase("Baking", "20"));
});

test("without the target's operator the printed change takes every new connection back, and the operator goes on afterwards", { timeout: 900_000 }, async () => {
  const scale = (replicas) => onCluster(TARGET, () => kubectl(["scale", "deployment", "realtime-operator", "-n", OPERATOR_NAMESPACE, `--replicas=${replicas}`]));
  const path = `${DIR}/pki/move.json`;
  const { apiVersion, kind, metadata, spec } = await move();
  writeFileSync(path, JSON.stringify({ apiVersion, kind, metadata: { name: metadata.name, namespace: metadata.namespace }, spec }));
  const { code, stdout, stderr } = await realtime("migrate", "plan", path, "-o", "json");
  assert.equal(code, 0, stderr);
  await scale(0);
  const { data } = await onCluster(TARGET, () => get("configmap", NAMESPACE, "eu-snapshot"));
  const [{ weight, changeBatch }] = JSON.parse(data["snapshot.yaml"]).moves;
  assert.deepEqual([weight, changeBatch], [20, JSON.parse(stdout).tracks[0].changeBatch], "the target's snapshot keeps the change");
  await onCluster(SOURCE, async () => {
    await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace: NAMESPACE }, stringData: { key: KEY } });
    await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "target-snapshot", namespace: NAMESPACE }, data });
    await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "realtime-operator.dev/publish-snapshot=realtime-migration", "realtime-operator.dev/target-snapshot=target-snapshot"]);
  });
  const { message } = await reporting("TargetReports", 60_000);
  assert.ok(message.includes(`has ${MOVED} lead to ${TARGET_HOST} with weight 20`), message);
  // It would write its weight again.
  await externalDns.stop();
  route53.submit(JSON.parse(stdout).tracks[0].changeBatch);
  assert.deepEqual(recordsOf(MOVED).map(({ target, weight }) => [target, weight]).sort(), [[TARGET_HOST, 0], [SOURCE_HOST, SOURCE_WEIGHT]], "it is the record that external-dns wrote");
  await connectionsAreBack(Date.now());
  await scale(2);
  externalDns = startExternalDns(route53, DOMAIN, ["crd"], TARGET);
  await wait(() => weightOfTarget() === 20, { timeout: 60_000, what: "the weight as the operator has it" });
});

test("the operator of the source publishes the snapshot that the command takes, for a pipeline to copy", { timeout: 300_000 }, async () => {
  const published = await onCluster(SOURCE, async () => {
    await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace: NAMESPACE }, stringData: { key: KEY } });
    await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "realtime-operator.dev/publish-snapshot=realtime-migration", "--overwrite"]);
    await wait(async () => (await get("configmaps", NAMESPACE)).items.some(({ metadata }) => metadata.name === "eu-snapshot"), { timeout: PUBLISHED_TIMEOUT, what: "a published snapshot" });
    return JSON.parse((await get("configmap", NAMESPACE, "eu-snapshot")).data["snapshot.yaml"]);
  });
  const { code, stdout, stderr } = await onCluster(SOURCE, () => realtime("snapshot", "eu", "-n", NAMESPACE, "--key", `${DIR}/pki/review.key`, "-o", "json"));
  assert.equal(code, 0, stderr);
  const taken = JSON.parse(stdout);
  const compared = ({ cluster, keyID, servers, apps, seal }) => [cluster, keyID, servers, apps, seal.uid];
  assert.deepEqual(compared(published), compared(taken), "a review has one hash, whoever takes the snapshots");
  const [processes] = [published, taken].map(({ sessions }) => Object.keys(sessions.processes));
  assert.deepEqual(Object.keys(taken.sessions.processes), processes, "both count the sessions of every edge");
});

test("the cutover keeps the brake, and a complete move keeps its record when it is deleted", { timeout: 900_000 }, async () => {
  await reached("the cutover", inPhase("CuttingOver"), 3 * PHASE_TIMEOUT);
  await wait(() => weightOfTarget() === 255, { timeout: 60_000, what: "weight 255 in the zone" });
  setSource(1);
  await reached("the end", inPhase("Completed"), 2 * PHASE_TIMEOUT);
  assert.deepEqual(writtenWeights(), [1, 0, 1, 20, 0, "gone", 1, 0, 1, 20, 0, 20, 255]);
  assert.equal(condition(await move(), "Completed").status, "True");
  await clients.hear();
  await onCluster(TARGET, () => kubectl(["delete", "realtimemigration", "move", "-n", NAMESPACE, "--timeout=60s"]));
  await synced(route53, 3);
  assert.equal(weightOfTarget(), 255, "nobody loses the last answer of the host");
  assert.deepEqual(route53.refusals, [], "nothing that Route 53 refuses was asked of it");
  console.log(`# weights of the target's record: ${writtenWeights().join(", ")}`);
});

test("every channel was occupied once and vacated once, whichever cluster had its clients, and no other session was cut", { timeout: 300_000 }, async () => {
  await clients.leave();
  const { visitors, socketVisitors, pairs, residents } = clients;
  for (const [what, { visits }] of [["visits", visitors], ["visits of the websocket track", socketVisitors]]) {
    const refused = visits.filter(({ refusal }) => refusal);
    console.log(`# ${what}: ${visits.length}, ${refused.length} without a session: ${JSON.stringify(refused.slice(0, 3))}`);
  }
  console.log(`# pairs with a client in each cluster: ${pairs.channels.length}, ${pairs.refusals.length} without both: ${JSON.stringify(pairs.refusals.slice(0, 3))}`);
  assert.ok(pairs.channels.length >= 20);
  const channels = [...[...visitors.visits, ...socketVisitors.visits].filter(({ refusal }) => !refusal).map(({ channel }) => channel), ...pairs.channels];
  await wait(() => unevenChannels(channels).length === 0, { timeout: WEBHOOK_TIMEOUT, every: 2_000, what: "one occupied and one vacated of each channel", seen: () => unevenChannels(channels).slice(0, 20).join("; ") });
  assert.deepEqual(residents.flatMap(({ states }) => states), [], "no change of a record cuts a session");
  assert.deepEqual(socketVisitors.visits.filter(({ found, refusal }) => refusal || found !== SOURCE_SOCKETS), [], "the websocket track is untouched");
  assert.deepEqual(recordsOf(UNMOVED).map(({ target }) => target), [SOURCE_SOCKETS]);
});

test("the source reports a target whose snapshot nobody copies any more, with the change by hand", { timeout: 600_000 }, async () => {
  const { status, message } = await reporting("TargetSilent", SILENT_TIMEOUT);
  assert.equal(status, "False");
  assert.ok(message.includes(`"SetIdentifier":"${TARGET_HOST}"`) && message.includes('"Weight":0'), message);
  assert.equal(is(await clusterOf(SOURCE), "Ready"), "True", "it is no part of Ready");
});
