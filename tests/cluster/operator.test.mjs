// The operator on a real Kubernetes: it refuses Ready until a client's event arrived, and reverts, admits and goes on.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { test } from "node:test";
import Pusher from "pusher";
import PusherClient from "pusher-js";

import { startedFields } from "../conformance/processes.mjs";
import { apply, audit, condition, get, IMAGE, inNamespace, kubectl, leaderName, namespacesDeleted, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, pods, realtime, service, startReceiver, startRedis, tagImage, wait, watchObject } from "./harness.mjs";
import { COMPONENT, credentials, edges, eventSays, is, kstatus, manifest, MIRROR, outside, podIs, processOf, ready, rotateSecret, said, spec, TRANSPORTS } from "./operator_fixtures.mjs";
import { assertQuiet, countCalls } from "./permissions.mjs";

const NAMESPACE = "channels";
const ADMITTED = "realtime-operator.dev/admitted";
const GATE = "realtime-operator.dev/webhooks-delivered";

/** Those of the sockjs server, in the order in which messages name them. */
const FALLBACKS = TRANSPORTS.slice(1);

/** Seconds for which the stream is away: `STREAM_AWAY_SECONDS=300 ./test cluster` is the long run. */
const AWAY = Number(process.env.STREAM_AWAY_SECONDS ?? 60);

/** Seconds for which nothing changes: `QUIET_SECONDS=300 ./test cluster -k "from apply|quiet"` is the long run. */
const QUIET = Number(process.env.QUIET_SECONDS ?? 60);

/** The operator's own pods, the leader first. */
async function operators() {
  const leader = await leaderName();
  const leads = (pod) => pod.metadata.name === leader;
  return (await pods(OPERATOR_NAMESPACE, {})).sort((one, other) => leads(other) - leads(one));
}

/** Every address that was ever a ready endpoint is that of a pod that had been admitted before. */
function assertOnlyAdmittedServed(slices, podVersions) {
  for (const { object, at } of slices.versions) {
    for (const endpoint of object.endpoints ?? []) {
      if (!endpoint.conditions?.ready) continue;
      const pod = endpoint.targetRef?.name;
      const before = podVersions.versions.some(
        (version) => version.object.metadata.name === pod && version.at <= at + 100 && version.object.metadata.annotations?.[ADMITTED],
      );
      assert.ok(before, `${pod} was an endpoint before it was admitted`);
    }
  }
}

test("from apply to Ready, pod by pod, and not before a client's event arrived", async () => {
  const began = Date.now();
  await kubectl(["create", "namespace", NAMESPACE]);
  const [cluster, slices, podVersions] = await Promise.all([
    watchObject("realtimeclusters", NAMESPACE, "eu"),
    watchObject("endpointslices", NAMESPACE),
    watchObject("pods", NAMESPACE),
  ]);
  await apply(manifest(NAMESPACE));
  // It blocks from the first moment: an object that nobody looked at is not Ready.
  await ready(NAMESPACE, "eu", 60);
  const seconds = (Date.now() - began) / 1000;
  console.log(`# apply to Ready: ${seconds.toFixed(1)} s`);
  assert.ok(seconds <= 60);

  const found = await cluster.until((object) => is(object, "Ready") === "True");
  assert.equal(found.status.observedGeneration, found.metadata.generation);
  assert.deepEqual(found.status.transports.map(({ name, state, pods }) => [name, state, pods]), TRANSPORTS.map((name) => [name, "Passing", "2/2"]));
  assert.equal(found.status.stream.status, "ACTIVE");
  assert.equal(is(found, "Reconciling"), undefined);
  assert.equal(is(found, "Stalled"), undefined);
  await kubectl(["wait", "--for=condition=Ready", "realtimeapp/shop", "-n", NAMESPACE, "--timeout=30s"]);
  assert.deepEqual((await get("realtimeapp", NAMESPACE, "shop")).status.clusters, [{ name: "eu", loaded: "6/6", reason: "AppAccepted" }]);
  const first = cluster.versions[0].object;
  assert.equal(first.status.observedGeneration, -1);

  await wait(async () => (await get("endpointslices", NAMESPACE)).items.filter(({ endpoints }) => endpoints?.length === 2).length === 2, {
    what: "both Services with two endpoints",
  });
  assertOnlyAdmittedServed(slices, podVersions);
  for (const { object } of podVersions.versions) {
    if (!object.metadata.labels?.[COMPONENT]) continue;
    const admitted = Boolean(object.metadata.annotations?.[ADMITTED]);
    assert.ok(admitted || !podIs(object, "ContainersReady"), `${object.metadata.name}: containers ready before it was admitted`);
    assert.ok(admitted || !podIs(object, GATE), `${object.metadata.name}: gate open before it was admitted`);
  }
  await Promise.all([cluster.stop(), slices.stop(), podVersions.stop()]);
});

test("realtime status shows every hop of an event", async () => {
  const shown = await realtime("status", "eu", "-n", NAMESPACE);
  assert.equal(shown.code, 0, shown.stderr);
  assert.match(shown.stdout, new RegExp(`^${NAMESPACE}/eu: Ready \\(Proven\\)\n`));
  for (const transport of TRANSPORTS) {
    assert.match(shown.stdout, new RegExp(`${transport} +Passing +2/2 .*✓ connect .*✓ delivery`));
  }
  const missing = await realtime("status", "us", "-n", NAMESPACE);
  assert.equal(missing.code, 2);
  assert.match(missing.stderr, /realtimeclusters.* "us" not found/);
});

test("realtime tail follows every edge through port-forwards, and the ledger of all pods balances", { timeout: 120_000 }, async () => {
  const [tail, proven] = await Promise.all([
    realtime("tail", "eu", "-n", NAMESPACE, "--for", "25s", "-o", "json"),
    // Edges are followed within a second or two; the second round comes after that.
    realtime("prove", "eu", "-n", NAMESPACE).then(() => realtime("prove", "eu", "-n", NAMESPACE)),
  ]);
  assert.equal(proven.code, 0, proven.stdout + proven.stderr);
  assert.equal(tail.code, 0, tail.stderr);
  const entries = tail.stdout.trim().split("\n").map((line) => JSON.parse(line));
  const seen = (event) => [...new Set(entries.filter((entry) => entry.event === event).map((entry) => entry.pod))].sort();
  const pods = (await get("pods", NAMESPACE)).items.map((pod) => pod.metadata.name).filter((name) => /^eu-(websocket|sockjs)-/.test(name)).sort();
  assert.equal(pods.length, 4);
  for (const event of ["opened", "subscribed", "closed"]) assert.deepEqual(seen(event), pods, `${event}: ${tail.stderr}`);
  const missing = await realtime("tail", "us", "-n", NAMESPACE);
  assert.deepEqual([missing.code, /Secret us-admin/.test(missing.stderr)], [2, true], missing.stderr);

  const ledger = await realtime("status", "eu", "-n", NAMESPACE, "--flow");
  assert.equal(ledger.code, 0, ledger.stdout + ledger.stderr);
  assert.match(ledger.stdout, /^edges +decided \d+.*\ndispatchers read \d+.*\ndeliveries +created \d+.*\nevery hop balances\n$/s);
});

