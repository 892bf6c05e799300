// The charts without an API server: what they render, what they refuse, and their agreement with the raw manifests.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { parse } from "yaml";

import { CHARTS } from "./generate.mjs";
import { CLUSTER_VALUES, execute, find, forEach, IMAGE_VALUES, parseObjects, read, render, renderRefusal, renderText } from "./helm.mjs";
import { EVERYTHING, MATRIX, NAMESPACED } from "./values.mjs";

const schemaOf = (chart) => JSON.parse(read(`charts/${chart}/values.schema.json`));

/** An object with this value at this path. */
const nest = (path, value) => path.reduceRight((inner, key) => (key === 0 ? [inner] : { [key]: inner }), value);

/** A copy with the value at this path. */
function withValue(values, [key, ...path], value) {
  return { ...values, [key]: path.length === 0 ? value : withValue(values?.[key] ?? {}, path, value) };
}

/** The paths of a schema's objects that refuse other keys. */
function closedPaths(schema, path = []) {
  const below = Object.entries(schema.properties ?? {}).flatMap(([key, one]) => closedPaths(one, [...path, key]));
  const items = schema.items ? closedPaths(schema.items, [...path, 0]) : [];
  const other = typeof schema.additionalProperties === "object" ? closedPaths(schema.additionalProperties, [...path, "name"]) : [];
  return [...(schema.additionalProperties === false ? [path] : []), ...below, ...items, ...other];
}

test("helm lint --strict accepts every chart", async () => {
  for (const chart of CHARTS) {
    const { code, stdout, stderr } = await execute(["lint", "--strict", fileURLToPath(new URL(`../../charts/${chart}`, import.meta.url))]);
    assert.equal(code, 0, `${stdout}${stderr}`);
  }
});

for (const chart of CHARTS) {
  test(`a misspelt value is refused on every level of ${chart}`, async () => {
    const paths = closedPaths(schemaOf(chart));
    assert.ok(paths.length >= { "realtime-operator": 20, "realtime-operator-crds": 2, "realtime-cluster": 20 }[chart], `${paths.length} levels`);
    await forEach(paths, async (path) => {
      const error = await renderRefusal(chart, nest([...path, "misspelt"], 1));
      assert.match(error, /additional properties 'misspelt' not allowed/, path.join("."));
      assert.ok(error.includes(`'/${path.join("/")}'`) || path.length === 0, `${path.join(".")} is named in ${error}`);
    });
  });
}

test("values that contradict each other are refused with a remedy", async () => {
  for (const [values, message] of [
    [{}, /image\.repository is not set: .* name it/],
    [{ ...IMAGE_VALUES, watch: { scope: "Namespaces" } }, /watch\.namespaces is empty: name the namespaces/],
    [{ ...IMAGE_VALUES, watch: { namespaces: ["a"] } }, /watch\.scope is Cluster: set watch\.scope to Namespaces/],
    [{ ...IMAGE_VALUES, watch: { scope: "cluster" } }, /at '\/watch\/scope': value must be one of/],
    [{ ...IMAGE_VALUES, serviceAccount: { create: false } }, /serviceAccount\.name is needed/],
    [{ ...IMAGE_VALUES, image: { ...IMAGE_VALUES.image, digest: "latest" } }, /at '\/image\/digest'/],
    [{ ...IMAGE_VALUES, metrics: { serviceMonitor: { enabled: true }, podMonitor: { enabled: true } } }, /counts everything twice: choose one/],
    [{ ...IMAGE_VALUES, metrics: { prometheusRule: { enabled: true, disabled: ["None"] } } }, /"None", which is no alert of this chart: the alerts are RealtimeOperatorWithoutLeader/],
  ]) {
    assert.match(await renderRefusal("realtime-operator", values), message);
  }
  for (const [values, message] of [
    [{}, /spec\.aws\.region is not set: name the AWS region/],
    [{ spec: { aws: CLUSTER_VALUES.spec.aws } }, /spec\.bus\.redis\.urlSecretRef\.name is not set/],
    [{ ...CLUSTER_VALUES, name: "a".repeat(41) }, /at '\/name'/],
    [{ spec: { ...CLUSTER_VALUES.spec, websocket: { replicas: 0 } } }, /at '\/spec\/websocket\/replicas': minimum: got 0, want 1/],
    [{ ...CLUSTER_VALUES, apps: { shop: { clientEvents: "enabled" } } }, /at '\/apps\/shop\/clientEvents'/],
  ]) {
    assert.match(await renderRefusal("realtime-cluster", values), message);
  }
  assert.match(await renderRefusal("realtime-cluster", CLUSTER_VALUES, { name: "a".repeat(41) }), /more than 40 characters: set `name`/);
});

