// A reporter that fails a run in which a test file executed nothing, in which a test was skipped, or which executed nothing
// at all: `node --test` counts a file without tests as a test that passed. Tests that do not carry the name that was asked
// for are not executed and not counted.
import { basename, resolve } from "node:path";

// The files that were to be run, by TEST_FILES; all of them have to execute something unless TEST_NAME_ONLY is set.
const files = (process.env.TEST_FILES ?? "").split("\n").filter(Boolean).map((path) => resolve(path));
const byName = process.env.TEST_NAME_ONLY === "1";

/** What Node says of a test whose name does not match. */
const NOT_ASKED_FOR = /does not match pattern/;

export default async function* requireTests(events) {
  const counts = new Map(files.map((file) => [file, 0]));
  const skipped = [];
  for await (const { type, data } of events) {
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details.type === "suite" || data.name === data.file) continue;
    if (byName && NOT_ASKED_FOR.test(String(data.skip))) continue;
    if (data.skip !== undefined || data.todo !== undefined) skipped.push(data.name);
    else if (counts.has(data.file)) counts.set(data.file, counts.get(data.file) + 1);
  }
  const idle = [...counts].filter(([, count]) => count === 0).map(([file]) => file);
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  if (!byName) for (const file of idle) yield `no test was executed in ${file}\n`;
  for (const name of skipped) yield `skipped: ${name}\n`;
  if (total === 0) yield `no test was executed in ${[...counts.keys()].map((file) => basename(file)).join(", ") || "no file"}\n`;
  if (total === 0 || skipped.length > 0 || (idle.length > 0 && !byName)) process.exitCode = 1;
  yield `${total} tests executed in ${counts.size - idle.length} files\n`;
}
