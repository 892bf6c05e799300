// One cluster for all test files of the tier: starts it, runs a command with CLUSTER telling where it is, stops it.
//   node shared.mjs DIR COMMAND…      such as: node shared.mjs DIR node --test --test-concurrency=1 tests/cluster/x.test.mjs
// IMAGE is the archive of the image, BINARIES the folder of the project's binaries. What a killed run left in DIR is
// stopped first, and DIR is stopped in every case; its logs stay when the command fails.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";

const SCRIPT = fileURLToPath(new URL("kubernetes", import.meta.url));

const [dir, ...command] = process.argv.slice(2);
const { IMAGE, BINARIES } = process.env;
if (command.length === 0 || !IMAGE || !BINARIES) {
  console.error("run this through ./test cluster");
  process.exit(2);
}

/** Runs `kubernetes WORDS`; what it says is shown when it fails. */
function kubernetes(...words) {
  const { status, stdout, stderr } = spawnSync(SCRIPT, words, { encoding: "utf8" });
  if (status !== 0) throw new Error(`kubernetes ${words.join(" ")} ended with ${status}: ${stdout}${stderr}`);
  return stdout.trim();
}

/** A port that is free, as the two after it are. */
async function freePorts() {
  for (let port = 16440; port < 18000; port += 10) {
    const free = await Promise.all([0, 1, 2].map((offset) => isFree(port + offset)));
    if (free.every(Boolean)) return port;
  }
  throw new Error("no three free ports in a row");
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "0.0.0.0", () => server.close(() => resolve(true)));
  });
}

/** What is mounted in it must outlive this, if `down` could not unmount it. */
function remove() {
  spawnSync("rm", ["-rf", "--one-file-system", dir]);
}

function seconds(since) {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`;
}

let child;
let stopping = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => {
    stopping = true;
    child?.kill("SIGTERM");
  });
}

function run() {
  return new Promise((resolve) => {
    child = spawn(command[0], command.slice(1), {
      stdio: "inherit",
      env: { ...process.env, CLUSTER: JSON.stringify({ dir, bin: kubernetes("bin"), binaries: BINARIES }) },
    });
    child.once("error", (error) => {
      console.error(`${command[0]} did not start: ${error.message}`);
      resolve(1);
    });
    child.once("exit", (code) => resolve(code ?? 1));
  });
}

let code = 1;
const began = Date.now();
try {
  if (existsSync(dir)) kubernetes("down", dir);
  remove();
  mkdirSync(dir, { recursive: true });
  kubernetes("up", dir, String(await freePorts()));
  kubernetes("import", dir, IMAGE);
  console.log(`cluster up in ${seconds(began)}`);
  if (!stopping) code = await run();
} catch (error) {
  console.error(error.message);
} finally {
  const ended = Date.now();
  kubernetes("down", dir);
  console.log(`cluster down in ${seconds(ended)}`);
  if (code === 0) remove();
  else console.error(`logs of the cluster: ${dir}/log`);
}
process.exitCode = code;
