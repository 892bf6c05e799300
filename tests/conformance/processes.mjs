// Programs and ports of tests: no program outlives the process that started it, and no port is given to two tests.
import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { tmpdir } from "node:os";

/** Below the ephemeral ports, which the kernel gives to any connection, and below the node ports of Kubernetes. */
const [CANDIDATE_PORTS_START, CANDIDATE_PORTS_END] = [20_000, 30_000];

/**
 * A UDP socket on this address claims the TCP port of its number: it is in no server's way, also not in that of one that
 * listens on all addresses.
 */
const CLAIM_ADDRESS = "127.77.0.1";

/** Draws until a port is found that no test has claimed: far more than there are tests. */
const DRAWS_MAX = 1_000;

/** Starts of one program, each with other ports. Programs that are no tests have few ports. */
const STARTS_MAX = 5;

/** Longest until a program serves: a busy machine reads a binary for a while. */
const PROGRAM_TIMEOUT_MS = 60_000;

/** Time between two looks at the log of a program. */
const LOG_INTERVAL_MS = 20;

const children = new Set();

function killChildren() {
  for (const child of children) child.kill("SIGKILL");
}

// The first covers errors that nobody caught, and the end of a run whose set-up failed.
process.on("exit", killChildren);
for (const [signal, number] of [["SIGHUP", 1], ["SIGINT", 2], ["SIGTERM", 15]]) {
  process.on(signal, () => process.exit(128 + number));
}

/** Spawns a program that ends with this process; the kernel sees to it where this process is killed. */
export function spawnBound(program, args = [], options = {}) {
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", program, ...args], options);
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

/**
 * Draws a port that no test has drawn, and claims it for as long as this process runs, so that a server that is stopped
 * finds it free when it starts again. Tests in other processes, also those in Rust, claim in the same way. The port may
 * still be in use by a program that is no test: only its server's own attempt to listen shows that.
 */
async function drawPort() {
  for (let draw = 0; draw < DRAWS_MAX; draw += 1) {
    const port = CANDIDATE_PORTS_START + Math.floor(Math.random() * (CANDIDATE_PORTS_END - CANDIDATE_PORTS_START));
    if (await claimPort(port)) return port;
  }
  throw new Error(`none of ${DRAWS_MAX} ports from ${CANDIDATE_PORTS_START} to ${CANDIDATE_PORTS_END} is unclaimed`);
}

/** Whether the port was unclaimed. The claim does not keep this process alive. */
function claimPort(port) {
  const socket = createSocket("udp4");
  return new Promise((resolve, reject) => {
    socket.once("error", (error) => (error.code === "EADDRINUSE" ? resolve(false) : reject(error)));
    socket.bind({ port, address: CLAIM_ADDRESS, exclusive: true }, () => resolve(Boolean(socket.unref())));
  });
}

/**
 * Starts servers that cannot report a port that the kernel chose: `start(...ports)` gets `count` of them. Starts again with
 * other ports when its error, which has the server's log, says that one is in use.
 */
export async function startOnFreePorts(count, start) {
  const failures = [];
  while (failures.length < STARTS_MAX) {
    const ports = await Promise.all(Array.from({ length: count }, drawPort));
    try {
      return await start(...ports);
    } catch (error) {
      if (!/address already in use|EADDRINUSE/i.test(error.message)) throw error;
      failures.push(error.message);
    }
  }
  throw new Error(`${STARTS_MAX} starts in a row met a port in use:\n${failures.join("\n")}`);
}

/** Spawns a program that ends with this process, and keeps its log: `log()` is all that it has printed. */
export function spawnLogged(program, args, options = {}) {
  const child = spawnBound(program, args, { ...options, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (text += chunk));
  let hasEnded = false;
  const ended = new Promise((resolve) => {
    const end = () => {
      hasEnded = true;
      resolve();
    };
    child.once("close", end);
    child.once("error", (error) => {
      text += `${program} does not start: ${error.message}`;
      end();
    });
  });
  return {
    child,
    log: () => text,
    hasEnded: () => hasEnded,
    async stop(signal = "SIGKILL") {
      child.kill(signal);
      await ended;
    },
  };
}

/**
 * Waits until `ready` finds something in the log of a program, and answers with it. A program that ends before, or does not
 * get so far in time, is stopped; the error has its log.
 */
export async function waitUntilReady(name, program, ready) {
  const end = Date.now() + PROGRAM_TIMEOUT_MS;
  for (;;) {
    // Asked before the look at the log: the last line of a program that ended must not be missed.
    const hasEnded = program.hasEnded();
    const log = program.log();
    const found = ready(log);
    if (found) return found;
    if (hasEnded || Date.now() > end) {
      await program.stop();
      throw new Error(`${name} ${hasEnded ? "ended before it served" : `does not serve after ${PROGRAM_TIMEOUT_MS / 1000} s`}; its log:\n${log}`);
    }
    await new Promise((resolve) => setTimeout(resolve, LOG_INTERVAL_MS));
  }
}

/** An empty Redis on `host`, in memory: its port, and the program that `launch` spawned with its arguments. */
export function startRedis({ host = "127.0.0.1", launch = (args) => spawnLogged("redis-server", args, { cwd: tmpdir() }) } = {}) {
  return startOnFreePorts(1, async (port) => {
    const program = await launch(["--bind", host, "--port", String(port), "--protected-mode", "no", "--save", "", "--appendonly", "no"]);
    await waitUntilReady("redis-server", program, (log) => log.includes("Ready to accept connections"));
    return { port, ...program };
  });
}

/**
 * The fields of the line that a server logs once it serves, if it did: an edge has `public` and `admin`, a dispatcher
 * `address`. The text of the line is for people and may change.
 */
export function startedFields(lines) {
  const isAddress = (text) => typeof text === "string" && /^\S+:\d+$/.test(text);
  for (const line of lines) {
    let fields;
    try {
      ({ fields } = JSON.parse(line));
    } catch {
      continue;
    }
    if (!fields?.process) continue;
    if ((isAddress(fields.public) && isAddress(fields.admin)) || isAddress(fields.address)) return fields;
  }
  return undefined;
}

/** The port of an address such as `127.0.0.1:80`. */
export const portOf = (address) => Number(address.slice(address.lastIndexOf(":") + 1));

/** The ports of the Kinesis of the tests and of its controls, once it has written them. */
export function kinesisPorts(log) {
  const found = /kinesis on \S+:(\d+), control on \S+:(\d+)/.exec(log);
  return found && { port: Number(found[1]), control: Number(found[2]) };
}

/** Runs a program that reads `input` to its end, whatever that is: `{ code, stdout, stderr }`. `options` are those of spawn. */
export async function run(program, args = [], { input = "", ...options } = {}) {
  const child = spawnBound(program, args, { ...options, stdio: ["pipe", "pipe", "pipe"] });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk) => (stdout += chunk));
  child.stderr.on("data", (chunk) => (stderr += chunk));
  // It may end before it has read all.
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  const [code] = await once(child, "close");
  return { code, stdout, stderr };
}

/** The output of a program; fails when the program does. */
export async function runChecked(program, args, options) {
  const { code, stdout, stderr } = await run(program, args, options);
  if (code !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** The answers of a program to requests: it reads one line of JSON for each, and prints one line of JSON for each. */
export async function exchangeLines(program, requests, options) {
  const input = requests.map((request) => `${JSON.stringify(request)}\n`).join("");
  const stdout = await runChecked(program, [], { ...options, input });
  return stdout.trim().split("\n").map((line) => JSON.parse(line));
}