test("realtime prove shows the hops of a round at once, and realtime check prints the NetworkPolicy that is missing", { timeout: 120_000 }, async () => {
  const proven = await realtime("prove", "eu", "-n", NAMESPACE, "--timeout", "60s");
  assert.equal(proven.code, 0, proven.stdout + proven.stderr);
  for (const transport of TRANSPORTS) assert.match(proven.stdout, new RegExp(`${transport} +3/3 .*✓ connect \\d+ ms .*✓ delivery`));
  assert.match(proven.stdout, /eu: proven: 21 of 21 journeys passed/);
  const object = JSON.parse((await realtime("prove", "eu", "-n", NAMESPACE, "-o", "json")).stdout);
  const { requestedProof } = (await get("realtimecluster", NAMESPACE, "eu")).status.gate;
  assert.deepEqual([object.state, object.token], ["Passed", requestedProof.token], "a new value each time, and the result stays");
  assert.ok(!proven.stdout.includes(object.token));
  assert.equal((await realtime("prove", "us", "-n", NAMESPACE)).code, 2);

  const directory = mkdtempSync(`${tmpdir()}/check-`);
  const path = `${directory}/eu.yaml`;
  writeFileSync(path, manifest(NAMESPACE));
  try {
    const check = async () => JSON.parse((await realtime("check", path, "-o", "json")).stdout).checks;
    const state = (checks, name) => checks.find((one) => one.check === name);
    const found = await check();
    for (const name of ["api-server", "crds", "operator", "secrets", "manifest", "identity", "redis", "kinesis", "network-policy"]) {
      assert.equal(state(found, name)?.state, "Passed", JSON.stringify(state(found, name)));
    }
    const deny = { apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy", metadata: { name: "default-deny", namespace: NAMESPACE }, spec: { podSelector: {}, policyTypes: ["Ingress", "Egress"] } };
    await apply(JSON.stringify(deny));
    const missing = state(await check(), "network-policy");
    assert.equal(missing.state, "Warning");
    assert.match(missing.message, /default-deny/);
    await apply(missing.manifest);
    assert.equal(state(await check(), "network-policy").state, "Passed", "the API server accepts the printed policy");
    await kubectl(["delete", "networkpolicy", "--all", "-n", NAMESPACE]);
    writeFileSync(path, manifest(NAMESPACE, { "name: eu-aws\n": "name: nobody\n" }).replace("name: nobody\n  namespace", "name: eu-aws\n  namespace"));
    const without = await realtime("check", path);
    assert.equal(without.code, 1, without.stdout);
    assert.match(without.stdout, /✗ secrets .*nobody/);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("a suspended cluster stays as it is and says since when, and restarted-at restarts the pods of one that is not", { timeout: 240_000 }, async () => {
  const deployment = () => get("deployment", NAMESPACE, "eu-sockjs");
  const before = await deployment();
  const cluster = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await spec(NAMESPACE, { suspend: true, sockjs: { replicas: 3, env: [{ name: "TRIAL", value: "1" }] } });
  const suspended = await cluster.until((object) => /Deployment eu-sockjs/.test(condition(object, "Suspended")?.message));
  assert.match(condition(suspended, "Suspended").message, /^nothing is applied since 20\d\d-/);
  // Three rounds of journeys, in which a pod that somebody evicts is admitted.
  const evicted = (await edges(NAMESPACE)).find(({ metadata }) => metadata.labels[COMPONENT] === "sockjs").metadata.name;
  await kubectl(["delete", "pod", evicted, "-n", NAMESPACE, "--wait=false"]);
  await wait(async () => {
    const found = (await edges(NAMESPACE)).filter(({ metadata }) => metadata.labels[COMPONENT] === "sockjs" && !metadata.deletionTimestamp);
    return found.length === 2 && found.every((pod) => pod.metadata.name !== evicted && podIs(pod, "Ready"));
  }, { what: "a successor that is admitted", timeout: 60_000 });
  assert.equal((await deployment()).metadata.generation, before.metadata.generation, "nothing was applied");
  const now = await get("realtimecluster", NAMESPACE, "eu");
  assert.equal(is(now, "Reconciling"), undefined);
  assert.equal((await realtime("prove", "eu", "-n", NAMESPACE, "--timeout", "60s")).code, 0, "journeys go on");
  await ready(NAMESPACE);

  await spec(NAMESPACE, { suspend: null, sockjs: { replicas: 2, env: null } });
  await cluster.until((object) => condition(object, "Suspended") === undefined && object.metadata.generation === object.status.observedGeneration);
  assert.equal((await deployment()).metadata.generation, before.metadata.generation, "the change was taken back before it was applied");
  assert.deepEqual([now.status.image.repository, now.status.version], ["realtime-operator/realtime", "0.2.0"]);

  const names = async () => (await pods(NAMESPACE, {})).filter(({ metadata }) => metadata.labels?.[COMPONENT]).map(({ metadata }) => metadata.name);
  const old = new Set(await names());
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "realtime-operator.dev/restarted-at=2026-01-01T00:00:00Z"]);
  await wait(async () => {
    const found = await names();
    return found.length === old.size && found.every((name) => !old.has(name));
  }, { what: "new pods only", timeout: 150_000 });
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "realtime-operator.dev/restarted-at-"]);
  await ready(NAMESPACE);
  const [after, restarted] = [new Set(await names()), (await get("realtimecluster", NAMESPACE, "eu")).status.restartedAt];
  assert.equal(restarted, "2026-01-01T00:00:00Z");
  await new Promise((resolve) => setTimeout(resolve, 5000));
  assert.deepEqual(new Set(await names()), after, "a removed annotation restarts nothing");
  await cluster.stop();
});

test("a quiet cluster is read from watches: no listing, each Secret once a minute, one status write", { timeout: (QUIET + 60) * 1000 }, async () => {
  await ready(NAMESPACE);
  // The status of the first minute still changes: pods learn of the registry, the first complete round ends.
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  const began = Date.now();
  await new Promise((resolve) => setTimeout(resolve, QUIET * 1000));
  const counts = countCalls(OPERATOR_ACCOUNT, began);
  const line = [...counts].map(([call, times]) => `${call}: ${times}`).join(", ");
  console.log(`# in ${QUIET} quiet s: ${line}`);
  assertQuiet(counts, QUIET);
});

test("pusher-js reaches both pods through the Services by every transport, and every webhook verifies", { timeout: 90_000 }, async () => {
  const [key, secret] = await credentials(NAMESPACE);
  const [websocket, sockjs] = await Promise.all([service(NAMESPACE, "eu-websocket"), service(NAMESPACE, "eu-sockjs")]);
  const server = new Pusher({ appId: "1001", key, secret, host: websocket.host, port: String(websocket.port), useTLS: false });
  const clients = [];
  for (const [transport, count] of [["ws", 6], ["xhr_streaming", 4], ["xhr_polling", 4]]) {
    for (let n = 0; n < count; n += 1) {
      clients.push(new PusherClient(key, {
        cluster: "", wsHost: websocket.host, wsPort: websocket.port, httpHost: sockjs.host, httpPort: sockjs.port,
        forceTLS: false, enableStats: false, enabledTransports: [transport],
        channelAuthorization: {
          customHandler: ({ socketId, channelName }, callback) => callback(null, server.authorizeChannel(socketId, channelName)),
        },
      }));
    }
  }
  try {
    const room = "private-everyone";
    const heard = new Map(clients.map((client) => [client, new Set()]));
    await Promise.all(clients.map((client) => new Promise((resolve, reject) => {
      const channel = client.subscribe(room);
      channel.bind("pusher:subscription_succeeded", resolve);
      channel.bind("pusher:subscription_error", (error) => reject(new Error(JSON.stringify(error))));
      channel.bind("client-hello", ({ from }) => heard.get(client).add(from));
    })));
    clients.forEach((client, index) => client.channel(room).trigger("client-hello", { from: index }));
    // Everyone hears everyone else, whichever pod either is on.
    await wait(() => clients.every((client) => heard.get(client).size === clients.length - 1), { what: "every event at every client" });
    const hellos = () => outside.receiver.events().filter(({ name, channel }) => name === "client_event" && channel === room);
    await wait(() => hellos().length >= clients.length, { what: "a webhook of every event" });
    assert.deepEqual(hellos().map(({ data }) => JSON.parse(data).from).sort((a, b) => a - b), clients.map((_, index) => index));
  } finally {
    clients.forEach((client) => client.disconnect());
  }
  const reported = (name) => outside.receiver.events().filter((event) => event.name === name && event.channel === "private-everyone").length;
  await wait(() => reported("channel_vacated") === 1, { what: "channel_vacated" });
  assert.equal(reported("channel_occupied"), 1, "once for all pods");
  assert.ok(outside.receiver.requests.length > 0);
  for (const request of outside.receiver.requests) assert.ok(server.webhook(request).isValid(), "the signature");
});

