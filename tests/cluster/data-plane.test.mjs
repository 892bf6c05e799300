// What everything else of this tier stands on: the kinds at a real API server, the image on a real node, and what
// surrounds the nodes. No operator runs.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { connect } from "node:net";
import { before, test } from "node:test";

import {
  apply, applyCrds, audit, deleteNamespace, diagnosed, DIR, file, get, HOST, IMAGE, kubectl, logs, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, realtime, refused, service,
  startKinesis, startRedis, tearDown, wait, watchObject,
} from "./harness.mjs";

const NAMESPACE = "channels";

const cluster = (spec = {}) => ({
  apiVersion: "realtime-operator.dev/v1alpha1",
  kind: "RealtimeCluster",
  metadata: { name: "eu", namespace: NAMESPACE },
  spec: {
    aws: { region: "eu-west-1", identity: { type: "PodIdentity" } },
    bus: { type: "Redis", redis: { urlSecretRef: { name: "eu-redis", key: "url" } } },
    ...spec,
  },
});

/** A pod that may do nothing, on a root that it cannot write. */
const pod = (name, container, volumes = []) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: NAMESPACE, labels: { name } },
  spec: {
    restartPolicy: "Never",
    volumes,
    automountServiceAccountToken: false,
    enableServiceLinks: false,
    securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
    containers: [
      {
        name: "realtime",
        image: IMAGE,
        imagePullPolicy: "Never",
        securityContext: { readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } },
        ...container,
      },
    ],
  },
});

/** How a pod's only container ended. */
async function ended(name) {
  return wait(
    async () => (await get("pod", NAMESPACE, name)).status.containerStatuses?.[0].state.terminated,
    { what: `the end of pod ${name}` },
  );
}

before(() =>
  diagnosed(async () => {
    await applyCrds();
    // The admission of the strictest level: what is taken here is taken everywhere.
    await apply({
      apiVersion: "v1",
      kind: "Namespace",
      metadata: { name: NAMESPACE, labels: { "pod-security.kubernetes.io/enforce": "restricted" } },
    });
    // Made by a controller a moment after its namespace.
    await wait(() => get("serviceaccount", NAMESPACE, "default"), { what: "the default ServiceAccount" });
  }));

tearDown(() => deleteNamespace(NAMESPACE));

test("a namespace that is not deleted in time is named with its finalizers", async () => {
  const name = "stays";
  await kubectl(["create", "namespace", name]);
  await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "held", namespace: name, finalizers: ["example.com/held"] } });
  try {
    await assert.rejects(deleteNamespace(name, 5), /namespace stays is not deleted after 5 s[^]*ConfigMap\/held has the finalizers example\.com\/held/);
  } finally {
    await kubectl(["patch", "configmap", "held", "-n", name, "--type=merge", "-p", JSON.stringify({ metadata: { finalizers: null } })]);
  }
  await deleteNamespace(name);
});

test("the smallest manifest is accepted, and its status is unobserved", async () => {
  await apply(cluster());
  const { spec, status } = await get("realtimecluster", NAMESPACE, "eu");
  assert.equal(status.observedGeneration, -1);
  assert.equal(spec.webhooks.mode, "Kinesis", "webhooks are on unless someone writes otherwise");
  await kubectl(["delete", "realtimecluster", "eu", "-n", NAMESPACE]);
});

test("the example of the README is accepted without a warning", async () => {
  const said = await kubectl(["apply", "--validate=strict", "-f", "-"], { input: file("examples/eu.yaml") });
  assert.match(said, /realtimecluster.*\/eu created\nrealtimeapp.*\/shop created/);
  assert.equal((await get("realtimeapp", NAMESPACE, "shop")).status.observedGeneration, -1);
});

