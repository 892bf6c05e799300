// SockJS beside the npm package `sockjs`: the same requests over TCP to both, and every byte of the answers compared.
// Where the two may differ stands in docs/sockjs.md, and nowhere else.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";

import { KEY, startEdge } from "./edge.mjs";
import { Connection, body, frames, head, header, requestText, textFrame } from "./raw.mjs";
import { startReferenceServer } from "./reference_server.mjs";

/** The first of REALTIME_SOCKJS_SCRIPTS. */
const SCRIPT = "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js";
const PATH = JSON.stringify({ path: `/app/${KEY}?protocol=7&client=js&version=8.6.0` });
const NOBODY = JSON.stringify({ path: "/app/nobody?protocol=7" });
const PING = JSON.stringify({ event: "pusher:ping", data: {} });
const FORM = { "Content-Type": "application/x-www-form-urlencoded" };

/** Fewer requests than this would not be the comparison that it says it is. */
const LEAST_REQUESTS = 500;
const MOST_EXCEPTIONS = 10;

const subscribe = (channel) => JSON.stringify({ event: "pusher:subscribe", data: { channel, auth: "" } });
const sessions = { ours: [], theirs: [] };
let pairs;
let learned;

before(async () => {
  for (const [name, cookie] of [["off", "off"], ["on", "on"]]) {
    const edge = await startEdge({ REALTIME_SOCKJS_COOKIE: cookie });
    sessions.ours.push({ name, edge });
  }
  learned = await learn(sessions.ours[0].edge);
  for (const { name } of sessions.ours) {
    sessions.theirs.push({ name, reference: await startReferenceServer({ reply, script: SCRIPT, jsessionid: name === "on" }) });
  }
  pairs = Object.fromEntries(sessions.ours.map(({ name, edge }, n) => {
    const { reference } = sessions.theirs[n];
    const ours = { port: edge.port, publish: (channel, data) => edge.sdk.trigger(channel, "news", data) };
    const theirs = { port: reference.port, publish: async (channel, data) => reference.publish(channel, event(channel, data)) };
    return [name, { ours, theirs }];
  }));
});

after(async () => {
  for (const { reference } of sessions.theirs) reference.stop();
  for (const { edge } of sessions.ours) assert.equal(await edge.stop(), 0, "SIGTERM ends an edge cleanly");
});

/** What our application says, from a socket without frames; the reference server's says the same. */
async function learn(edge) {
  const talk = async (messages, count) => {
    const wire = new Connection(edge.port);
    wire.write(upgrade("/pusher/websocket"));
    for (const message of messages) wire.write(textFrame(message));
    const found = await wire.until(() => {
      const all = frames(head(wire.bytes)?.rest ?? Buffer.alloc(0));
      return all.length >= count ? all : undefined;
    }, "what our application says");
    wire.end();
    return found.map((frame) => /^(\w+) (.*)$/s.exec(frame).slice(1));
  };
  const [[, established], [, pong], [, succeeded]] = await talk([PATH, PING, subscribe("CHANNEL")], 3);
  const [[, refusal], [, closing]] = await talk([NOBODY], 2);
  const [, code, reason] = /^(\d+) (.*)$/s.exec(closing);
  return { established, pong, succeeded, refusal, close: [Number(code), reason] };
}

function reply(message) {
  if (message === PATH) return { texts: [learned.established] };
  if (message === NOBODY) return { texts: [learned.refusal], close: learned.close };
  if (message === PING) return { texts: [learned.pong] };
  const { event, data } = JSON.parse(message);
  if (event !== "pusher:subscribe") return {};
  return { texts: [learned.succeeded.replace("CHANNEL", data.channel)], channel: data.channel };
}

const event = (channel, data) => JSON.stringify({ event: "news", channel, data });

function upgrade(path, headers = {}) {
  const usual = {
    Upgrade: "websocket", Connection: "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
  };
  return requestText("GET", path, { headers: { ...usual, ...headers } });
}

