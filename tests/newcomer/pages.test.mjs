// A newcomer on a fresh machine: the commands of README.md and of the pages, as they stand there, and the time to the first
// webhook. Addresses that a reader replaces are replaced here, and nothing else.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import PusherClient from "pusher-js";

import { spawnLogged, waitUntilReady } from "../conformance/processes.mjs";
import { addOperatorFiles, apply, BINARIES, diagnosed, kubectl, pods, service, startKinesis, startReceiver, startRedis, wait } from "../cluster/harness.mjs";
import { adapt, FOLDER, readCommands, runCommands } from "./pages.mjs";

/** Longest time to the first webhook, in minutes: in one process after the build, and with Helm on Kubernetes. */
const [LOCAL_MINUTES, HELM_MINUTES] = [5, 20];

const REPOSITORY = { "registry.example.com/realtime-operator/realtime": "docker.io/realtime-operator/realtime" };
const INSTALL = "docs/install.md";

const outside = {};
let policy;

before(async () => {
  [outside.redis, outside.kinesis, outside.receiver] = await Promise.all([startRedis(), startKinesis(), startReceiver()]);
  policy = `'platformPolicy.rules=[{"namespaces":["*"],"endpoints":["${outside.kinesis.url}"]}]'`;
});

/** AWS as this machine has it: a double, with keys that it does not check. */
const AWS = () => ({
  endpointURL: outside.kinesis.url, allowInsecureEndpoint: true, identity: { type: "StaticKeys", secretRef: { name: "eu-aws" } },
});

/** The values or the manifest of a cluster with the replacements of a reader without AWS; `indent` is that of the spec. */
function adaptCluster(text, indent) {
  const { identity, ...rest } = AWS();
  return adapt(text, {
    [`${indent}  identity:\n${indent}    type: PodIdentity\n`]: `${indent}  identity: ${JSON.stringify(identity)}\n${Object.entries(rest).map(([name, value]) => `${indent}  ${name}: ${value}\n`).join("")}`,
    [`${indent}bus:\n`]: `${indent}webhooks: { allowedNetworks: [198.18.0.0/15], stream: { mode: Provisioned, shards: 2 } }\n${indent}bus:\n`,
    "https://shop.example.com/webhooks/realtime": outside.receiver.url,
  });
}

const redis = () => ({ "redis://redis.channels.svc:6379": outside.redis.url });

async function createKeys() {
  await apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "eu-aws", namespace: "channels" }, stringData: { accessKeyID: "test", secretAccessKey: "test" } });
}

/** Waits until a client's subscription has reached the app's own endpoint. */
async function firstWebhook() {
  const [command] = readCommands(INSTALL, "Clients");
  const key = await runCommands(command);
  const { host, port } = await service("channels", "eu-websocket");
  const client = new PusherClient(key, { cluster: "", wsHost: host, wsPort: port, forceTLS: false, enableStats: false, enabledTransports: ["ws"] });
  try {
    client.subscribe("news");
    await wait(() => outside.receiver.events().some(({ name, channel }) => name === "channel_occupied" && channel === "news"), { what: "the webhook of the subscription" });
  } finally {
    client.disconnect();
  }
}

test("README: one command runs a cluster in this process", { timeout: (LOCAL_MINUTES + 1) * 60_000 }, async () => {
  for (const [heading, words] of [["Try it: one command", /✓ Passing +webhook after/], ["Break it", /Refused after .*ConfigurationDrift/s]]) {
    const [command] = readCommands("README.md", heading);
    const [, args] = /^cargo run --release -- (.*)$/m.exec(command);
    const began = Date.now();
    const rehearsal = spawnLogged(`${BINARIES}/realtime`, args.split(" "), { cwd: FOLDER });
    await waitUntilReady("the rehearsal", rehearsal, (log) => words.test(log));
    const seconds = (Date.now() - began) / 1000;
    console.log(`# ${seconds.toFixed(1).padStart(6)} s  realtime ${args}: ${words}`);
    await rehearsal.stop("SIGTERM");
    assert.ok(seconds < LOCAL_MINUTES * 60);
  }
});

