// A real Traefik in front of the node, by Gateway and by Ingress, and the authority of its certificates.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";

import { apply, DIR, established, HOST, kubectl, KUBECONFIG, moduleFolder, OPERATOR_NAMESPACE, start, wait } from "../cluster/harness.mjs";

/** Kinds of the Gateway API that Traefik watches. */
const GATEWAY_KINDS = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants", "backendtlspolicies"];

/** The namespace of the Gateway, which is the platform's. */
export const GATEWAY_NAMESPACE = "gateways";

/** Every public host of the tests; one certificate covers all. */
export const DOMAIN = "example.test";

/** File with the authority's certificate, for clients and for the operator. */
export const AUTHORITY = `${DIR}/authority.pem`;

/** The environment of a program that must see nothing of this machine's own. */
export const bareEnvironment = (extra) => ({ PATH: process.env.PATH, HOME: DIR, ...extra });

function openssl(...args) {
  execFileSync("openssl", args, { stdio: ["ignore", "ignore", "pipe"] });
}

/** An authority, and a certificate of it for every host below the domain, as a Secret's data. */
function createCertificate() {
  const at = (name) => `${DIR}/${name}`;
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  openssl("req", "-x509", ...key, "-keyout", at("authority.key"), "-out", AUTHORITY, "-subj", "/CN=Authority of the tests");
  openssl("req", ...key.filter((word) => !["-days", "2"].includes(word)), "-keyout", at("front.key"), "-out", at("front.csr"), "-subj", `/CN=${DOMAIN}`);
  writeFileSync(at("front.ext"), `subjectAltName=DNS:*.${DOMAIN}\nextendedKeyUsage=serverAuth\n`);
  openssl("x509", "-req", "-in", at("front.csr"), "-CA", AUTHORITY, "-CAkey", at("authority.key"), "-CAcreateserial", "-days", "2", "-extfile", at("front.ext"), "-out", at("front.pem"));
  return { "tls.crt": readFileSync(at("front.pem"), "utf8"), "tls.key": readFileSync(at("front.key"), "utf8") };
}

/** A Secret with the certificate, in a namespace that exists. */
export function certificateSecret(namespace, stringData) {
  return apply({ apiVersion: "v1", kind: "Secret", type: "kubernetes.io/tls", metadata: { name: "front-tls", namespace }, stringData });
}

/** Has the operator's pods trust the authority, as docs/exposure.md says. */
async function trustAuthority() {
  const data = { "ca.pem": readFileSync(AUTHORITY, "utf8") };
  await apply({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "authority", namespace: OPERATOR_NAMESPACE }, data });
  const container = {
    name: "operator",
    env: [{ name: "SSL_CERT_FILE", value: "/etc/authority/ca.pem" }],
    volumeMounts: [{ name: "authority", mountPath: "/etc/authority" }],
  };
  const spec = { volumes: [{ name: "authority", configMap: { name: "authority" } }], containers: [container] };
  await kubectl(["patch", "deployment", "realtime-operator", "-n", OPERATOR_NAMESPACE, "-p", JSON.stringify({ spec: { template: { spec } } })]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=90s"]);
}

async function applyGatewayKinds() {
  const folder = await moduleFolder(fileURLToPath(new URL("../chart/gateways", import.meta.url)), "sigs.k8s.io/gateway-api");
  await kubectl(["apply", "--server-side", "-f", `${folder}/config/crd/standard/`]);
  await established(...GATEWAY_KINDS.map((kind) => `${kind}.gateway.networking.k8s.io`));
}

/** The classes of the two ways in, and the Gateway `public` whose listeners are on Traefik's entry points. */
async function applyClasses(certificate) {
  await apply({ apiVersion: "networking.k8s.io/v1", kind: "IngressClass", metadata: { name: "traefik" }, spec: { controller: "traefik.io/ingress-controller" } });
  await apply({ apiVersion: "gateway.networking.k8s.io/v1", kind: "GatewayClass", metadata: { name: "traefik" }, spec: { controllerName: "traefik.io/gateway-controller" } });
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: GATEWAY_NAMESPACE } });
  await certificateSecret(GATEWAY_NAMESPACE, certificate);
  const allowedRoutes = { namespaces: { from: "All" } };
  const listeners = [
    { name: "http", protocol: "HTTP", port: 80, allowedRoutes },
    { name: "https", protocol: "HTTPS", port: 443, allowedRoutes, tls: { certificateRefs: [{ name: "front-tls" }] } },
  ];
  await apply({ apiVersion: "gateway.networking.k8s.io/v1", kind: "Gateway", metadata: { name: "public", namespace: GATEWAY_NAMESPACE }, spec: { gatewayClassName: "traefik", listeners } });
}

/** Whether something listens on a port of the node. */
const listens = (port) =>
  new Promise((resolve, reject) => {
    const socket = connect(port, HOST);
    socket.once("connect", () => resolve(true) || socket.destroy());
    socket.once("error", reject);
  });

/**
 * Starts Traefik on ports 80 and 443 of the node, with the times that docs/self-managed.md asks for. `requests()` is its own
 * log of requests: host, path, status.
 */
async function startTraefik() {
  const accessLog = `${DIR}/log/traefik-requests.log`;
  const middlewares = `${DIR}/traefik-middlewares.yaml`;
  // The one that no front of a stream may have: it holds an answer back until the answer is complete.
  writeFileSync(middlewares, "http: { middlewares: { buffered: { buffering: { maxResponseBodyBytes: 1048576 } } } }\n");
  const running = start("traefik", process.env.TRAEFIK, [
    "--global.checknewversion=false", "--global.sendanonymoususage=false", "--log.level=INFO",
    `--entrypoints.web.address=${HOST}:80`, `--entrypoints.websecure.address=${HOST}:443`, "--entrypoints.websecure.http.tls=true",
    "--entrypoints.websecure.transport.respondingTimeouts.readTimeout=0", "--entrypoints.websecure.transport.respondingTimeouts.idleTimeout=180s",
    "--accesslog=true", "--accesslog.format=json", `--accesslog.filepath=${accessLog}`,
    `--providers.file.filename=${middlewares}`,
    "--providers.kubernetesgateway=true", `--providers.kubernetesgateway.statusaddress.ip=${HOST}`,
    "--providers.kubernetesingress=true", `--providers.kubernetesingress.ingressendpoint.ip=${HOST}`,
  ], { env: bareEnvironment({ KUBECONFIG }) });
  await wait(async () => {
    if (running.hasEnded()) throw new Error(running.log());
    return (await listens(80)) && (await listens(443));
  }, { what: "Traefik on ports 80 and 443" });
  const requests = () => readFileSync(accessLog, "utf8").split("\n").slice(0, -1).map((line) => JSON.parse(line));
  return { ...running, requests };
}

/** Starts the front with all that the platform's team has: kinds, classes, Gateway, certificate; the operator trusts it. */
export async function startFront() {
  const certificate = createCertificate();
  await Promise.all([applyGatewayKinds(), trustAuthority()]);
  await applyClasses(certificate);
  const traefik = await startTraefik();
  return { certificate, traefik };
}
