// Writes the generated files of the charts: values.schema.json and README.md from the comments of values.yaml, and the copies
// of the CRDs and of the known injectors; and the ConfigMap of Argo CD's scripts. `./test --generate` runs it; a test compares.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { isMap, isSeq, parse, parseDocument } from "yaml";

import { generateConfigMap } from "./argocd.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** The charts, each with the text above the table of its values. */
export const CHARTS = readdirSync(`${ROOT}charts`);

const read = (path) => readFileSync(`${ROOT}${path}`, "utf8");

/** Mark of a line that adds to the schema of the key below it. */
const DIRECTIVE = "@schema ";

/** A directive's keyword for the spec of a kind of ours: the schema is that of the CRD. */
const CRD_KEYWORD = "x-crd";

/**
 * The description and the directive in the comment above a key. `Document` gives a comment without its `#`; a paragraph above
 * an empty line belongs to the file.
 */
function readComment(comment, path) {
  const lines = (comment ?? "").split("\n\n").at(-1).split("\n").map((line) => line.trim()).filter(Boolean);
  const directives = lines.filter((line) => line.startsWith(DIRECTIVE)).map((line) => {
    try {
      return JSON.parse(line.slice(DIRECTIVE.length));
    } catch (error) {
      throw new Error(`${path}: the directive is not JSON: ${error.message}`);
    }
  });
  const description = lines.filter((line) => !line.startsWith(DIRECTIVE)).join(" ");
  return { description, directive: Object.assign({}, ...directives) };
}

/** The type that JSON Schema gives to a default. */
function typeOf(value) {
  if (Array.isArray(value)) return "array";
  if (Number.isInteger(value)) return "integer";
  return value === null ? "null" : typeof value;
}

/** A CRD's schema as one that refuses unknown fields; the API server checks rules and required fields of the spec itself. */
function closeSchema(schema) {
  if (Array.isArray(schema)) return schema.map(closeSchema);
  if (schema === null || typeof schema !== "object") return schema;
  const closed = {};
  for (const [key, value] of Object.entries(schema)) {
    if (key.startsWith("x-kubernetes-") || key === "nullable" || key === "default" || key === "format") continue;
    closed[key] = key === "properties" ? Object.fromEntries(Object.entries(value).map(([name, one]) => [name, closeSchema(one)])) : closeSchema(value);
  }
  if (closed.properties && !closed.additionalProperties) closed.additionalProperties = false;
  if (schema["x-kubernetes-int-or-string"]) closed.type = ["integer", "string"];
  if (schema.nullable && typeof closed.type === "string") closed.type = [closed.type, "null"];
  if (schema.nullable && closed.enum) closed.enum = [...closed.enum, null];
  return closed;
}

/** The schema of the spec of a kind, with no field required: a parent's values may be added later. */
function specSchema(plural) {
  const crd = parse(read(`crds/${plural}.yaml`));
  const { required, ...spec } = closeSchema(crd.spec.versions[0].schema.openAPIV3Schema.properties.spec);
  return spec;
}

function resolveCrds(schema) {
  if (schema === null || typeof schema !== "object") return schema;
  if (schema[CRD_KEYWORD]) return specSchema(schema[CRD_KEYWORD]);
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, Array.isArray(value) ? value : resolveCrds(value)]));
}

/** The entries of values.yaml, in order: path, node, description, directive, and the entries below. */
function readEntries(node, path = []) {
  return node.items.map((pair, index) => {
    const name = [...path, pair.key.value];
    // The comment above the first key of a map stands at the map.
    const comment = pair.key.commentBefore ?? (index === 0 ? node.commentBefore : undefined);
    const { description, directive } = readComment(comment, name.join("."));
    const entries = isMap(pair.value) ? readEntries(pair.value, name) : [];
    return { name, node: pair.value, value: pair.value?.toJSON() ?? null, description, directive, entries };
  });
}

function schemaOf(entry) {
  const { name, node, value, description, directive, entries } = entry;
  const schema = { description, type: typeOf(value), default: entries.length > 0 ? undefined : value };
  if (!description) delete schema.description;
  if (entries.length > 0) {
    schema.properties = Object.fromEntries(entries.map((one) => [one.name.at(-1), schemaOf(one)]));
    schema.additionalProperties = false;
  }
  const merged = { ...schema, ...resolveCrds(directive) };
  if (description) merged.description = description;
  if (isMap(node) && entries.length === 0 && merged.additionalProperties === undefined) {
    throw new Error(`${name.join(".")}: an empty map needs a line \`# @schema\` with its additionalProperties`);
  }
  if (isSeq(node) && merged.items === undefined) throw new Error(`${name.join(".")}: a list needs a line \`# @schema\` with its items`);
  return merged;
}

/** The rows of the table: a key whose description covers the keys below it is one row. */
function rowsOf(entry) {
  const { name, value, description, entries } = entry;
  const described = entries.some((one) => one.description || one.entries.some((below) => below.description));
  const rows = entries.length > 0 && described ? entries.flatMap(rowsOf) : [];
  if (rows.length > 0) return rows;
  if (!description) throw new Error(`${name.join(".")}: a value needs a comment`);
  const shown = JSON.stringify(value).replaceAll("|", "\\|");
  return [`| \`${name.join(".")}\` | \`${shown}\` | ${description.replaceAll("|", "\\|")} |`];
}

/** The generated files of a chart by their path. */
export function generateChart(chart) {
  const folder = `charts/${chart}`;
  const document = parseDocument(read(`${folder}/values.yaml`));
  if (document.errors.length > 0) throw document.errors[0];
  const entries = readEntries(document.contents);
  const schema = {
    $schema: "http://json-schema.org/draft-07/schema#",
    $comment: "Generated from the comments of values.yaml by `./test --generate`; a test compares.",
    type: "object",
    properties: Object.fromEntries(entries.map((entry) => [entry.name[0], schemaOf(entry)])),
    additionalProperties: false,
  };
  const table = entries.flatMap(rowsOf);
  const about = parse(read(`${folder}/Chart.yaml`));
  const page = [
    "<!-- Generated from Chart.yaml, README.head.md and the comments of values.yaml by `./test --generate`; a test compares. -->",
    `# ${chart}`,
    "",
    `${about.description}.`,
    "",
    read(`${folder}/README.head.md`).trim(),
    "",
    "## Values",
    "",
    "A key that is not in this table is refused.",
    "",
    "| key | default | description |",
    "|---|---|---|",
    ...table,
    "",
  ].join("\n");
  const files = { [`${folder}/values.schema.json`]: `${JSON.stringify(schema, null, 2)}\n`, [`${folder}/README.md`]: page };
  if (chart === "realtime-cluster") return files;
  if (chart === "realtime-operator") files[`${folder}/files/known_injectors.yaml`] = read("src/desired/known_injectors.yaml");
  for (const file of readdirSync(`${ROOT}crds`)) files[`${folder}/files/crds/${file}`] = read(`crds/${file}`);
  return files;
}

/** The generated files of all charts. */
export function generateAll() {
  return Object.assign({}, ...CHARTS.map(generateChart));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [path, text] of Object.entries({ ...generateAll(), ...generateConfigMap() })) {
    mkdirSync(`${ROOT}${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
    writeFileSync(`${ROOT}${path}`, text);
  }
}
