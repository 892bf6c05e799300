// The integration specs that pusher-js brings in its npm package, against a rehearsed cluster: all of them, on every
// transport, in Node and in headless Chromium. A spec is tried once.
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { startChromium } from "./chromium.mjs";
import { spawnBound } from "./processes.mjs";
import { startReceiver, startRehearsal } from "./rehearsal.mjs";
import { bundle } from "./specs/bundle.mjs";
import { SOCKJS_PATH, startHelper } from "./specs/helper.mjs";

/** What the release has for each transport. A bundle that lost one is not the suite. */
const SPECS = 33;
const SECONDS = 240;
/** By runtime; `sockjs` is for browsers only. */
const TRANSPORTS = {
  Node: ["ws", "xhr_streaming", "xhr_polling"],
  Chromium: ["ws", "xhr_streaming", "xhr_polling", "sockjs"],
};

let receiver;
let rehearsal;
let helper;
let folder;
let browser;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "specs-"));
  receiver = await startReceiver();
  helper = await startHelper();
  rehearsal = await startRehearsal(receiver, "", `  sockjsClients: { scripts: ["${helper.url}${SOCKJS_PATH}"] }`);
  const { host, port } = rehearsal.serving.api;
  helper.publishWith({ host, port: String(port), key: rehearsal.app.key, secret: rehearsal.app.secret });
  browser = await startChromium();
});

after(async () => {
  await browser?.close();
  helper?.close();
  const code = await rehearsal?.stop();
  receiver?.close();
  await rm(folder, { recursive: true, force: true });
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly");
});

function servers() {
  const { websocket, sockjs } = rehearsal.serving;
  return { helper: helper.url, key: rehearsal.app.key, websocket, sockjs };
}

/** Runs the specs in a Node of their own. */
async function inNode(transport) {
  const file = join(folder, `${transport}.cjs`);
  await writeFile(file, await bundle("node", transport, servers()));
  const runner = fileURLToPath(new URL("./specs/jasmine.mjs", import.meta.url));
  const child = spawnBound(process.execPath, [runner, file], { stdio: ["ignore", "pipe", "pipe"], timeout: SECONDS * 1000 });
  const closed = once(child, "close");
  let errors = "";
  child.stderr.on("data", (chunk) => (errors += chunk));
  const lines = [];
  for await (const line of createInterface({ input: child.stdout })) lines.push(JSON.parse(line));
  const [code, signal] = await closed;
  assert.equal(code, 0, `the specs' process ended with ${signal ?? code}: ${errors}`);
  return { specs: lines.filter(({ name }) => name !== undefined), end: lines.find(({ overall }) => overall) };
}

/** Runs the specs in a page of their own. */
async function inChromium(transport) {
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  await page.goto(`${helper.url}/`);
  // pusher-js would load it when it is needed; here it is there before.
  if (transport === "sockjs") await page.addScriptTag({ url: helper.url + SOCKJS_PATH });
  const core = fileURLToPath(new URL("./node_modules/jasmine-core/lib/jasmine-core/jasmine.js", import.meta.url));
  await page.addScriptTag({ path: core });
  await page.evaluate(() => {
    const jasmine = window.jasmineRequire.core(window.jasmineRequire);
    const env = jasmine.getEnv();
    Object.assign(window, window.jasmineRequire.interface(jasmine, env), { jasmine });
    env.configure({ random: false, failSpecWithNoExpectations: false });
    const messages = (list) => list.map(({ message }) => message);
    window.results = { specs: [] };
    env.addReporter({
      specDone: ({ fullName, status, failedExpectations }) =>
        window.results.specs.push({ name: fullName, status, failures: messages(failedExpectations) }),
      jasmineDone: ({ overallStatus, incompleteReason, failedExpectations }) =>
        (window.results.end = { overall: overallStatus, why: incompleteReason, failures: messages(failedExpectations) }),
    });
  });
  await page.addScriptTag({ content: await bundle("web", transport, servers()) });
  assert.deepEqual(problems, [], "the specs could be loaded");
  await page.evaluate(() => void window.jasmine.getEnv().execute());
  await page.waitForFunction(() => window.results.end, undefined, { timeout: SECONDS * 1000, polling: 200 });
  const results = await page.evaluate(() => window.results);
  await page.close();
  return { ...results, asked };
}

/** What must be true of a run; the suite itself is content with none for a transport that the runtime has not. */
function complete({ specs, end }, transport) {
  assert.equal(specs.length, SPECS, "every spec was executed");
  const named = specs.filter(({ name }) => name.includes(` with ${transport}, `));
  assert.equal(named.length, SPECS - 2, "all but the first and the last are of this transport");
  assert.equal(end?.overall, "passed", JSON.stringify(end));
}

describe("pusher-js's own specs", { concurrency: true }, () => {
  for (const [where, run] of [["Node", inNode], ["Chromium", inChromium]]) {
    for (const transport of TRANSPORTS[where]) {
      test(`in ${where} over ${transport}`, async (t) => {
        const results = await run(transport);
        for (const { name, status, failures } of results.specs) {
          await t.test(name, () => assert.equal(status, "passed", failures.join("; ")));
        }
        complete(results, transport);
        if (transport !== "sockjs") return;
        for (const part of ["/pusher/iframe.html", "/eventsource", "/xhr_send"]) {
          assert.ok(results.asked.some((path) => path.endsWith(part)), `${part}: ${results.asked.join(" ")}`);
        }
      });
    }
  }
});

test("a transport that the runtime lacks is a failure, although the suite accepts it", async () => {
  const results = await inChromium("xdr_streaming");
  assert.equal(results.end.overall, "passed");
  assert.throws(() => complete(results, "xdr_streaming"), /every spec was executed/);
});

test("the backend of the specs has met no failure", () => assert.deepEqual(helper.failures, []));
