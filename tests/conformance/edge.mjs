// An edge alone, as a pod runs it: no stream, the bus in memory, one app.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import Pusher from "pusher";

import { portOf, spawnBound, startedFields } from "./processes.mjs";
import { BIN, cleanEnvironment, eventually } from "./rehearsal.mjs";

export const KEY = "key1";
const SECRET = "secret1";

/** Longest until a server has logged that it serves: on a busy machine it reads its own binary for a while. */
const START_SECONDS = 60;

/** What each process needs that runs alone. */
const COMMON = {
  REALTIME_CLUSTER: "ns/eu",
  REALTIME_CLUSTER_UID: "uid-1",
  REALTIME_POD: "pod-1",
  REALTIME_ADMIN_ADDRESS: "127.0.0.1:0",
  REALTIME_ADMIN_TOKEN: "token",
  REALTIME_ADMISSION: "none",
  REALTIME_AWS_IDENTITY: "PodIdentity",
  AWS_REGION: "eu-west-1",
};

/** A sockjs edge; `variables` go on top of what it needs, and `webhooks` are the app's. */
export async function startEdge(variables = {}, webhooks = []) {
  const edge = await start("edge", {
    REALTIME_SERVER: "sockjs",
    REALTIME_PUBLIC_ADDRESS: "127.0.0.1:0",
    REALTIME_TRANSPORTS: "xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource",
    REALTIME_WEBHOOKS: "off",
    REALTIME_BUS: "memory",
    ...variables,
  }, webhooks);
  const port = portOf((await edge.started()).public);
  const sdk = new Pusher({ appId: "1", key: KEY, secret: SECRET, host: "127.0.0.1", port: String(port), useTLS: false });
  return { ...edge, port, sdk };
}

/** A dispatcher that may send to loopback. */
export async function startDispatcher(variables, webhooks) {
  const dispatcher = await start("dispatcher", {
    REALTIME_SERVER: "dispatcher",
    REALTIME_LEASES: "memory",
    REALTIME_ALLOWED_NETWORKS: "127.0.0.0/8",
    ...variables,
  }, webhooks);
  await dispatcher.started();
  return dispatcher;
}

async function start(command, variables, webhooks) {
  const folder = await mkdtemp(join(tmpdir(), `${command}-`));
  const credentials = [{ key: KEY, secret: SECRET, state: "Active" }];
  const limits = { clientEventsPerSecond: 1000 };
  const app = { id: "1", credentials, enabled: true, clientEvents: true, limits, webhooks };
  await writeFile(join(folder, "0.json"), JSON.stringify([app]));
  const child = spawnBound(BIN, [command], {
    env: { ...cleanEnvironment(), ...COMMON, REALTIME_APPS_PATH: folder, ...variables },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(code ?? signal)));
  let end;
  ended.then((how) => (end = how));
  const lines = [];
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on("line", (line) => lines.push(line));
  return {
    lines,
    /** What it logs once it serves. */
    started: () => eventually(() => {
      const fields = startedFields(lines);
      if (!fields && end !== undefined) throw new Error(`${command} ended with ${end}: ${lines.join("\n")}`);
      return fields;
    }, () => `no line with the addresses of the ${command}: ${lines.join("\n")}`, START_SECONDS),
    /** Ends it as a node does that loses its power. */
    async kill() {
      child.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true });
    },
    /** Ends it as kubelet does after so many seconds' grace, and answers with its exit code. */
    async stop(grace = 20) {
      child.kill("SIGTERM");
      const hung = setTimeout(() => child.kill("SIGKILL"), grace * 1000);
      const how = await ended;
      clearTimeout(hung);
      await rm(folder, { recursive: true, force: true });
      return how;
    },
  };
}
