// A move at a real API server: its rules, and the operator with the chart's permissions and fences, up to the proof that pods alone
// could give. The turns that write records are tested in the operator's own room.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { parseAllDocuments } from "yaml";

import { apply, applyCrds, condition, DIR, established, file, get, kubectl, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE as OPERATOR, realtime, refused, wait } from "../cluster/harness.mjs";
import { refusedRequests } from "../cluster/permissions.mjs";
import { chartFolder, find, helm, IMAGE_VALUES, render } from "./helm.mjs";
import { manifestsOf, reconciled, startStreams, withOperator } from "./operator.mjs";
import { startZone } from "./zone_server.mjs";

const NAMESPACES = ["moved-from", "moved-to"];
const [SOURCE, TARGET] = NAMESPACES;
const [HOST, TARGET_HOST, SOURCE_HOST] = ["sockjs-eu.example.com", "sockjs.new.example.com", "sockjs.old.example.com"];
const ENDPOINTS = "dnsendpoints.externaldns.k8s.io";
/** A zone is read every 30 s before the first record, and its reading is decided about at the next turn. */
const READING_TIMEOUT = 90_000;
const VALUES = { ...IMAGE_VALUES, crds: { enabled: false } };
const KEY = `${DIR}/pki/review.key`;
const ACCEPTED = ["NotProven", "FanoutSplit", "AppsMissing", "AppsChanged"];

/** A move of the fallbacks with these fields of its spec and of its track. */
const migration = (spec = {}, track = {}) => ({
  apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeMigration", metadata: { name: "move", namespace: TARGET },
  spec: {
    clusterRef: { name: "eu" },
    source: { snapshot: { configMapRef: { name: "source-snapshot", key: "snapshot.yaml" } } },
    tracks: [{ transport: "sockjs", host: HOST, targetHost: TARGET_HOST, ...track }],
    ...spec,
  },
});

/** Fields of a cluster by which its sessions stay there. */
const pinned = (namespace, url, canonicalHost) => ({ sockjs: { ...manifestsOf(namespace, url)[1].spec.sockjs, canonicalHost } });

before(async () => {
  await applyCrds();
  for (const name of [...NAMESPACES, OPERATOR]) await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name } });
  writeFileSync(KEY, "0123456789abcdef0123456789abcdef");
});

// Another file of this tier needs an API server without it.
after(async () => {
  await kubectl(["delete", "crd", ENDPOINTS, "--ignore-not-found", "--timeout=60s"]);
  for (const name of NAMESPACES) await kubectl(["delete", "namespace", name, "--wait=false"]);
});

test("contradictions of a move are refused in the words of the commands", async () => {
  const rows = JSON.parse(file("tests/fixtures/refused.json")).filter(({ kind }) => kind === "RealtimeMigration");
  assert.ok(rows.length > 20);
  for (const { what, name, spec, message, apiServer } of rows) {
    const said = await refused({ ...migration(), metadata: { name, namespace: TARGET }, spec });
    assert.ok(said.includes(apiServer ?? message), `${what}: ${said}`);
  }
});

test("the example is accepted, and its record by the definition of external-dns", async () => {
  const example = fileURLToPath(new URL("../../examples/migration.yaml", import.meta.url));
  const documents = parseAllDocuments(file("examples/migration.yaml")).map((document) => document.toJSON());
  for (const document of documents) {
    const object = { ...document, metadata: { ...document.metadata, namespace: TARGET } };
    await kubectl(["create", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(object) });
  }
  await apply(file("tests/fixtures/external-dns/dnsendpoints.yaml"));
  await established(ENDPOINTS);
  const { stdout } = await realtime("migrate", "plan", example, "-o", "json");
  const [record] = JSON.parse(stdout).tracks[0].objects;
  const object = { ...record, metadata: { ...record.metadata, namespace: TARGET } };
  await wait(() => kubectl(["create", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(object) }), { what: "the kind to be served" });
  await kubectl(["delete", "crd", ENDPOINTS, "--timeout=60s"]);
});

