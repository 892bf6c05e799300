// The process of clients, as a test speaks with it.
import { once } from "node:events";
import { fileURLToPath } from "node:url";

import { AUTHORITY, bareEnvironment } from "./front.mjs";
import { HOST } from "../cluster/harness.mjs";
import { spawnBound } from "../conformance/processes.mjs";

const PROGRAM = fileURLToPath(new URL("client_process.mjs", import.meta.url));

/** Starts a process of clients: `open`, `look`, `publish`, `get` and `close` are its commands; `stop()` ends it. */
export function startClients() {
  const env = bareEnvironment({ NODE_EXTRA_CA_CERTS: AUTHORITY, FRONT: HOST });
  const child = spawnBound(process.execPath, [PROGRAM], { env, stdio: ["ignore", "inherit", "inherit", "ipc"] });
  const asked = new Map();
  child.on("message", ({ id, value, error }) => {
    const { resolve, reject } = asked.get(id);
    asked.delete(id);
    if (error === undefined) resolve(value);
    else reject(new Error(error));
  });
  child.once("exit", (code) => {
    for (const { reject } of asked.values()) reject(new Error(`the process of clients ended with ${code}`));
  });
  let count = 0;
  const ask = (command) => (argument) =>
    new Promise((resolve, reject) => {
      count += 1;
      asked.set(count, { resolve, reject });
      child.send({ id: count, command, argument });
    });
  return {
    open: ask("open"),
    look: ask("look"),
    publish: ask("publish"),
    get: ask("get"),
    close: ask("close"),
    async stop() {
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    },
  };
}