/** The paths of all values that a person can set. */
function leafPaths(schema, path = []) {
  const properties = Object.entries(schema.properties ?? {});
  if (properties.length === 0) return [{ path, schema }];
  return properties.flatMap(([key, one]) => leafPaths(one, [...path, key]));
}

/** A value other than the one that is set. */
function otherValue({ type, items, enum: words, pattern }, current) {
  if (words) return words.find((word) => word !== current);
  const [kind] = [type].flat();
  if (kind === "boolean") return !current;
  if (kind === "integer") return current + 1;
  if (kind === "string") return pattern ? `sha256:${"1".repeat(64)}` : `other${current ?? ""}`;
  if (kind === "object") return { other: "value" };
  const [item] = [items.type].flat();
  const keys = items.required ?? [Object.keys(items.properties ?? { name: {} })[0]];
  return [...(current ?? []), item === "string" ? "other" : Object.fromEntries(keys.map((key) => [key, "other"]))];
}

test("every value has an effect", async () => {
  const special = {
    "watch.scope": () => ({ base: IMAGE_VALUES, values: NAMESPACED }),
    "watch.detectOtherOperators": (path) => ({ base: NAMESPACED, values: withValue(NAMESPACED, path, true) }),
    "watch.namespaces": () => ({ base: NAMESPACED, values: withValue(NAMESPACED, ["watch", "namespaces"], ["team-c"]) }),
    "metrics.prometheusRule.disabled": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, ["RealtimeBusDown"]) }),
    "platformPolicy.rules": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, [{ namespaces: ["other"] }]) }),
    "knownInjectors.injectors": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, [{ name: "other" }]) }),
    "test.clusters": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, ["channels/eu"]) }),
    "image.registry": (path) => ({ base: IMAGE_VALUES, values: withValue(IMAGE_VALUES, path, "other") }),
    "fullnameOverride": (path) => ({ base: IMAGE_VALUES, values: withValue(IMAGE_VALUES, path, "other") }),
    "serviceAccount.create": () => ({ base: withValue(EVERYTHING, ["serviceAccount", "name"], "own"), values: withValue(EVERYTHING, ["serviceAccount"], { create: false, name: "own" }) }),
    "replicaCount": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, 1) }),
    "extraObjects": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, []) }),
    "affinity.podAffinity": (path) => ({ base: EVERYTHING, values: withValue(EVERYTHING, path, { a: "b" }) }),
    "rbac.aggregateClusterRoles": (path) => ({ base: IMAGE_VALUES, values: withValue(IMAGE_VALUES, path, false) }),
  };
  const defaults = parse(read("charts/realtime-operator/values.yaml"));
  const leaves = leafPaths(schemaOf("realtime-operator"));
  assert.ok(leaves.length > 80, `${leaves.length} values`);
  const rendered = new Map();
  const renderOnce = (values) => {
    const key = JSON.stringify(values);
    if (!rendered.has(key)) rendered.set(key, renderText("realtime-operator", values));
    return rendered.get(key);
  };
  await forEach(leaves, async ({ path, schema }) => {
    const name = path.join(".");
    const podMonitor = name.startsWith("metrics.podMonitor");
    const everything = podMonitor ? MATRIX["a pod monitor"] : EVERYTHING;
    const current = path.reduce((inner, key) => inner?.[key], everything) ?? path.reduce((inner, key) => inner?.[key], defaults);
    const { base, values } = special[name]?.(path) ?? { base: everything, values: withValue(everything, path, otherValue(schema, current)) };
    assert.notEqual(await renderOnce(values), await renderOnce(base), `${name} changes nothing`);
  });
});