test("manual edits of a live Deployment are reverted and reported, and never serve", async () => {
  const [slices, podVersions] = await Promise.all([watchObject("endpointslices", NAMESPACE), watchObject("pods", NAMESPACE)]);
  await kubectl(["set", "env", "deployment/eu-sockjs", "-n", NAMESPACE, "REALTIME_WEBHOOKS=off", "AWS_ENDPOINT_URL=http://elsewhere:1", "AWS_ENDPOINT_URL_KINESIS=http://elsewhere:1"]);
  await kubectl(["patch", "deployment", "eu-websocket", "-n", NAMESPACE, "--type=json", "--field-manager=a-hand", "-p", JSON.stringify([
    { op: "add", path: "/spec/template/spec/containers/0/envFrom", value: [{ secretRef: { name: "eu-aws" } }] },
    { op: "add", path: "/spec/template/spec/containers/-", value: { name: "stranger", image: "localhost/pause:1" } },
  ])]);
  const container = async (name) => (await get("deployment", NAMESPACE, name)).spec.template.spec.containers[0];
  await wait(async () => {
    const { env } = await container("eu-sockjs");
    const value = (name) => env.find((one) => one.name === name)?.value;
    return value("REALTIME_WEBHOOKS") === "kinesis" && value("AWS_ENDPOINT_URL") === undefined && value("AWS_ENDPOINT_URL_KINESIS") === outside.kinesis.url;
  }, { what: "the variables as rendered" });
  await wait(async () => (await container("eu-websocket")).envFrom === undefined, { what: "no envFrom" });
  await wait(async () => (await get("deployment", NAMESPACE, "eu-websocket")).spec.template.spec.containers.length === 1, { what: "no added container" });
  const notes = async () => (await get("events.events.k8s.io", NAMESPACE)).items.filter(({ reason }) => reason === "PutBack").map(({ note }) => note);
  for (const expected of [
    /eu-sockjs: container sockjs: env REALTIME_WEBHOOKS, written by kubectl-set/,
    /eu-sockjs: container sockjs: env AWS_ENDPOINT_URL, written by kubectl-set/,
    /eu-sockjs: container sockjs: env AWS_ENDPOINT_URL_KINESIS, written by kubectl-set/,
    /eu-websocket: container websocket: envFrom 0, written by a-hand/, /eu-websocket: container stranger, written by a-hand/,
  ]) {
    await wait(async () => (await notes()).some((note) => expected.test(note)), { what: `an Event like ${expected}` });
  }
  for (const name of ["eu-sockjs", "eu-websocket"]) {
    await kubectl(["rollout", "status", `deployment/${name}`, "-n", NAMESPACE, "--timeout=60s"]);
  }
  await ready(NAMESPACE);
  assertOnlyAdmittedServed(slices, podVersions);
  const wrong = ({ object }) => {
    const { env = [], envFrom } = object.spec.containers[0];
    return envFrom || env.some(({ name, value }) => (name === "REALTIME_WEBHOOKS" && value === "off") || value === "http://elsewhere:1");
  };
  assert.ok(!podVersions.versions.some((version) => wrong(version) && version.object.metadata.annotations?.[ADMITTED]), "none of them was admitted");
  await Promise.all([slices.stop(), podVersions.stop()]);
});

test("a broken rollout stops at its first pod, an evicted old pod serves again, and the fix is Ready", { timeout: 240_000 }, async () => {
  const [podVersions, cluster] = await Promise.all([watchObject("pods", NAMESPACE), watchObject("realtimeclusters", NAMESPACE, "eu")]);
  const serving = (await edges(NAMESPACE)).map(({ metadata }) => metadata.name).sort();
  // The value changes in the Secret that the old pods were created from; the operator reads it again for the edited manifest.
  const rotate = (url) => kubectl(["patch", "secret", "eu-redis", "-n", NAMESPACE, "--type=merge", "-p", JSON.stringify({ stringData: { url } })]);
  await rotate("redis://198.18.0.1:1");
  await spec(NAMESPACE, { gate: { deadlineSeconds: 20 } });
  const broken = await wait(async () => {
    const found = await get("realtimecluster", NAMESPACE, "eu");
    return said(found) === "False/FanoutBroken" && found;
  }, { timeout: 60_000, what: "FanoutBroken" });
  assert.match(condition(broken, "Ready").message, /bus between the servers does not answer/);
  for (const name of ["eu-websocket", "eu-sockjs"]) {
    const { status } = await get("deployment", NAMESPACE, name);
    assert.equal(status.updatedReplicas, 1, `${name} stops at the first new pod`);
    assert.equal(status.readyReplicas, 2, `${name} goes on with the old pods`);
  }
  const returned = await evictFormer(podVersions, serving);
  assert.notEqual(said(await get("realtimecluster", NAMESPACE, "eu")).split("/")[0], "True", "its pass is no proof of the new manifest");
  const late = await cluster.until((object) => said(object) === "False/DeadlineExceeded", { timeout: 60_000 });
  assert.match(condition(late, "Ready").message, /^not proven within 20 s: FanoutBroken: .*bus between the servers does not answer/);
  await rotate(outside.redis.url);
  await spec(NAMESPACE, { gate: { deadlineSeconds: 600 } });
  await wait(async () => (await get("realtimecluster", NAMESPACE, "eu")).status.observedGeneration === broken.metadata.generation + 1);
  await ready(NAMESPACE, "eu", 60);
  // Deployment tools fail at Stalled, and wait while Reconciling: the edit that mends shows nothing of the one that broke.
  for (const { object } of cluster.versions) {
    assert.notEqual(is(object, "Stalled"), "True", said(object));
    if (object.status.observedGeneration === late.status.observedGeneration) assert.equal(is(object, "Reconciling"), "True", said(object));
    if (object.status.observedGeneration > late.status.observedGeneration) assert.match(said(object), /^(Unknown|True)\//);
  }
  const versions = cluster.versions.map(({ object }) => object).filter(({ metadata }) => metadata.generation >= broken.metadata.generation);
  const computed = kstatus(versions).map((status, at) => `${versions[at].metadata.generation} ${status}`);
  const [wrong, mended] = [broken.metadata.generation, broken.metadata.generation + 1];
  assert.deepEqual([...new Set(computed)], [`${wrong} InProgress`, `${mended} InProgress`, `${mended} Current`], "by the rules of Flux and Helm");
  // Flux shows no message of a condition: each change of Ready is an Event with its own sentence, also of a reason that was there before.
  const changes = cluster.versions.map(({ object }) => object).filter((object, at, all) => at > 0 && said(object) !== said(all[at - 1]));
  for (const change of changes) await eventSays(NAMESPACE, change);
  const old = [...serving.filter((name) => name !== returned.evicted), returned.name].sort();
  assert.deepEqual((await edges(NAMESPACE)).filter((pod) => podIs(pod, "Ready")).map(({ metadata }) => metadata.name).sort(), old);
  const fresh = podVersions.versions.filter(({ object }) => ![...serving, ...old].includes(object.metadata.name) && object.metadata.labels?.[COMPONENT] !== "dispatcher");
  assert.ok(fresh.length > 0 && fresh.every(({ object }) => !object.metadata.annotations?.[ADMITTED]), "no new edge was admitted");
  await Promise.all([podVersions.stop(), cluster.stop()]);
});

/** Evicts one of these WebSocket pods: its former ReplicaSet creates another, which is admitted by its own proof. */
async function evictFormer(podVersions, serving) {
  const pod = (await edges(NAMESPACE)).find(({ metadata }) => serving.includes(metadata.name) && metadata.labels[COMPONENT] === "websocket");
  const { name: evicted, labels } = pod.metadata;
  const eviction = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name: evicted, namespace: NAMESPACE } };
  await kubectl(["create", "--raw", `/api/v1/namespaces/${NAMESPACE}/pods/${evicted}/eviction`, "-f", "-"], { input: JSON.stringify(eviction) });
  const successor = ({ metadata }) => metadata.labels?.["pod-template-hash"] === labels["pod-template-hash"] && !serving.includes(metadata.name) && metadata.labels[COMPONENT] === "websocket";
  const runs = (object) => object.status?.containerStatuses?.some(({ state }) => state?.running);
  const began = Date.now();
  await podVersions.until((object) => successor(object) && podIs(object, "Ready"), { timeout: 60_000 });
  const capacity = (Date.now() - began) / 1000;
  const at = (matches) => podVersions.versions.find(({ object }) => successor(object) && matches(object)).at;
  const admitted = (at(({ metadata }) => metadata.annotations?.[ADMITTED]) - at(runs)) / 1000;
  console.log(`# an evicted pod of the former template: annotation ${admitted.toFixed(1)} s after its container ran, Ready ${capacity.toFixed(1)} s after the eviction`);
  assert.ok(admitted <= 30, `annotation after ${admitted} s`);
  return { evicted, name: podVersions.versions.find(({ object }) => successor(object)).object.metadata.name };
}

