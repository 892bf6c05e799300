// Loaded into the process of every test file before it: ends the file when one of its tests takes too long or when
// something keeps it alive after its last hook, and notes which tests run, for ./test to print when the tier itself runs
// out of time.
//   TEST_SECONDS   longest that a test, a set-up or a tear-down may take
//   RUNNING_TESTS  the folder in which each process notes its tests
import { AsyncResource } from "node:async_hooks";
import { rmSync, writeFileSync } from "node:fs";
import { relative } from "node:path";
import { after, afterEach, beforeEach } from "node:test";

const LIMIT_SECONDS = Number(process.env.TEST_SECONDS ?? 300);

/** Longest that anything may stay open after the last hook, and that the results may take to the runner then. */
const [OPEN_GRACE_MS, REPORT_GRACE_MS] = [3_000, 1_000];

/** Time between two looks at whether the runner is still there. */
const PARENT_INTERVAL_MS = 1_000;

const FILE = relative(process.cwd(), process.argv[1] ?? "");

const running = new Map();
let last = "";
let alarm;

/** What runs now; between two tests that is a hook. */
function current() {
  if (running.size > 0) return [...running.values()].map((name) => `${FILE}: ${name}`);
  return [`${FILE}: ${last ? `tear-down or set-up after "${last}"` : "set-up"}`];
}

function note() {
  clearTimeout(alarm);
  alarm = setTimeout(() => {
    console.error(`not within ${LIMIT_SECONDS} s, so the file is ended:\n  ${current().join("\n  ")}`);
    process.exit(1);
  }, LIMIT_SECONDS * 1000);
  alarm.unref();
  if (!process.env.RUNNING_TESTS) return;
  try {
    writeFileSync(`${process.env.RUNNING_TESTS}/${process.pid}`, `${current().join("\n")}\n`);
  } catch {
    // No test fails because a note could not be written.
  }
}

/** As Node does by itself when nothing is open any more; a set-up that failed leaves servers and clients open. */
function endFile() {
  console.error(`${FILE}: ended although these are open: ${process.getActiveResourcesInfo().join(", ")}`);
  process.emit("beforeExit", process.exitCode ?? 0);
  setTimeout(() => process.exit(), REPORT_GRACE_MS);
}

// The runner itself loads this too, and has no tests of its own.
if (process.env.NODE_TEST_CONTEXT) {
  const runner = process.ppid;
  setInterval(() => process.ppid === runner || process.exit(1), PARENT_INTERVAL_MS).unref();
  note();
  beforeEach((context) => {
    running.set(context, context.name);
    note();
  });
  afterEach((context) => {
    last = context.name;
    running.delete(context);
    note();
  });
  // Node runs hooks one after the other in the order of their registration. This one is the first, and adds one that is the
  // last, after every tear-down of the file; bound, because it would be a hook of the hook otherwise. A Node that did not run
  // it would leave the file to the limit of a tear-down above.
  after(AsyncResource.bind(() => after(() => void setTimeout(endFile, OPEN_GRACE_MS).unref())));
  process.on("exit", (code) => {
    // A file that was ended by a signal had tests running: their names stay.
    if (process.env.RUNNING_TESTS && code < 128) rmSync(`${process.env.RUNNING_TESTS}/${process.pid}`, { force: true });
  });
}