/** Fields that Helm adds, or that differ by intention: metadata beyond name and namespace. */
function comparable({ metadata: { name, namespace }, ...object }) {
  return { ...object, metadata: { name, namespace } };
}

/** The single permissions of rules, whichever rule grants them. */
function permissions(rules) {
  const grants = rules.flatMap(({ apiGroups, resources, verbs }) =>
    apiGroups.flatMap((group) => resources.flatMap((resource) => verbs.map((verb) => `${group}/${resource} ${verb}`))));
  return [...new Set(grants)].sort();
}

test("the chart and the raw manifests install the same operator", async () => {
  const raw = parseObjects(read("examples/operator.yaml")).filter(({ kind }) => kind !== "Namespace");
  const chart = await render("realtime-operator", { ...IMAGE_VALUES, crds: { enabled: false }, rbac: { userRoles: false }, admissionPolicies: { enabled: false }, test: { enabled: false } });
  const names = (objects) => objects.map(({ kind, metadata }) => `${kind}/${metadata.name}`).sort();
  assert.deepEqual(names(chart), names(raw));
  for (const { kind, metadata } of raw) {
    const [theirs, ours] = [raw, chart].map((objects) => comparable(find(objects, kind, metadata.name)));
    for (const one of [theirs, ours]) if (one.rules) one.rules = permissions(one.rules);
    assert.deepEqual(ours, theirs, `${kind}/${metadata.name}`);
  }
});

test("every permission ends at the named namespaces", async () => {
  const objects = await render("realtime-operator", NAMESPACED);
  const bound = objects.filter(({ kind }) => kind === "ClusterRoleBinding");
  assert.deepEqual(bound, [], "no permission is cluster-wide");
  const roles = objects.filter(({ kind, metadata }) => kind === "Role" && metadata.name === "realtime-operator-clusters");
  assert.deepEqual(roles.map(({ metadata }) => metadata.namespace).sort(), ["team-a", "team-b"]);
  const id = find(objects, "Role", "realtime-operator-realtime-operator");
  assert.deepEqual([id.metadata.namespace, permissions(id.rules)], ["kube-system", ["/namespaces get"]]);
  const detecting = await render("realtime-operator", { ...NAMESPACED, watch: { ...NAMESPACED.watch, detectOtherOperators: true } });
  const wide = permissions(find(detecting, "ClusterRole", "realtime-operator").rules);
  assert.deepEqual(wide, ["coordination.k8s.io/leases list", "coordination.k8s.io/leases watch"]);
  const whole = await render("realtime-operator", IMAGE_VALUES);
  const union = new Set([...wide, ...permissions(id.rules), ...permissions(roles[0].rules)]);
  assert.deepEqual([...union].sort(), permissions(find(whole, "ClusterRole", "realtime-operator").rules), "both scopes have the same permissions");
  assert.deepEqual(find(objects, "Deployment").spec.template.spec.containers[0].args, ["operator", "--watch-namespaces=team-a,team-b"]);
});

