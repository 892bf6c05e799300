// A front of the API server that fails on demand: a share of requests, and watches that go silent.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { Agent, createServer, request as forward } from "node:https";

import { DIR, HOST, KUBECONFIG, tearDown } from "../cluster/harness.mjs";

/** The ways in which requests fail, in turn. */
const FAILURES = ["429", "500", "half"];

/** Starts it; pods reach it as `host` and `port`, with the API server's own certificate. */
export async function startApiProxy() {
  const [, port] = readFileSync(KUBECONFIG, "utf8").match(/https:\/\/127\.0\.0\.1:(\d+)/);
  const [key, cert] = ["key", "crt"].map((end) => readFileSync(`${DIR}/pki/apiserver/apiserver.${end}`));
  const agent = new Agent({ keepAlive: true, rejectUnauthorized: false });
  const watches = new Set();
  let failures = 0;
  const proxy = {
    host: HOST,
    /** The share of requests that fail. */
    failing: 0,
    /** How many requests failed, by the way in which they did. */
    failed: Object.fromEntries(FAILURES.map((kind) => [kind, 0])),
    passed: 0,
    /** Makes every open watch silent for good, without closing it; returns how many there are. */
    silenceWatches: () => {
      for (const { answer, response } of watches) {
        answer.unpipe(response);
        answer.resume();
      }
      return watches.size;
    },
  };
  /** The way in which this request fails, if it does. At random: in turn, a caller that tries in pairs would fail always. */
  const nextFailure = () => {
    if (Math.random() >= proxy.failing) return undefined;
    const kind = FAILURES[failures % FAILURES.length];
    failures += 1;
    proxy.failed[kind] += 1;
    return kind;
  };
  const server = createServer({ key, cert }, (request, response) => {
    const failure = nextFailure();
    if (failure === "429" || failure === "500") {
      const status = { kind: "Status", apiVersion: "v1", status: "Failure", reason: "Injected", message: "a failure of the test", code: Number(failure) };
      request.resume();
      response.writeHead(Number(failure), { "content-type": "application/json", ...(failure === "429" && { "retry-after": "1" }) });
      response.end(JSON.stringify(status));
      return;
    }
    proxy.passed += failure ? 0 : 1;
    const { method, url: path, headers } = request;
    const forwarded = forward({ host: "127.0.0.1", port, method, path, headers, agent, rejectUnauthorized: false }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.on("error", () => response.destroy());
      if (failure === "half") {
        // The request was done, and its answer breaks off.
        answer.once("data", (chunk) => response.write(chunk.subarray(0, chunk.length / 2), () => response.destroy()));
        answer.once("end", () => response.destroy());
        return;
      }
      if (/[?&]watch=(true|1)/.test(path)) {
        const watch = { answer, response };
        watches.add(watch);
        response.once("close", () => watches.delete(watch));
      }
      answer.pipe(response);
    });
    forwarded.on("error", () => response.destroy());
    response.on("close", () => forwarded.destroy());
    request.pipe(forwarded);
  });
  server.listen(0, HOST);
  await once(server, "listening");
  proxy.port = server.address().port;
  tearDown(async () => {
    server.closeAllConnections();
    server.close();
    agent.destroy();
  });
  return proxy;
}
