// EKS Pod Identity on the node: what its webhook does to a pod, by an admission policy, and a double of its agent.
// Sources: amazon-eks-pod-identity-webhook, pkg/handler/handler.go; EKS User Guide, "How EKS Pod Identity works".
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";

import { apply, kubectl, wait } from "../cluster/harness.mjs";

/** The address of the agent on each node. */
const AGENT = "169.254.170.23";
const FOLDER = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
const VOLUME = "eks-pod-identity-token";

/** Label of a pod that has an association. */
export const LABEL = "eks.amazonaws.com/pod-identity";

/** The audience of the token that the agent takes. */
export const AUDIENCE = "pods.eks.amazonaws.com";

/** The variables that EKS adds. */
export const VARIABLES = {
  AWS_STS_REGIONAL_ENDPOINTS: "regional",
  AWS_DEFAULT_REGION: "eu-west-1",
  AWS_REGION: "eu-west-1",
  AWS_CONTAINER_CREDENTIALS_FULL_URI: `http://${AGENT}/v1/credentials`,
  AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: `${FOLDER}/${VOLUME}`,
};

/** A ServiceAccount that every namespace has. */
const TRIAL_ACCOUNT = "default";

/** Seconds for which credentials are valid: as long as those of a role. */
const VALID_SECONDS = 3_600;

const add = (path, value) => `JSONPatch{op: "add", path: ${path}, value: ${value}}`;
const addText = (path, value) => add(`"${path}"`, value);

/** The patch of a pod with one container. A variable that is there stays, as the webhook does it. */
function patch() {
  const container = "/spec/containers/0";
  const variables = Object.entries(VARIABLES).map(([name, value]) =>
    `(object.spec.containers[0].?env.orValue([]).exists(one, one.name == "${name}") ? [] : [${addText(`${container}/env/-`, `Object.spec.containers.env{name: "${name}", value: "${value}"}`)}])`);
  const token = `Object.spec.volumes.projected.sources{serviceAccountToken: Object.spec.volumes.projected.sources.serviceAccountToken{audience: "${AUDIENCE}", expirationSeconds: 86400, path: "${VOLUME}"}}`;
  const volume = `Object.spec.volumes{name: "${VOLUME}", projected: Object.spec.volumes.projected{sources: [${token}]}}`;
  const mount = `Object.spec.containers.volumeMounts{name: "${VOLUME}", mountPath: "${FOLDER}", readOnly: true}`;
  const lists = [["object.spec.?volumes", "/spec/volumes"], ["object.spec.containers[0].?env", `${container}/env`], ["object.spec.containers[0].?volumeMounts", `${container}/volumeMounts`]];
  return [
    ...lists.map(([list, path]) => `(${list}.hasValue() ? [] : [${addText(path, "[]")}])`),
    ...variables,
    `[${addText("/spec/volumes/-", volume)}, ${addText(`${container}/volumeMounts/-`, mount)}, ${add(`"/metadata/labels/" + jsonpatch.escapeKey("${LABEL}")`, '"enabled"')}]`,
  ].join(" + ");
}

/** Associates a role with ServiceAccounts of a namespace: from now on their new pods get the identity. */
export async function associate(namespace, accounts) {
  const [api, kind, name] = ["admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", `pod-identity-${namespace}`];
  const spec = {
    matchConstraints: {
      resourceRules: [{ apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE"], resources: ["pods"] }],
      namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": namespace } },
    },
    // The last one is the trial's, which asks whether the policy acts before the others exist.
    matchConditions: [{ name: "account", expression: `object.spec.serviceAccountName in ${JSON.stringify([...accounts, TRIAL_ACCOUNT])}` }],
    failurePolicy: "Fail",
    reinvocationPolicy: "Never",
    mutations: [{ patchType: "JSONPatch", jsonPatch: { expression: patch() } }],
  };
  await apply({ apiVersion: api, kind, metadata: { name }, spec });
  await apply({ apiVersion: api, kind: `${kind}Binding`, metadata: { name }, spec: { policyName: name } });
  const acts = async () => (await admitTrial(namespace)).metadata.labels[LABEL] === "enabled";
  await wait(acts, { what: "the policy to act" });
}

/** Removes the association. */
export function dissociate(namespace) {
  const name = `pod-identity-${namespace}`;
  return kubectl(["delete", `MutatingAdmissionPolicyBinding/${name}`, `MutatingAdmissionPolicy/${name}`, "--ignore-not-found"]);
}

/** A pod as admission leaves it, without creating it. */
async function admitTrial(namespace) {
  const container = { name: "trial", image: "localhost/pause:1", securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } } };
  const spec = { serviceAccountName: TRIAL_ACCOUNT, securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } }, containers: [container] };
  const trial = { apiVersion: "v1", kind: "Pod", metadata: { generateName: "trial-", namespace, labels: { trial: "yes" } }, spec };
  return JSON.parse(await kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"], { input: JSON.stringify(trial) }));
}

/** The claims of a token, unverified: the API server has signed it. */
const claimsOf = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString());

/**
 * A double of the agent at its own address, which loopback gets for the test: answers a token with credentials, and keeps whose
 * token it was.
 */
export async function startAgent() {
  execFileSync("ip", ["address", "replace", `${AGENT}/32`, "dev", "lo"]);
  const served = [];
  const server = createServer((request, response) => {
    let claims;
    try {
      claims = claimsOf(request.headers.authorization);
    } catch {
      response.writeHead(400).end();
      return;
    }
    if (request.url !== "/v1/credentials" || !claims.aud?.includes(AUDIENCE)) {
      response.writeHead(400).end();
      return;
    }
    served.push(claims.sub);
    const Expiration = new Date(Date.now() + VALID_SECONDS * 1_000).toISOString();
    const credentials = { AccessKeyId: `ASIA${claims.sub.length}`, SecretAccessKey: "secret", Token: "session", Expiration, AccountId: "123456789012" };
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(credentials));
  });
  server.listen(80, AGENT);
  await once(server, "listening");
  return {
    /** The ServiceAccounts that were given credentials, one entry an answer. */
    served,
    stop() {
      server.closeAllConnections();
      server.close();
      execFileSync("ip", ["address", "delete", `${AGENT}/32`, "dev", "lo"]);
    },
  };
}
