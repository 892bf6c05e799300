// A real Traefik in front of a cluster, by Gateway and by Ingress: TLS, every transport, and a rollout under clients.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

import Pusher from "pusher";

import { condition, deleteNamespace, get, HOST, kubectl, pods, service, tearDown, wait } from "../cluster/harness.mjs";
import { COMPONENT, credentials, edges, is, outside, ready, spec, TRANSPORTS } from "../cluster/operator_fixtures.mjs";
import { startClients } from "./clients.mjs";
import { applyExposed, hostsOf } from "./entrance.mjs";
import { GATEWAY_NAMESPACE, startFront } from "./front.mjs";

/** A cluster of each type. */
const NAMESPACES = { Gateway: "by-gateway", Ingress: "by-ingress" };

/** Clients during the rollout, by transport of pusher-js. */
const CROWD = { ws: 500, xhr_streaming: 50, xhr_polling: 50 };

/** Milliseconds between two events that all fallback sessions hear during the rollout. */
const EVENT_INTERVAL_MS = 1_000;

/** Names of the transports: of the status, of pusher-js, of sockjs-client. */
const PUSHER_TRANSPORTS = { websocket: "ws", xhr_streaming: "xhr_streaming", xhr_polling: "xhr_polling" };
const SOCKJS_TRANSPORTS = { sockjs_websocket: "websocket", sockjs_xhr_streaming: "xhr-streaming", sockjs_xhr: "xhr-polling", sockjs_eventsource: "eventsource" };

/** Seconds until a cluster is Ready, with a front and twice as many journeys as without. */
const READY_SECONDS_MAX = 240;

/** Reasons of a front that holds answers back: a stream begins or an answer comes too late. */
const BUFFERED = ["HandshakeRejected", "SubscribeRejected"];

let front;
let clients;

tearDown(async () => {
  await clients?.stop();
  await Promise.all(Object.values(NAMESPACES).map((namespace) => deleteNamespace(namespace)));
});

const clusterOf = (namespace) => get("realtimecluster", namespace, "eu");

/** A backend of the app, by the address that the status has for backends. */
async function backendOf(namespace) {
  const [key, secret] = await credentials(namespace);
  const { host, port } = await service(namespace, "eu-websocket");
  return { key, server: new Pusher({ appId: "1001", key, secret, host, port: String(port), useTLS: false }) };
}

/** How to open a client of a transport: with the options that the status has ready to paste, or at the host of SockJS. */
async function clientOf(namespace, transport) {
  const [key] = await credentials(namespace);
  const { status } = await clusterOf(namespace);
  if (PUSHER_TRANSPORTS[transport]) {
    return { kind: "pusher", key, options: status.endpoints.clientOptions, transport: PUSHER_TRANSPORTS[transport] };
  }
  return { kind: "sockjs", key, url: `https://${hostsOf(namespace).sockjs}/pusher`, transport: SOCKJS_TRANSPORTS[transport] };
}

test("the front serves the platform's Gateway", async () => {
  front = await startFront();
  clients = startClients();
  await wait(async () => {
    const { status } = await get("gateway", GATEWAY_NAMESPACE, "public");
    return status.conditions.some(({ type, status }) => type === "Programmed" && status === "True") && status.addresses[0].value === HOST;
  }, { what: "the Gateway's address" });
});

/** Whether a request failed. 499: the client has closed its stream itself. */
const isFailure = ({ DownstreamStatus }) => DownstreamStatus >= 400 && DownstreamStatus !== 499;

/**
 * Whether a send was under way while its session was closed with 4200: the client asks for no more of the session, and sends
 * the same in its next one.
 */
function hasCrossedEnd({ RequestPath, DownstreamStatus, StartUTC }, requests) {
  const [session, last] = RequestPath.split(/\/(?=xhr_send\?)/);
  const isLater = (other) => other.RequestPath.startsWith(`${session}/`) && !other.RequestPath.includes("/xhr_send?") && other.StartUTC > StartUTC;
  return DownstreamStatus === 404 && last !== undefined && !requests.some(isLater);
}

/** Waits until journeys from outside have this result, one of these reasons, and Ready follows. */
async function becomes(namespace, status, reasons) {
  const found = await wait(async () => {
    const cluster = await clusterOf(namespace);
    const external = condition(cluster, "ExternalPathProven");
    return external.status === status && reasons.includes(external.reason) && is(cluster, "Ready") === status && cluster;
  }, { timeout: 180_000, every: 500, what: `ExternalPathProven=${status} by ${reasons}` });
  return condition(found, "ExternalPathProven").message;
}