/** One side of a scenario: makes requests, and keeps what was seen. */
class Side {
  constructor(target, id) {
    Object.assign(this, { target, id, channel: `room-${id}`, seen: [], requests: 0 });
  }

  /** A whole request and its answer. */
  async ask(method, path, options = {}) {
    const answer = this.open(method, path, options);
    await answer.whole();
    return answer.keep();
  }

  /** A request whose answer is read bit by bit. */
  open(method, path, options = {}) {
    this.requests += 1;
    return new Answer(this, method, path, options);
  }

  path(way, server = "000") {
    return `/pusher/${server}/${this.id}/${way}`;
  }

  async send(message) {
    return this.ask("POST", this.path("xhr_send"), { body: JSON.stringify([message]) });
  }

  /** A socket on which each message waits until so many frames have come. */
  async talk(path, ...steps) {
    this.requests += 1;
    const wire = new Connection(this.target.port);
    wire.write(upgrade(path));
    const come = () => frames(head(wire.bytes)?.rest ?? Buffer.alloc(0));
    for (const [count, ...messages] of steps) {
      await wire.until(() => (head(wire.bytes) && come().length >= count ? true : undefined), `${count} frames of ${path}`);
      for (const message of messages) wire.write(textFrame(message));
    }
    const { line, headers } = head(wire.bytes);
    this.seen.push({ what: `socket ${path} ${JSON.stringify(steps)}`, line, headers, text: come().join("\n"), how: "socket", whole: true, closed: false });
    wire.end();
  }

  wait(ms) {
    return new Promise((resolve) => setTimeout(resolve, ms));
  }
}

class Answer {
  constructor(side, method, path, options) {
    this.wire = new Connection(side.target.port);
    this.wire.write(options.raw ?? requestText(method, path, options));
    const { headers, body: sent, version } = options;
    Object.assign(this, { side, method, options, what: `${method} ${path} ${JSON.stringify({ headers, sent, version })}` });
  }

  now() {
    const start = head(this.wire.bytes);
    return start && { ...start, ...body(start, this.wire.closed, this.method) };
  }

  /** Waits until so much of the body is there. */
  async until(mark, times = 1) {
    return this.wire.until(() => (this.now()?.text.split(mark).length > times ? this : undefined), `${mark} in ${this.what}`);
  }

  async whole() {
    return this.wire.until(() => (this.now()?.whole ? this : undefined), `the end of ${this.what}`);
  }

  /** Takes down what was seen, and goes. */
  async keep() {
    const { line, headers, text, how, whole } = this.now();
    const last = this.options.version === "1.0" || this.options.headers?.Connection === "close";
    if (whole && last && !/^keep-alive$/i.test(header(headers, "connection") ?? "")) {
      await this.wire.until(() => this.wire.closed || undefined, `the connection's end after ${this.what}`);
    }
    const seen = { what: this.what, line, headers, text, how, whole, closed: this.wire.closed };
    this.side.seen.push(seen);
    this.wire.end();
    return seen;
  }
}

/** Every scenario: what it is called, what it does on one side, and with or without cookies. */
const scenarios = [];
const scenario = (name, run, cookies = "off") => scenarios.push({ name, run, cookies });

scenario("the greeting", async (side) => {
  for (const path of ["/pusher", "/pusher/"]) {
    for (const headers of [{}, { Origin: "http://a.example" }, { Connection: "close" }]) await side.ask("GET", path, { headers });
  }
});

scenario("paths that mean nothing", async (side) => {
  const paths = [
    "/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/", "/iframe.htm", "/iframe", "/IFRAME.HTML", "/iframe.HTML", "/iframe.xml",
    "/iframe-/.html", "/infos", "/a/b/c/d", "/a/b/unknown",
  ];
  for (const path of paths) await side.ask("GET", `/pusher${path}`);
  for (const path of ["//", "/a./a", "/a/a.", "/./.", "/", "///"]) {
    await side.ask("GET", `/pusher${path}/xhr`);
    await side.ask("POST", `/pusher${path}/xhr`);
  }
});

