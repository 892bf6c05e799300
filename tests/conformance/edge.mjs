// An edge alone, as a pod runs it: no stream, the bus in memory, one app.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import Pusher from "pusher";

import { portOf, spawnLogged, startedFields, startOnFreePorts, waitUntilReady } from "./processes.mjs";
import { BIN, cleanEnvironment } from "./rehearsal.mjs";

export const KEY = "key1";
export const SECRET = "secret1";

/** The token of the admin listeners. */
export const ADMIN_TOKEN = "token";

/** What each process needs that runs alone. */
const COMMON = {
  REALTIME_CLUSTER: "ns/eu",
  REALTIME_CLUSTER_UID: "uid-1",
  REALTIME_POD: "pod-1",
  REALTIME_ADMIN_ADDRESS: "127.0.0.1:0",
  REALTIME_ADMIN_TOKEN: ADMIN_TOKEN,
  REALTIME_ADMISSION: "none",
  REALTIME_AWS_IDENTITY: "StaticKeys",
  AWS_ACCESS_KEY_ID: "a",
  AWS_SECRET_ACCESS_KEY: "b",
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
  const port = portOf(edge.started.public);
  const sdk = new Pusher({ appId: "1", key: KEY, secret: SECRET, host: "127.0.0.1", port: String(port), useTLS: false });
  return { ...edge, port, sdk };
}

/**
 * Edges on one Redis that relay to each other: each has an address of loopback, and all have one peer port. `restart(n)`
 * starts the edge at `edges[n]` again, once it has ended.
 */
export function startRelayingEdges(count, redisPort, variables = {}, webhooks = []) {
  return startOnFreePorts(1, async (peerPort) => {
    const start = (n) => startEdge({
      REALTIME_BUS: "redis",
      REALTIME_REDIS_URL: `redis://127.0.0.1:${redisPort}`,
      REALTIME_POD_IP: `127.0.0.${n + 1}`,
      REALTIME_PEER_ADDRESS: `127.0.0.${n + 1}:${peerPort}`,
      REALTIME_PEER_SECRET: "between-edges",
      ...variables,
    }, webhooks);
    const starts = await Promise.allSettled(Array.from({ length: count }, (_, n) => start(n)));
    const edges = starts.flatMap(({ value }) => value ?? []);
    const failed = starts.find(({ status }) => status === "rejected");
    if (failed) {
      await Promise.all(edges.map((edge) => edge.kill()));
      throw failed.reason;
    }
    return {
      edges,
      async restart(n) {
        edges[n] = await start(n);
      },
    };
  });
}

/** A dispatcher that may send to loopback. */
export function startDispatcher(variables, webhooks) {
  return start("dispatcher", {
    REALTIME_SERVER: "dispatcher",
    REALTIME_LEASES: "memory",
    REALTIME_ALLOWED_NETWORKS: "127.0.0.0/8",
    ...variables,
  }, webhooks);
}

async function start(command, variables, webhooks) {
  const folder = await mkdtemp(join(tmpdir(), `${command}-`));
  const credentials = [{ key: KEY, secret: SECRET, state: "Active" }];
  const limits = { clientEventsPerSecond: 1000 };
  const app = { id: "1", credentials, enabled: true, clientEvents: true, limits, webhooks };
  await writeFile(join(folder, "0.json"), JSON.stringify([app]));
  const program = spawnLogged(BIN, [command], { env: { ...cleanEnvironment(), ...COMMON, REALTIME_APPS_PATH: folder, ...variables } });
  const remove = () => rm(folder, { recursive: true, force: true });
  let started;
  try {
    started = await waitUntilReady(`realtime ${command}`, program, (log) => startedFields(log.split("\n")));
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    /** The fields of the line that it logs once it serves. */
    started,
    log: program.log,
    hasEnded: program.hasEnded,
    /** Ends it as a node does that loses its power. */
    async kill() {
      await program.stop();
      await remove();
    },
    /** Ends it as kubelet does after so many seconds' grace, and answers with its exit code. */
    async stop(grace = 20) {
      const hung = setTimeout(() => program.child.kill("SIGKILL"), grace * 1000);
      await program.stop("SIGTERM");
      clearTimeout(hung);
      await remove();
      return program.child.exitCode ?? program.child.signalCode;
    },
  };
}
