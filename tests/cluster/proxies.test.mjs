// Debian's nginx and HAProxy in front of a cluster, with the configurations of docs/load-balancers.md: HAProxy passes addresses by
// PROXY v2 and is the load balancer that the operator enters; nginx is one that the operator does not know.
import assert from "node:assert/strict";
import { test } from "node:test";

import { apply, condition, deleteNamespace, get, HOST, kubectl, pods, service, tearDown, wait } from "./harness.mjs";
import { COMPONENT, credentials, is, manifest, ready, TRANSPORTS } from "./operator_fixtures.mjs";
import { CLIENT_ADDRESS, connectClients, followConnections, openFromElsewhere, startBackend, startProxy } from "../conformance/proxies.mjs";

const NAMESPACE = "behind-proxies";
const PUBLIC_HOST = "rt.example.test";
const [NGINX, HAPROXY] = ["nginx", "HAProxy in TCP mode with PROXY v2"];

/** Seconds until the cluster is Ready, with journeys through the front beside those to pods. */
const READY_SECONDS_MAX = 180;

const proxies = {};

tearDown(async () => {
  await deleteNamespace(NAMESPACE);
  await Promise.all(Object.values(proxies).map((proxy) => proxy.stop()));
});

/** One Deployment for both servers, so that one address leads to all transports. */
const exposedManifest = () =>
  manifest(NAMESPACE, {
    "  sockjs:\n    replicas: 2\n    drain: { holdSeconds: 2 }\n": `  servers: Combined\n  trustedProxies: [${HOST}/32]\n`,
    "  websocket:\n": `  websocket:\n    hosts: [${PUBLIC_HOST}]\n    proxyProtocol: Accepted\n    expose: { type: LoadBalancer }\n`,
    "  gate:\n": "  gate:\n    external: Required\n    timeoutSeconds: 20\n",
  });

/** Publishes the address of HAProxy as a controller of load balancers does. kube-proxy leads no connection past it. */
async function publishAddress() {
  const balancer = await wait(async () => (await get("services", NAMESPACE)).items.find(({ spec }) => spec.type === "LoadBalancer"), {
    what: "the Service of the load balancer",
  });
  const status = { loadBalancer: { ingress: [{ ip: HOST, ipMode: "Proxy" }] } };
  await kubectl(["patch", "service", balancer.metadata.name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", JSON.stringify({ status })]);
}

test("a cluster behind HAProxy with PROXY v2 is Ready once journeys through it have passed", async () => {
  await apply(exposedManifest());
  await wait(() => service(NAMESPACE, "eu-websocket"), { timeout: 60_000, what: "the Service" });
  const { host, port } = await service(NAMESPACE, "eu-websocket");
  const pending = await wait(async () => {
    const cluster = await get("realtimecluster", NAMESPACE, "eu");
    return condition(cluster, "ExternalPathProven")?.reason === "LoadBalancerPending" && cluster;
  }, { timeout: 90_000, what: "a load balancer without an address" });
  assert.notEqual(is(pending, "Ready"), "True", "external: Required holds Ready");

  const pod = `${host}:${port}`;
  proxies[HAPROXY] = await startProxy(HAPROXY, { pod, also: [`${HOST}:80`], seconds: 120 });
  proxies[NGINX] = await startProxy(NGINX, { pod });
  await publishAddress();
  await ready(NAMESPACE, "eu", READY_SECONDS_MAX);
  const cluster = await get("realtimecluster", NAMESPACE, "eu");
  assert.deepEqual([is(cluster, "ExternalPathProven"), condition(cluster, "ExternalPathProven").reason], ["True", "Proven"]);
  const entrances = cluster.status.endpoints.entrances.map(({ hosts, addresses, port, tls }) => [hosts.join(), addresses.join(), port, tls]);
  assert.deepEqual(entrances, [[PUBLIC_HOST, HOST, 80, false]]);
  assert.deepEqual(cluster.status.transports.map(({ name, state }) => [name, state]), TRANSPORTS.map((name) => [name, "Passing"]));
});

for (const name of [NGINX, HAPROXY]) {
  test(`each transport is served through ${name}, and pods know clients by their addresses`, async (t) => {
    const { port } = proxies[name];
    const [key, secret] = await credentials(NAMESPACE);
    const { data } = await get("secret", NAMESPACE, "eu-generated");
    const token = Buffer.from(data["admin-token"], "base64").toString();
    const edges = (await pods(NAMESPACE)).filter(({ metadata }) => metadata.labels[COMPONENT] !== "dispatcher");
    const logs = await Promise.all(edges.map(({ status }) => followConnections(`${status.podIP}:9090`, token)));
    const end = openFromElsewhere(port, key);
    const clients = await connectClients(port, key);
    const backend = startBackend(port, { appId: "1001", key, secret });
    t.after(() => {
      end();
      for (const one of [...clients, backend]) one.end();
      for (const log of logs) log.stop();
    });
    const expected = ["0", "1", "2"];
    for (const n of expected) await backend.tick(n);
    for (const client of clients) {
      await wait(() => client.events.length >= expected.length, { what: `the events of ${client.name}`, seen: () => client.closes });
      assert.deepEqual([client.events, client.closes], [expected, []], client.name);
    }
    assert.equal(backend.connections(), 1, "the backend's connection was kept");
    const opened = () => logs.flatMap(({ entries }) => entries).filter(({ event, address }) => event === "opened" && address === CLIENT_ADDRESS);
    await wait(() => opened().length === 2, { what: "two clients from elsewhere", seen: () => JSON.stringify(logs.flatMap(({ entries }) => entries)) });
    assert.deepEqual(opened().map(({ transport }) => transport).sort(), ["websocket", "xhr_streaming"]);
  });
}
