// Debian's nginx and HAProxy in front of a cluster, with the configurations of docs/load-balancers.md: HAProxy passes addresses by
// PROXY v2 and is the load balancer that the operator enters; nginx is one that the operator does not know.
import assert from "node:assert/strict";
import { subscribe as onDiagnostics, unsubscribe as offDiagnostics } from "node:diagnostics_channel";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { apply, condition, deleteNamespace, get, HOST, kubectl, pods, service, tearDown, wait } from "./harness.mjs";
import { COMPONENT, credentials, is, manifest, podIs, ready, TRANSPORTS } from "./operator_fixtures.mjs";
import { CLIENT_ADDRESS, connectClients, followConnections, openFromElsewhere, startBackend, startProxy } from "../conformance/proxies.mjs";

const NAMESPACE = "behind-proxies";
const PUBLIC_HOST = "rt.example.test";
const [NGINX, HAPROXY] = ["nginx", "HAProxy in TCP mode with PROXY v2"];

/** Seconds until the cluster is Ready, with journeys through the front beside those to pods. */
const READY_SECONDS_MAX = 180;

/**
 * Seconds of the drain's hold, in which each connection in use has to carry a request, whose answer closes it, and the node has to stop
 * leading new ones to the pod, also on a busy machine.
 */
const HOLD_SECONDS = 15;

/** Milliseconds between two publishes of each backend of a proxy; each backend has a connection of its own. */
const PUBLISH_INTERVALS_MS = [250, 250, 2_000, 2_000, 3_000, 3_000, 3_000, 3_000];

/** Seconds for which a client may be without its channel while it moves. */
const MOVE_SECONDS_MAX = 5;

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
    "drain: { holdSeconds: 2 }": `drain: { holdSeconds: ${HOLD_SECONDS} }`,
  });

/** The pods of the one Deployment for both servers. */
const edgePods = async () => (await pods(NAMESPACE)).filter(({ metadata }) => metadata.labels[COMPONENT] !== "dispatcher");

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
    const logs = await Promise.all((await edgePods()).map(({ status }) => followConnections(`${status.podIP}:9090`, token)));
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

/** Collects the HTTP requests of this process, by clients and backends, that fail, until `stop()`. */
function followFailures() {
  const failures = [];
  const describe = ({ method, host, path }) => `${method} ${host}${path.split("?")[0]}`;
  const listeners = {
    "http.client.response.finish": ({ request, response }) => response.statusCode >= 500 && failures.push(`${response.statusCode}: ${describe(request)}`),
    // A client aborts its own stream when it leaves.
    "http.client.request.error": ({ request, error }) => request.aborted || failures.push(`${error.message}: ${describe(request)}`),
  };
  for (const [channel, listener] of Object.entries(listeners)) onDiagnostics(channel, listener);
  return { failures, stop: () => Object.entries(listeners).forEach(([channel, listener]) => offDiagnostics(channel, listener)) };
}

/** Publishes `name/0`, `name/1`, … one after the other until `stop()`, which gives the number of events. */
function keepPublishing(backend, name, interval, failures) {
  let [hasStopped, published] = [false, 0];
  const running = (async () => {
    while (!hasStopped) {
      await backend.tick(`${name}/${published}`).catch((error) => failures.push(`${name}/${published}: ${error.message} ${error.status ?? ""}`));
      published += 1;
      await sleep(interval);
    }
  })();
  const stop = async () => {
    hasStopped = true;
    await running;
    return published;
  };
  return { name, interval, stop };
}

/** The numbers of a publisher's events in each subscription of a client, in order. */
function numbersOf(client, { name }) {
  const own = (events) => events.filter((event) => event.startsWith(`${name}/`)).map((event) => Number(event.slice(name.length + 1)));
  return client.subscriptions.map((events) => own(events).sort((a, b) => a - b)).filter((numbers) => numbers.length > 0);
}

/** Whether a client has received each event from the first on, but for those between two subscriptions. */
const isWhole = (numbers) => numbers[0]?.[0] === 0 && numbers.every((part) => part.every((n, i) => n === part[0] + i));

/** The longest row of events that a client missed between two subscriptions. */
const longestGap = (numbers) => Math.max(0, ...numbers.slice(1).map((part, i) => part[0] - numbers[i].at(-1) - 1));

/** Whether a client was asked to reconnect, or has. pusher-js reports its states, sockjs-client the closes. */
const isMove = (close) => /^(connected to connecting|connecting to connected|4[12]\d\d .*)$/.test(close);

/** Restarts the pods of the cluster, and waits until the former edges are gone. */
async function rollOut() {
  const former = (await edgePods()).map(({ metadata }) => metadata.name);
  const restartedAt = `realtime-operator.dev/restarted-at=${new Date().toISOString()}`;
  await kubectl(["annotate", "realtimecluster", "eu", "-n", NAMESPACE, "--overwrite", restartedAt]);
  await wait(async () => {
    const isLeft = (await get("pods", NAMESPACE)).items.some(({ metadata }) => former.includes(metadata.name));
    return !isLeft && (await edgePods()).filter((pod) => podIs(pod, "Ready")).length === former.length;
  }, { timeout: 150_000, every: 500, what: "the end of the former pods" });
}

test("a rollout under clients through both proxies fails no request and loses no event of a connection", async (t) => {
  const [key, secret] = await credentials(NAMESPACE);
  const ports = [NGINX, HAPROXY].map((name) => proxies[name].port);
  const clients = (await Promise.all(ports.map((port) => connectClients(port, key)))).flat();
  const backends = ports.flatMap((port) => PUBLISH_INTERVALS_MS.map(() => startBackend(port, { appId: "1001", key, secret })));
  const { failures, stop } = followFailures();
  const intervals = ports.flatMap(() => PUBLISH_INTERVALS_MS);
  const publishers = backends.map((backend, n) => keepPublishing(backend, `backend ${n}`, intervals[n], failures));
  t.after(async () => {
    stop();
    await Promise.all(publishers.map((publisher) => publisher.stop()));
    for (const one of [...clients, ...backends]) one.end();
  });
  const began = Date.now();
  await rollOut();
  const seconds = (Date.now() - began) / 1_000;
  const counts = await Promise.all(publishers.map((publisher) => publisher.stop()));

  assert.deepEqual(failures, [], "requests of clients and backends");
  const idleCloses = backends.map((backend) => backend.idleCloses());
  assert.deepEqual(idleCloses, backends.map(() => 0), "connections of backends that were closed between two requests");
  for (const client of clients) {
    const name = JSON.stringify([client.name, client.closes]);
    assert.ok(client.subscriptions.length > 1 && client.closes.every(isMove), name);
    for (const [n, publisher] of publishers.entries()) {
      const numbers = () => numbersOf(client, publisher);
      const seen = () => `${name} ${JSON.stringify(numbers())}`;
      await wait(() => numbers().at(-1)?.at(-1) === counts[n] - 1, { what: `the last of ${counts[n]} events of ${publisher.name}`, seen });
      assert.ok(isWhole(numbers()), `${publisher.name}: ${seen()}`);
    }
  }
  const [frequent] = publishers;
  const longest = (Math.max(...clients.map((client) => longestGap(numbersOf(client, frequent)))) * frequent.interval) / 1_000;
  assert.ok(longest <= MOVE_SECONDS_MAX, `a client missed the events of ${longest} s while it moved`);
  const published = counts.reduce((sum, count) => sum + count);
  t.diagnostic(`${clients.length} clients moved in ${seconds.toFixed(0)} s under ${published} publishes, and missed those of at most ${longest} s`);
});