test("the operator's manifests are accepted, and let it grant Leases to dispatchers and no right that it lacks", async () => {
  await kubectl(["apply", "--validate=strict", "-f", "-"], { input: file("examples/operator.yaml", { "replicas: 2": "replicas: 0" }) });
  const role = (...what) =>
    kubectl(["create", "role", "given", ...what, "-n", NAMESPACE, "--dry-run=server", `--as=${OPERATOR_ACCOUNT}`]);
  const leases = (verbs) => role(`--verb=${verbs}`, "--resource=leases.coordination.k8s.io");
  await wait(() => leases("get,list,create,update,delete"), { what: "a Role with the verbs of a dispatcher" });
  const lacking = /attempting to grant RBAC permissions not currently held/;
  await assert.rejects(leases("patch"), lacking);
  await assert.rejects(role("--verb=list", "--resource=configmaps"), lacking);
  await deleteNamespace(OPERATOR_NAMESPACE);
});

const REFUSALS = [
  ...JSON.parse(file("tests/fixtures/refused.json")),
  { what: "a field that does not exist", kind: "RealtimeCluster", name: "other", spec: { webhook: { mode: "Kinesis" } }, message: 'unknown field "spec.webhook"' },
];

for (const { what, kind, name, spec, message, apiServer } of REFUSALS) {
  test(`refused: ${what}`, async () => {
    const base = kind === "RealtimeCluster" ? cluster(spec) : { ...cluster(), kind, spec };
    const said = await refused({ ...base, metadata: { name, namespace: NAMESPACE } });
    assert.ok(said.includes(apiServer ?? message), said);
  });
}

test("accepted: every URL that some cluster can allow", async () => {
  const urls = ["https://a.test", "https://a.test:8443/x?y=https://b@c#d", "http://10.0.0.1/", "https://[2606:4700::1111]:443/", "https://müller.test/ä", "https://a_b.test/x@y"];
  const webhooks = urls.map((url, index) => ({ name: `hook-${index}`, url }));
  await apply({ ...cluster(), kind: "RealtimeApp", metadata: { name: "urls", namespace: NAMESPACE }, spec: { appID: "2", webhooks } });
  await kubectl(["delete", "realtimeapp", "urls", "-n", NAMESPACE]);
});

test("accepted: every child of clusters at the limits of the schema", async () => {
  const longest = (letter, length) => letter.repeat(length);
  const env = Array.from({ length: 100 }, (_, index) => ({ name: `${longest("A", 190)}.-_${index}`, value: "\u{1f600}\n'\"" }));
  const drain = { holdSeconds: 3600, windowSeconds: 3600 };
  const server = { replicas: 1000, drain, env };
  const role = { roleARN: `arn:${longest("r", 2044)}` };
  const identities = [{ type: "IRSA", edge: role, dispatcher: role }, { type: "WebIdentity", edge: role, dispatcher: role }, { type: "StaticKeys", secretRef: { name: longest("s", 253) } }];
  for (const [identity, servers] of identities.flatMap((identity) => [[identity, "Separate"], [identity, "Combined"]])) {
    const extreme = {
      ...cluster({
        aws: { region: "eu-west-1", identity },
        image: { repository: "registry.example.com:5000/a/b", tag: longest("t", 128) },
        bus: { type: "Redis", redis: { urlSecretRef: { name: longest("r", 253), key: longest("k", 253) }, caSecretRef: { name: "c", key: "ca.crt" } } },
        servers, websocket: server, sockjs: server,
        webhooks: { dispatcher: { replicas: 100, env }, stream: { name: longest("s", 128), mode: "Provisioned", shards: 10000 } },
      }),
      metadata: { name: longest("e", 40), namespace: NAMESPACE },
    };
    await kubectl(["apply", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(extreme) });
    const app = { ...cluster(), kind: "RealtimeApp", metadata: { name: "shop", namespace: NAMESPACE }, spec: { appID: longest("9", 20) } };
    const path = `${DIR}/extreme.yaml`;
    writeFileSync(path, [extreme, app].map((object) => JSON.stringify(object)).join("\n---\n"));
    const rendered = await realtime("render", path);
    assert.equal(rendered.code, 0, rendered.stderr);
    const children = await kubectl(["apply", "--dry-run=server", "--validate=strict", "-f", "-"], { input: rendered.stdout });
    assert.match(children, /deployment.apps\/e{40}-/);
  }
});