/** A policy that changes what pods of one server run, behind everyone's back. */
function policy(name, component, mutation) {
  const kind = "MutatingAdmissionPolicy";
  return [
    {
      apiVersion: "admissionregistration.k8s.io/v1", kind, metadata: { name },
      spec: {
        matchConstraints: {
          resourceRules: [{ apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: ["pods"] }],
          objectSelector: { matchLabels: { [COMPONENT]: component } },
        },
        failurePolicy: "Fail", reinvocationPolicy: "Never",
        mutations: [mutation].flat(),
      },
    },
    { apiVersion: "admissionregistration.k8s.io/v1", kind: `${kind}Binding`, metadata: { name }, spec: { policyName: name } },
  ];
}

/** What a policy changes, by its name, so that its removal can be awaited. */
const policies = new Map();

/** The spec of a pod of this server as admission policies leave it, without creating it. */
async function admitTrial(namespace, component) {
  const pod = {
    apiVersion: "v1", kind: "Pod",
    metadata: { generateName: "trial-", namespace, labels: { [COMPONENT]: component } },
    spec: {
      securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
      containers: [
        { name: component, image: "localhost/pause:1", securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } } },
      ],
    },
  };
  return JSON.parse(await kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"], { input: JSON.stringify(pod) })).spec;
}

/** Applies a policy and waits until it acts: it does so a moment after it was made. */
async function injected(objects, namespace, component, acts) {
  policies.set(objects[0].metadata.name, { namespace, component, acts });
  for (const object of objects) await apply(object);
  await wait(async () => acts(await admitTrial(namespace, component)), { what: "the policy to act" });
}

/** Removes a policy and waits until it acts no more. */
async function remove(name) {
  await kubectl(["delete", `mutatingadmissionpolicybinding/${name}`, `mutatingadmissionpolicy/${name}`]);
  const { namespace, component, acts } = policies.get(name);
  await wait(async () => !acts(await admitTrial(namespace, component)), { what: "the policy to act no more" });
}

test("a rotated Secret is Unknown until every pod that the manifest asks for runs it", async () => {
  await ready(NAMESPACE);
  const other = await startRedis();
  const [cluster, podVersions, nodes] = await Promise.all([
    watchObject("realtimeclusters", NAMESPACE, "eu"), watchObject("pods", NAMESPACE), kubectl(["get", "nodes", "-o", "name"]),
  ]);
  const former = (await cluster.until(() => true)).status.gate.fingerprint;
  const templateOf = ({ metadata }) => metadata.annotations?.["realtime-operator.dev/template"];
  const old = new Set(podVersions.versions.map(({ object }) => templateOf(object)));
  const isNew = (pod) => templateOf(pod) !== undefined && !old.has(templateOf(pod)) && pod.metadata.labels?.[COMPONENT] !== "dispatcher";
  const setUrl = (url) => rotateSecret(NAMESPACE, "eu-redis", "url", url);
  const node = nodes.trim().split("\n")[0];
  await setUrl(other.url);
  try {
    // The rollout stands still: one pod of each server is new, and the next cannot start.
    await Promise.all(["websocket", "sockjs"].map((server) =>
      podVersions.until((pod) => isNew(pod) && pod.metadata.labels[COMPONENT] === server && pod.spec.nodeName, { timeout: 60_000 })));
    await kubectl(["cordon", node]);
    await cluster.until((object) => object.status.gate.fingerprint !== former && /of 2 pods run what the manifest asks for/.test(condition(object, "Ready").message), { timeout: 60_000 });
    await new Promise((resolve) => setTimeout(resolve, 10_000));
    assert.notEqual(is(cluster.last(), "Ready"), "True", condition(cluster.last(), "Ready").message);
  } finally {
    await kubectl(["uncordon", node]);
  }
  await ready(NAMESPACE);
  await cluster.until((object) => object.status.gate.fingerprint !== former && is(object, "Ready") === "True", { timeout: 30_000 });
  const since = cluster.versions.findIndex(({ object }) => object.status.gate.fingerprint !== former);
  const proven = cluster.versions.findIndex(({ object }, index) => index >= since && is(object, "Ready") === "True");
  for (const { object } of cluster.versions.slice(since, proven)) {
    assert.equal(is(object, "Ready"), "Unknown", condition(object, "Ready").message);
    assert.equal(object.status.gate.everPassed, false, "it was proven before it ran");
  }
  const at = cluster.versions[proven].at;
  const newest = new Map(podVersions.versions.filter((version) => version.at <= at).map((version) => [version.object.metadata.name, version]));
  const running = [...newest.values()].filter(({ type, object }) => type !== "DELETED" && !object.metadata.deletionTimestamp && isNew(object));
  for (const server of ["websocket", "sockjs"]) {
    assert.equal(running.filter(({ object }) => object.metadata.labels[COMPONENT] === server).length, 2, `${server} pods that run the new Secret`);
  }
  console.log(`# the Secret was rotated: ${proven - since} versions were Unknown, none True before all four pods ran it`);
  // A copy is in the status before it exists: one that only a failed reconcile knew would never be deleted.
  const version = ({ metadata }) => BigInt(metadata.resourceVersion);
  for (const copy of (await get("secrets", NAMESPACE)).items.filter(({ metadata }) => /^eu-copy-/.test(metadata.name))) {
    const recorded = cluster.versions.find(({ object }) => object.status.secretCopies?.includes(copy.metadata.name));
    assert.ok(recorded && (recorded === cluster.versions[0] || version(recorded.object) < version(copy)), copy.metadata.name);
  }
  assert.ok(!podVersions.versions.some(({ object, at }) => at > cluster.versions[since].at && object.metadata.labels?.[COMPONENT] === "dispatcher" && !old.has(templateOf(object))), "dispatchers do not read it");
  await setUrl(outside.redis.url);
  await wait(async () => (await get("realtimecluster", NAMESPACE, "eu")).status.gate.fingerprint !== cluster.versions[proven].object.status.gate.fingerprint, { what: "the Secret's former value" });
  await ready(NAMESPACE);
  await Promise.all([cluster.stop(), podVersions.stop(), other.stop()]);
});