test("a move waits in a named state until its target is proven, and goes when it is deleted", async () => {
  await helm(["upgrade", "--install", OPERATOR, chartFolder("realtime-operator"), "--namespace", OPERATOR], VALUES);
  const began = new Date();
  const { args } = find(await render("realtime-operator", VALUES), "Deployment").spec.template.spec.containers[0];
  const [streams, zone] = await Promise.all([startStreams(), startZone(new Map([[TARGET_HOST, [{ target: "lb.example.com", weight: 1 }]]]))]);
  const status = async () => (await get("realtimemigration", TARGET, "move")).status;
  await withOperator([...args, `--zone-servers=${zone.address}`], streams.url, async (log) => {
    let track;
    const seen = () => `${JSON.stringify(track)}\n${log().slice(-2000)}`;
    /** The track once its reason or its message has these words. */
    async function reached(words) {
      await wait(async () => {
        track = (await status())?.tracks?.[0];
        return `${track?.reason} ${track?.message}`.includes(words);
      }, { timeout: READING_TIMEOUT, what: words, seen });
      return track;
    }
    for (const [namespace, host] of [[SOURCE, SOURCE_HOST], [TARGET, TARGET_HOST]]) await reconciled(namespace, streams.url, log, pinned(namespace, streams.url, host));
    const key = { apiVersion: "v1", kind: "Secret", metadata: { name: "realtime-migration", namespace: TARGET }, stringData: { key: "0123456789abcdef0123456789abcdef" } };
    const annotate = (namespace, name, value) => kubectl(["annotate", "realtimecluster", "eu", "-n", namespace, `realtime-operator.dev/${name}=${value}`]);
    await apply({ ...key, metadata: { ...key.metadata, namespace: SOURCE } });
    await annotate(SOURCE, "publish-snapshot", "realtime-migration");
    await annotate(SOURCE, "target-snapshot", "target-snapshot");
    await apply(migration());
    for (const [field, value] of [["engine", "External"], ["targetHost", "sockjs.other.example.com"], ["ttlSeconds", 30]]) {
      assert.match(await refused(migration({}, { [field]: value })), new RegExp(`${field} is immutable`));
    }
    assert.equal((await reached("DNSEndpointUnavailable")).reason, "PreflightFailed");

    await apply(file("tests/fixtures/external-dns/dnsendpoints.yaml"));
    await established(ENDPOINTS);
    await reached("SourceRecordMissing");
    zone.records.set(HOST, [{ target: SOURCE_HOST, weight: 20, ttl: 300 }]);
    await reached("TTLDiffers");
    zone.records.set(HOST, [{ target: SOURCE_HOST, weight: 20 }]);
    assert.equal((await reached("Secret realtime-migration does not exist")).reason, "SnapshotMissing");

    await apply(key);
    await annotate(TARGET, "publish-snapshot", "realtime-migration");
    await reached("ConfigMap source-snapshot does not exist");
    const snapshot = async (namespace) => (await realtime("snapshot", "eu", "-n", namespace, "--key", KEY)).stdout;
    const published = await snapshot(SOURCE);
    await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "source-snapshot", namespace: TARGET }, data: { "snapshot.yaml": published } });
    await reached("ReviewBlocked");
    assert.equal((await status()).source.cluster, `${SOURCE}/eu`);

    // The operator and a person read the same review. Its hash changes with the finding of the proof, which is accepted here.
    await apply(migration({ review: { accepted: ACCEPTED } }));
    const paths = [SOURCE, TARGET].map((name) => `${DIR}/pki/${name}.yaml`);
    writeFileSync(paths[0], published);
    let hashes;
    await wait(async () => {
      writeFileSync(paths[1], await snapshot(TARGET));
      const review = await realtime("migrate", "review", ...paths, "--server", "sockjs", ...ACCEPTED.flatMap((code) => ["--accept", code]), "--key", KEY, "-o", "json");
      const [, hash] = /has the hash ([0-9a-f]{32})/.exec((await status()).tracks[0].message) ?? [];
      hashes = [hash, JSON.parse(review.stdout).approvalHash];
      return hashes[0] === hashes[1];
    }, { timeout: READING_TIMEOUT, what: "one hash of the review", seen: () => `${hashes} ${seen()}` });
    await apply(migration({ review: { accepted: ACCEPTED, approvedHash: hashes[0] } }));
    const gated = await reached("TargetNotProven");
    assert.deepEqual([gated.reason, gated.desired, gated.applied.endsWith("of 200")], ["TargetNotProven", "no record", true]);
    assert.deepEqual((await get("dnsendpoint", TARGET)).items, [], "no record before the proof");
    const printed = await kubectl(["get", "rtm", "move", "-n", TARGET]);
    assert.match(printed, /NAME +HOST +PHASE +STEP +DESIRED +APPLIED .*\nmove +sockjs-eu\.example\.com +Gated +0\/7 +no record +0\.0 % of 200 .* TargetNotProven +mend the target/);
    const { items } = await get("events.v1.events.k8s.io", TARGET);
    assert.ok(items.some(({ reason, regarding }) => reason === "TargetNotProven" && regarding.kind === "RealtimeMigration"), "an Event");

    // external-dns that never deletes a record is named, as far as its Deployment can be read.
    const labels = { "app.kubernetes.io/name": "external-dns" };
    const externalDns = (policy) => ({
      apiVersion: "apps/v1", kind: "Deployment", metadata: { name: "external-dns", namespace: TARGET, labels },
      spec: {
        selector: { matchLabels: labels },
        template: { metadata: { labels }, spec: { containers: [{ name: "external-dns", image: "example.com/external-dns:1", args: ["--provider=aws", "--source=crd", `--policy=${policy}`] }] } },
      },
    });
    await apply(externalDns("upsert-only"));
    await reached("RecordsKept");
    await apply(externalDns("sync"));
    await reached("TargetNotProven");

    // The source sees the target by the copy of its snapshot.
    let reporting;
    const reports = (reason) => wait(async () => {
      reporting = condition(await get("realtimecluster", SOURCE, "eu"), "TargetReporting");
      return reporting?.reason === reason;
    }, { timeout: READING_TIMEOUT, what: reason, seen: () => `${JSON.stringify(reporting)}\n${log().slice(-2000)}` });
    await wait(async () => (await get("configmaps", TARGET)).items.some(({ metadata }) => metadata.name === "eu-snapshot"), { timeout: READING_TIMEOUT, what: "a published snapshot", seen });
    await reports("TargetUnread");
    const { data } = await get("configmap", TARGET, "eu-snapshot");
    await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "target-snapshot", namespace: SOURCE }, data });
    await reports("TargetReports");
    assert.match(reporting.message, new RegExp(`^${TARGET}/eu reports: no track has a record$`));

    // A record by that name that is another's is named and never touched.
    const foreign = { apiVersion: "externaldns.k8s.io/v1alpha1", kind: "DNSEndpoint", metadata: { name: "move-sockjs", namespace: TARGET }, spec: { endpoints: [] } };
    await apply(foreign);
    await reached("RecordNotOurs");
    const record = (name, labels) => JSON.stringify({ ...foreign, metadata: { name, namespace: TARGET, labels } });
    const attempt = (words, input) => kubectl([...words, `--as=${OPERATOR_ACCOUNT}`], { input }).then(() => "", String);
    assert.match(await attempt(["create", "-f", "-"], record("free")), /records of moves, with its label app.kubernetes.io\/managed-by, only/);
    assert.match(await attempt(["delete", "dnsendpoint", "move-sockjs", "-n", TARGET]), /no record that is another's/);
    assert.equal(await attempt(["create", "-f", "-"], record("ours", { "app.kubernetes.io/managed-by": "realtime-operator" })), "");
    assert.equal(await attempt(["delete", "dnsendpoint", "ours", "-n", TARGET]), "");
    await kubectl(["delete", "realtimemigration", "move", "-n", TARGET, "--timeout=60s"]);
    assert.equal((await get("dnsendpoint", TARGET)).items.length, 1);
    for (const namespace of NAMESPACES) await kubectl(["delete", "realtimecluster/eu", "realtimeapp/shop", "-n", namespace, "--timeout=60s"]);
  }).finally(() => Promise.all([streams.stop(), zone.close()]));
  // A namespace of another file may still be going.
  const refusals = refusedRequests(OPERATOR_ACCOUNT, began).filter((call) => !/ because it is being terminated$/.test(call));
  assert.deepEqual(refusals, []);
  await helm(["uninstall", OPERATOR, "--namespace", OPERATOR]);
  await kubectl(["delete", "lease,endpointslice", "--all", "-n", OPERATOR]);
});