test("refused: an Off without quotes, which is a boolean in YAML", async () => {
  const manifest = file("examples/eu.yaml", { "name: eu\n": "name: other\n", "  websocket:": "  webhooks: { mode: Off }\n  websocket:" });
  assert.match(await refused(manifest), /spec\.webhooks\.mode.*must be of type string/);
});

/** Every object that this one becomes when one of its fields, at any depth, is misspelt: `[path, object]`. */
function misspelt(object, path = "spec") {
  if (object === null || typeof object !== "object" || Array.isArray(object)) return [];
  return Object.keys(object).flatMap((name) => {
    const { [name]: value, ...others } = object;
    const deeper = misspelt(value, `${path}.${name}`).map(([at, changed]) => [at, { ...others, [name]: changed }]);
    return [[`${path}.${name}`, { ...others, [`${name}x`]: value }], ...deeper];
  });
}

test("a misspelt field that a client allows to be pruned switches no webhooks off", async () => {
  const written = {
    ...cluster().spec,
    websocket: { replicas: 3 }, sockjs: { state: "Enabled", replicas: 3 }, gate: { intervalSeconds: 15 },
    webhooks: {
      mode: "Kinesis", dispatcher: { replicas: 2, maxBackoffSeconds: 30 },
      stream: { name: "s", mode: "Provisioned", shards: 2 },
    },
  };
  const off = { ...cluster().spec, webhooks: { mode: "Off", acknowledgeNoWebhooks: "eu" } };
  const create = (spec) =>
    kubectl(["create", "--dry-run=server", "--validate=ignore", "-o", "json", "-f", "-"], { input: JSON.stringify({ ...cluster(), spec, metadata: { name: "eu", namespace: "default" } }) });
  assert.equal(JSON.parse(await create(off)).spec.webhooks.mode, "Off", "as it is written, they are off");
  const tried = [...misspelt(written), ...misspelt(off)];
  const taken = [];
  await Promise.all(tried.map(async ([path, spec]) => {
    // One that is refused is as loud as one could wish.
    const answer = await create(spec).catch((error) => {
      assert.match(error.message, /is invalid|Required value|Invalid value/, path);
    });
    if (answer) taken.push([path, JSON.parse(answer).spec.webhooks.mode]);
  }));
  assert.ok(tried.length >= 25 && taken.length >= 12, `${taken.length} of ${tried.length} were taken`);
  // What has nothing to do with webhooks leaves an Off that is written in full as it is.
  const offs = taken.filter(([, mode]) => mode !== "Kinesis").map(([path]) => path);
  assert.deepEqual(offs.filter((path) => path.startsWith("spec.webhooks")), []);
  assert.ok(taken.filter(([, mode]) => mode === "Kinesis").length >= 10);
});

test("refused: another region for an existing cluster", async () => {
  const said = await refused(cluster({ aws: { region: "us-east-1", identity: { type: "PodIdentity" } } }));
  assert.match(said, /region is immutable: create another cluster and move to it/);
});

test("the image runs without rights, without a shell and on a root that cannot be written", async () => {
  await apply(pod("version", { args: ["--version"] }));
  await apply(pod("shell", { command: ["/bin/sh", "-c", "true"] }));
  assert.equal((await ended("version")).exitCode, 0);
  assert.match(await logs(NAMESPACE, "version"), /^realtime \d+\.\d+\.\d+\n$/);
  assert.match((await ended("shell")).message, /no such file or directory/);
});

test("a server that refuses its environment writes the reason to its termination message", async () => {
  await apply(pod("edge", { args: ["edge"] }));
  const { exitCode, message } = await ended("edge");
  assert.equal(exitCode, 78);
  assert.match(message, /^REALTIME_SERVER is missing: set it/);
});