test("twenty apps one by one and twenty changes a second never turn a Ready cluster", { timeout: 180_000 }, async () => {
  await ready(NAMESPACE);
  const cluster = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await cluster.until((object) => is(object, "Ready") === "True");
  const since = cluster.versions.length;
  const app = (number, connections) => ({
    apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeApp", metadata: { name: `added-${number}`, namespace: NAMESPACE },
    // One of them references a Secret that nobody created.
    spec: { appID: String(9000 + number), limits: { connections }, ...(number === 7 && { credentials: [{ secretRef: { name: "nowhere-to-be-found" } }] }) },
  });
  for (let number = 0; number < 20; number++) await apply(app(number, 100));
  const began = Date.now();
  let changes = 0;
  while (Date.now() - began < 20_000) {
    const turn = Date.now();
    await apply({ apiVersion: "v1", kind: "List", items: Array.from({ length: 20 }, (_, number) => app(number, 101 + changes)) });
    changes += 20;
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 - (Date.now() - turn))));
  }
  const rate = changes / ((Date.now() - began) / 1000);
  // The last change has reached every pod, and is not stale.
  await wait(async () => {
    const { items } = await get("realtimeapps", NAMESPACE);
    const states = items.filter(({ metadata }) => /^added-/.test(metadata.name)).map((one) => `${one.metadata.name} ${is(one, "Accepted")}`);
    const refused = states.filter((state) => !/True$/.test(state));
    return states.length === 20 && refused.join() === "added-7 False" && is(await get("realtimecluster", NAMESPACE, "eu"), "AppsSynced") === "True";
  }, { timeout: 30_000, what: "19 accepted apps and one without its Secret" });
  await new Promise((resolve) => setTimeout(resolve, 20_000));
  const seen = cluster.versions.slice(since).map(({ object }) => `${said(object)} ${condition(object, "Ready").message}`);
  console.log(`# ${rate.toFixed(0)} changes of apps a second for 20 s: ${seen.length} versions of the cluster`);
  assert.deepEqual(seen.filter((state) => !state.startsWith("True/")), []);
  const generated = async () => (await get("secrets", NAMESPACE)).items.filter(({ metadata }) => /^added-.*-credentials$/.test(metadata.name));
  const owners = (await generated()).flatMap(({ metadata }) => metadata.ownerReferences.map(({ kind, name }) => [kind, `${name}-credentials`, metadata.name]));
  assert.equal(owners.length, 19, "an app that references a Secret gets none");
  assert.ok(owners.every(([kind, expected, name]) => kind === "RealtimeApp" && expected === name), JSON.stringify(owners));
  await kubectl(["delete", "realtimeapps", "-n", NAMESPACE, ...Array.from({ length: 20 }, (_, number) => `added-${number}`)]);
  await wait(async () => (await generated()).length === 0, { what: "the end of the Secrets with their apps" });
  await cluster.stop();
});

test("a dispatcher that cannot deliver never holds more than one shard", async () => {
  const aliases = `[Object.spec.hostAliases{ip: "198.18.127.254", hostnames: ["realtime-operator-receiver.${OPERATOR_NAMESPACE}.svc"]}]`;
  const wrong = { patchType: "JSONPatch", jsonPatch: { expression: `[JSONPatch{op: "add", path: "/spec/hostAliases", value: ${aliases}}]` } };
  const leases = await watchObject("leases", NAMESPACE);
  const old = (await pods(NAMESPACE, { [COMPONENT]: "dispatcher" })).map(({ metadata }) => metadata.name).sort();
  try {
    await injected(policy("no-receiver", "dispatcher", wrong), NAMESPACE, "dispatcher", ({ hostAliases }) => hostAliases?.length === 1);
    await spec(NAMESPACE, { webhooks: { dispatcher: { maxBackoffSeconds: 20 } } });
    await wait(async () => said(await get("realtimecluster", NAMESPACE, "eu")) === "False/WebhookMissing", { timeout: 150_000, what: "WebhookMissing" });
    const now = await pods(NAMESPACE, { [COMPONENT]: "dispatcher" });
    const fresh = now.filter(({ metadata }) => !old.includes(metadata.name));
    assert.equal(fresh.length, 1, "the rollout stops at the first new pod");
    assert.ok(!fresh[0].metadata.annotations?.[ADMITTED]);
    assert.equal(now.filter((pod) => podIs(pod, "Ready")).length, 2, "the old ones go on");
    const log = await kubectl(["logs", "-n", NAMESPACE, fresh[0].metadata.name]);
    const { process } = startedFields(log.split("\n"));
    const held = new Map();
    let most = 0;
    for (const { object } of leases.versions) {
      if (object.metadata.name.includes("-member-")) continue;
      held.set(object.metadata.name, object.spec.holderIdentity);
      most = Math.max(most, [...held.values()].filter((holder) => holder === process).length);
    }
    assert.equal(most, 1, "shards that it held at once");
  } finally {
    await remove("no-receiver");
    await leases.stop();
  }
  await spec(NAMESPACE, { webhooks: { dispatcher: { maxBackoffSeconds: 30 } } });
  await wait(async () => {
    const { metadata, status } = await get("realtimecluster", NAMESPACE, "eu");
    return status.observedGeneration === metadata.generation;
  });
  await ready(NAMESPACE, "eu", 60);
});

test("webhooks switched off by an admission policy: never Ready in one version, with the variable named, and Ready once it is removed", () => inNamespace("incident", async (namespace) => {
  const expression = 'Object{spec: Object.spec{containers: [Object.spec.containers{name: "sockjs", env: [Object.spec.containers.env{name: "REALTIME_WEBHOOKS", value: "off"}]}]}}';
  const off = { patchType: "ApplyConfiguration", applyConfiguration: { expression } };
  await injected(policy("webhooks-off", "sockjs", off), namespace, "sockjs", ({ containers }) => containers[0].env?.[0].value === "off");
  const [cluster, podVersions] = await Promise.all([watchObject("realtimeclusters", namespace, "eu"), watchObject("pods", namespace)]);
  try {
    await apply(manifest(namespace));
    // The transports, the hop, the stream, who passes, and the variable: all in one line.
    const line = new RegExp(
      `^${FALLBACKS.map((name) => `sockjs/${name}`).join(", ")}: ` + "subscribed on eu-sockjs-[-a-z0-9]+, but no channel_occupied record reached stream " +
      "rtc-incident-eu-[0-9a-f]{6} in 10 s \\(websocket: Passing\\); REALTIME_WEBHOOKS differs: want kinesis, pod runs off$",
    );
    await cluster.until((object) => said(object) === "False/ConfigurationDrift" && line.test(condition(object, "Ready").message), {
      timeout: 60_000, what: "the reason and its line",
    });
    // Long enough for pods to be replaced, in vain.
    await new Promise((resolve) => setTimeout(resolve, 20_000));
    assert.ok(cluster.versions.every(({ object }) => is(object, "Ready") !== "True"), "never Ready");
    assert.ok(podVersions.versions.every(({ object }) => object.metadata.labels?.[COMPONENT] !== "sockjs" || !object.metadata.annotations?.[ADMITTED]), "no such pod was admitted");
    // kubelet hands an admission on within a minute.
    await wait(async () => (await pods(namespace, { [COMPONENT]: "websocket" })).every((pod) => podIs(pod, "Ready")), {
      what: "the others serving", timeout: 60_000,
    });
  } finally {
    await remove("webhooks-off");
  }
  const ended = Date.now();
  // Pods are replaced three times at most, and ever more slowly.
  await kubectl(["delete", "pods", "-n", namespace, "-l", `${COMPONENT}=sockjs`, "--wait=false"]);
  await ready(namespace, "eu", 60);
  console.log(`# policy removed to Ready: ${((Date.now() - ended) / 1000).toFixed(1)} s`);
  await Promise.all([cluster.stop(), podVersions.stop()]);
}));