scenario("iframe pages", async (side) => {
  const pages = ["iframe.html", "iframe-a.html", "iframe-.html", "iframe-0.1.2.html", "iframe-0.1.2abc-dirty.2144.html"];
  for (const page of [...pages, "iframe-a.html?t=1234", "iframe-0.1.2.html?t=123414"]) {
    const { headers } = await side.ask("GET", `/pusher/${page}`);
    const tag = header(headers, "etag");
    await side.ask("GET", `/pusher/${page}`, { headers: { "If-None-Match": tag } });
    await side.ask("GET", `/pusher/${page}`, { headers: { "If-None-Match": '"other"' } });
  }
  await side.ask("GET", "/pusher/iframe.html?js_path=https://evil.example/s.js");
});

scenario("info", async (side) => {
  for (const headers of [{}, { Origin: "http://a.example" }, { Origin: "null" }, { Origin: "test", "Access-Control-Request-Headers": "a, b" }]) {
    for (const path of ["/pusher/info", "/pusher/info/"]) {
      const { text } = await side.ask("GET", path, { headers });
      const { entropy } = JSON.parse(text);
      assert.ok(Number.isInteger(entropy) && entropy >= 0 && entropy < 2 ** 32, text);
    }
  }
});

scenario("preflights", async (side) => {
  const wanted = { "Access-Control-Request-Method": "POST" };
  for (const path of ["/pusher/info", ...["xhr", "xhr_send", "xhr_streaming"].map((way) => side.path(way))]) {
    for (const headers of [
      {}, { Origin: "http://a.example" }, { Origin: "null" }, { Origin: "test", "Access-Control-Request-Headers": "a, b, c" },
      { Origin: "test", "Access-Control-Request-Headers": "" },
    ]) {
      await side.ask("OPTIONS", path, { headers: { ...wanted, ...headers } });
    }
  }
});

scenario("methods that are not allowed", async (side) => {
  const ways = ["websocket", "xhr", "xhr_streaming", "xhr_send", "eventsource", "htmlfile", "jsonp", "jsonp_send"];
  const takes = { xhr: ["POST", "OPTIONS"], xhr_streaming: ["POST", "OPTIONS"], xhr_send: ["POST", "OPTIONS"], jsonp_send: ["POST"] };
  for (const way of ways) {
    for (const method of ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]) {
      if (!(takes[way] ?? ["GET"]).includes(method)) await side.ask(method, side.path(way));
    }
  }
  for (const path of ["", "/", "/info", "/iframe.html", "/websocket"]) {
    for (const method of ["POST", "PUT", "DELETE", "HEAD"]) await side.ask(method, `/pusher${path}`);
  }
});

scenario("callbacks", async (side) => {
  for (const way of ["htmlfile", "jsonp"]) {
    for (const query of ["", "?d=x", "?c=%20", "?c=*", "?c=abc(", "?c=abc%28", "?callback=a%3Cb", "?c=%C3%BC"]) {
      await side.ask("GET", side.path(way) + query);
    }
  }
  await side.ask("GET", `${side.path("jsonp")}?c=${"x".repeat(33)}`);
});

/** The ways of receiving: what the request is, and what ends a frame. */
const WAYS = {
  xhr: { method: "POST", query: "", after: "\n", poll: true },
  xhr_streaming: { method: "POST", query: "", after: "\n" },
  eventsource: { method: "GET", query: "", after: "\r\n\r\n" },
  htmlfile: { method: "GET", query: "?c=%63allback", after: "</script>\r\n" },
  jsonp: { method: "GET", query: "?callback=a.b-c_1", after: ");\r\n", poll: true },
};

/** Something that frames come from, by polls or over one answer. */
async function receiver(side, way, options = {}) {
  const { method, query, poll } = WAYS[way];
  const path = side.path(way) + query;
  if (poll) {
    return {
      next: () => side.ask(method, path, options),
      done: async () => {},
      whole: () => side.ask(method, path, options),
    };
  }
  const stream = side.open(method, path, options);
  return {
    next: async (text) => stream.until(text),
    done: async () => stream.keep(),
    whole: async () => {
      await stream.whole();
      return stream.keep();
    },
  };
}

