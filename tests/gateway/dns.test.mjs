// The real external-dns beside clusters behind the front: it publishes no record before each transport has passed once, and the
// right ones after.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, deleteNamespace, get, HOST, kubectl, tearDown, wait, watchObject } from "../cluster/harness.mjs";
import { outside, ready, spec } from "../cluster/operator_fixtures.mjs";
import { applyExposed, hostsOf } from "./entrance.mjs";
import { startExternalDns, synced } from "./external_dns.mjs";
import { DOMAIN, startFront } from "./front.mjs";
import { startRoute53 } from "./route53.mjs";

const NAMESPACES = { Gateway: "dns-gateway", Ingress: "dns-ingress" };

/** Hosts of both clusters. */
const HOSTS = Object.values(NAMESPACES).flatMap((namespace) => Object.values(hostsOf(namespace)));

/** A namespace of another team, whose Ingress external-dns publishes at once. */
const OTHERS = "dns-others";

/** Syncs of external-dns that must have seen an object for its records to be withheld on purpose. */
const SYNCS = 3;

let front;
let route53;
let versions;

tearDown(async () => {
  await outside.kinesis?.allow();
  await Promise.all([...Object.values(NAMESPACES), OTHERS].map((namespace) => deleteNamespace(namespace)));
  route53?.stop();
});

/** The addresses that a record of a host has. */
const addressesOf = (host) => route53.records().filter(({ name, type }) => name === `${host}.` && type === "A").flatMap(({ values }) => values);

/** The Ingresses and routes of a cluster. */
const entrancesOf = async (type, namespace) => (await get(type === "Gateway" ? "httproutes" : "ingresses", namespace)).items;

test("external-dns publishes an Ingress of another team from its host alone", async () => {
  front = await startFront();
  route53 = await startRoute53(DOMAIN);
  startExternalDns(route53, DOMAIN, ["ingress", "gateway-httproute"]);
  await kubectl(["create", "namespace", OTHERS]);
  const backend = { service: { name: "none", port: { number: 80 } } };
  const rules = [{ host: `other.${DOMAIN}`, http: { paths: [{ path: "/", pathType: "Prefix", backend }] } }];
  await apply({ apiVersion: "networking.k8s.io/v1", kind: "Ingress", metadata: { name: "other", namespace: OTHERS }, spec: { ingressClassName: "traefik", rules } });
  await wait(() => addressesOf(`other.${DOMAIN}`).join() === HOST, { timeout: 60_000, what: "the record of another team" });
});

test("no record of a cluster is published while its webhooks do not arrive", async () => {
  await outside.kinesis.deny("PutRecords");
  for (const [type, namespace] of Object.entries(NAMESPACES)) await applyExposed(namespace, type, front.certificate);
  versions = await Promise.all(Object.values(NAMESPACES).map((namespace) => watchObject("realtimeclusters", namespace, "eu")));
  for (const [type, namespace] of Object.entries(NAMESPACES)) {
    const addressed = async () => {
      const { status } = await get("realtimecluster", namespace, "eu");
      const entrances = status.endpoints?.entrances ?? [];
      return entrances.length === 3 && entrances.every(({ addresses }) => addresses.includes(HOST)) && (await entrancesOf(type, namespace)).length === 3;
    };
    await wait(addressed, { timeout: 90_000, what: `addresses of ${namespace}` });
    const failing = ({ status }) => status.transports?.length > 0 && status.transports.every(({ state }) => state === "Failing");
    await wait(async () => failing(await get("realtimecluster", namespace, "eu")), { timeout: 90_000, what: `failed journeys of ${namespace}` });
  }
  await synced(route53, SYNCS);
  assert.deepEqual(HOSTS.flatMap(addressesOf), []);
  assert.deepEqual(route53.changes.map(({ record }) => record.name).filter((name) => HOSTS.some((host) => name.includes(host))), []);
});

test("the right records are published once each transport has passed", async () => {
  await outside.kinesis.allow();
  for (const namespace of Object.values(NAMESPACES)) await ready(namespace, "eu", 180);
  for (const host of HOSTS) await wait(() => addressesOf(host).join() === HOST, { timeout: 60_000, what: `the record of ${host}` });
  for (const [index, namespace] of Object.values(NAMESPACES).entries()) {
    for (const host of Object.values(hostsOf(namespace))) {
      const { at } = route53.changes.find(({ record }) => record.name === `${host}.`);
      const server = host.includes("-sockjs.") ? "sockjs" : "websocket";
      const proven = versions[index].versions.find(({ object: { status } }) => {
        const own = (status?.transports ?? []).filter((transport) => transport.server === server);
        return own.length > 0 && own.every(({ state }) => state === "Passing");
      });
      assert.ok(proven && proven.at <= at, `${host} was published ${proven && at - proven.at} ms after its proof`);
    }
  }
  assert.deepEqual(route53.refusals, []);
});

test("records stay while journeys fail, and go with dns.type: Manual", async () => {
  const [kept, removed] = Object.values(NAMESPACES);
  await outside.kinesis.deny("PutRecords");
  const failing = async () => (await get("realtimecluster", kept, "eu")).status.transports.every(({ state }) => state === "Failing");
  await wait(failing, { timeout: 90_000, what: "failed journeys" });
  await synced(route53, SYNCS);
  assert.deepEqual(HOSTS.map((host) => addressesOf(host).join()), HOSTS.map(() => HOST));
  await outside.kinesis.allow();
  await spec(removed, { dns: { type: "Manual" } });
  await wait(() => Object.values(hostsOf(removed)).flatMap(addressesOf).length === 0, { timeout: 60_000, what: "the end of the records" });
  assert.deepEqual(Object.values(hostsOf(kept)).map((host) => addressesOf(host).join()), [HOST, HOST, HOST]);
});
