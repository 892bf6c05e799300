// A reporter that fails a run in which a test file executed nothing, or in which a test was skipped: `node --test`
// counts a file without tests as a test that passed.
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

// The folder of the files that have to execute something: this one, or TESTS beside it.
const here = fileURLToPath(new URL(`../${process.env.TESTS ?? "conformance"}/`, import.meta.url));

export default async function* executed(events) {
  const counts = new Map(readdirSync(here).filter((name) => name.endsWith(".test.mjs")).map((name) => [here + name, 0]));
  const skipped = [];
  for await (const { type, data } of events) {
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details.type === "suite" || data.name === data.file) continue;
    if (data.skip !== undefined || data.todo !== undefined) skipped.push(data.name);
    else if (counts.has(data.file)) counts.set(data.file, counts.get(data.file) + 1);
  }
  const idle = [...counts].filter(([, count]) => count === 0).map(([file]) => file);
  for (const file of idle) yield `no test was executed in ${file}\n`;
  for (const name of skipped) yield `skipped: ${name}\n`;
  if (counts.size === 0) yield `no test file is in ${here}\n`;
  if (idle.length + skipped.length > 0 || counts.size === 0) process.exitCode = 1;
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  yield `${total} tests executed in ${counts.size - idle.length} files\n`;
}