const OPENED = { xhr: "o\n", xhr_streaming: "\no\n", eventsource: "data: o\r\n", htmlfile: 'p("o")', jsonp: '"o"' };

for (const way of Object.keys(WAYS)) {
  scenario(`a session over ${way}`, async (side) => {
    for (const headers of [{}, { Origin: "http://a.example" }, { Origin: "null" }]) {
      side.id = another(side.id);
      const frames = await receiver(side, way, { headers });
      await frames.next(OPENED[way]);
      await side.send(PATH);
      await frames.next("connection_established");
      await side.send(PING);
      await frames.next("pusher:pong");
      await side.ask("POST", side.path("xhr_send", "999"), { body: "[]" });
      await side.ask("POST", side.path("jsonp_send"), { headers: FORM, body: `d=${encodeURIComponent(JSON.stringify([subscribe(side.channel)]))}` });
      await frames.next("subscription_succeeded");
      await frames.done();
    }
  });

  scenario(`characters over ${way}`, async (side) => {
    const frames = await receiver(side, way);
    await frames.next(OPENED[way]);
    await side.send(PATH);
    await frames.next("connection_established");
    await side.send(subscribe(side.channel));
    await frames.next("subscription_succeeded");
    const range = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => String.fromCodePoint(from + n)).join("");
    const texts = [
      range(0, 0x7f).replace("<", ""), range(0x80, 0x24f), range(0x2000, 0x206f), range(0xfeff, 0xfeff) + range(0xffe0, 0xffff),
      "\u{1f600}\u{10ffff}", "100 % %25 %0a", "</script><!--",
    ];
    for (const [n, text] of texts.entries()) {
      await side.target.publish(side.channel, `${text}END${n}`);
      await frames.next(`END${n}`);
    }
    await frames.done();
  });

  scenario(`the end over ${way}`, async (side) => {
    const first = await receiver(side, way);
    await first.next(OPENED[way]);
    await side.send(NOBODY);
    if (WAYS[way].poll) await first.next();
    await first.whole();
    for (let n = 0; n < 3; n += 1) await (await receiver(side, way)).whole();
    await side.ask("POST", side.path("xhr_send"), { body: '["late"]' });
    await side.wait(7_000);
    await side.ask("POST", side.path("xhr_send"), { body: '["gone"]' });
    const again = await receiver(side, way);
    await again.next(OPENED[way]);
    await again.done();
  });

  scenario(`a second receiver over ${way}, and an abort`, async (side) => {
    const { method, query } = WAYS[way];
    const first = await receiver(side, way);
    await first.next(OPENED[way]);
    const waiting = WAYS[way].poll ? side.open(method, side.path(way) + query) : undefined;
    // The answer's first byte may come with its first frame only, so nothing tells when it waits.
    if (waiting) await side.wait(500);
    await (await receiver(side, way)).whole();
    if (waiting) waiting.wire.end();
    else await first.done();
    await side.wait(500);
    const again = await receiver(side, way);
    await again.next(OPENED[way]);
    await again.done();
  });

  scenario(`HTTP/1.0 over ${way}`, async (side) => {
    const options = { version: "1.0" };
    const first = await receiver(side, way, options);
    await first.next(OPENED[way]);
    await side.ask("POST", side.path("xhr_send"), { ...options, body: JSON.stringify([NOBODY]) });
    if (WAYS[way].poll) await first.next();
    await first.whole();
  });

  scenario(`the heartbeat over ${way}`, async (side) => {
    const frames = await receiver(side, way);
    await frames.next(OPENED[way]);
    await side.send(PATH);
    await frames.next("connection_established");
    const began = Date.now();
    await frames.next({ xhr_streaming: "\nh\n", eventsource: "data: h\r\n", htmlfile: 'p("h")' }[way]);
    const seconds = (Date.now() - began) / 1000;
    assert.ok(seconds > 23 && seconds < 30, `a heartbeat after ${seconds} s`);
    await frames.done();
  });

  scenario(`a cookie over ${way}`, async (side) => {
    for (const headers of [{}, { Cookie: "JSESSIONID=abcdef" }, { Cookie: "a=b; JSESSIONID=x; c=d" }]) {
      side.id = another(side.id);
      const frames = await receiver(side, way, { headers });
      await frames.next(OPENED[way]);
      await frames.done();
      await side.ask("POST", side.path("xhr_send"), { headers, body: '["' });
      await side.ask("POST", side.path("jsonp_send"), { headers: { ...headers, ...FORM }, body: "d=" });
    }
  }, "on");

  if (WAYS[way].poll) continue;
  scenario(`the length of an answer over ${way}`, async (side) => {
    const first = await receiver(side, way);
    await first.next(OPENED[way]);
    await side.send(PATH);
    await first.next("connection_established");
    await side.send(subscribe(side.channel));
    await first.next("subscription_succeeded");
    for (let n = 0; n < 15; n += 1) {
      await side.target.publish(side.channel, `${"x".repeat(9_000)}END${n}.`);
      if (n < 14) await first.next(`END${n}.`);
    }
    await first.whole();
    const next = await receiver(side, way);
    await side.target.publish(side.channel, "AFTER");
    await next.next("AFTER");
    await next.done();
  });
}

