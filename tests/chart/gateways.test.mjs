// The objects of every type of `expose`, as tests/golden/exposure/ has them, at the API server: routes and policies by the CRDs
// of their own projects. NGINX Gateway Fabric is no Go module that can be required; its policies are compared by name alone, in
// tests/fixtures/exposure_keys.txt.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { parseAllDocuments } from "yaml";

import { apply, established, get, kubectl, moduleFolder, wait } from "../cluster/harness.mjs";

const NAMESPACE = "entrances";
const CRDS = ["httproutes.gateway.networking.k8s.io", "backendtrafficpolicies.gateway.envoyproxy.io"];
const folder = fileURLToPath(new URL("../golden/exposure/", import.meta.url));
const files = readdirSync(folder).sort();

before(async () => {
  const modules = fileURLToPath(new URL("gateways", import.meta.url));
  const [api, envoy] = await Promise.all(["sigs.k8s.io/gateway-api", "github.com/envoyproxy/gateway"].map((name) => moduleFolder(modules, name)));
  const paths = [
    `${api}/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml`,
    `${envoy}/charts/gateway-helm/charts/crds/crds/generated/gateway.envoyproxy.io_backendtrafficpolicies.yaml`,
  ];
  await kubectl(["apply", "--server-side", ...paths.flatMap((path) => ["-f", path])]);
  await established(...CRDS);
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } });
});

// Another file of this tier needs an API server without them.
after(async () => {
  await kubectl(["delete", "crd", ...CRDS, "--ignore-not-found", "--timeout=60s"]);
  await wait(async () => !(await get("crd")).items.some(({ metadata }) => CRDS.includes(metadata.name)), { what: "the CRDs to be gone" });
  await kubectl(["delete", "namespace", NAMESPACE, "--wait=false"]);
});

/** The objects of a file that this API server has a kind for, in the namespace of this test. */
const objectsOf = (name) =>
  parseAllDocuments(readFileSync(`${folder}${name}`, "utf8")).map((document) => document.toJSON())
    .filter(({ apiVersion }) => !apiVersion.startsWith("gateway.nginx.org/"))
    .map(({ metadata: { ownerReferences, ...metadata }, ...object }) => ({ ...object, metadata: { ...metadata, namespace: NAMESPACE } }));

const tryApply = (object) =>
  kubectl(["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(object) });

for (const name of files) {
  test(`accepted: the objects of ${name}`, async () => {
    const objects = objectsOf(name);
    assert.ok(objects.length > 0);
    for (const object of objects) {
      const said = await tryApply(object);
      assert.doesNotMatch(said, /[Ww]arning|unknown field/);
    }
  });
}

test("refused: a field of a policy or of a route that is misspelt", async () => {
  const [route, policy] = objectsOf("gateway-envoy-gateway.yaml");
  assert.deepEqual([route.kind, policy.kind], ["HTTPRoute", "BackendTrafficPolicy"]);
  const { circuitBreaker: circuitBreakers, ...spec } = policy.spec;
  await assert.rejects(tryApply({ ...policy, spec: { ...spec, circuitBreakers } }), /circuitBreakers/);
  const { hostnames: hosts, ...rest } = route.spec;
  await assert.rejects(tryApply({ ...route, spec: { ...rest, hosts } }), /hosts/);
});