test("the Kinesis double switches its faults, and a pod reaches it", async () => {
  const kinesis = await startKinesis();
  await kinesis.call("CreateStream", { StreamName: "s", ShardCount: 2 });
  await kinesis.deny("ListStreams");
  await assert.rejects(kinesis.call("ListStreams"), /AccessDeniedException/);
  await kinesis.allow();
  assert.deepEqual((await kinesis.call("ListStreams")).StreamNames, ["s"]);
  assert.deepEqual(await kinesis.calls(), { CreateStream: 1, ListStreams: 2 });

  // An edge looks at its stream before it serves.
  const env = {
    REALTIME_CLUSTER: `${NAMESPACE}/eu`, REALTIME_CLUSTER_UID: "0", REALTIME_SERVER: "websocket", REALTIME_POD: "reach",
    REALTIME_ADMIN_TOKEN: "t", REALTIME_APPS_PATH: "/apps", REALTIME_TRANSPORTS: "websocket", REALTIME_WEBHOOKS: "kinesis",
    REALTIME_STREAM_NAME: "s", REALTIME_BUS: "memory", REALTIME_AWS_IDENTITY: "StaticKeys", AWS_REGION: "eu-west-1",
    AWS_ENDPOINT_URL_KINESIS: kinesis.url, AWS_ACCESS_KEY_ID: "test", AWS_SECRET_ACCESS_KEY: "test",
    AWS_EC2_METADATA_DISABLED: "true",
  };
  await apply(
    pod("reach", {
      args: ["edge"],
      env: Object.entries(env).map(([name, value]) => ({ name, value })),
      volumeMounts: [{ name: "apps", mountPath: "/apps" }],
    }, [{ name: "apps", emptyDir: {} }]),
  );
  await wait(async () => Object.keys(await kinesis.calls()).length > 2, { what: "a call of the pod's" });
  await kinesis.stop();
});

test("a pod's Service answers from the host, and Redis hangs and resumes", async () => {
  const redis = await startRedis();
  const ping = () => new Promise((resolve, reject) => {
    const socket = connect(redis.port, HOST, () => socket.write("PING\r\n"));
    socket.setTimeout(500, () => socket.destroy(new Error("no answer")));
    socket.once("data", (data) => resolve(socket.end() && String(data)));
    socket.once("error", reject);
  });
  assert.equal(await ping(), "+PONG\r\n");
  redis.pause();
  await assert.rejects(ping(), /no answer/);
  redis.resume();
  assert.equal(await ping(), "+PONG\r\n");
  await redis.stop();

  await apply({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: "reach", namespace: NAMESPACE },
    spec: { selector: { name: "reach" }, publishNotReadyAddresses: true, ports: [{ name: "admin", port: 9090 }] },
  });
  const { host, port } = await service(NAMESPACE, "reach", "admin");
  const alive = () => fetch(`http://${host}:${port}/livez`, { signal: AbortSignal.timeout(2000) });
  assert.equal((await wait(alive, { what: "the pod behind its Service" })).status, 200);
});

test("a watch sees every version, and the audit log names its writer", async () => {
  const watch = await watchObject("configmaps", NAMESPACE, "counted");
  const counted = (data) => ({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "counted", namespace: NAMESPACE }, data });
  for (const n of ["1", "2", "3"]) await apply(counted({ n }));
  await kubectl(["delete", "configmap", "counted", "-n", NAMESPACE]);
  await watch.until(({ data }) => data.n === "3");
  await wait(() => watch.versions.some(({ type }) => type === "DELETED"));
  await watch.stop();
  assert.deepEqual(watch.versions.map(({ type, object }) => `${type} ${object.data.n}`), [
    "ADDED 1", "MODIFIED 2", "MODIFIED 3", "DELETED 3",
  ]);
  const writes = audit(({ objectRef, user }) => objectRef?.name === "counted" && user.username === "admin");
  assert.deepEqual(writes.map(({ verb }) => verb), ["create", "patch", "patch", "delete"]);
});