scenario("several messages at once", async (side) => {
  const poll = () => side.ask("POST", side.path("xhr"));
  await poll();
  await side.send(PATH);
  await poll();
  await side.send(subscribe(side.channel));
  await poll();
  for (const text of ["one", "two", "three"]) await side.target.publish(side.channel, text);
  await poll();
});

scenario("a session that changes its way and its server part", async (side) => {
  await side.ask("POST", side.path("xhr", "a"));
  await side.send(PATH);
  await side.ask("GET", `${side.path("jsonp", "b")}?c=x`);
  await side.send(PING);
  const stream = side.open("GET", side.path("eventsource", "c"));
  await stream.until("pusher:pong");
  await stream.keep();
});

scenario("names of sessions", async (side) => {
  for (const path of [`/a/a${side.id}`, `/_/_${side.id}`, `/1/${side.id}`, `/abcdefgh_i-j%20/abcdefg_i-j%20${side.id}`]) {
    await side.ask("POST", `/pusher${path}/xhr/`);
    await side.ask("POST", `/pusher${path}/xhr_send/`, { body: "[]" });
  }
});

scenario("what a session does not take", async (side) => {
  for (const body of ['["x"]', "", '["x', "{}"]) {
    await side.ask("POST", side.path("xhr_send"), { body });
    await side.ask("POST", side.path("jsonp_send"), { headers: FORM, body: `d=${encodeURIComponent(body)}` });
  }
  await side.ask("POST", side.path("xhr"));
  for (const body of ["", '["x', "{}", "null", "7", '"x"', "[", "x", "[]"]) {
    for (const headers of [{}, { Origin: "http://a.example" }]) await side.ask("POST", side.path("xhr_send"), { headers, body });
  }
  for (const body of ["", "d=", "p=p", "d=%5B%22x", "d=x", "d=%7B%7D", "d=%5B%5D"]) {
    await side.ask("POST", side.path("jsonp_send"), { headers: FORM, body });
  }
  for (const body of ["", '["x', "{}", "[]"]) await side.ask("POST", side.path("jsonp_send"), { headers: { "Content-Type": "text/plain" }, body });
  await side.ask("POST", side.path("jsonp_send"), { headers: { "Content-Type": "application/json" }, body: "[]" });
});

