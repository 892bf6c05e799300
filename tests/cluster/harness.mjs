// What a test of the cluster tier works with: kubectl, watches, waits, a Redis and a Kinesis beside the nodes.
// The cluster itself is shared by all files: see shared_cluster.mjs.
import { AsyncLocalStorage } from "node:async_hooks";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { after, afterEach } from "node:test";
import { inspect } from "node:util";

import { kinesisPorts, run, runChecked, spawnBound, startRedis as startRedisWith, waitUntilReady } from "../conformance/processes.mjs";

if (!process.env.CLUSTER) throw new Error("CLUSTER does not name a cluster: run this through ./test cluster");

/** Folder of this cluster, of Kubernetes' binaries and of the project's. */
export const { dir: DIR, bin: BIN, binaries: BINARIES, second: SECOND_DIR } = JSON.parse(process.env.CLUSTER);

const HAS_IPV6_ALONE = process.env.NODE_IP_FAMILY === "6";

/** The address under which pods reach this machine, and its networks. */
export const [HOST, NETWORKS] = HAS_IPV6_ALONE ? ["2001:2:0:1::1", "2001:2::/48"] : ["198.18.0.1", "198.18.0.0/15"];

/** The same address in a URL. */
export const URL_HOST = HAS_IPV6_ALONE ? `[${HOST}]` : HOST;

/** The image as manifests name it. */
export const IMAGE = "realtime-operator/realtime:0.2.0";

/** Whether the cluster is to be looked at afterwards, with what runs on it and beside it: `./test cluster --keep`. */
export const KEEP = process.env.TEST_KEEP === "1";

/** The namespace of examples/operator.yaml. */
export const OPERATOR_NAMESPACE = "realtime-operator";

/** The operator's account, as the API server names it. */
export const OPERATOR_ACCOUNT = `system:serviceaccount:${OPERATOR_NAMESPACE}:realtime-operator`;

export const KUBECONFIG = `${DIR}/pki/admin.kubeconfig`;

/** That of the second cluster, in a tier that has one. */
export const SECOND_KUBECONFIG = SECOND_DIR && `${SECOND_DIR}/pki/admin.kubeconfig`;

const chosenKubeconfig = new AsyncLocalStorage();

/** Runs `fn`, of which every command goes to the cluster of this kubeconfig; elsewhere it goes to the first. */
export function onCluster(kubeconfig, fn) {
  return chosenKubeconfig.run(kubeconfig, fn);
}

const kubeconfigOf = () => chosenKubeconfig.getStore() ?? KUBECONFIG;

/** Lines of each container's log that a failed test shows. */
const LOG_LINES = 40;

/** Failures of one file that are shown in full: the first ones tell most. */
const SHOWN_FAILURES = 2;

// ---------------------------------------------------------------------------------------------------- tests

let shown = 0;

// A test that failed shows how the cluster stands.
afterEach(({ error }) => (error ? show(error.cause ?? error) : undefined));

const reported = new Set();

async function show(error) {
  if (reported.has(error)) return;
  reported.add(error);
  shown += 1;
  if (shown > SHOWN_FAILURES) return;
  for (const kubeconfig of [KUBECONFIG, SECOND_KUBECONFIG].filter(Boolean)) console.log(await onCluster(kubeconfig, diagnostics));
}

/** Runs `fn`, and shows how the cluster stands when it fails: for `before` hooks, and before something is removed. */
export async function diagnosed(fn) {
  try {
    return await fn();
  } catch (error) {
    await show(error);
    throw error;
  }
}

/** How the cluster stands: our kinds, pods, events, and logs of every pod that is ours. */
export async function diagnostics() {
  const ask = (title, ...args) =>
    execute([...args, "--request-timeout=10s"]).then(({ stdout, stderr }) => `--- ${title}\n${stdout}${stderr}`);
  const parts = await Promise.all([
    ask("clusters, apps and moves", "get", "realtimeclusters,realtimeapps,realtimemigrations", "-A", "-o", "wide"),
    ask("pods", "get", "pods", "-A", "-o", "wide"),
    ask("events", "get", "events", "-A", "--sort-by=.lastTimestamp").then((text) => text.split("\n").slice(-LOG_LINES).join("\n")),
  ]);
  const clusters = await execute(["get", "realtimeclusters", "-A", "-o", "json"]);
  if (clusters.code === 0) {
    for (const { metadata, status } of JSON.parse(clusters.stdout).items) {
      parts.push(`--- status of ${metadata.namespace}/${metadata.name}\n${JSON.stringify(status, null, 1)}`);
    }
  }
  const pods = await execute(["get", "pods", "-A", "-o", "json"]);
  for (const { metadata, status } of pods.code === 0 ? JSON.parse(pods.stdout).items : []) {
    const args = ["logs", metadata.name, "-n", metadata.namespace, "--all-containers", "--prefix", `--tail=${LOG_LINES}`];
    parts.push(await ask(`${metadata.namespace}/${metadata.name}`, ...args));
    for (const { name, lastState } of status.containerStatuses ?? []) {
      if (lastState?.terminated) parts.push(`${name} ended before: ${JSON.stringify(lastState.terminated)}`);
    }
  }
  return parts.join("\n");
}

