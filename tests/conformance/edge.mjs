// An edge alone, as a pod runs it: no stream, the bus in memory, one app.
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import Pusher from "pusher";

import { BIN, cleanEnvironment, eventually } from "./rehearsal.mjs";

export const KEY = "key1";
const SECRET = "secret1";

/** A sockjs edge; `variables` go on top of what it needs. */
export async function startEdge(variables = {}) {
  const folder = await mkdtemp(join(tmpdir(), "edge-"));
  const credentials = [{ key: KEY, secret: SECRET, state: "Active" }];
  const limits = { clientEventsPerSecond: 1000 };
  const app = { id: "1", credentials, enabled: true, clientEvents: true, limits, webhooks: [] };
  await writeFile(join(folder, "0.json"), JSON.stringify([app]));
  const child = spawn(BIN, ["edge"], {
    env: {
      ...cleanEnvironment(),
      REALTIME_CLUSTER: "ns/eu",
      REALTIME_CLUSTER_UID: "uid-1",
      REALTIME_SERVER: "sockjs",
      REALTIME_POD: "pod-1",
      REALTIME_ADMIN_ADDRESS: "127.0.0.1:0",
      REALTIME_PUBLIC_ADDRESS: "127.0.0.1:0",
      REALTIME_ADMIN_TOKEN: "token",
      REALTIME_APPS_PATH: folder,
      REALTIME_TRANSPORTS: "xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource",
      REALTIME_WEBHOOKS: "off",
      REALTIME_BUS: "memory",
      REALTIME_ADMISSION: "none",
      REALTIME_AWS_IDENTITY: "PodIdentity",
      AWS_REGION: "eu-west-1",
      ...variables,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(code ?? signal)));
  const lines = [];
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on("line", (line) => lines.push(line));
  const address = () => lines.map((line) => /the edge serves.*?127\.0\.0\.1:(\d+)|"public":"127\.0\.0\.1:(\d+)"/.exec(line)).find(Boolean);
  const found = await eventually(address, () => `no address: ${lines.join("\n")}`, 60);
  const port = Number(found[1] ?? found[2]);
  return {
    port,
    sdk: new Pusher({ appId: "1", key: KEY, secret: SECRET, host: "127.0.0.1", port: String(port), useTLS: false }),
    /** Ends it as kubelet does, and answers with its exit code. */
    async stop() {
      child.kill("SIGTERM");
      const hung = setTimeout(() => child.kill("SIGKILL"), 20_000);
      const how = await ended;
      clearTimeout(hung);
      await rm(folder, { recursive: true });
      return how;
    },
  };
}
