// The page of a rehearsal in headless Chromium, as a person would use it.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

import { startReceiver, startRehearsal } from "./rehearsal.mjs";

const SCREENSHOTS = process.env.SCREENSHOTS ?? join(tmpdir(), "realtime-screenshots");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

let receiver;
let rehearsal;
let profile;
let browser;

before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true });
  // An endpoint outside: its webhooks end in the rehearsal's own receiver and are shown on the page.
  receiver = { url: "https://shop.example.com/hook" };
  rehearsal = await startRehearsal(receiver);
  profile = await mkdtemp(join(tmpdir(), "chromium-"));
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: "/usr/bin/chromium",
    args: FLAGS,
    viewport: { width: 1100, height: 900 },
  });
});

after(async () => {
  await browser?.close();
  if (profile) await rm(profile, { recursive: true, force: true });
  await rehearsal?.stop();
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

test("the page's pusher-js is the npm package's, byte for byte", async () => {
  const ours = await readFile(new URL("../../third_party/pusher-js/pusher.min.js", import.meta.url));
  const theirs = await readFile(new URL("./node_modules/pusher-js/dist/web/pusher.min.js", import.meta.url));
  assert.ok(ours.equals(theirs));
});