scenario("content types", async (side) => {
  await side.ask("POST", side.path("xhr"));
  for (const type of [
    "text/plain", "T", "application/json", "application/xml", "", "application/json; charset=utf-8", "text/xml; charset=utf-8", "text/xml",
    "application/octet-stream",
  ]) {
    await side.ask("POST", side.path("xhr_send"), { headers: { "Content-Type": type }, body: "[]" });
  }
});

scenario("HTTP/1.0 and HTTP/1.1", async (side) => {
  for (const version of ["1.0", "1.1"]) {
    for (const headers of [{}, { Connection: "Keep-Alive" }, { Connection: "close" }]) {
      for (const path of ["/pusher", "/pusher/info", "/pusher/iframe.html", "/pusher/nothing"]) {
        await side.ask("GET", path, { version, headers });
      }
    }
  }
});

scenario("two requests over one connection", async (side) => {
  const raw = requestText("GET", "/pusher");
  const answer = side.open("GET", "/pusher", { raw });
  await answer.whole();
  const length = answer.wire.bytes.length;
  answer.wire.write(raw);
  await answer.wire.until(() => (answer.wire.bytes.length >= 2 * length ? true : undefined), "the second answer");
  await answer.keep();
});

scenario("what is no WebSocket", async (side) => {
  for (const path of ["/pusher/websocket", "/pusher/0/0/websocket"]) {
    await side.ask("GET", path);
    await side.ask("GET", path, { headers: { Upgrade: "WebSocket", Connection: "close" } });
    await side.ask("GET", path, { headers: { Upgrade: "WebSocket" } });
    await side.ask("POST", path);
  }
});

scenario("sockets", async (side) => {
  const path = "/pusher/0/same/websocket";
  await side.talk(path, [1]);
  await side.talk(path, [1, "", "[]", JSON.stringify([PATH])], [2, JSON.stringify([PING])], [3]);
  await side.talk(path, [1, JSON.stringify(PATH)], [2, JSON.stringify(PING)], [3]);
  await side.talk(path, [1, JSON.stringify([NOBODY])], [4]);
  await side.talk(path, [1, '["x'], [2]);
  await side.talk("/pusher/0/other/websocket/", [1, JSON.stringify([PATH])], [2]);
});

scenario("raw sockets", async (side) => {
  await side.talk("/pusher/websocket", [0, PATH], [1, PING], [2]);
  await side.talk("/pusher/websocket", [0, NOBODY], [2]);
  await side.talk("/pusher/websocket/", [0, PATH], [1]);
});

scenario("cookies elsewhere", async (side) => {
  for (const path of ["/pusher", "/pusher/iframe.html", "/pusher/info"]) await side.ask("GET", path);
  await side.ask("OPTIONS", "/pusher/info");
  await side.ask("OPTIONS", side.path("xhr"));
}, "on");

/** The next session of a scenario: a name that both sides have and nobody else. */
function another(id) {
  const [, name, n] = /^(.*?)(?:_(\d+))?$/.exec(id);
  return `${name}_${Number(n ?? 1) + 1}`;
}

/** What must differ from answer to answer is made the same; what is wrong about it stays. */
function settled({ what, line, headers, text, how, whole, closed }) {
  const year = (value) => (Math.abs(Date.parse(value) - Date.now() - 31_536_000_000) < 120_000 ? "a year from now" : value);
  return {
    what, line, how, whole, closed,
    headers: headers.filter(([name]) => name.toLowerCase() !== "date").map(([name, value]) => [name, /^expires$/i.test(name) ? year(value) : value]),
    text: text.replace(/\d{5,}\.\d{5,}/g, "SOCKET").replace(/"entropy":\d+/, '"entropy":N'),
  };
}

const without = (seen, names) => ({ ...seen, headers: seen.headers.filter(([name]) => !names.includes(name.toLowerCase())) });
const status = ({ line }) => Number(line.split(" ")[1]);