test("the platform's policy is mounted, passed, and restarts the pods when it changes", async () => {
  const withPolicy = (images) => render("realtime-operator", { ...IMAGE_VALUES, platformPolicy: { rules: [{ namespaces: ["*"], images }] } });
  const [one, other] = [await withPolicy(["a"]), await withPolicy(["b"])];
  const pod = find(one, "Deployment").spec.template;
  const [container] = pod.spec.containers;
  assert.deepEqual(container.args, ["operator", "--platform-policy=/etc/realtime-operator/platform-policy.yaml"]);
  const mount = container.volumeMounts.find(({ mountPath }) => mountPath === "/etc/realtime-operator");
  const volume = pod.spec.volumes.find(({ name }) => name === mount.name);
  const map = find(one, "ConfigMap", volume.configMap.name);
  assert.deepEqual(parse(map.data["platform-policy.yaml"]), { rules: [{ namespaces: ["*"], images: ["a"] }] });
  const checksum = (objects) => find(objects, "Deployment").spec.template.metadata.annotations["checksum/platform-policy"];
  assert.notEqual(checksum(one), checksum(other));
  const [plain] = find(await render("realtime-operator", IMAGE_VALUES), "Deployment").spec.template.spec.containers;
  assert.deepEqual([plain.args, plain.volumeMounts], [["operator"], undefined]);
});

test("known injectors of the values are added to the shipped ones, in a file that the operator reads", async () => {
  const own = { name: "Vault", initContainers: ["vault-agent*"], volumes: ["vault-*"] };
  const objects = await render("realtime-operator", { ...IMAGE_VALUES, knownInjectors: { injectors: [own], imageRegistries: ["mirror.example.com"] } });
  const pod = find(objects, "Deployment").spec.template;
  const [container] = pod.spec.containers;
  const argument = "--known-injectors=/etc/known-injectors/known-injectors.yaml";
  assert.deepEqual(container.args, ["operator", argument]);
  const mount = container.volumeMounts.find(({ mountPath }) => argument.includes(mountPath));
  const map = find(objects, "ConfigMap", pod.spec.volumes.find(({ name }) => name === mount.name).configMap.name);
  const shipped = parse(read("src/desired/known_injectors.yaml"));
  const file = parse(map.data["known-injectors.yaml"]);
  assert.deepEqual(file, { injectors: [...shipped.injectors, own], imageRegistries: ["mirror.example.com"] });
  assert.ok(pod.metadata.annotations["checksum/known-injectors"], "a change restarts the pods");
  assert.match(await renderRefusal("realtime-operator", { ...IMAGE_VALUES, knownInjectors: { injectors: [{ name: "Vault", volume: ["x"] }] } }), /at '\/knownInjectors\/injectors\/0': additional properties 'volume' not allowed/);
});

test("helm test shows the named clusters, or every one in the scope, by a pod that no selector of the operator finds", async () => {
  const runs = async (values) => find(await render("realtime-operator", { ...IMAGE_VALUES, ...values }), "Pod").spec.containers.map(({ args }) => args.join(" "));
  assert.deepEqual(await runs({}), ["status --all-namespaces --allow-none"]);
  assert.deepEqual(await runs({ watch: NAMESPACED.watch }), ["status --namespace=team-a --allow-none", "status --namespace=team-b --allow-none"]);
  assert.deepEqual(await runs({ test: { clusters: ["channels/eu", "team-a/us"] } }), ["status eu --namespace=channels", "status us --namespace=team-a"]);
  const objects = await render("realtime-operator", EVERYTHING);
  const { matchLabels } = find(objects, "Deployment").spec.selector;
  assert.notEqual(find(objects, "Pod").metadata.labels["app.kubernetes.io/name"], matchLabels["app.kubernetes.io/name"]);
  const cluster = { ...CLUSTER_VALUES, test: { enabled: true, image: "realtime:1" } };
  const hooks = (await render("realtime-cluster", cluster, { name: "eu", namespace: "channels" })).filter(({ metadata }) => metadata.annotations?.["helm.sh/hook"] === "test");
  assert.deepEqual(hooks.map(({ kind, metadata }) => `${kind}/${metadata.name}`).sort(), ["Pod/eu-test", "Role/eu-test", "RoleBinding/eu-test", "ServiceAccount/eu-test"]);
  assert.deepEqual(find(hooks, "Pod").spec.containers[0].args, ["status", "eu", "--namespace=channels"]);
  assert.match(await renderRefusal("realtime-cluster", { ...cluster, test: { enabled: true } }), /test\.image is not set: name the image/);
});