test("known injectors are accepted and listed, and a pod with an unknown container is replaced, never admitted and named", { timeout: 240_000 }, () => inNamespace("injected", async (namespace) => {
  const secured = 'Object.spec.containers.securityContext{allowPrivilegeEscalation: false, capabilities: Object.spec.containers.securityContext.capabilities{drop: ["ALL"]}}';
  // Lists such as that of capabilities cannot be part of an apply configuration.
  const sidecar = (name) => ({
    patchType: "JSONPatch",
    jsonPatch: { expression: `[JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{name: "${name}", image: "localhost/pause:1", securityContext: ${secured}}}]` },
  });
  const variable = {
    patchType: "ApplyConfiguration",
    applyConfiguration: { expression: 'Object{spec: Object.spec{containers: [Object.spec.containers{name: "sockjs", env: [Object.spec.containers.env{name: "DD_ENV", value: "trial"}]}]}}' },
  };
  const names = ({ containers }) => containers.map(({ name }) => name);
  await injected(policy("known-injector", "sockjs", [variable, sidecar("linkerd-proxy")]), namespace, "sockjs", (made) => names(made).includes("linkerd-proxy"));
  try {
    await injected(policy("unknown-injector", "websocket", sidecar("stranger")), namespace, "websocket", (made) => names(made).includes("stranger"));
    const [cluster, podVersions] = await Promise.all([watchObject("realtimeclusters", namespace, "eu"), watchObject("pods", namespace)]);
    try {
      await apply(manifest(namespace));
      for (const count of [1, 2]) {
        const line = new RegExp(`^eu-websocket-[-a-z0-9]+ differs from its template: container stranger: want none, found one that no known injector adds; replaced ${count} of 3 times$`);
        await cluster.until((object) => said(object) === "False/ConfigurationDrift" && line.test(condition(object, "Ready").message), {
          timeout: 90_000, what: `the message after replacement ${count}`,
        });
      }
      const strange = ({ object }) => names(object.spec).includes("stranger");
      assert.ok(podVersions.versions.filter(strange).every(({ object }) => !object.metadata.annotations?.[ADMITTED]), "none was admitted");
      assert.equal((await get("realtimecluster", namespace, "eu")).status.gate.replacements[0].count, 2);
    } finally {
      await remove("unknown-injector");
    }
    await kubectl(["delete", "pods", "-n", namespace, "-l", `${COMPONENT}=websocket`, "--wait=false"]);
    await ready(namespace, "eu", 60);
    const { gate } = (await get("realtimecluster", namespace, "eu")).status;
    assert.deepEqual(gate.injectors.filter((name) => name !== "Kubernetes service account token"), ["Datadog", "Linkerd"]);
    assert.ok((await pods(namespace, { [COMPONENT]: "sockjs" })).every((pod) => names(pod.spec).includes("linkerd-proxy")));
    await Promise.all([cluster.stop(), podVersions.stop()]);
  } finally {
    await remove("known-injector");
  }
}));

test("images that a policy takes from an allowed registry are accepted and listed", () => inNamespace("mirrored", async (namespace) => {
  tagImage(`docker.io/${IMAGE}`, `${MIRROR}/${IMAGE}`);
  const rewritten = { patchType: "JSONPatch", jsonPatch: { expression: `[JSONPatch{op: "replace", path: "/spec/containers/0/image", value: "${MIRROR}/" + object.spec.containers[0].image}]` } };
  const isMirrored = ({ containers }) => containers[0].image.startsWith(`${MIRROR}/`);
  const servers = ["websocket", "sockjs", "dispatcher"];
  for (const server of servers) await injected(policy(`mirror-${server}`, server, rewritten), namespace, server, isMirrored);
  try {
    const cluster = await watchObject("realtimeclusters", namespace, "eu");
    await apply(manifest(namespace, { "replicas: 2": "replicas: 1" }));
    await ready(namespace, "eu", 180);
    const found = await pods(namespace, {});
    assert.deepEqual(found.map(({ metadata }) => metadata.labels[COMPONENT]).sort(), [...servers].sort());
    for (const { metadata, spec } of found) assert.ok(isMirrored(spec), `${metadata.name} runs ${spec.containers[0].image}`);
    const { gate } = (await get("realtimecluster", namespace, "eu")).status;
    assert.ok(gate.injectors.includes("image rewriting"), gate.injectors.join());
    assert.ok(cluster.versions.every(({ object }) => condition(object, "Ready")?.reason !== "ConfigurationDrift"), "no version names a difference");
    await cluster.stop();
  } finally {
    for (const server of servers) await remove(`mirror-${server}`);
  }
}));

test("a Service named realtime-… and a cluster named realtime do no harm", () => inNamespace("links", async (namespace) => {
  await apply({ apiVersion: "v1", kind: "Service", metadata: { name: "realtime-x", namespace }, spec: { ports: [{ port: 80 }] } });
  await apply(manifest(namespace, { "name: eu\n": "name: realtime\n", "replicas: 2": "replicas: 1" }));
  await ready(namespace, "realtime", 60);
}));

