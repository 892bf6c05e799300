// Schemas for kubeconform of every kind that an API server serves, so that nothing is downloaded and the CRDs are among them.
import { mkdirSync, writeFileSync } from "node:fs";

import { kubectl, wait } from "../cluster/harness.mjs";

const DEFINITIONS = "#/definitions/";

/** Paths of the CRDs that the tests apply. */
const OF_CRDS = ["apis/realtime-operator.dev/v1alpha1", "apis/monitoring.coreos.com/v1"];

const getRaw = async (path) => JSON.parse(await kubectl(["get", "--raw", path]));

/** A schema of OpenAPI as one of JSON Schema that refuses unknown fields, as the strict validation of an API server does. */
function strict(schema) {
  if (Array.isArray(schema)) return schema.map(strict);
  if (schema === null || typeof schema !== "object") return schema;
  const node = {};
  for (const [key, value] of Object.entries(schema)) {
    // The keys of `properties` are names: a CRD's schema has a property `nullable`.
    if (key === "properties") node[key] = Object.fromEntries(Object.entries(value).map(([name, one]) => [name, strict(one)]));
    else if (key === "$ref") node[key] = value.replace("#/components/schemas/", DEFINITIONS);
    else node[key] = strict(value);
  }
  const isObject = node.properties && (node.type ?? "object") === "object";
  if (isObject && node.additionalProperties === undefined && !node["x-kubernetes-preserve-unknown-fields"]) node.additionalProperties = false;
  if (node["x-kubernetes-int-or-string"] || node.format === "int-or-string") {
    for (const key of ["format", "oneOf", "anyOf"]) delete node[key];
    node.type = ["integer", "string"];
  }
  if (node.nullable && typeof node.type === "string") {
    node.type = [node.type, "null"];
    if (node.enum) node.enum = [...node.enum, null];
  }
  return node;
}

/** The names that a schema refers to, directly and through others. */
function referred(name, schemas, found = new Set()) {
  if (found.has(name)) return found;
  found.add(name);
  for (const [, other] of JSON.stringify(schemas[name]).matchAll(/"#\/definitions\/([^"]+)"/g)) referred(other, schemas, found);
  return found;
}

/** Writes the schemas into a folder; gives the location as kubeconform takes it, and the number of schemas. */
export async function writeSchemas(folder) {
  // The API server publishes the schemas of a CRD some moments after it serves the kind.
  const paths = await wait(async () => {
    const { paths: published } = await getRaw("/openapi/v3");
    return OF_CRDS.every((path) => published[path]) && published;
  }, { what: `schemas of ${OF_CRDS}` });
  let count = 0;
  for (const [path, { serverRelativeURL }] of Object.entries(paths)) {
    if (path !== "api/v1" && !path.startsWith("apis/")) continue;
    const components = (await getRaw(serverRelativeURL)).components?.schemas ?? {};
    const schemas = Object.fromEntries(Object.entries(components).map(([name, schema]) => [name, strict(schema)]));
    for (const [name, schema] of Object.entries(schemas)) {
      for (const { group, version, kind } of schema["x-kubernetes-group-version-kind"] ?? []) {
        if (path !== (group ? `apis/${group}/${version}` : `api/${version}`) || !schema.properties) continue;
        const definitions = Object.fromEntries([...referred(name, schemas)].map((one) => [one, schemas[one]]));
        // kubeconform takes the text before the slash of an apiVersion for the group: that of core kinds is their version.
        mkdirSync(`${folder}/${group || version}`, { recursive: true });
        writeFileSync(`${folder}/${group || version}/${kind.toLowerCase()}_${version}.json`, JSON.stringify({ $ref: DEFINITIONS + name, definitions }));
        count += 1;
      }
    }
  }
  return { location: `${folder}/{{.Group}}/{{.ResourceKind}}_{{.ResourceAPIVersion}}.json`, count };
}