/** A front that holds answers back. */
async function bufferAnswers(namespace) {
  const buffer = (middlewares) => spec(namespace, { sockjs: { expose: { annotations: middlewares } } });
  for (let life = 1; life <= 2; life += 1) {
    await buffer({ "traefik.ingress.kubernetes.io/router.middlewares": "buffered@file" });
    const message = await becomes(namespace, "False", BUFFERED);
    assert.ok(message.includes(hostsOf(namespace).sockjs) && !message.includes(hostsOf(namespace).websocket), message);
    await buffer(null);
    await becomes(namespace, "True", ["Proven"]);
  }
}

/** Pods that cannot pass requests on to each other. */
async function dropRelays(namespace) {
  const addresses = (await pods(namespace, { [COMPONENT]: "sockjs" })).map(({ status }) => status.podIP);
  assert.equal(addresses.length, 2);
  // The port of edges for each other, as a NetworkPolicy without it would leave it.
  const rule = ["FORWARD", "-p", "tcp", "-s", addresses.join(), "-d", addresses.join(), "--dport", "8081", "-j", "DROP"];
  const filter = (action) => execFileSync("iptables", [action, ...rule]);
  for (let life = 1; life <= 2; life += 1) {
    filter("-I");
    try {
      await becomes(namespace, "False", ["AffinityBroken"]);
    } finally {
      filter("-D");
    }
    await becomes(namespace, "True", ["Proven"]);
  }
}

/** A fault of each way in. */
const FAULTS = {
  Gateway: { name: "a port that is closed between pods", happen: dropRelays },
  Ingress: { name: "a front that holds answers back", happen: bufferAnswers },
};