// -------------------------------------------------------------------------------------------------- kubectl

/** Runs kubectl to its end, whatever that is. */
function execute(args, { input } = {}) {
  return run(`${BIN}/kubectl`, ["--kubeconfig", kubeconfigOf(), ...args], { input });
}

/** Runs our own command as a person does, to its end, whatever that is. */
export function realtime(...args) {
  return run(`${BINARIES}/realtime`, args, { env: { ...process.env, KUBECONFIG: kubeconfigOf() } });
}

/** What kubectl prints; fails when it does. */
export async function kubectl(args, options) {
  const { code, stdout, stderr } = await execute(args, options);
  if (code !== 0) throw new Error(`kubectl ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** An object, or a list of them. */
export async function get(kind, namespace, name) {
  const place = namespace ? ["-n", namespace] : [];
  return JSON.parse(await kubectl(["get", kind, ...(name ? [name] : []), ...place, "-o", "json"]));
}

/** Applies YAML or an object. */
export function apply(manifest) {
  return kubectl(["apply", "-f", "-"], { input: text(manifest) });
}

/** What the API server says against a manifest; fails when it takes it. Nothing is kept. */
export async function refused(manifest) {
  const { code, stdout, stderr } = await execute(["apply", "--dry-run=server", "-f", "-"], { input: text(manifest) });
  if (code === 0) throw new Error(`it was taken: ${stdout}`);
  return stderr;
}

function text(manifest) {
  return typeof manifest === "string" ? manifest : JSON.stringify(manifest);
}

/** A file of the project; `replace` maps texts to others, each of which must occur. */
export function file(path, replace = {}) {
  let content = readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
  for (const [from, to] of Object.entries(replace)) {
    if (!content.includes(from)) throw new Error(`${path} does not hold ${from}`);
    content = content.replaceAll(from, to);
  }
  return content;
}

/** Applies the CRDs and waits until they can be used. */
export async function applyCrds() {
  await kubectl(["apply", "-f", new URL("../../crds", import.meta.url).pathname]);
  await established(...["realtimeclusters", "realtimeapps", "realtimemigrations"].map((kind) => `${kind}.realtime-operator.dev`));
}

/** Waits until these CRDs can be used. `kubectl wait` alone fails at one that has no condition yet. */
export function established(...names) {
  const command = ["wait", "--for=condition=Established", "--timeout=5s", ...names.map((name) => `crd/${name}`)];
  return wait(() => kubectl(command), { what: `the CRDs ${names.join(", ")}` });
}

/** The folder with the sources of a Go module that the one in `directory` requires. */
export async function moduleFolder(directory, module) {
  return (await runChecked("go", ["-C", directory, "list", "-m", "-f", "{{.Dir}}", module])).trim();
}

/**
 * Deletes a namespace with its content, and waits until it is gone. Its clusters are deleted first: in a namespace that is
 * being deleted, servers and their dependencies end in any order, and a server without its bus drains for long. A failure
 * names the namespace and the finalizers that are left.
 */
export async function deleteNamespace(name, seconds = 120) {
  const clusters = ["delete", "realtimeclusters", "--all", "-n", name, "--ignore-not-found", "--timeout=60s"];
  // Without the definition, or without an operator that answers, the namespace's own deletion has to do.
  await kubectl(clusters).catch(() => {});
  try {
    await kubectl(["delete", "namespace", name, "--ignore-not-found", "--wait", `--timeout=${seconds}s`]);
  } catch (error) {
    throw new Error(`namespace ${name} is not deleted after ${seconds} s: ${error.message}\n${await describeFinalizers(name)}`);
  }
}

/** The finalizers in a namespace, by object, and the reasons that Kubernetes gives for its being there. */
async function describeFinalizers(namespace) {
  const limit = "--request-timeout=10s";
  const list = async (kinds, ...args) => {
    const { code, stdout, stderr } = await execute(["get", kinds, ...args, "-o", "json", limit]);
    return code === 0 ? JSON.parse(stdout || "{}") : { items: [], error: stderr };
  };
  const found = await list("namespace", namespace);
  const lines = (found.status?.conditions ?? []).filter(({ status }) => status === "True").map(({ type, message }) => `${type}: ${message}`);
  const resources = (await execute(["api-resources", "--verbs=list", "--namespaced", "-o", "name", limit])).stdout.trim().split("\n");
  const { items = [], error } = await list(resources.join(","), "-n", namespace, "--ignore-not-found");
  if (error) lines.push(`its objects cannot be listed: ${error}`);
  for (const { kind, metadata } of items) {
    if (metadata.finalizers?.length > 0) lines.push(`${kind}/${metadata.name} has the finalizers ${metadata.finalizers.join(", ")}`);
  }
  return lines.join("\n");
}

/** Deletions that go on while the next test runs. */
const deletions = [];

/** Waits until the namespaces of tests that have ended are gone; fails with every one that is not. */
export async function namespacesDeleted() {
  const results = await Promise.allSettled(deletions.splice(0));
  const failures = results.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
  if (failures.length > 0) throw new Error(failures.join("\n"));
}

/**
 * Runs `fn` in a namespace of its own, which is deleted afterwards in any case: the pods of a failed test would take the
 * machine from the next one. The next test does not wait for the deletion, since servers take 15 s to close their last
 * clients; the end of the file does.
 */
export async function inNamespace(name, fn) {
  await kubectl(["create", "namespace", name]);
  let failed = true;
  try {
    const result = await diagnosed(() => fn(name));
    failed = false;
    return result;
  } finally {
    // All of them together would be too much for a machine.
    if (!KEEP || !failed) {
      const deletion = deleteNamespace(name);
      deletion.catch(() => {});
      deletions.push(deletion);
    }
  }
}

/** What containers of a pod said. */
export function logs(namespace, pod, ...args) {
  return kubectl(["logs", "-n", namespace, pod, ...args]);
}

/** Runs the image's binary in a container of a pod, such as `exec("rt", "eu-websocket-…", ["/usr/bin/realtime", "variables"])`. */
export function exec(namespace, pod, command, ...args) {
  return kubectl(["exec", "-n", namespace, pod, ...args, "--", ...command]);
}

/** Address and port of a Service as its clients use it; it can be reached from here. */
export async function service(namespace, name, port) {
  const { spec } = await get("service", namespace, name);
  const found = spec.ports.find((one) => port === undefined || one.name === port || one.port === port);
  if (!found) throw new Error(`Service ${namespace}/${name} has no port ${port}`);
  return { host: spec.clusterIP, port: found.port };
}

/** The pods that carry these labels and are not on their way out, such as `pods("rt", { "app.kubernetes.io/component": "websocket" })`. */
export async function pods(namespace, labels = {}) {
  const selector = Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(",");
  const list = JSON.parse(await kubectl(["get", "pods", "-n", namespace, "-l", selector, "-o", "json"]));
  return list.items.filter(({ metadata }) => !metadata.deletionTimestamp);
}

/** A condition of an object. */
export function condition(object, type) {
  return object?.status?.conditions?.find((one) => one.type === type);
}

/** Whether an object of ours is Ready by a status of its present generation. */
export function isReady(object) {
  return condition(object, "Ready")?.status === "True" && object.status.observedGeneration === object.metadata.generation;
}

/** The name of the operator's pod that leads, if one does. */
export async function leaderName() {
  return (await get("lease", OPERATOR_NAMESPACE, "realtime-operator")).spec.holderIdentity;
}

/**
 * The operator's manifest with files that it reads by their argument: `{ "platform-policy": text }` is the file of
 * `--platform-policy`.
 */
export function addOperatorFiles(manifest, files) {
  const args = Object.keys(files).map((name) => `--${name}=/etc/known/${name}.yaml`);
  const changes = [
    ["args: [operator]", `args: [${["operator", ...args].join(", ")}]\n          volumeMounts: [{ name: known, mountPath: /etc/known }]`],
    [/( +)containers:\n( +)- name: operator\n/, "$1volumes: [{ name: known, configMap: { name: operator-files } }]\n$1containers:\n$2- name: operator\n"],
  ];
  const changed = changes.reduce((text, [from, to]) => replaceOnce(text, from, to), manifest);
  const data = Object.fromEntries(Object.entries(files).map(([name, text]) => [`${name}.yaml`, text]));
  const map = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "operator-files", namespace: OPERATOR_NAMESPACE }, data };
  return `${changed}---\n${JSON.stringify(map)}\n`;
}

/** A text with its first match replaced; fails without a match. */
export function replaceOnce(text, from, to) {
  const replaced = text.replace(from, to);
  if (replaced === text) throw new Error(`the text does not hold ${from}`);
  return replaced;
}

/** The API server's audit log since the cluster began, oldest first: every write, and every read of the operator. */
export function audit(matches = () => true) {
  const lines = readFileSync(`${DIR}/log/audit.log`, "utf8").split("\n");
  // The last line may be half written.
  return lines.slice(0, -1).map((line) => JSON.parse(line)).filter(matches);
}

// --------------------------------------------------------------------------------------------------- waiting

/** Characters of what a wait saw last that its failure shows. */
const SEEN_LENGTH_MAX = 2_000;

/**
 * Waits until `fn` answers with something, and gives that back. What `fn` throws counts as "not yet". A failure names what
 * was waited for, the condition itself, what it answered or threw last, and what `seen` shows.
 */
export async function wait(fn, { timeout = 30_000, every = 200, what = "the condition", seen } = {}) {
  const end = Date.now() + timeout;
  let last = "gave nothing";
  for (;;) {
    try {
      const found = await answerUntil(end, fn());
      if (found) return found;
      last = `last gave ${inspect(found)}`;
    } catch (error) {
      // A look that hangs must not hide the one before it.
      last = error === UNANSWERED ? `${last}, and then did not answer` : `last threw ${error.message}`;
    }
    if (Date.now() >= end) {
      const shown = seen ? `\nseen last: ${String(seen()).slice(0, SEEN_LENGTH_MAX)}` : "";
      throw new Error(`${what}: not within ${timeout / 1000} s; ${fn} ${last}${shown}`);
    }
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}

const UNANSWERED = new Error("no answer");

/** The answer of a look, or `UNANSWERED` when there is none by `end`; a look at the end gets a second. */
async function answerUntil(end, look) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(UNANSWERED), Math.max(1_000, end - Date.now()))));
  try {
    return await Promise.race([look, late]);
  } finally {
    clearTimeout(timer);
  }
}

const GROUPS = {
  realtimeclusters: "/apis/realtime-operator.dev/v1alpha1",
  realtimeapps: "/apis/realtime-operator.dev/v1alpha1",
  deployments: "/apis/apps/v1",
  replicasets: "/apis/apps/v1",
  leases: "/apis/coordination.k8s.io/v1",
  endpointslices: "/apis/discovery.k8s.io/v1",
  poddisruptionbudgets: "/apis/policy/v1",
  kustomizations: "/apis/kustomize.toolkit.fluxcd.io/v1",
  helmreleases: "/apis/helm.toolkit.fluxcd.io/v2",
};

/**
 * Keeps every version of an object from now on, of one that is not there yet too; without a name, of all of that kind.
 * `versions` holds `{ type: "ADDED" | "MODIFIED" | "DELETED", object, at }`.
 */
export async function watchObject(kind, namespace, name) {
  const field = name ? `&fieldSelector=metadata.name%3D${name}` : "";
  // The bookmark says that the watch stands: everything after it is seen.
  const query = `watch=true${field}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true`;
  const path = `${GROUPS[kind] ?? "/api/v1"}/namespaces/${namespace}/${kind}?${query}`;
  const child = spawnBound(`${BIN}/kubectl`, ["--kubeconfig", kubeconfigOf(), "get", "--raw", path], { stdio: ["ignore", "pipe", "pipe"] });
  const versions = [];
  let ready = false;
  let problem = "";
  let wanted = true;
  child.stderr.on("data", (chunk) => (problem += chunk));
  child.once("exit", (code) => wanted && (problem += `the watch ended with ${code}`));
  const lines = createInterface({ input: child.stdout });
  lines.on("line", (line) => {
    const { type, object } = JSON.parse(line);
    if (type === "BOOKMARK") ready = true;
    else if (type === "ERROR") problem += line;
    else versions.push({ type, object, at: Date.now() });
  });
  const watch = {
    versions,
    /** The version that is the newest, if there is one. */
    last: () => versions.at(-1)?.object,
    /** Waits until a version is as `matches` says; versions of the past count. */
    until: (matches, options) =>
      wait(() => {
        if (problem) throw new Error(problem);
        return versions.find(({ type, object }) => type !== "DELETED" && matches(object))?.object;
      }, { what: `${kind} ${name ?? ""} as ${matches}`, every: 50, seen: () => summary(versions.at(-1)), ...options }),
    /** Ends it; fails when it could not see everything. */
    stop: async () => {
      wanted = false;
      owned.delete(watch);
      if (child.exitCode === null && child.signalCode === null) {
        child.kill();
        await once(child, "close");
      }
      if (problem) throw new Error(`the watch on ${kind} ${name ?? ""} missed something: ${problem}`);
    },
  };
  owned.add(watch);
  await wait(() => ready || problem, { timeout: 15_000, every: 20, what: `a watch on ${kind}` });
  if (problem) throw new Error(problem);
  return watch;
}

/** What tells most of a version of an object: its status, or what there is instead. */
function summary(version) {
  if (!version) return "no version";
  const { metadata, status, ...rest } = version.object;
  return `${version.type} ${metadata?.name}: ${JSON.stringify(status ?? rest)}`;
}

// --------------------------------------------------------------------------------- processes beside the nodes

/** What this file started and has to stop. */
const owned = new Set();

const tearDowns = [];

/**
 * Runs `fn` after the tests of the file, unless the cluster is kept. The processes beside the nodes run until then: a
 * cluster that is deleted has to reach its stream and its bus.
 */
export function tearDown(fn) {
  tearDowns.push(fn);
}

async function stopOwned() {
  for (const one of [...owned]) await one.stop().catch(() => {});
}

// One hook for all: the runner leaves out those behind one that fails.
after(async () => {
  const failures = [];
  for (const step of [namespacesDeleted, ...(KEEP ? [] : [...tearDowns, stopOwned])]) {
    try {
      await step();
    } catch (error) {
      failures.push(error.message);
    }
  }
  if (failures.length > 0) throw new Error(failures.join("\n"));
});

let started = 0;

/** A process that ends with this one, unless the cluster is kept; `kubernetes down` ends it too. */
export function start(name, command, args, { env = process.env } = {}) {
  started += 1;
  const label = `${name}-${process.pid}-${started}`;
  const log = openSync(`${DIR}/log/${label}.log`, "w");
  const options = { stdio: ["ignore", log, log], detached: KEEP, env };
  const child = KEEP ? spawn(command, args, options) : spawnBound(command, args, options);
  closeSync(log);
  if (KEEP) child.unref();
  let failure = "";
  child.once("error", (error) => (failure = `${command} does not start: ${error.message}`));
  const path = `${DIR}/log/${label}.log`;
  const hasEnded = () => failure !== "" || child.exitCode !== null || child.signalCode !== null;
  const running = {
    child,
    hasEnded,
    log: () => readFileSync(path, "utf8") + failure,
    stop: async (signal = "SIGTERM") => {
      owned.delete(running);
      rmSync(`${DIR}/run/${label}.pid`, { force: true });
      if (hasEnded()) return;
      // One that was stopped by SIGSTOP takes no other signal.
      child.kill("SIGCONT");
      child.kill(signal);
      const hung = setTimeout(() => child.kill("SIGKILL"), 5000);
      await once(child, "exit");
      clearTimeout(hung);
    },
  };
  if (!child.pid) return running;
  writeFileSync(`${DIR}/run/${label}.pid`, `${child.pid} ${beginningOf(child.pid)}\n`);
  owned.add(running);
  return running;
}

/** A Redis that pods reach at `url`. `pause()` and `resume()` make it hang and go on; `stop()` ends it. */
export async function startRedis() {
  const { port, child, stop } = await startRedisWith({ host: HOST, launch: (args) => start("redis", "redis-server", args) });
  return {
    port,
    url: `redis://${URL_HOST}:${port}`,
    pause: () => child.kill("SIGSTOP"),
    resume: () => child.kill("SIGCONT"),
    stop,
  };
}

