// The page of a rehearsal in headless Chromium, as a person would use it.
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { startChromium } from "./chromium.mjs";
import { startReceiver, startRehearsal } from "./rehearsal.mjs";

const SCREENSHOTS = process.env.SCREENSHOTS ?? join(tmpdir(), "realtime-screenshots");
const PUSHER_NAMES = { websocket: "ws", xhr_streaming: "xhr_streaming", xhr_polling: "xhr_polling" };
const FALLBACKS = [
  "xhr_streaming", "xhr_polling", "sockjs_websocket", "sockjs_xhr_streaming", "sockjs_xhr", "sockjs_eventsource",
];
const HOPS = [
  "connect", "handshake", "session", "subscribe", "publish", "fan-out", "record", "dispatch", "delivery", "authenticity", "farewell",
];
/** A gate that is quick to judge. */
const QUICK_GATE = "  gate: { intervalSeconds: 1, timeoutSeconds: 4, openAfter: 1 }";

let rehearsal;
let browser;

before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true });
  // An endpoint outside: its webhooks end in the rehearsal's own receiver and are shown on the page.
  rehearsal = await startRehearsal({ url: "https://shop.example.com/hook" }, "", QUICK_GATE);
  browser = await startChromium({ viewport: { width: 1100, height: 900 } });
});

after(async () => {
  await browser?.close();
  const code = await rehearsal?.stop();
  assert.equal(code, 0, "Ctrl-C ends a rehearsal cleanly, also with pages that it served");
});

const screenshot = (page, name) => page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage: true });

/** The lights of a transport's row, by their class: `passed`, `broken`, `not-applicable` or nothing. */
const lights = (page, transport) =>
  page.locator(`#transports tr[data-name="${transport}"] .light`)
    .evaluateAll((found) => found.map(({ className }) => className.replace("light", "").trim()));

const waitForWord = (page, word, timeout = 45_000) =>
  page.locator("#verdict-word", { hasText: new RegExp(`^${word}$`) }).waitFor({ timeout });

for (const transport of ["websocket", ...FALLBACKS]) {
  test(`the page connects by ${transport} and shows the webhook of its client event`, async () => {
    const page = await browser.newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`${rehearsal.serving.page}?transport=${transport}`);
    await page.locator("#state", { hasText: /^connected$/ }).waitFor({ timeout: 20_000 });
    assert.equal(await page.locator("#transport").textContent(), transport);
    assert.equal(await page.locator("#verdict-word").textContent(), "Ready");
    const [name, protocol] = await page.evaluate(() => [pusher.connection.connection.transport.name, SockJS.transport]);
    assert.equal(name, PUSHER_NAMES[transport] ?? "sockjs");
    if (name === "sockjs") assert.equal(`sockjs_${protocol}`, transport);
    const socket = await page.locator("#socket").textContent();
    await page.locator("#send:enabled").click({ timeout: 10_000 });
    assert.match(socket, /^\d+\.\d+$/);
    // The socket's id tells this event from those of earlier pages, which are shown too.
    const arrived = page.locator("#webhooks li", { hasText: "client_event" }).filter({ hasText: socket });
    await arrived.first().waitFor({ timeout: 20_000 });
    assert.match(await arrived.first().textContent(), /→ orders https:\/\/shop\.example\.com\/hook answered 200/);
    await screenshot(page, transport);
    assert.deepEqual(problems, []);
    await page.close();
  });
}

test("the page names app, key and endpoint, and shows each hop of each transport", async () => {
  const page = await browser.newPage();
  await page.goto(rehearsal.serving.page);
  await waitForWord(page, "Ready");
  for (const [id, text] of [["app", "1001"], ["key", rehearsal.app.key], ["endpoint", "orders: https://shop.example.com/hook"]]) {
    assert.equal(await page.locator(`#${id}`).textContent(), text);
  }
  for (const transport of ["websocket", ...FALLBACKS]) {
    assert.deepEqual(await lights(page, transport), HOPS.map(() => "passed"), transport);
  }
  assert.match(await page.locator("#transports tr[data-name=websocket] .latency").textContent(), /^\d+ ms$/);
  await page.close();
});

