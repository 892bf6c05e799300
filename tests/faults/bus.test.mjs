// The bus between pods on a real Kubernetes: a Redis that is away, one that not every pod shares, and a pod that is killed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { test } from "node:test";
import Pusher from "pusher";
import PusherClient from "pusher-js";

import { apply, condition, deleteNamespace, get, HOST, kubectl, pods, service, startRedis, tearDown, wait, watchObject } from "../cluster/harness.mjs";
import { COMPONENT, credentials, edges, is, manifest, outside, podIs, processOf, ready, said } from "../cluster/operator_fixtures.mjs";

const NAMESPACE = "bus";

/** Seconds within which a pod that died must have been reported, and the time that the webhook may take on top. */
const [SWEPT, WAY] = [15, 10];

let other, redirector;

/** One address for two Redis: the address of a pod decides which of them it reaches. */
async function startRedirector(usual, unusual) {
  const open = new Map();
  const redirector = {
    /** Decides for the address of a pod whether it goes to the unusual one. */
    strays: () => false,
    /** Makes every pod connect anew. */
    cut: () => [...open.keys()].forEach((socket) => socket.destroy()),
  };
  const server = createServer((socket) => {
    const { port } = redirector.strays(socket.remoteAddress) ? unusual : usual;
    const redis = connect(port, HOST);
    open.set(socket, redis);
    for (const [one, another] of [[socket, redis], [redis, socket]]) {
      one.on("error", () => another.destroy());
      one.once("close", () => another.destroy() && open.delete(socket));
      one.pipe(another);
    }
  });
  server.listen(0, HOST);
  await once(server, "listening");
  redirector.url = `redis://${HOST}:${server.address().port}`;
  redirector.stop = () => {
    server.close();
    redirector.cut();
  };
  return redirector;
}

tearDown(async () => {
  await deleteNamespace(NAMESPACE);
  redirector?.stop();
});

const cluster = () => get("realtimecluster", NAMESPACE, "eu");
const message = (object) => condition(object, "Ready").message;

/** Clients over WebSocket, each a member of one presence channel. */
async function members(room, count) {
  const [key, secret] = await credentials(NAMESPACE);
  const { host, port } = await service(NAMESPACE, "eu-websocket");
  const server = new Pusher({ appId: "1001", key, secret, host, port: String(port), useTLS: false });
  const clients = Array.from({ length: count }, (_, n) => {
    const client = new PusherClient(key, {
      cluster: "", wsHost: host, wsPort: port, forceTLS: false, enableStats: false, enabledTransports: ["ws"],
      channelAuthorization: {
        customHandler: ({ socketId, channelName }, callback) =>
          callback(null, server.authorizeChannel(socketId, channelName, { user_id: `user-${n}` })),
      },
    });
    client.room = client.subscribe(room);
    return client;
  });
  await wait(() => clients.every((client) => client.room.subscribed), { what: "every member" });
  return clients;
}

const reported = (room, ...names) => outside.receiver.events().filter(({ channel, name }) => channel === room && names.includes(name));

test("pods without a common bus are not Ready at install, and are once they share one", async () => {
  other = await startRedis();
  redirector = await startRedirector(outside.redis, other);
  // Whoever comes first is alone.
  let alone;
  redirector.strays = (address) => (alone ??= address) === address;
  await kubectl(["create", "namespace", NAMESPACE]);
  const versions = await watchObject("realtimeclusters", NAMESPACE, "eu");
  await apply(manifest(NAMESPACE, { [outside.redis.url]: redirector.url }));
  const found = await versions.until((object) => said(object) === "False/FanoutBroken", { timeout: 90_000, what: "FanoutBroken" });
  const pod = (await edges(NAMESPACE)).find(({ status }) => status.podIP === alone);
  console.log(`# message: ${message(found)}`);
  assert.ok(pod, "it is an edge that is alone");
  // Long enough for rounds in vain.
  await new Promise((resolve) => setTimeout(resolve, 20_000));
  assert.ok(versions.versions.every(({ object }) => is(object, "Ready") !== "True"), "never Ready");
  assert.equal(said(await cluster()), "False/FanoutBroken");
  redirector.strays = () => false;
  redirector.cut();
  await ready(NAMESPACE, "eu", 90);
  await versions.stop();
});