test("CRDs are those of crds/, and are kept", async () => {
  for (const chart of ["realtime-operator", "realtime-operator-crds"]) {
    const crds = (await render(chart, chart === "realtime-operator" ? IMAGE_VALUES : {})).filter(({ kind }) => kind === "CustomResourceDefinition");
    assert.equal(crds.length, 3, chart);
    for (const crd of crds) {
      const committed = parse(read(`crds/${crd.spec.names.plural}.yaml`));
      assert.deepEqual(crd, { ...committed, metadata: { ...committed.metadata, annotations: { "helm.sh/resource-policy": "keep" } } });
    }
  }
});

test("every set of values renders, and what is switched off renders nothing", async () => {
  await forEach(Object.entries(MATRIX), async ([name, values]) => {
    const objects = await render("realtime-operator", values);
    assert.equal(objects.filter(({ kind }) => kind === "Deployment").length, 1, name);
    assert.deepEqual(await render("realtime-operator", { ...values, enabled: false }), [], name);
  });
  assert.deepEqual(await render("realtime-cluster", { ...CLUSTER_VALUES, enabled: false }), []);
});

test("a platform team finds its fields in the pod", async () => {
  const { metadata, spec } = find(await render("realtime-operator", EVERYTHING), "Deployment").spec.template;
  assert.deepEqual(spec.imagePullSecrets, [{ name: "shared" }, { name: "own" }]);
  assert.deepEqual([spec.priorityClassName, spec.nodeSelector], ["system-cluster-critical", { "kubernetes.io/os": "linux" }]);
  assert.deepEqual([spec.tolerations, spec.affinity], [EVERYTHING.tolerations, EVERYTHING.affinity]);
  const selector = { matchLabels: { "app.kubernetes.io/name": "realtime-operator" } };
  assert.deepEqual(spec.topologySpreadConstraints, [{ ...EVERYTHING.topologySpreadConstraints[0], labelSelector: selector }]);
  assert.equal(spec.securityContext.runAsUser ?? spec.containers[0].securityContext.runAsUser, undefined);
  assert.ok(spec.containers[0].resources.requests.memory, "no BestEffort");
  assert.equal(spec.containers[0].image, "registry.example.com/realtime-operator/realtime:0.2.0");
  assert.deepEqual([metadata.labels.zone, metadata.labels.team, metadata.annotations["example.com/p"]], ["a", "platform", "q"]);
  assert.equal(spec.containers[0].livenessProbe.failureThreshold, 5);
  assert.equal(spec.containers[0].livenessProbe.httpGet.path, "/livez");
});

test("a cluster and its apps follow the values", async () => {
  const apps = { shop: { appID: "1001", clientEvents: "Enabled" }, chat: { appID: "1002" } };
  const objects = await render("realtime-cluster", { ...CLUSTER_VALUES, apps, keep: true, labels: { team: "a" }, annotations: { b: "c" } }, { name: "eu", namespace: "channels" });
  const cluster = find(objects, "RealtimeCluster", "eu");
  assert.deepEqual(cluster.spec, CLUSTER_VALUES.spec);
  assert.deepEqual(cluster.metadata.annotations, { b: "c", "helm.sh/resource-policy": "keep" });
  for (const [name, spec] of Object.entries(apps)) assert.deepEqual(find(objects, "RealtimeApp", name).spec, spec);
  assert.ok(objects.every(({ metadata }) => metadata.labels.team === "a" && metadata.namespace === "channels"));
  // Values of Helm keep large numbers and words that are booleans in YAML 1.1.
  const large = { ...CLUSTER_VALUES.spec, webhooks: { mode: "Off", acknowledgeNoWebhooks: "eu" }, gate: { deadlineSeconds: 86_400 } };
  assert.deepEqual(find(await render("realtime-cluster", { spec: large }), "RealtimeCluster").spec, large);
});