test("foreign objects are not changed, and missing or changed Secrets are reported and waited for", () => inNamespace("others", async (namespace) => {
  await outside.kinesis.call("CreateStream", { StreamName: "theirs", ShardCount: 1 });
  const theirs = {
    apiVersion: "apps/v1", kind: "Deployment", metadata: { name: "eu-sockjs", namespace },
    spec: { replicas: 0, selector: { matchLabels: { a: "b" } }, template: { metadata: { labels: { a: "b" } }, spec: { containers: [{ name: "c", image: "localhost/pause:1" }] } } },
  };
  await apply(theirs);
  const own = { apiVersion: "v1", kind: "Secret", metadata: { name: "shop-credentials", namespace }, stringData: { key: "of-a-person" } };
  await apply(own);
  const shop = async () => {
    const app = await get("realtimeapp", namespace, "shop");
    return `${said(app)} ${condition(app, "Accepted")?.reason} ${condition(app, "Ready")?.message}`;
  };
  const become = async (expected, options) => {
    const found = await wait(async () => {
      const object = await get("realtimecluster", namespace, "eu");
      return `${said(object)}${is(object, "Stalled") === "True" ? " stalled" : ""}` === expected && object;
    }, { timeout: 30_000, what: expected, ...options });
    assert.deepEqual(kstatus([found]), [expected.endsWith("stalled") ? "Failed" : "InProgress"], "tools give up only where a person must act");
    return condition(found, "Ready").message;
  };
  await apply(manifest(namespace, { "    stream:\n": "    stream:\n      name: theirs\n", "key: url\n": "key: address\n", "replicas: 2": "replicas: 1" }));
  assert.match(await become("False/StreamNotOurs stalled"), /stream theirs already exists and carries no tag of ours: it was not changed/);
  assert.deepEqual(await outside.kinesis.call("ListTagsForStream", { StreamName: "theirs" }).then(({ Tags }) => Tags), []);

  await spec(namespace, { webhooks: { mode: "Off", acknowledgeNoWebhooks: "eu" } });
  await become("False/SecretMissing");
  await wait(async () => is(await get("realtimecluster", namespace, "eu"), "StreamReady") === undefined, { what: "no finding on a stream that is not needed" });
  await spec(namespace, { webhooks: { mode: "Kinesis", acknowledgeNoWebhooks: null, stream: { name: "others-own" } } });
  assert.match(await become("False/SecretMissing"), /Secret others\/eu-redis has no key `address`: create it/);
  await wait(async () => /^Unknown\/SecretMissing SecretMissing the cluster is not rendered: Secret others\/eu-redis has no key `address`/.test(await shop()), { what: "the app to say why it is not served" });
  const address = (url) => rotateSecret(namespace, "eu-redis", "address", url);
  await address(outside.redis.url);
  const taken = await become("False/ChildNotOurs stalled");
  assert.match(taken, /Deployment others\/eu-sockjs already exists and is not ours .*: it was not changed. Rename or delete it/);
  assert.deepEqual((await get("deployment", namespace, "eu-sockjs")).spec.selector, { matchLabels: { a: "b" } });
  assert.equal((await get("deployments", namespace)).items.length, 1, "nothing else was made either");
  await kubectl(["delete", "deployment", "eu-sockjs", "-n", namespace]);
  await ready(namespace, "eu", 60);

  const bare = { apiVersion: "realtime-operator.dev/v1alpha1", kind: "RealtimeApp", metadata: { name: "bare", namespace }, spec: { appID: "1002" } };
  await apply(bare);
  await kubectl(["wait", "--for=condition=Ready", "realtimeapp/bare", "-n", namespace, "--timeout=60s"]);
  assert.match(await shop(), /^False\/CredentialsNotOurs CredentialsNotOurs RealtimeApp shop: spec\.credentials is empty, and Secret shop-credentials, .*\(it has no owner\): it was not changed\. Rename or delete it, or reference/);
  assert.deepEqual(Object.keys((await get("secret", namespace, "shop-credentials")).data), ["key"], "it was not changed");
  await kubectl(["delete", "secret", "shop-credentials", "-n", namespace]);
  await kubectl(["wait", "--for=condition=Ready", "realtimeapp/shop", "-n", namespace, "--timeout=60s"]);

  await address("redis://198.18.0.1:1");
  assert.match(await become("False/FanoutBroken", { timeout: 90_000 }), /bus between the servers does not answer/);
  await address(outside.redis.url);
  await ready(namespace, "eu", 60);

  // Another name would leave undelivered events in the stream that exists.
  await assert.rejects(spec(namespace, { webhooks: { stream: { name: "another" } } }), /webhooks\.stream\.name is immutable once the stream exists/);
  // The stream follows its manifest, and events arrive from every shard after each change.
  for (const shards of [3, 2]) {
    await spec(namespace, { webhooks: { stream: { shards } } });
    await wait(async () => {
      const { stream } = (await get("realtimecluster", namespace, "eu")).status;
      return stream.shards === shards && stream.pendingSteps === undefined;
    }, { timeout: 60_000, what: `${shards} shards and no pending change` });
    await ready(namespace, "eu", 60);
  }

  // The stream of dead letters is created beside the main stream, with its retention, and dispatchers write to it.
  const letters = async () => (await get("realtimecluster", namespace, "eu")).status;
  await spec(namespace, { webhooks: { deadLetter: { retentionHours: 48 } } });
  await wait(async () => condition({ status: await letters() }, "DeadLetterReady")?.status === "True", { what: "the dead-letter stream" });
  const { stream, deadLetterStream } = await letters();
  assert.equal(deadLetterStream.name, `${stream.name}-dead-letter`);
  assert.match(deadLetterStream.arn, /-dead-letter$/);
  await ready(namespace, "eu", 120);
  const variables = (await get("deployment", namespace, "eu-dispatcher")).spec.template.spec.containers[0].env;
  assert.equal(variables.find(({ name }) => name === "REALTIME_DEAD_LETTER_STREAM")?.value, deadLetterStream.name);
  await spec(namespace, { webhooks: { deadLetter: { retentionHours: 24 } } });
  await wait(async () => /^retentionHours is 24, .* write acknowledgeDataLoss: \[LowerRetention\], or retentionHours: 48$/.test((await letters()).deadLetterStream.pendingSteps?.join()), { what: "the retention that is not lowered" });
  await spec(namespace, { webhooks: { deadLetter: null } });
  await wait(async () => condition({ status: await letters() }, "DeadLetterReady") === undefined, { what: "no condition without a dead letter" });
  await ready(namespace, "eu", 120);

  const annotations = async () => (await get("serviceaccount", namespace, "eu-edge")).metadata.annotations ?? {};
  await kubectl(["annotate", "serviceaccount", "eu-edge", "-n", namespace, "eks.amazonaws.com/role-arn=arn:aws:iam::1:role/x", "team=a"]);
  await wait(async () => !("eks.amazonaws.com/role-arn" in (await annotations())), { what: "the removal of another identity's annotation" });
  assert.equal((await annotations()).team, "a", "other annotations stay");

  const webhook = (url) => kubectl(["patch", "realtimeapp", "shop", "-n", namespace, "--type=merge", "-p", JSON.stringify({ spec: { webhooks: [{ name: "orders", url }] } })]);
  await webhook("http://10.0.0.1/hook");
  await wait(async () => /^False\/EndpointNotAllowed EndpointNotAllowed .*gets no webhook from cluster eu: 10\.0\.0\.1 is not a public address/.test(await shop()), { what: "the endpoint that is not allowed" });
  await webhook(outside.receiver.url);
  await wait(async () => /^True\/AppAccepted AppAccepted/.test(await shop()), { timeout: 60_000, what: "the app to be loaded" });
  const endpoints = async () => (await get("realtimeapp", namespace, "shop")).status.endpoints;
  await wait(async () => (await endpoints())?.length === 1, { timeout: 60_000, what: "the endpoint in the status" });
  assert.deepEqual((({ name, cluster }) => ({ name, cluster }))((await endpoints())[0]), { name: "orders", cluster: "eu" });
  await kubectl(["patch", "realtimeapp", "shop", "-n", namespace, "--type=merge", "-p", JSON.stringify({ spec: { webhooks: [{ name: "orders", url: outside.receiver.url, state: "Disabled" }] } })]);
  await wait(async () => (await endpoints())[0].state === "Disabled", { timeout: 60_000, what: "the disabled endpoint" });
  await kubectl(["delete", "realtimecluster", "eu", "-n", namespace, "--timeout=60s"]);
  await wait(async () => /^False\/NoCluster NoCluster/.test(await shop()), { timeout: 30_000, what: "the app without a cluster" });
}));

test("an operator killed during an install creates every object once", () => inNamespace("killed", async (namespace) => {
  const deployments = await watchObject("deployments", namespace);
  const created = (await outside.kinesis.calls()).CreateStream ?? 0;
  await apply(manifest(namespace, { "replicas: 2": "replicas: 1" }));
  await deployments.until(() => true, { timeout: 30_000 });
  for (const { metadata } of await operators()) {
    await kubectl(["delete", "pod", metadata.name, "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force"]);
  }
  await ready(namespace, "eu", 90);
  await deployments.stop();
  assert.equal((await outside.kinesis.calls()).CreateStream, created + 1);
  const made = audit(({ user, objectRef, responseStatus, verb }) =>
    user.username === OPERATOR_ACCOUNT && objectRef?.namespace === namespace && responseStatus?.code === 201 && verb !== "delete" && objectRef.resource !== "events");
  const names = made.map(({ objectRef }) => `${objectRef.resource}/${objectRef.name}`);
  assert.ok(names.includes("deployments/eu-websocket") && names.includes("services/eu-sockjs"), names.join(" "));
  assert.deepEqual(names.filter((name, index) => names.indexOf(name) !== index), [], "each child was made once");
  for (const { object } of deployments.versions) assert.equal(object.metadata.generation, 1, object.metadata.name);
}));