test("a pod that moves to another bus closes the gate and is named, and keeps serving", async () => {
  const [pod] = await pods(NAMESPACE, { [COMPONENT]: "sockjs" });
  redirector.strays = (address) => address === pod.status.podIP;
  redirector.cut();
  const broken = await wait(async () => {
    const found = await cluster();
    return said(found) === "False/FanoutBroken" && message(found).includes(pod.metadata.name) && found;
  }, { timeout: 90_000, what: "FanoutBroken with the pod's name" });
  console.log(`# message: ${message(broken)}`);
  assert.equal((await edges(NAMESPACE)).filter((one) => podIs(one, "Ready")).length, 4, "all go on serving");
  redirector.strays = () => false;
  redirector.cut();
  await ready(NAMESPACE, "eu", 90);
});

test("with Redis unavailable chat continues and nobody is reported as gone; the status says so, and is Ready again afterwards", async () => {
  const room = "presence-while-away";
  // Enough for two of them to be on one pod.
  const clients = await members(room, 6);
  try {
    await wait(() => reported(room, "member_added").length === clients.length, { what: "a webhook of every member" });
    outside.redis.pause();
    const since = Date.now();
    await wait(async () => said(await cluster()) === "False/FanoutBroken", { timeout: 60_000, what: "FanoutBroken" });
    console.log(`# Redis away to FanoutBroken: ${((Date.now() - since) / 1000).toFixed(1)} s`);
    const heard = new Map(clients.map((client) => [client, 0]));
    for (const client of clients) client.room.bind("client-hello", () => heard.set(client, heard.get(client) + 1));
    for (const client of clients) assert.ok(client.room.trigger("client-hello", {}));
    await wait(() => [...heard.values()].some((count) => count > 0), { what: "an event within a pod" });
    // Longer than any lease.
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, 30_000 - (Date.now() - since))));
    assert.equal((await edges(NAMESPACE)).filter((one) => podIs(one, "Ready")).length, 4, "readiness does not turn");
    assert.ok(clients.every((client) => client.connection.state === "connected"));
  } finally {
    outside.redis.resume();
  }
  const back = Date.now();
  await ready(NAMESPACE, "eu", 90);
  console.log(`# Redis back to Ready: ${((Date.now() - back) / 1000).toFixed(1)} s`);
  const hears = new Set();
  for (const client of clients) client.room.bind("client-again", () => hears.add(client));
  clients[0].room.trigger("client-again", {});
  await wait(() => hears.size === clients.length - 1, { what: "an event on every pod" });
  assert.deepEqual(reported(room, "member_removed", "channel_vacated"), [], "nobody had left");
  for (const client of clients) client.disconnect();
  await wait(() => reported(room, "channel_vacated").length === 1, { what: "channel_vacated" });
  assert.equal(reported(room, "member_removed").length, clients.length);
});

test("members on a killed container are reported as gone within 15 seconds, once, and the channel stays", async () => {
  const room = "presence-killed";
  const clients = await members(room, 40);
  await wait(() => reported(room, "member_added").length === clients.length, { what: "a webhook of every member" });
  // They come back at once in life; here they stay away, so that what the pod leaves behind is seen.
  for (const client of clients) client.connection.bind("connecting_in", () => setTimeout(() => client.disconnect(), 0));
  const [pod] = await pods(NAMESPACE, { [COMPONENT]: "websocket" });
  const pid = await processOf(pod, "realtime");
  const killed = Date.now();
  process.kill(pid, "SIGKILL");
  await wait(() => clients.some((client) => client.connection.state === "disconnected"), { what: "a client that was cut off" });
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const gone = clients.flatMap((client, n) => (client.connection.state === "disconnected" ? [`user-${n}`] : []));
  assert.ok(gone.length > 0 && gone.length < clients.length, `${gone.length} of ${clients.length} were on that pod`);
  const removed = () => reported(room, "member_removed");
  await wait(() => removed().length >= gone.length, { timeout: (SWEPT + WAY) * 1000, what: "everyone who is gone" });
  console.log(`# ${gone.length} members of a killed container were reported as gone after ${((Date.now() - killed) / 1000).toFixed(1)} s`);
  assert.deepEqual(removed().map(({ user_id }) => user_id).sort(), gone.sort());
  assert.equal(new Set(removed().map(({ id }) => id)).size, gone.length, "each by an event of its own");
  assert.deepEqual(reported(room, "channel_vacated"), []);
  await wait(async () => {
    const found = await get("pod", NAMESPACE, pod.metadata.name);
    return found.status.containerStatuses[0].restartCount === 1 && podIs(found, "Ready");
  }, { timeout: 60_000, what: "the container, started again and admitted" });
  for (const client of clients) client.disconnect();
  await wait(() => reported(room, "channel_vacated").length === 1, { what: "channel_vacated" });
  await ready(NAMESPACE, "eu", 60);
});
