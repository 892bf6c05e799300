// The server SDK that Python has, in a process of its own.
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { MASTER_KEY } from "./clients.mjs";
import { spawnBound } from "./processes.mjs";
import { cleanEnvironment } from "./rehearsal.mjs";

const PYTHON = process.env.CONFORMANCE_PYTHON;
if (!PYTHON) throw new Error("CONFORMANCE_PYTHON names no Python with the SDK: run this through ./test conformance");

/** Longest that a call may take. */
const PATIENCE_MS = 20_000;

/** A client of the SDK for each of a rehearsal's apps. */
export function startPython({ api, apps }) {
  const child = spawnBound(PYTHON, [fileURLToPath(new URL("./python/sdk.py", import.meta.url))], {
    env: cleanEnvironment(),
    stdio: ["pipe", "pipe", "pipe"],
  });
  const ended = new Promise((resolve) => {
    child.once("error", (error) => resolve(`${PYTHON} did not start: ${error.message}`));
    child.once("close", (code, signal) => resolve(code ?? signal));
  });
  let errors = "";
  child.stderr.on("data", (chunk) => (errors += chunk));
  // It may end before it has read all.
  child.stdin.on("error", () => {});
  const waiting = [];
  createInterface({ input: child.stdout }).on("line", (line) => waiting.shift()(line));
  const server = { host: api.host, port: api.port, ssl: false, encryption_master_key_base64: MASTER_KEY };
  const options = ({ id, key, secret }) => ({ app_id: id, key, secret, ...server });
  child.stdin.write(`${JSON.stringify(Object.fromEntries(apps.map((app) => [app.id, options(app)])))}\n`);

  /** What a method of the SDK answers: an answer of `null` is none; `error` is the name of what it raised. */
  async function call(app, method, args = {}) {
    let late;
    const line = new Promise((resolve) => waiting.push(resolve));
    const hung = new Promise((resolve) => (late = setTimeout(resolve, PATIENCE_MS, "nothing")));
    child.stdin.write(`${JSON.stringify({ app, method, arguments: args })}\n`);
    const how = await Promise.race([line, hung, ended.then((code) => `an end with ${code}`)]);
    clearTimeout(late);
    if (!String(how).startsWith("{")) throw new Error(`${method} was answered by ${how}: ${errors}`);
    return JSON.parse(how);
  }

  return {
    call,
    /** What it answers; an error is one. */
    async ask(app, method, args) {
      const { answer, error, message } = await call(app, method, args);
      if (error) throw new Error(`${method}: ${error}: ${message}`);
      return answer;
    },
    /** Ends it, and answers with its exit code. */
    async stop() {
      child.stdin.end();
      const hung = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
      const how = await ended;
      clearTimeout(hung);
      return how;
    },
  };
}