for (const [type, namespace] of Object.entries(NAMESPACES)) {
  test(`a cluster behind ${type} is Ready once journeys through the front have passed`, async () => {
    await applyExposed(namespace, type, front.certificate);
    await ready(namespace, "eu", READY_SECONDS_MAX);
    const cluster = await clusterOf(namespace);
    assert.equal(is(cluster, "ExternalPathProven"), "True", condition(cluster, "ExternalPathProven").message);
    assert.equal(is(cluster, "Exposed"), "True", condition(cluster, "Exposed").message);
    assert.deepEqual(cluster.status.transports.map(({ name, state }) => [name, state]), TRANSPORTS.map((name) => [name, "Passing"]));
    const { websocket, sockjs, api } = hostsOf(namespace);
    const entrances = cluster.status.endpoints.entrances.map(({ hosts, addresses, port, tls }) => [hosts.join(), addresses.join(), port, tls]);
    assert.deepEqual(entrances, [[websocket, HOST, 443, true], [sockjs, HOST, 443, true], [api, HOST, 443, true]]);
    for (const host of [websocket, sockjs, api]) {
      assert.ok(front.traefik.requests().some(({ RequestHost }) => RequestHost === host), `journeys entered at ${host}`);
    }
  });

  for (const transport of TRANSPORTS) {
    test(`a client over ${transport} is served behind ${type}, and its webhooks arrive`, async () => {
      const channel = `${namespace}-${transport}`;
      const settings = await clientOf(namespace, transport);
      const { server } = await backendOf(namespace);
      const arrived = (name) => () => outside.receiver.events().some((event) => event.name === name && event.channel === channel);
      await clients.open({ group: channel, channel, ...settings });
      await wait(arrived("channel_occupied"), { what: "the webhook of the subscription" });
      await server.trigger(channel, "news", { text: "100 % \u{1f600}" });
      const client = async () => (await clients.look({ group: channel }))[0];
      await wait(async () => (await client()).heard.length > 0, { what: "the event" });
      const { transport: taken, heard, failures, states } = await client();
      assert.deepEqual({ taken, heard, failures, states }, { taken: settings.transport, heard: [{ text: "100 % \u{1f600}" }], failures: [], states: [] });
      await clients.close({ group: channel });
      await wait(arrived("channel_vacated"), { what: "the webhook of the leave" });
    });
  }

  test(`a backend publishes at the host of the HTTP API behind ${type}, which leads to nothing else`, async () => {
    const channel = `${namespace}-api`;
    const { status } = await clusterOf(namespace);
    assert.equal(status.endpoints.publicAPI, `https://${hostsOf(namespace).api}`);
    await clients.open({ group: channel, channel, ...(await clientOf(namespace, "websocket")) });
    const [key, secret] = await credentials(namespace);
    assert.equal(await clients.publish({ key, secret, host: hostsOf(namespace).api, channel, data: { text: "from outside" } }), 200);
    await wait(async () => (await clients.look({ group: channel }))[0].heard.length > 0, { what: "the event" });
    assert.deepEqual((await clients.look({ group: channel }))[0].heard, [{ text: "from outside" }]);
    for (const path of ["/pusher/info", "/readyz", "/metrics"]) {
      assert.equal(await clients.get({ url: `https://${hostsOf(namespace).api}${path}` }), 404, path);
    }
    assert.equal(await clients.get({ url: `https://${hostsOf(namespace).websocket}/apps/1001/channels` }), 404, "the host of clients");
    await clients.close({ group: channel });
  });

  test(`a rollout behind ${type} under 500 WebSockets and 100 fallback sessions fails no request`, async (t) => {
    const { server } = await backendOf(namespace);
    const channel = `${namespace}-crowd`;
    for (const [transport, count] of Object.entries(CROWD)) {
      const name = Object.keys(PUSHER_TRANSPORTS).find((key) => PUSHER_TRANSPORTS[key] === transport);
      await clients.open({ group: `${namespace}-${transport}`, count, channel, ...(await clientOf(namespace, name)) });
    }
    const begun = front.traefik.requests().length;
    const former = (await edges(namespace)).map(({ metadata }) => metadata.name);
    const restartedAt = new Date().toISOString();
    const began = Date.now();
    let published = 0;
    const publishing = setInterval(() => server.trigger(channel, "news", published++).catch((error) => failures.push(`publish: ${error.message}`)), EVENT_INTERVAL_MS);
    const failures = [];
    t.after(() => clearInterval(publishing));
    await kubectl(["annotate", "realtimecluster", "eu", "-n", namespace, "--overwrite", `realtime-operator.dev/restarted-at=${restartedAt}`]);
    const isOver = async () => {
      const names = (await edges(namespace)).map(({ metadata }) => metadata.name);
      const all = (await get("pods", namespace)).items.filter(({ metadata }) => former.includes(metadata.name));
      return all.length === 0 && names.length === 4;
    };
    await wait(isOver, { timeout: 400_000, every: 1_000, what: "the end of the former pods" });
    const crowd = async () => (await Promise.all(Object.keys(CROWD).map((transport) => clients.look({ group: `${namespace}-${transport}` })))).flat();
    await wait(async () => (await crowd()).every(({ open, states }) => open && states.length > 0), { timeout: 90_000, every: 1_000, what: "every client at a new pod" });
    clearInterval(publishing);
    await ready(namespace);

    for (const { states, failures: errors, transport } of await crowd()) {
      // An error of 4200 to 4299 is the server's request to reconnect at once.
      failures.push(...errors.filter((error) => !/"code":42\d\d/.test(error)).map((error) => `${transport}: ${error}`));
      const moves = states.length / 2;
      if (states.join() !== Array.from({ length: moves }, () => "connecting,connected").join()) failures.push(`${transport}: ${states}`);
    }
    const requests = front.traefik.requests().slice(begun).filter(({ RequestHost }) => Object.values(hostsOf(namespace)).includes(RequestHost));
    const failed = requests.filter((request) => isFailure(request) && !hasCrossedEnd(request, requests));
    failures.push(...failed.map(({ RequestMethod, RequestPath, DownstreamStatus }) => `${RequestMethod} ${RequestPath}: ${DownstreamStatus}`));
    assert.deepEqual(failures.slice(0, 20), [], `${failures.length} failures of ${requests.length} requests`);
    t.diagnostic(`${requests.length} requests in ${((Date.now() - began) / 1000).toFixed(0)} s, ${published} events`);
    for (const transport of Object.keys(CROWD)) await clients.close({ group: `${namespace}-${transport}` });
  });

  test(`${FAULTS[type].name} behind ${type} is named, twice, and mended twice`, () => FAULTS[type].happen(namespace));

  test(`the cluster behind ${type} is deleted with its objects`, async () => {
    await kubectl(["delete", "realtimecluster", "eu", "-n", namespace, "--timeout=120s"]);
    const kind = type === "Gateway" ? "httproutes" : "ingresses";
    await wait(async () => (await get(kind, namespace)).items.length === 0, { what: "the end of its objects" });
  });
}