test("a transport's button is pressed while its client is connected", async () => {
  const page = await browser.newPage();
  await page.goto(rehearsal.serving.page);
  const button = page.locator('[data-transport="xhr_polling"]');
  await button.click();
  await page.locator("#state", { hasText: /^connected$/ }).waitFor({ timeout: 20_000 });
  assert.equal(await button.getAttribute("aria-pressed"), "true");
  await page.locator("#disconnect").click();
  await page.locator("#state", { hasText: /^disconnected$/ }).waitFor({ timeout: 10_000 });
  assert.equal(await page.locator('[aria-pressed="true"]').count(), 0);
  await page.close();
});

test("the page shows a webhook once, however often it is replayed", async () => {
  const page = await browser.newPage();
  let asked = 0;
  // Each answer ends, so the page asks again, and gets the old webhook again and a new one.
  await page.route("**/webhooks", (route) => {
    asked += 1;
    const webhook = (id) => ({
      app: "1001",
      endpoint: "orders",
      url: "https://shop.example.com/hook",
      status: 200,
      error: "",
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

test("a fault is switched on and off on the page, and the broken hop is shown with the variable", async () => {
  const page = await browser.newPage();
  await page.goto(rehearsal.serving.page);
  await waitForWord(page, "Ready");
  const button = page.locator('[data-fault="webhooks-off"]');
  await button.click();
  await waitForWord(page, "not Ready");
  await page.locator("#blame td", { hasText: "REALTIME_WEBHOOKS" }).waitFor({ timeout: 30_000 });
  for (const transport of FALLBACKS) await page.locator(`[data-name="${transport}"] .broken`).waitFor({ timeout: 30_000 });
  assert.equal(await button.getAttribute("aria-pressed"), "true");
  assert.deepEqual(await page.locator("#blame td").allTextContents(), ["REALTIME_WEBHOOKS", "kinesis", "off"]);
  const message = await page.locator("#verdict-message").textContent();
  assert.match(message, /^ConfigurationDrift: /);
  assert.ok(!message.includes("REALTIME_WEBHOOKS"), `the variable is said once: ${message}`);
  const broken = HOPS.map((hop, index) => (index < 6 ? "passed" : hop === "record" ? "broken" : ""));
  for (const transport of FALLBACKS) assert.deepEqual(await lights(page, transport), broken, transport);
  assert.deepEqual(await lights(page, "websocket"), HOPS.map(() => "passed"));
  await screenshot(page, "fault-on");
  await button.click();
  await waitForWord(page, "Ready");
  assert.ok(await page.locator("#blame").isHidden());
  await screenshot(page, "fault-off");
  await page.close();
});

test("an edit is on at the start, and switched off and on on the page", async () => {
  const flags = ["--edit", "sockjs:REALTIME_WEBHOOKS=off"];
  const edited = await startRehearsal({ url: "https://shop.example.com/hook" }, "", QUICK_GATE, { flags, refused: true });
  const page = await browser.newPage();
  await page.goto(edited.serving.page);
  await waitForWord(page, "not Ready");
  const button = page.locator('[data-fault="edit-1"]');
  assert.equal(await button.getAttribute("aria-pressed"), "true");
  assert.match(await page.locator("#faults li").first().textContent(), /sockjs:REALTIME_WEBHOOKS=off: the sockjs pods restart with it/);
  await button.click();
  await waitForWord(page, "Ready");
  await screenshot(page, "edit-off");
  await button.click();
  await waitForWord(page, "not Ready");
  // The pods restart first, and are not Ready for that alone.
  await page.locator("#blame td", { hasText: "REALTIME_WEBHOOKS" }).waitFor({ timeout: 30_000 });
  assert.deepEqual(await page.locator("#blame td").allTextContents(), ["REALTIME_WEBHOOKS", "kinesis", "off"]);
  await page.close();
  assert.equal(await edited.stop(), 1, "its exit code is that of the first verdict");
});

test("only the page itself switches faults", async () => {
  const post = (name, body, headers = {}) =>
    fetch(new URL(`/faults/${name}`, rehearsal.serving.page), { method: "POST", body, headers });
  const foreign = await post("put-denied", "on", { origin: "https://elsewhere.example" });
  assert.equal(foreign.status, 403);
  assert.equal((await post("typo", "on")).status, 404);
  assert.equal((await post("put-denied", "maybe")).status, 400);
  const faults = await (await fetch(new URL("/faults", rehearsal.serving.page))).json();
  assert.equal(faults.length, 19);
  assert.deepEqual(faults.filter(({ on }) => on), []);
});

test("on a phone the buttons come first, and nothing is wider than the screen", async () => {
  const page = await browser.newPage();
  await page.setViewportSize({ width: 390, height: 844 });
  await page.goto(rehearsal.serving.page);
  await waitForWord(page, "Ready");
  const top = async (selector) => (await page.locator(selector).boundingBox()).y;
  assert.ok((await top("#transport-buttons")) < 150, "the buttons are on the first screen");
  assert.ok((await top("#transport-buttons")) < (await top("#verdict-section")));
  assert.ok((await top("#verdict-section")) < (await top("#webhooks-section")));
  assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 390);
  await screenshot(page, "phone");
  await page.close();
});

test("the page is dark where the system is", async () => {
  const page = await browser.newPage();
  await page.emulateMedia({ colorScheme: "dark" });
  await page.goto(rehearsal.serving.page);
  await waitForWord(page, "Ready");
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(21, 24, 28)");
  await screenshot(page, "dark");
  await page.close();
});

test("an app's own endpoint is shown with its answer, and a stopped rehearsal says so once", async () => {
  const receiver = await startReceiver();
  const own = await startRehearsal(receiver, "", QUICK_GATE);
  const page = await browser.newPage();
  const problems = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  await page.goto(`${own.serving.page}?transport=websocket`);
  const answered = page.locator("#webhooks li", { hasText: `→ orders ${receiver.url} answered 200` });
  await answered.first().waitFor({ timeout: 20_000 });
  assert.ok(receiver.events().some(({ name }) => name === "channel_occupied"), "it really got them");
  assert.deepEqual(problems, []);
  assert.equal(await own.stop(), 0);
  await waitForWord(page, "stopped");
  const after = problems.length;
  await new Promise((resolve) => setTimeout(resolve, 4000));
  assert.equal(problems.length, after, "it asks no more");
  assert.ok(after <= 3, problems.join("\n"));
  assert.equal(await page.locator("button:enabled").count(), 0);
  await screenshot(page, "stopped");
  await page.close();
  receiver.close();
});

test("a refused rehearsal goes on serving, and an app without an endpoint says so", async () => {
  const flags = ["--fault", "put-denied"];
  const refused = await startRehearsal({ url: null }, "", QUICK_GATE, { flags, refused: true });
  const page = await browser.newPage();
  await page.goto(refused.serving.page);
  await waitForWord(page, "not Ready");
  assert.match(await page.locator("#verdict-message").textContent(), /^RecordRefused: .*AccessDeniedException/);
  assert.match(await page.locator("#endpoint").textContent(), /^none/);
  assert.match(await page.locator("#webhooks").textContent(), /App 1001 has no endpoint/);
  await page.locator('[data-transport="websocket"]').click();
  await page.locator("#state", { hasText: /^connected$/ }).waitFor({ timeout: 20_000 });
  await screenshot(page, "refused");
  await page.close();
  assert.equal(await refused.stop(), 1, "its exit code is that of a refusal");
});

test("the page's pusher-js is the npm package's, byte for byte", async () => {
  const ours = await readFile(new URL("../../third_party/pusher-js/pusher.min.js", import.meta.url));
  const theirs = await readFile(new URL("./node_modules/pusher-js/dist/web/pusher.min.js", import.meta.url));
  assert.ok(ours.equals(theirs));
});