/** A Kinesis that pods reach at `url`, and what a test may do to it. */
export async function startKinesis() {
  const running = start("kinesis", `${BINARIES}/examples/kinesis`, [`${URL_HOST}:0`, "127.0.0.1:0"]);
  const { port, control: controlPort } = await waitUntilReady("Kinesis", running, kinesisPorts);
  const url = `http://${URL_HOST}:${port}`;
  const control = async (method, path) => {
    const answer = await fetch(`http://127.0.0.1:${controlPort}${path}`, { method });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  };
  return {
    port,
    url,
    /** From now on calls are taken and never answered. */
    away: () => control("POST", "/away"),
    back: () => control("POST", "/back"),
    /** Refuses an action; `error` is the exception, AccessDeniedException by default, `stream` narrows it to one. */
    deny: (action, { error, stream } = {}) =>
      control("POST", `/deny?${new URLSearchParams({ action, ...(error && { error }), ...(stream && { stream }) })}`),
    /** Ends every denial. */
    allow: () => control("POST", "/allow"),
    /** How often each action was called: `{ CreateStream: 1, … }`. */
    calls: async () => (await control("GET", "/calls")).json(),
    /** A call of the test's own: `call("DeleteStream", { StreamName })`. Counted like any other. */
    call: async (action, body = {}, region = "eu-west-1") => {
      const answer = await fetch(url, {
        method: "POST",
        headers: {
          "content-type": "application/x-amz-json-1.1",
          "x-amz-target": `Kinesis_20131202.${action}`,
          "x-amz-date": new Date().toISOString().replace(/[-:]|\.\d+/g, ""),
          authorization: `AWS4-HMAC-SHA256 Credential=test/20260101/${region}/kinesis/aws4_request, SignedHeaders=host, Signature=0`,
        },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(10_000),
      });
      const answered = await answer.text();
      if (!answer.ok) throw new Error(`${action}: ${answered}`);
      return answered ? JSON.parse(answered) : {};
    },
    stop: running.stop,
  };
}

