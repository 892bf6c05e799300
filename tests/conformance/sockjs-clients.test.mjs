// The clients of SockJS: sockjs-client in Node and in Chromium, and pusher-js's `sockjs` transport in Chromium. Pages and
// scripts come from the npm packages; nothing is loaded from a network.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import SockJS from "sockjs-client";

import { startChromium } from "./chromium.mjs";
import { KEY, startEdge } from "./edge.mjs";
import { eventually } from "./rehearsal.mjs";

const PATH = JSON.stringify({ path: `/app/${KEY}?protocol=7&client=js&version=8.6.0` });
const TEXT = "100 % \u2028 \u{1f600} </script>";

const packaged = (path) => readFile(new URL(`./node_modules/${path}`, import.meta.url), "utf8");

let edge;
let scripts;
let pages;
let browser;

before(async () => {
  edge = await startEdge();
  scripts = {
    sockjs: await packaged("sockjs-client/dist/sockjs.min.js"),
    fork: await packaged("pusher-js/dist/web/sockjs.js"),
    pusher: await packaged("pusher-js/dist/web/pusher.js"),
  };
  pages = createServer((_, response) => {
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end("<!doctype html><title>page</title><body></body>");
  });
  pages.listen(0, "127.0.0.1");
  await once(pages, "listening");
  browser = await startChromium();
  const javascript = (body) => (route) => route.fulfill({ contentType: "text/javascript; charset=utf-8", body });
  await browser.route("https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js", javascript(scripts.sockjs));
  await browser.route("http://js.pusher.com/8.6.0/sockjs.js", javascript(scripts.fork));
});

after(async () => {
  await browser?.close();
  pages?.close();
  assert.equal(await edge?.stop(), 0, "SIGTERM ends an edge cleanly");
});

/** What a client does, in Node and in a page: names the app, subscribes, and keeps what it gets. */
function converse(socket, path, channel, log) {
  socket.onopen = () => socket.send(path);
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    log.push(message);
    if (message.event === "pusher:connection_established") {
      socket.send(JSON.stringify({ event: "pusher:subscribe", data: { channel, auth: "" } }));
    }
  };
  socket.onclose = ({ code, reason }) => log.push({ event: "closed", code, reason });
}

const names = (log) => log.map(({ event }) => event);
const EXPECTED = ["pusher:connection_established", "pusher_internal:subscription_succeeded", "news"];

for (const transport of ["websocket", "xhr-streaming", "eventsource", "xhr-polling"]) {
  test(`sockjs-client in Node works over ${transport}`, async () => {
    const socket = new SockJS(`http://127.0.0.1:${edge.port}/pusher`, null, { transports: [transport] });
    const [log, channel] = [[], `node-${transport}`];
    converse(socket, PATH, channel, log);
    await eventually(() => names(log).includes(EXPECTED[1]), () => JSON.stringify(log));
    await edge.sdk.trigger(channel, "news", TEXT);
    await eventually(() => names(log).includes("news"), () => JSON.stringify(log));
    assert.equal(socket.transport, transport);
    assert.equal(log.at(-1).data, TEXT);
    socket.close();
    await eventually(() => names(log).includes("closed"), () => JSON.stringify(log));
    assert.deepEqual(names(log), [...EXPECTED, "closed"]);
  });

  test(`sockjs-client in Node hears over ${transport} that its app is unknown`, async () => {
    const socket = new SockJS(`http://127.0.0.1:${edge.port}/pusher`, null, { transports: [transport] });
    const log = [];
    converse(socket, JSON.stringify({ path: "/app/nobody?protocol=7" }), "none", log);
    await eventually(() => names(log).includes("closed"), () => JSON.stringify(log));
    assert.deepEqual(names(log), ["pusher:error", "closed"]);
    assert.equal(log[1].code, 4001);
  });
}

