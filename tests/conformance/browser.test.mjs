// The page of a rehearsal in headless Chromium, as a person would use it.
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { startChromium } from "./chromium.mjs";
import { startRehearsal } from "./rehearsal.mjs";

const SCREENSHOTS = process.env.SCREENSHOTS ?? join(tmpdir(), "realtime-screenshots");

let rehearsal;
let browser;

before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true });
  // An endpoint outside: its webhooks end in the rehearsal's own receiver and are shown on the page.
  rehearsal = await startRehearsal({ url: "https://shop.example.com/hook" });
  browser = await startChromium({ viewport: { width: 1100, height: 900 } });
});

after(async () => {
  await browser?.close();
  const code = await rehearsal?.stop();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly, also with pages that it served");
});

for (const transport of ["websocket", "xhr_streaming", "xhr_polling"]) {
  test(`the page connects by ${transport} and shows the webhook of its client event`, async () => {
    const page = await browser.newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`${rehearsal.serving.page}?transport=${transport}`);
    await page.locator("#state", { hasText: /^connected$/ }).waitFor({ timeout: 20_000 });
    assert.equal(await page.locator("#transport").textContent(), transport);
    assert.equal(await page.locator("#verdict-word").textContent(), "Ready");
    const name = await page.evaluate(() => pusher.connection.connection.transport.name);
    assert.equal(name, transport === "websocket" ? "ws" : transport);
    const socket = await page.locator("#socket").textContent();
    await page.locator("#send:enabled").click({ timeout: 10_000 });
    assert.match(socket, /^\d+\.\d+$/);
    // The socket's id tells this event from those of earlier pages, which are shown too.
    const arrived = page.locator("#webhooks li", { hasText: "client_event" }).filter({ hasText: socket });
    await arrived.first().waitFor({ timeout: 20_000 });
    await page.screenshot({ path: join(SCREENSHOTS, `${transport}.png`) });
    assert.deepEqual(problems, []);
    await page.close();
  });
}

test("the page shows a webhook once, however often it is replayed", async () => {
  const page = await browser.newPage();
  let asked = 0;
  // Each answer ends, so the page asks again, and gets the old webhook again and a new one.
  await page.route("**/webhooks", (route) => {
    asked += 1;
    const webhook = (id) => ({
      app: "1001",
      endpoint: "orders",
      body: { time_ms: 0, events: [{ id, name: "channel_occupied", channel: `from-${id}` }] },
    });
    const lines = ["first", `answer-${asked}`].map((id) => `data: ${JSON.stringify(webhook(id))}\n\n`);
    return route.fulfill({ contentType: "text/event-stream", body: `retry: 20\n\n${lines.join("")}` });
  });
  await page.goto(rehearsal.serving.page);
  await page.locator("#webhooks li", { hasText: "from-answer-3" }).waitFor({ timeout: 10_000 });
  assert.equal(await page.locator("#webhooks li", { hasText: "from-first" }).count(), 1);
  await page.close();
});

test("the page says what is wrong with a cluster that is refused", async () => {
  const page = await browser.newPage();
  const message = "sockjs/xhr_polling: subscribed, but no record reached the stream; REALTIME_WEBHOOKS differs";
  await page.route("**/config.json", async (route) => {
    const config = await (await route.fetch()).json();
    const transports = config.verdict.transports.map((transport) =>
      transport.server === "sockjs" ? { ...transport, state: "Failing", hop: "record", latencyMs: {} } : transport);
    const verdict = { ...config.verdict, ready: false, reason: "ConfigurationDrift", message, transports };
    return route.fulfill({ json: { ...config, verdict } });
  });
  await page.goto(rehearsal.serving.page);
  await page.locator("#verdict-word", { hasText: /^not Ready$/ }).waitFor({ timeout: 10_000 });
  assert.equal(await page.locator("#verdict-message").textContent(), message);
  const failing = page.locator("#transports li", { hasText: "Failing at hop record" });
  assert.equal(await failing.count(), 6, "all that the sockjs server carries");
  assert.equal(await page.locator("#transports li", { hasText: "Passing" }).count(), 1);
  await page.screenshot({ path: join(SCREENSHOTS, "refused.png") });
  await page.close();
});

test("the page's pusher-js is the npm package's, byte for byte", async () => {
  const ours = await readFile(new URL("../../third_party/pusher-js/pusher.min.js", import.meta.url));
  const theirs = await readFile(new URL("./node_modules/pusher-js/dist/web/pusher.min.js", import.meta.url));
  assert.ok(ours.equals(theirs));
});