/**
 * A receiver of webhooks that pods reach at `url`: keeps every request, raw. `status` is what it answers with.
 */
export async function startReceiver() {
  const requests = [];
  const receiver = { status: 200, requests };
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      requests.push({ path: request.url, headers: request.headers, rawBody: Buffer.concat(chunks).toString("utf8"), at: Date.now() });
      response.writeHead(receiver.status).end();
    });
  });
  server.listen(0, HOST);
  await once(server, "listening");
  receiver.url = `http://${URL_HOST}:${server.address().port}/hook`;
  receiver.events = () => requests.flatMap(({ rawBody }) => JSON.parse(rawBody).events);
  receiver.stop = async () => {
    owned.delete(receiver);
    server.closeAllConnections();
    server.close();
  };
  owned.add(receiver);
  return receiver;
}

/** Gives an image on the node another name, as if the node had pulled it from there. */
export function tagImage(name, alias) {
  execFileSync(new URL("kubernetes", import.meta.url).pathname, ["tag", DIR, name, alias]);
}

/** Ends the API server by force, and starts it again as it was started. Every watch ends. */
export async function restartApiServer() {
  const file = `${DIR}/run/apiserver.pid`;
  const pid = readFileSync(file, "utf8").split(" ")[0];
  const commandOf = () => readFileSync(`/proc/${pid}/cmdline`, "utf8");
  const [command, ...args] = commandOf().split("\0").slice(0, -1);
  process.kill(Number(pid), "SIGKILL");
  await wait(() => !existsSync(`/proc/${pid}`) || commandOf() === "", { what: "the end of the API server" });
  const log = openSync(`${DIR}/log/apiserver.log`, "a");
  const child = spawn(command, args, { stdio: ["ignore", log, log], detached: true });
  closeSync(log);
  child.unref();
  writeFileSync(file, `${child.pid} ${beginningOf(child.pid)}\n`);
  await wait(() => kubectl(["get", "--raw", "/readyz"]), { timeout: 60_000, what: "the API server" });
}

/** When a process began, in clock ticks since boot. */
function beginningOf(pid) {
  return readFileSync(`/proc/${pid}/stat`, "utf8").replace(/.*\) /s, "").split(" ")[19];
}

/** Puts files into an image on the node: `image("localhost/x:1", "/x", { "/x": path })`. */
export async function image(name, entrypoint, files) {
  const script = new URL("kubernetes", import.meta.url).pathname;
  const args = Object.entries(files).map(([inside, path]) => `${path}=${inside}`);
  const { code, stdout, stderr } = await run(script, ["image", DIR, name, entrypoint, ...args]);
  if (code !== 0) throw new Error(`image ${name}: ${stdout}${stderr}`);
}
