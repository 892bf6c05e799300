// Debian's nginx and HAProxy before an edge, with the configurations of docs/load-balancers.md: every transport stays idle
// there while a backend publishes from time to time, and clients keep their addresses.
//   PROXY_IDLE_SECONDS  length of the idle time. All durations of the page are shortened in proportion: with 300, whose
//                       limit needs BUSY=1, they are those of the page.
import assert from "node:assert/strict";
import { subscribe as onDiagnostics } from "node:diagnostics_channel";
import http from "node:http";
import { after, before, describe, test } from "node:test";

import { ADMIN_TOKEN, KEY, SECRET, startEdge } from "./edge.mjs";
import { CLIENT_ADDRESS, connectClients, followConnections, openFromElsewhere, PROXIES, startBackend, startProxy } from "./proxies.mjs";
import { eventually } from "./rehearsal.mjs";

/** Idle time for which the durations of the page are used as they are. */
const FULL_IDLE_SECONDS = 300;
const IDLE_SECONDS = Number(process.env.PROXY_IDLE_SECONDS ?? 40);
const SCALE = IDLE_SECONDS / FULL_IDLE_SECONDS;

/** The fields of a cluster, as the page has them. */
const [ACTIVITY_TIMEOUT_SECONDS, KEEP_ALIVE_SECONDS] = [55, 120];

/** Time between two publishes at full length. */
const PUBLISH_INTERVAL_SECONDS = 60;

let edge;
let log;
const started = [];

/** Answers of servers that no proxy may give. */
const failures = [];
onDiagnostics("http.client.response.finish", ({ request, response }) => {
  if (response.statusCode >= 500) failures.push(`${response.statusCode} for ${request.method} ${request.host}${request.path}`);
});

before(async () => {
  http.globalAgent = new http.Agent({ keepAlive: true });
  edge = await startEdge({
    REALTIME_SERVER: "edge",
    REALTIME_TRANSPORTS: "websocket,xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource",
    REALTIME_ACTIVITY_TIMEOUT_SECONDS: String(Math.floor(ACTIVITY_TIMEOUT_SECONDS * SCALE)),
    REALTIME_KEEP_ALIVE_SECONDS: String(Math.floor(KEEP_ALIVE_SECONDS * SCALE)),
    REALTIME_PROXY_PROTOCOL: "accepted",
    REALTIME_TRUSTED_PROXIES: "127.0.0.1/32",
  });
  log = await followConnections(edge.started.admin, ADMIN_TOKEN);
});

after(async () => {
  await Promise.all(started.map((proxy) => proxy.stop()));
  log?.stop();
  const code = await edge?.stop();
  assert.equal(code, 0, "SIGTERM ends an edge cleanly");
});

describe("behind a real proxy", { concurrency: true }, () => {
  for (const name of Object.keys(PROXIES)) {
    test(`every transport stays open through ${name}, and addresses are right`, async (t) => {
      const proxy = await startProxy(name, { pod: `127.0.0.1:${edge.port}`, scale: SCALE });
      started.push(proxy);
      failures.length = 0;

      const end = openFromElsewhere(proxy.port, KEY);
      const clients = await connectClients(proxy.port, KEY);
      const backend = startBackend(proxy.port, { appId: "1", key: KEY, secret: SECRET });
      t.after(() => {
        end();
        for (const client of clients) client.end();
        backend.end();
      });

      const idleUntil = Date.now() + IDLE_SECONDS * 1000;
      let published = 0;
      do {
        await backend.tick(`${proxy.port}/${published}`);
        published += 1;
        await new Promise((resolve) => setTimeout(resolve, PUBLISH_INTERVAL_SECONDS * SCALE * 1000));
      } while (Date.now() < idleUntil);

      const expected = Array.from({ length: published }, (_, n) => `${proxy.port}/${n}`);
      const own = (client) => client.events.filter((n) => n.startsWith(`${proxy.port}/`));
      for (const client of clients) {
        await eventually(() => own(client).length >= published, () => `${client.name}: ${client.events}; closes: ${client.closes}`);
        assert.deepEqual(own(client), expected, client.name);
        assert.deepEqual(client.closes, [], client.name);
      }
      const ids = new Set(clients.map(({ id }) => id));
      assert.deepEqual(log.entries.filter(({ event, socket }) => event === "closed" && ids.has(socket)), []);
      assert.deepEqual(failures, []);
      assert.equal(backend.connections(), 1, "the backend's connection was kept");
      t.diagnostic(`${clients.length} clients idle for ${IDLE_SECONDS} s, ${published} publishes, no close and no 5xx`);
    });
  }
});

test("the edge knew each client by its own address", () => {
  const opened = log.entries.filter(({ event, address }) => event === "opened" && address !== "127.0.0.1");
  const found = opened.map(({ address, transport }) => `${transport} ${address}`).sort();
  const transports = ["websocket", "xhr_streaming"];
  const expected = transports.flatMap((transport) => Object.keys(PROXIES).map(() => `${transport} ${CLIENT_ADDRESS}`)).sort();
  assert.deepEqual(found, expected);
});
