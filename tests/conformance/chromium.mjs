// A headless Chromium, without what needs a network or a screen.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

/** A browser with a profile of its own; `close` ends it and leaves nothing behind. */
export async function startChromium(options = {}) {
  const profile = await mkdtemp(join(tmpdir(), "chromium-"));
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS,
    ...options,
  });
  return {
    newPage: () => browser.newPage(),
    /** Answers what the pages ask of this address in place of its site. */
    route: (url, handler) => browser.route(url, handler),
    async close() {
      await browser.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}