test("an edge serves the configured SockJS transports, and its info lists them", async () => {
  const small = await startEdge({ REALTIME_TRANSPORTS: "sockjs_xhr" });
  const base = `http://127.0.0.1:${small.port}/pusher`;
  const ask = async (method, path) => (await fetch(base + path, { method })).status;
  const info = await (await fetch(`${base}/info`)).json();
  assert.equal(info.websocket, false);
  assert.deepEqual(await Promise.all([
    ask("POST", "/0/a/xhr"), ask("GET", "/0/b/jsonp?c=x"), ask("POST", "/0/a/xhr_streaming"), ask("GET", "/0/a/eventsource"),
    ask("GET", "/0/a/htmlfile?c=x"), ask("GET", "/0/a/websocket"), ask("GET", "/websocket"), ask("POST", "/app/key1/0/a/xhr_streaming"),
  ]), [200, 200, 404, 404, 404, 404, 404, 404]);
  assert.equal(await small.stop(), 0);
});

/** A page of another origin than the edge, or of the edge's own. */
async function open(origin, ...wanted) {
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (/content security policy/i.test(message.text())) problems.push(message.text());
  });
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url())));
  const url = `http://127.0.0.1:${edge.port}/page`;
  if (origin === "own") {
    await page.route(url, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html><body></body>" }));
    await page.goto(url);
  } else {
    await page.goto(`http://localhost:${pages.address().port}/`);
  }
  for (const name of wanted) await page.addScriptTag({ content: scripts[name] });
  return { page, problems, asked };
}

for (const [transport, origin] of [
  ["websocket", "other"], ["xhr-streaming", "other"], ["eventsource", "other"], ["xhr-polling", "other"], ["jsonp-polling", "other"],
  ["iframe-eventsource", "other"], ["iframe-htmlfile", "other"], ["iframe-xhr-polling", "other"], ["htmlfile", "own"],
]) {
  test(`sockjs-client in Chromium works over ${transport}`, async () => {
    const { page, problems } = await open(origin, "sockjs");
    const channel = `page-${transport}`;
    await page.evaluate(([converse, url, transport, path, channel]) => {
      window.log = [];
      window.socket = new SockJS(url, null, { transports: [transport] });
      new Function(`return ${converse}`)()(window.socket, path, channel, window.log);
    }, [converse.toString(), `http://127.0.0.1:${edge.port}/pusher`, transport, PATH, channel]);
    const seen = (event) => page.waitForFunction((event) => log.some((message) => message.event === event), event, { timeout: 20_000 });
    await seen(EXPECTED[1]);
    await edge.sdk.trigger(channel, "news", TEXT);
    await seen("news");
    const log = await page.evaluate(() => log);
    assert.deepEqual(names(log), EXPECTED);
    assert.equal(log.at(-1).data, TEXT);
    assert.equal(await page.evaluate(() => socket.transport), transport);
    assert.deepEqual(problems, []);
    await page.close();
  });
}

test("pusher-js in Chromium works over its transport sockjs, in a hidden frame", async () => {
  const { page, problems, asked } = await open("other", "fork", "pusher");
  await page.evaluate(([key, port]) => {
    const options = {
      cluster: "", httpHost: "127.0.0.1", httpPort: port, forceTLS: false, enableStats: false, enabledTransports: ["sockjs"],
    };
    window.client = new Pusher(key, options);
    window.log = [];
    client.connection.bind("error", (error) => log.push(JSON.stringify(error)));
    client.subscribe("pusher-js").bind("news", (data) => log.push(data));
  }, [KEY, edge.port]);
  await page.waitForFunction(() => client.channel("pusher-js").subscribed, undefined, { timeout: 20_000 });
  await edge.sdk.trigger("pusher-js", "news", TEXT);
  await page.waitForFunction(() => log.length > 0, undefined, { timeout: 20_000 });
  assert.deepEqual(await page.evaluate(() => log), [TEXT]);
  assert.equal(await page.evaluate(() => client.connection.connection.transport.name), "sockjs");
  assert.match(await page.evaluate(() => client.connection.socket_id), /^\d+\.\d+$/);
  const framed = asked.find(({ pathname }) => pathname === "/pusher/iframe.html");
  assert.equal(framed?.searchParams.get("js_path"), "http://js.pusher.com/8.6.0/sockjs.js");
  assert.ok(asked.some(({ pathname }) => pathname.endsWith("/eventsource")), asked.join(" "));
  assert.deepEqual(problems, []);
  await page.close();
});
