// Flux's controllers as plain processes beside an API server, with artifacts from this process instead of a source-controller.
import { createHash } from "node:crypto";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { stringify } from "yaml";

import { runChecked, spawnLogged, startOnFreePorts, waitUntilReady } from "../conformance/processes.mjs";
import { established, get, kubectl, KUBECONFIG, moduleFolder, tearDown } from "../cluster/harness.mjs";
import { chartFolder, helm } from "../cluster/helm.mjs";

const MODULE = fileURLToPath(new URL("flux", import.meta.url));

/** The namespace of the controllers and of the sources in examples/flux. */
export const NAMESPACE = "flux-system";

const scratch = mkdtempSync(`${tmpdir()}/flux-`);
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

/** Applies the CRDs of Flux. */
export async function applyFluxCrds() {
  for (const name of ["source-controller", "kustomize-controller", "helm-controller"]) {
    const folder = await moduleFolder(MODULE, `github.com/fluxcd/${name}`);
    await kubectl(["apply", "--server-side", "-f", `${folder}/config/crd/bases`]);
  }
  const kinds = ["gitrepositories.source", "ocirepositories.source", "kustomizations.kustomize", "helmreleases.helm"];
  await established(...kinds.map((kind) => `${kind}.toolkit.fluxcd.io`));
}

/** Starts a controller, which ends with this process. */
export async function startController(name, ...args) {
  const controller = await startOnFreePorts(2, async (metrics, health) => {
    const listeners = [`--metrics-addr=127.0.0.1:${metrics}`, `--health-addr=127.0.0.1:${health}`];
    const env = { ...process.env, KUBECONFIG, RUNTIME_NAMESPACE: NAMESPACE };
    const started = spawnLogged(`${process.env.FLUX_BIN}/${name}`, [...listeners, "--watch-all-namespaces=true", ...args], { env });
    await waitUntilReady(name, started, (log) => log.includes("Starting workers"));
    return started;
  });
  tearDown(() => controller.stop("SIGTERM"));
  return controller;
}

/** The server of artifacts, on loopback: `add(content)` answers with the fields of an artifact. */
async function serveArtifacts() {
  const contents = new Map();
  const server = createServer((request, response) => {
    const content = contents.get(request.url);
    response.writeHead(content ? 200 : 404).end(content);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  server.unref();
  return (content) => {
    const digest = createHash("sha256").update(content).digest("hex");
    const path = `/${digest}.tar.gz`;
    contents.set(path, content);
    return { url: `http://127.0.0.1:${server.address().port}${path}`, path: path.slice(1), digest: `sha256:${digest}`, size: content.length };
  };
}

const addArtifact = await serveArtifacts();
let revisions = 0;

/** Writes the status of a source as source-controller does after a fetch. */
async function publish(kind, name, revision, artifact) {
  const { metadata } = await get(kind, NAMESPACE, name);
  const lastTransitionTime = new Date().toISOString();
  const status = {
    observedGeneration: metadata.generation,
    artifact: { ...artifact, revision, lastUpdateTime: lastTransitionTime },
    conditions: [{ type: "Ready", status: "True", reason: "Succeeded", message: `stored artifact ${revision}`, observedGeneration: metadata.generation, lastTransitionTime }],
  };
  await kubectl(["patch", kind, name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", JSON.stringify({ status })]);
}

/** Commits these files, objects by path, to a GitRepository. */
export async function commit(name, files) {
  revisions += 1;
  const folder = `${scratch}/${revisions}`;
  for (const [path, object] of Object.entries(files)) {
    mkdirSync(dirname(`${folder}/${path}`), { recursive: true });
    writeFileSync(`${folder}/${path}`, stringify(object));
  }
  await runChecked("tar", ["-czf", `${folder}.tar.gz`, "-C", folder, "."]);
  const content = readFileSync(`${folder}.tar.gz`);
  const revision = `main@sha1:${createHash("sha1").update(content).digest("hex")}`;
  await publish("gitrepository", name, revision, addArtifact(content));
  return revision;
}

/** Pushes a chart of this project to an OCIRepository. */
export async function pushChart(name) {
  const folder = `${scratch}/charts`;
  cpSync(chartFolder(name), `${folder}/${name}`, { recursive: true });
  await helm(["package", `${folder}/${name}`, "--destination", folder]);
  const artifact = addArtifact(readFileSync(`${folder}/${name}-0.2.0.tgz`));
  await publish("ocirepository", name, `0.2.0@${artifact.digest}`, artifact);
}

/** Has a controller look at an object now. */
export const reconcile = (kind, namespace, name) =>
  kubectl(["annotate", kind, name, "-n", namespace, "--overwrite", `reconcile.fluxcd.io/requestedAt=${new Date().toISOString()}`]);