test("README and the page of installation have the same commands", () => {
  const page = ["The image", "The operator", "A cluster"].flatMap((heading) => readCommands(INSTALL, heading)).join("");
  const lines = readCommands("README.md", "On Kubernetes").join("").trim().split("\n");
  assert.ok(lines.length >= 5);
  for (const line of lines) assert.ok(page.includes(line), `${INSTALL} has ${line}`);
});

test("with Helm: from nothing to the first webhook", { timeout: (HELM_MINUTES + 1) * 60_000 }, () => diagnosed(async () => {
  const began = Date.now();
  const [operator] = readCommands(INSTALL, "The operator");
  await runCommands(adapt(operator, { ...REPOSITORY, "--wait": `--wait --set-json ${policy}` }));
  const [cluster, status] = readCommands(INSTALL, "A cluster");
  const split = cluster.indexOf("helm install");
  await runCommands(adaptCluster(adapt(cluster.slice(0, split), { ...REPOSITORY, ...redis() }), "  "));
  await createKeys();
  await runCommands(cluster.slice(split));
  console.log(`# ${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  from nothing to Ready`);
  assert.match(await runCommands(status), /^channels\/eu: Ready \(Proven\)/);
  await firstWebhook();
  const seconds = (Date.now() - began) / 1000;
  console.log(`# ${seconds.toFixed(1).padStart(6)} s  from nothing to the first webhook at the app's endpoint`);
  assert.ok(seconds < HELM_MINUTES * 60);
}));

test("an upgrade of the operator replaces no pod of a cluster, and its removal none either", { timeout: 300_000 }, () => diagnosed(async () => {
  const names = async () => (await pods("channels")).map(({ metadata }) => metadata.uid).sort();
  const serving = await names();
  const [upgrade] = readCommands("docs/upgrade.md", "The operator");
  await runCommands(upgrade);
  await kubectl(["wait", "--for=condition=Ready", "realtimecluster/eu", "-n", "channels", "--timeout=60s"]);
  assert.deepEqual(await names(), serving);
  const own = readFileSync(new URL("../../docs/uninstall.md", import.meta.url), "utf8").match(/```sh\n(helm uninstall .*?)```/s)[1];
  await runCommands(own);
  await wait(async () => (await pods("realtime-operator")).length === 0, { what: "the end of the operator" });
  assert.deepEqual(await names(), serving, "pods serve without an operator");
  const [operator] = readCommands(INSTALL, "The operator");
  await runCommands(adapt(operator, { ...REPOSITORY, "--wait": `--wait --set-json ${policy}` }));
  await kubectl(["wait", "--for=condition=Ready", "realtimecluster/eu", "-n", "channels", "--timeout=60s"]);
  assert.deepEqual(await names(), serving);
}));

test("everything is removed, and installed again without Helm", { timeout: 600_000 }, () => diagnosed(async () => {
  const [everything] = readCommands("docs/uninstall.md", "Everything");
  await runCommands(everything);
  await kubectl(["delete", "namespace", "channels", "realtime-operator", "--ignore-not-found", "--timeout=120s"]);
  assert.ok((await outside.kinesis.call("ListStreams")).StreamNames.length > 0, "streams are kept");

  const [manifests] = readCommands(INSTALL, "Without Helm");
  const example = adaptCluster(readFileSync(`${FOLDER}/examples/eu.yaml`, "utf8"), "  ");
  writeFileSync(`${FOLDER}/examples/eu.yaml`, example);
  const began = Date.now();
  const split = manifests.indexOf("kubectl apply -f examples/eu.yaml");
  allowEndpoint();
  await runCommands(adapt(manifests.slice(0, split), redis()));
  await createKeys();
  await runCommands(manifests.slice(split));
  console.log(`# ${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  from nothing to Ready without Helm`);
}));

/** Has the operator of the manifest allow the double of Kinesis, as docs/security.md says for a private endpoint. */
function allowEndpoint() {
  const path = `${FOLDER}/examples/operator.yaml`;
  const rules = [{ namespaces: ["*"], endpoints: [outside.kinesis.url] }];
  writeFileSync(path, addOperatorFiles(readFileSync(path, "utf8"), { "platform-policy": JSON.stringify({ rules }) }));
}