test("the stream unavailable while every edge is evicted: a proven configuration keeps serving, and is not Ready", async () => {
  // A cluster on its way out has to reach its stream.
  await namespacesDeleted();
  await ready(NAMESPACE);
  const before = (await edges(NAMESPACE)).filter((pod) => podIs(pod, "Ready"));
  assert.equal(before.length, 4);
  const podVersions = await watchObject("pods", NAMESPACE);
  const cluster = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const capacity = async () => {
    const serving = (await edges(NAMESPACE)).filter((pod) => podIs(pod, "Ready"));
    return ["websocket", "sockjs"].map((name) => serving.filter(({ metadata }) => metadata.labels[COMPONENT] === name).length);
  };
  await outside.kinesis.away();
  const began = Date.now();
  try {
    await cluster.until((object) => is(object, "Ready") === "False", { timeout: 60_000 });
    const evict = (name) =>
      kubectl(["create", "--raw", `/api/v1/namespaces/${NAMESPACE}/pods/${name}/eviction`, "-f", "-"], {
        input: JSON.stringify({ apiVersion: "policy/v1", kind: "Eviction", metadata: { name, namespace: NAMESPACE } }),
      });
    let least = Infinity;
    // A pod learns of its admission from kubelet, which now and then misses a change of annotations and writes the
    // file with its next look at the pod only, a minute to a minute and a half later.
    const patience = { timeout: 180_000, every: 500 };
    // As a drain does: what may not go yet is asked again. Each server has a budget of its own.
    await Promise.all(["websocket", "sockjs"].map(async (server) => {
      for (const { metadata } of before.filter((pod) => pod.metadata.labels[COMPONENT] === server)) {
        await wait(async () => {
          least = Math.min(least, ...(await capacity()));
          return evict(metadata.name).then(() => true, () => false);
        }, { ...patience, what: `the eviction of ${metadata.name}` });
      }
    }));
    await wait(async () => {
      const now = await capacity();
      least = Math.min(least, ...now);
      return now.every((count) => count === 2) && (await edges(NAMESPACE)).every(({ metadata }) => !before.some((old) => old.metadata.name === metadata.name));
    }, { ...patience, what: "four new pods that serve" });
    assert.ok(least >= 1, `${least} pods served`);
    // An unproven configuration gets no pod in.
    await spec(NAMESPACE, { websocket: { env: [{ name: "ANOTHER", value: "1" }] } });
    await new Promise((resolve) => setTimeout(resolve, Math.max(25_000, AWAY * 1000 - (Date.now() - began))));
    const another = ({ object }) => object.spec.containers[0].env?.some(({ name }) => name === "ANOTHER");
    const unproven = podVersions.versions.filter(another);
    assert.ok(unproven.length > 0 && unproven.every(({ object }) => !object.metadata.annotations?.[ADMITTED]));
    const since = cluster.versions.findIndex(({ object }) => is(object, "Ready") === "False");
    assert.ok(cluster.versions.slice(since).every(({ object }) => is(object, "Ready") !== "True"), "not Ready throughout");
    console.log(`# the stream was away for ${((Date.now() - began) / 1000).toFixed(0)} s; at least ${least} of 2 pods of each server served`);
  } finally {
    await outside.kinesis.back();
  }
  await spec(NAMESPACE, { websocket: { env: null } });
  await wait(async () => {
    const { metadata, status } = await get("realtimecluster", NAMESPACE, "eu");
    return status.observedGeneration === metadata.generation;
  });
  await ready(NAMESPACE, "eu", 90);
  await Promise.all([podVersions.stop(), cluster.stop()]);
});

test("without an operator pods keep serving, and the cluster is Ready soon after its return", async () => {
  await kubectl(["scale", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--replicas=0"]);
  await wait(async () => (await pods(OPERATOR_NAMESPACE, {})).length === 0, { what: "no operator" });
  const { items } = await get("pods", NAMESPACE);
  const edge = items.find(({ metadata }) => metadata.labels?.[COMPONENT] === "websocket");
  // A container that starts again with an admitted configuration needs no operator.
  await kubectl(["delete", "pod", edge.metadata.name, "-n", NAMESPACE, "--wait=false"]);
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  const serving = (await edges(NAMESPACE)).filter((pod) => podIs(pod, "Ready"));
  assert.equal(serving.length, 3, "all but the one that was not admitted");
  // As an earlier version stored the pair of an app: in the Secret of the cluster.
  const pair = await credentials(NAMESPACE);
  const stringData = { "app-1001-key": pair[0], "app-1001-secret": pair[1] };
  await kubectl(["patch", "secret", "eu-generated", "-n", NAMESPACE, "--type=merge", "-p", JSON.stringify({ stringData })]);
  await kubectl(["delete", "secret", "shop-credentials", "-n", NAMESPACE]);
  await kubectl(["scale", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--replicas=2"]);
  await wait(async () => (await edges(NAMESPACE)).filter((pod) => podIs(pod, "Ready")).length === 4, { timeout: 60_000, what: "four edges" });
  await ready(NAMESPACE, "eu", 60);
  const ofApps = async () => Object.keys((await get("secret", NAMESPACE, "eu-generated")).data).filter((name) => name.startsWith("app-"));
  await wait(async () => (await ofApps()).length === 0, { what: "the pair to be moved" });
  assert.deepEqual(await credentials(NAMESPACE), pair, "it was moved, not made again");
  assert.ok((await get("secret", NAMESPACE, "eu-generated")).data["admin-token"], "the values of the cluster stay");
});

test("a leader that was stopped and resumes writes nothing, and the next one inherits the proof", async () => {
  const cluster = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const [leader] = await operators();
  const name = leader.metadata.name;
  const pid = await processOf(leader, "operator");
  const stopped = Date.now();
  process.kill(pid, "SIGSTOP");
  await wait(async () => {
    const other = await leaderName();
    return other && other !== name;
  }, { timeout: 60_000, what: "another leader" });
  await new Promise((resolve) => setTimeout(resolve, 60_000 - (Date.now() - stopped)));
  const resumed = Date.now();
  process.kill(pid, "SIGCONT");
  await wait(async () => {
    const found = await get("pod", OPERATOR_NAMESPACE, name);
    return found.status.containerStatuses[0].restartCount > 0;
  }, { timeout: 60_000, what: "its end" });
  await new Promise((resolve) => setTimeout(resolve, 5_000));
  const wrote = audit(({ user, verb, stageTimestamp, objectRef }) =>
    user.username === OPERATOR_ACCOUNT && user.extra?.["authentication.kubernetes.io/pod-name"]?.includes(name) &&
    Date.parse(stageTimestamp) > resumed && ["create", "update", "patch", "delete"].includes(verb) && objectRef.resource !== "leases");
  assert.deepEqual(wrote.map(({ verb, objectRef }) => `${verb} ${objectRef.resource}/${objectRef.name}`), []);
  await ready(NAMESPACE, "eu", 60);
  const unproven = cluster.versions.map(({ object }) => object).filter((object) => is(object, "Ready") !== "True");
  assert.deepEqual(unproven.map((object) => `${said(object)} ${condition(object, "Ready").message}`), [], "Ready in every version");
  await cluster.stop();
});

test("a cluster that is deleted and applied again adopts its stream, and repeats nothing", () => inNamespace("again", async (namespace) => {
  const own = await startReceiver();
  const text = manifest(namespace, { "    stream:\n": "    stream:\n      name: kept\n", "replicas: 2": "replicas: 1", [outside.receiver.url]: own.url });
  await apply(text);
  await ready(namespace);
  const events = async (count) => {
    const [key, secret] = await credentials(namespace);
    const { host, port } = await service(namespace, "eu-websocket");
    const server = new Pusher({ appId: "1001", key, secret, host, port: String(port), useTLS: false });
    const client = new PusherClient(key, {
      cluster: "", wsHost: host, wsPort: port, forceTLS: false, enableStats: false, enabledTransports: ["ws"],
      channelAuthorization: { customHandler: ({ socketId, channelName }, callback) => callback(null, server.authorizeChannel(socketId, channelName)) },
    });
    const channel = client.subscribe("private-room");
    await new Promise((resolve) => channel.bind("pusher:subscription_succeeded", resolve));
    for (let n = 0; n < count; n += 1) {
      channel.trigger("client-n", { n });
      await new Promise((resolve) => setTimeout(resolve, 110));
    }
    client.disconnect();
  };
  await events(20);
  await wait(() => own.events().filter(({ name }) => name === "channel_vacated").length === 1, { what: "the last webhook" });
  const before = own.events().map(({ id }) => id);
  assert.ok(before.length >= 22);
  const cluster = await watchObject("realtimeclusters", namespace, "eu");
  await kubectl(["delete", "realtimecluster", "eu", "-n", namespace, "--timeout=90s"]);
  assert.ok(cluster.versions.some(({ object }) => said(object) === "False/Deleting"), "it says that it goes");
  assert.deepEqual((await pods(namespace, {})).map(({ metadata }) => metadata.name), [], "it stays until its pods have ended");
  await cluster.stop();
  const made = (await outside.kinesis.calls()).CreateStream;
  await apply(text);
  await ready(namespace);
  assert.equal((await outside.kinesis.calls()).CreateStream, made, "the stream was not made again");
  await events(3);
  await wait(() => own.events().filter(({ name }) => name === "channel_vacated").length === 2, { what: "the last webhook after it" });
  const repeated = own.events().slice(before.length).filter(({ id }) => before.includes(id));
  assert.deepEqual(repeated, [], "nothing was in flight, so nothing comes twice");
}));
