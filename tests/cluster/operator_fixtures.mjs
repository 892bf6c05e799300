// An operator on the cluster and the outside that its clusters need, for the tests of one file.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { before } from "node:test";

import {
  addOperatorFiles, apply, applyCrds, condition, deleteNamespace, diagnosed, file, get, kubectl, NETWORKS, OPERATOR_NAMESPACE, pods, replaceOnce, startKinesis, startReceiver, startRedis,
  tearDown, wait,
} from "./harness.mjs";

/** The transports of a cluster, in the order of its status. */
export const TRANSPORTS = ["websocket", "xhr_streaming", "xhr_polling", "sockjs_websocket", "sockjs_xhr_streaming", "sockjs_xhr", "sockjs_eventsource"];

export const COMPONENT = "app.kubernetes.io/component";

/** What every cluster of the file uses: `redis`, `kinesis` and `receiver`, once its first test runs. */
export const outside = {};

before(() =>
  diagnosed(async () => {
    [outside.redis, outside.kinesis, outside.receiver] = await Promise.all([startRedis(), startKinesis(), startReceiver()]);
    await installOperator();
  }));

/** Installs the CRDs and the operator; `before` has done so on the first cluster. */
export async function installOperator() {
  await applyCrds();
  await apply(operatorManifest());
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=60s"]);
}

/** A registry from which a policy may take images. */
export const MIRROR = "mirror.test";

/** The operator's manifest, with a probe that never restarts the leader that a test stops, one more known injector and
 * a known registry, and a policy that allows this machine's Kinesis. */
function operatorManifest() {
  const injectors = `${file("src/desired/known_injectors.yaml", { "imageRegistries: []": `imageRegistries: [${MIRROR}]` })}  - name: trial\n    hostNames: ["realtime-operator-receiver.*"]\n`;
  const policy = JSON.stringify({ rules: [{ namespaces: ["*"], endpoints: [outside.kinesis.url] }] });
  const text = replaceOnce(file("examples/operator.yaml"), /( +)livenessProbe:\n/, "$1livenessProbe:\n$1  failureThreshold: 100\n");
  return addOperatorFiles(text, { "known-injectors": injectors, "platform-policy": policy });
}

/** Deletes the clusters, and then the operator: one that is gone first could not say that the clusters' pods have ended. */
export async function removeOperator() {
  // A cluster waits for its move.
  await kubectl(["delete", "realtimemigrations", "-A", "--all", "--timeout=60s"]);
  await kubectl(["delete", "realtimeclusters", "-A", "--all", "--timeout=100s"]);
  await deleteNamespace(OPERATOR_NAMESPACE);
}

tearDown(removeOperator);

/** The manifests of a cluster; `replace` changes texts in them. */
export function manifest(namespace, replace = {}) {
  return Object.entries(replace).reduce(
    (text, [from, to]) => {
      assert.ok(text.includes(from), `the manifest holds ${from}`);
      return text.replaceAll(from, to);
    },
    file("tests/cluster/manifests/cluster.yaml", {
      NAMESPACE: namespace, NETWORKS, REDIS_URL: outside.redis.url, KINESIS_URL: outside.kinesis.url, RECEIVER_URL: outside.receiver.url,
    }),
  );
}

/** Applies a cluster and waits until it is Ready. */
export async function ready(namespace, name = "eu", seconds = 90) {
  await kubectl(["wait", "--for=condition=Ready", `realtimecluster/${name}`, "-n", namespace, `--timeout=${seconds}s`]);
}

export const is = (object, type) => condition(object, type)?.status;
export const said = (object) => `${is(object, "Ready")}/${condition(object, "Ready")?.reason}`;
export const podIs = (pod, type) => pod.status?.conditions?.some((one) => one.type === type && one.status === "True");
export const edges = async (namespace) => (await pods(namespace, {})).filter(({ metadata }) => ["websocket", "sockjs"].includes(metadata.labels?.[COMPONENT]));
export const spec = (namespace, patch, name = "eu") =>
  kubectl(["patch", "realtimecluster", name, "-n", namespace, "--type=merge", "-p", JSON.stringify({ spec: patch })]);

/** Characters of an Event's note, as the operator cuts it. */
const NOTE_LENGTH_MAX = 1_000;

/** Waits for the Event that says of a cluster the sentence of its Ready. */
export function eventSays(namespace, cluster) {
  const { status, reason, message } = condition(cluster, "Ready");
  const [type, note] = [status === "False" ? "Warning" : "Normal", `Ready is ${status}: ${message}`.slice(0, NOTE_LENGTH_MAX)];
  const says = (event) => event.regarding.name === cluster.metadata.name && event.type === type && event.reason === reason && event.note === note;
  return wait(async () => (await get("events.events.k8s.io", namespace)).items.some(says), { what: `an Event ${type} ${reason}: ${note}` });
}

/** Changes a key of a cluster's Secret, and has the operator read it at once: on its own it reads a Secret once a minute. */
export async function rotateSecret(namespace, secret, key, value, name = "eu") {
  await kubectl(["patch", "secret", secret, "-n", namespace, "--type=merge", "-p", JSON.stringify({ stringData: { [key]: value } })]);
  await kubectl(["annotate", "realtimecluster", name, "-n", namespace, "--overwrite", `realtime-operator.dev/rotated-at=${new Date().toISOString()}`]);
}

/** The generated pair of an app: its key and its secret. */
export async function credentials(namespace, app = "shop") {
  const { data } = await get("secret", namespace, `${app}-credentials`);
  return ["key", "secret"].map((name) => Buffer.from(data[name], "base64").toString());
}

/** What kstatus, by whose rules Flux and Helm wait, makes of each object: `InProgress`, `Current`, `Failed`, `Terminating`. */
export function kstatus(objects) {
  const input = objects.map((object) => JSON.stringify(object)).join("\n");
  return execFileSync(process.env.KSTATUS, { input, encoding: "utf8" }).trim().split("\n");
}

/** The process id of a pod's first container on this machine. `command` is in its command line. */
export function processOf(pod, command) {
  const container = pod.status.containerStatuses[0].containerID.split("//")[1];
  return wait(() => {
    const found = readdirSync("/proc").find((one) => {
      if (!/^\d+$/.test(one)) return false;
      try {
        return readFileSync(`/proc/${one}/cgroup`, "utf8").includes(container) && readFileSync(`/proc/${one}/cmdline`, "utf8").includes(command);
      } catch {
        return false;
      }
    });
    return found && Number(found);
  }, { what: `the process of ${pod.metadata.name}` });
}