/** The exceptions, by the names that docs/sockjs.md gives them: both sides, as if they agreed. */
const EXCEPTIONS = {
  "header-names": (...pair) => pair.map((seen) => ({
    ...seen,
    headers: seen.headers
      .map(([name, value]) => [name.toLowerCase(), /^connection$/i.test(name) ? value.toLowerCase() : value])
      .sort((a, b) => (a.join() < b.join() ? -1 : 1)),
  })),
  "keep-alive": (...pair) => pair.map((seen) => (status(seen) === 101 ? seen : without(seen, ["connection", "keep-alive"]))),
  "body-length": (...pair) => (pair.every(({ whole }) => whole)
    ? pair.map((seen) => ({ ...without(seen, ["content-length", "transfer-encoding"]), how: "whole" }))
    : pair),
  "old-version": (ours, theirs) => {
    if (!/"version":"1.0"/.test(ours.what)) return [ours, theirs];
    const kept = /Keep-Alive/.test(ours.what) && ours.whole && !ours.closed;
    return [ours, { ...theirs, line: theirs.line.replace("HTTP/1.1", "HTTP/1.0"), closed: theirs.closed && !kept }];
  },
  "accel-buffering": (ours, theirs) => [without(ours, ["x-accel-buffering"]), theirs],
  "content-policy": (ours, theirs) => [/iframe/.test(ours.what) ? without(ours, ["content-security-policy"]) : ours, theirs],
  "not-modified-tag": (ours, theirs) => [status(ours) === 304 ? without(ours, ["etag"]) : ours, theirs],
  "js-path": (ours, theirs) => (/js_path=/.test(ours.what) && status(ours) === 404 && !/evil/.test(ours.text) ? [theirs, theirs] : [ours, theirs]),
  "content-types": (ours, theirs) => (/xhr_send .*octet-stream/.test(ours.what) && status(ours) === 204 ? [theirs, theirs] : [ours, theirs]),
  "script-end": (ours, theirs) => [ours, /htmlfile/.test(ours.what) ? { ...theirs, text: theirs.text.replace("</script><!--", "\\u003c/script>\\u003c!--") } : theirs],
};

const uses = new Map();

function compare(ours, theirs) {
  for (const seen of [ours, theirs]) {
    assert.ok(!/"version":"1.0"/.test(seen.what) || seen.how !== "chunked", `HTTP/1.0 has no chunks: ${seen.what}`);
  }
  let pair = [settled(ours), settled(theirs)];
  for (const [name, mend] of Object.entries(EXCEPTIONS)) {
    if (JSON.stringify(pair[0]) === JSON.stringify(pair[1])) break;
    const before = JSON.stringify(pair);
    pair = mend(...pair);
    if (JSON.stringify(pair) !== before) uses.set(name, (uses.get(name) ?? 0) + 1);
  }
  assert.deepEqual(pair[0], pair[1]);
}

let requests = 0;

describe("beside the npm package sockjs", { concurrency: 12 }, () => {
  for (const [n, { name, run, cookies }] of scenarios.entries()) {
    test(name, async () => {
      const id = `s${n}${randomUUID().slice(0, 8)}`;
      const sides = ["ours", "theirs"].map((which) => new Side(pairs[cookies][which], id));
      await Promise.all(sides.map((side) => run(side)));
      const [ours, theirs] = sides;
      assert.equal(ours.seen.length, theirs.seen.length);
      ours.seen.forEach((seen, at) => compare(seen, theirs.seen[at]));
      requests += ours.requests;
    });
  }
});

test("enough was compared, and every exception is listed and needed", async (t) => {
  const text = await readFile(new URL("../../docs/sockjs.md", import.meta.url), "utf8");
  const listed = [...text.matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, name]) => name);
  t.diagnostic(`${requests} requests to each side; exceptions: ${JSON.stringify(Object.fromEntries(uses))}`);
  assert.ok(requests >= LEAST_REQUESTS, `${requests} requests`);
  assert.ok(listed.length <= MOST_EXCEPTIONS, `${listed.length} exceptions`);
  assert.deepEqual(listed, Object.keys(EXCEPTIONS));
  assert.deepEqual([...uses.keys()].sort(), [...listed].sort());
});
