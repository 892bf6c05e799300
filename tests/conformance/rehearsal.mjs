// Starts `realtime rehearse` with a manifest, and a webhook receiver that keeps raw bodies and headers.
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { run as runProgram, spawnBound } from "./processes.mjs";
import { eventually } from "./waiting.mjs";

export { eventually };

export const BIN = process.env.REALTIME_BIN;
if (!BIN) throw new Error("REALTIME_BIN does not name the binary: run this through ./test conformance");

export const EXAMPLE = new URL("../../examples/eu.yaml", import.meta.url).pathname;

/** What the servers would refuse or obey must not come from this machine. */
export function cleanEnvironment() {
  const foreign = /^(AWS_|SSL_|REALTIME_)|_proxy$|^NODE_EXTRA_CA_CERTS$/i;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !foreign.test(name)));
}

/** A customer's webhook endpoint. */
export async function startReceiver() {
  const requests = [];
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      requests.push({ rawBody: Buffer.concat(chunks).toString("utf8"), headers: request.headers });
      response.writeHead(200).end();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}/hook`,
    requests,
    /** Every event that arrived, in order. */
    events: () => requests.flatMap(({ rawBody }) => JSON.parse(rawBody).events),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

const manifest = (url, spec) => `
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeCluster
metadata: { name: eu, namespace: channels }
spec:
  aws: { region: eu-west-1, identity: { type: PodIdentity } }
  bus: { type: Redis, redis: { urlSecretRef: { name: eu-redis, key: url } } }
  websocket: { replicas: 1 }
  sockjs: { replicas: 1 }
  webhooks:
    allowedNetworks: ["127.0.0.0/8"]
    dispatcher: { replicas: 1 }
    stream: { mode: Provisioned, shards: 2 }
${spec}
---
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: shop, namespace: channels }
spec:
  appID: "1001"
  clientEvents: Enabled
  limits: { clientEventsPerSecond: 10000 }
  webhooks: ${url ? `[{ name: orders, url: "${url}" }]` : "[]"}
`;

/** An app with subscription counts. */
export const counted = (url) => `
---
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: counted, namespace: channels }
spec:
  appID: "1002"
  clientEvents: Enabled
  subscriptionCount: Enabled
  webhooks: [{ name: counts, url: "${url}", events: [subscription_count] }]
`;

/** Most time that a rehearsal takes to end after Ctrl-C. */
const STOP_SECONDS = 20;

/**
 * A rehearsal that is Ready, with `receiver` as the customer's endpoint, with `more` objects, and with `spec` as
 * further lines of the cluster's. `flags` are more of its command line; with `refused` its verdict is to be a refusal.
 */
export async function startRehearsal(receiver, more = "", spec = "", { flags = [], refused = false } = {}) {
  const folder = await mkdtemp(join(tmpdir(), "rehearsal-"));
  const file = join(folder, "eu.yaml");
  await writeFile(file, manifest(receiver.url, spec) + more);
  const child = spawnBound(BIN, ["rehearse", file, "--port", "0", "-o", "json", ...flags], {
    env: cleanEnvironment(),
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = new Promise((resolve) => {
    child.once("error", (error) => resolve(`${BIN} did not start: ${error.message}`));
    child.once("exit", (code, signal) => resolve(code ?? signal));
  });
  let end;
  ended.then((how) => (end = how));
  const lines = [];
  let errors = "";
  createInterface({ input: child.stdout }).on("line", (line) => lines.push(line));
  child.stderr.on("data", (chunk) => (errors += chunk));
  const lineOf = (type) => () => {
    if (end !== undefined) throw new Error(`the rehearsal ended with ${end}: ${errors}`);
    return lines.map(parse).find((line) => line.type === type);
  };

  /** Ends it as Ctrl-C does, and answers with its exit code, or with the signal that it took. */
  async function stop() {
    child.kill("SIGINT");
    const hung = setTimeout(() => child.kill("SIGKILL"), STOP_SECONDS * 1000);
    const how = await ended;
    clearTimeout(hung);
    await rm(folder, { recursive: true });
    return how;
  }

  try {
    const serving = await eventually(lineOf("serving"), () => `no "serving" line; ${errors}`);
    const verdict = await eventually(lineOf("verdict"), () => `no verdict; ${errors}`, 60);
    if (verdict.ready === refused) throw new Error(`${verdict.reason}: ${verdict.message}`);
    return { serving, verdict, app: serving.apps.find(({ id }) => id === "1001"), stop };
  } catch (error) {
    // A process that is left would also keep the test run from ending.
    await stop();
    throw error;
  }
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Error(`stdout is not JSON lines: ${line}`);
  }
}

/** Runs the binary to its end. */
export function run(...args) {
  return runProgram(BIN, args, { env: cleanEnvironment() });
}
