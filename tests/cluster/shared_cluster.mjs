// One cluster for all test files of the tier: starts it, runs a command with CLUSTER telling where it is, stops it.
//   node shared_cluster.mjs DIR COMMAND…      such as: node shared_cluster.mjs DIR node --test tests/cluster/x.test.mjs
// IMAGE is the archive of the image, BINARIES the folder of the project's binaries; without IMAGE it is an API server alone,
// without a node. A cluster that is still in DIR is stopped first, and this one is stopped in every case, also when this
// process is killed; its logs stay when the command fails. With TEST_KEEP=1 it is left as the command leaves it. CLUSTERS=2 starts a
// second one beside it, in DIR-2.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { startOnFreePorts } from "../conformance/processes.mjs";

const SCRIPT = fileURLToPath(new URL("kubernetes", import.meta.url));

const [dir, ...command] = process.argv.slice(2);
const { IMAGE, BINARIES, TEST_KEEP, CLUSTERS = "1" } = process.env;
if (command.length === 0 || !BINARIES) {
  console.error("run this through ./test cluster or ./test chart");
  process.exit(2);
}

/** The folders of the clusters, the first of which is DIR. */
const folders = [dir, `${dir}-2`].slice(0, Number(CLUSTERS));

/** Longest that a command of the script takes: the start of a cluster on a busy machine. */
const SCRIPT_TIMEOUT_MS = 300_000;

/** Runs `kubernetes WORDS`; what it says is shown when it fails. */
function kubernetes(...words) {
  // The number of a cluster is the place of its folder; a command without one asks about none.
  const number = Math.max(0, folders.indexOf(words[1])) + 1;
  const env = { ...process.env, CLUSTER_NUMBER: String(number) };
  const { status, signal, stdout, stderr } = spawnSync(SCRIPT, words, { encoding: "utf8", timeout: SCRIPT_TIMEOUT_MS, env });
  if (status !== 0) throw new Error(`kubernetes ${words.join(" ")} ended with ${signal ?? status}: ${stdout}${stderr}`);
  return stdout.trim();
}

/** What is mounted in it must outlive this, if `down` could not unmount it. */
function remove(folder) {
  spawnSync("rm", ["-rf", "--one-file-system", folder]);
}

function seconds(since) {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`;
}

let child;
let stopping = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  // The processes of tests end with the signal; the cluster must be stopped before this one does.
  process.removeAllListeners(signal);
  process.on(signal, () => {
    stopping = true;
    child?.kill("SIGTERM");
  });
}

function run() {
  return new Promise((resolve) => {
    child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...command], {
      stdio: "inherit",
      env: { ...process.env, CLUSTER: JSON.stringify({ dir, second: folders[1], bin: kubernetes("bin"), binaries: BINARIES }) },
    });
    child.once("error", (error) => {
      console.error(`${command[0]} did not start: ${error.message}`);
      resolve(1);
    });
    child.once("exit", (code) => resolve(code ?? 1));
  });
}

/** Stops the cluster should this process be killed. It has a session of its own, so that what kills this does not kill it. */
function guard(folder) {
  spawn(SCRIPT, ["guard", folder, String(process.pid)], { stdio: "ignore", detached: true }).unref();
}

/** Starts a cluster with these ports; what started is stopped when a port is in use. */
function startKubernetes(folder, ...ports) {
  try {
    kubernetes(IMAGE ? "up" : "api", folder, ...ports.map(String));
  } catch (error) {
    kubernetes("down", folder);
    // etcd remembers its address.
    rmSync(`${folder}/etcd`, { recursive: true, force: true });
    throw error;
  }
}

/** Starts a cluster in place of one that is still in its folder. */
async function startCluster(folder) {
  if (existsSync(folder)) kubernetes("down", folder);
  remove(folder);
  mkdirSync(folder, { recursive: true });
  if (TEST_KEEP !== "1") guard(folder);
  await startOnFreePorts(3, (...ports) => startKubernetes(folder, ...ports));
  if (IMAGE) kubernetes("import", folder, IMAGE);
}

let code = 1;
const began = Date.now();
try {
  for (const folder of folders) await startCluster(folder);
  console.log(`${IMAGE ? "cluster" : "API server"} up in ${seconds(began)}`);
  if (!stopping) code = await run();
} catch (error) {
  console.error(error.message);
} finally {
  if (TEST_KEEP === "1") {
    for (const folder of folders) {
      console.log(`the cluster is left: export KUBECONFIG=${folder}/pki/admin.kubeconfig PATH=${kubernetes("bin")}:$PATH`);
      console.log(`to stop it: ${SCRIPT} down ${folder}`);
    }
  } else {
    const ended = Date.now();
    for (const folder of folders) {
      kubernetes("down", folder);
      rmSync(`${folder}/owner`, { force: true });
    }
    console.log(`cluster down in ${seconds(ended)}`);
    for (const folder of folders) {
      if (code === 0) remove(folder);
      else console.error(`logs of the cluster: ${folder}/log`);
    }
  }
}
process.exitCode = code;
