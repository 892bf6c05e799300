// Clusters whose clients come through the front.
import { certificateSecret, DOMAIN, GATEWAY_NAMESPACE } from "./front.mjs";
import { apply, kubectl } from "../cluster/harness.mjs";
import { manifest } from "../cluster/operator_fixtures.mjs";

/** How a cluster is exposed by each type. */
const EXPOSE = {
  Gateway: { type: "Gateway", controller: "Traefik", parentRefs: [{ name: "public", namespace: GATEWAY_NAMESPACE, sectionName: "https" }] },
  Ingress: { type: "Ingress", controller: "Traefik", className: "traefik" },
};

/** The hosts of a cluster's servers, and of its HTTP API. */
export const hostsOf = (name) => ({ websocket: `${name}-ws.${DOMAIN}`, sockjs: `${name}-sockjs.${DOMAIN}`, api: `${name}-api.${DOMAIN}` });

/** A host's object, and its certificate where the Ingress has it. */
function entranceLines(type) {
  const tls = type === "Ingress" ? `    tls: { certificateRefs: [{ name: front-tls }] }\n` : "";
  return `${tls}    expose: ${JSON.stringify(EXPOSE[type])}\n`;
}

/** The manifests of a cluster behind the front, which is Ready only once journeys through it have passed. */
function exposedManifest(namespace, type) {
  const hosts = hostsOf(namespace);
  return manifest(namespace, {
    "  websocket:\n": `  websocket:\n    hosts: [${hosts.websocket}]\n${entranceLines(type)}`,
    "  sockjs:\n": `  sockjs:\n    hosts: [${hosts.sockjs}]\n${entranceLines(type)}`,
    "drain: { holdSeconds: 2 }": "drain: { holdSeconds: 15, windowSeconds: 20 }",
    "  gate:\n": `  httpAPI:\n    host: ${hosts.api}\n${entranceLines(type)}  trustedProxies: [198.18.0.0/15]\n  gate:\n    external: Required\n    timeoutSeconds: 20\n`,
    // Journeys enter at pods, at Services and at the front, and clients are beside them.
    "intervalSeconds: 5": "intervalSeconds: 15",
  });
}

/** Applies a cluster behind the front in a namespace of its own, with the certificate of its Ingress. */
export async function applyExposed(namespace, type, certificate) {
  await kubectl(["create", "namespace", namespace]);
  await certificateSecret(namespace, certificate);
  await apply(exposedManifest(namespace, type));
}
