// What the tests themselves stand on: ports that are drawn once, programs that end with their test, and a run that says
// what it did not run.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { kinesisPorts, portOf, spawnLogged, startedFields, startOnFreePorts, startRedis, waitUntilReady } from "./processes.mjs";
import { eventually } from "./rehearsal.mjs";

const PROCESSES = new URL("./processes.mjs", import.meta.url).href;
const WATCHDOG = fileURLToPath(new URL("./watchdog.mjs", import.meta.url));
const REPORTER = fileURLToPath(new URL("./require_tests_reporter.mjs", import.meta.url));

let folder;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "processes-"));
});

after(() => rm(folder, { recursive: true, force: true }));

async function listen(port, host) {
  const server = createServer().listen(port, host);
  await once(server, "listening");
  return server;
}

test("a drawn port is not drawn again, also not by another process, and can be listened on", async () => {
  const ports = await startOnFreePorts(20, async (...drawn) => drawn);
  assert.equal(new Set(ports).size, ports.length);
  const bind = `const s = require("dgram").createSocket("udp4"); s.on("error", ({ code }) => { console.log(code); process.exit(); });`
    + `s.bind({ port: ${ports[0]}, address: "127.77.0.1", exclusive: true }, () => { console.log("bound"); process.exit(); });`;
  assert.equal(spawnSync(process.execPath, ["-e", bind], { encoding: "utf8" }).stdout, "EADDRINUSE\n");
  for (const host of ["127.0.0.1", "0.0.0.0"]) {
    const server = await startOnFreePorts(1, (port) => listen(port, host));
    server.close();
    await once(server, "close");
  }
});

test("a Redis whose port is in use is started on another", async () => {
  const [blockers, programs] = [[], []];
  const launch = async (args) => {
    if (blockers.length < 2) {
      blockers.push(await listen(Number(args[args.indexOf("--port") + 1]), "127.0.0.1"));
    }
    programs.push(spawnLogged("redis-server", args, { cwd: folder }));
    return programs.at(-1);
  };
  const redis = await startRedis({ launch });
  try {
    assert.deepEqual(programs.map((program) => program.hasEnded()), [true, true, false]);
    for (const program of programs.slice(0, 2)) assert.match(program.log(), /Address already in use/);
    assert.ok(blockers.every((server) => server.address().port !== redis.port));
  } finally {
    await redis.stop();
    for (const server of blockers) server.close();
  }
});

test("a program that does not start is named with its log, is not started again, and does not run on", async () => {
  const programs = [];
  const launch = (args) => {
    programs.push(spawnLogged("redis-server", [...args, "--port", "many"], { cwd: folder }));
    return programs.at(-1);
  };
  await assert.rejects(startRedis({ launch }), /redis-server ended before it served; its log:\n[^]*argument couldn't be parsed/);
  assert.equal(programs.length, 1);
  await assert.rejects(waitUntilReady("nothing", spawnLogged("/nowhere", []), () => false), /nothing ended before it served[^]*nowhere/);
});

/** Runs a script of a module in a process of its own that spawns `sleep` bound to it; resolves with both process ids. */
async function spawning(then) {
  const script = `import { spawnBound } from ${JSON.stringify(PROCESSES)};
    const child = spawnBound("sleep", ["300"], { stdio: "ignore" });
    const { readFileSync } = await import("node:fs");
    while (readFileSync("/proc/" + child.pid + "/comm", "utf8") !== "sleep\\n") await new Promise((resolve) => setTimeout(resolve, 10));
    console.log(child.pid);
    ${then}`;
  const parent = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "ignore"] });
  const [chunk] = await once(parent.stdout, "data");
  return { parent, pid: Number(String(chunk)) };
}

/** Whether a process runs; one that has ended and was not waited for does not. */
function runs(pid) {
  return existsSync(`/proc/${pid}`) && !spawnSync("ps", ["-o", "stat=", "-p", String(pid)], { encoding: "utf8" }).stdout.startsWith("Z");
}

for (const [how, then, signal] of [
  ["is killed", "setInterval(() => {}, 1000);", "SIGKILL"],
  ["is asked to end", "setInterval(() => {}, 1000);", "SIGTERM"],
  ["throws what nobody catches", 'setTimeout(() => { throw new Error("uncaught"); }, 200);', undefined],
]) {
  test(`a program ends with its process when that ${how}`, async () => {
    const { parent, pid } = await spawning(then);
    assert(runs(pid), "it runs");
    const exited = once(parent, "exit");
    if (signal) parent.kill(signal);
    await exited;
    await eventually(() => !runs(pid), () => `process ${pid} outlives process ${parent.pid}`);
  });
}

test("the addresses of a server are read from the fields of its log, whatever the text says", () => {
  const line = (fields) => JSON.stringify({ level: "INFO", fields });
  const edge = { message: "any text", public: "127.0.0.1:5", admin: "127.0.0.1:6", process: "p" };
  const dispatcher = { message: "any text", address: "127.0.0.1:7", process: "q" };
  assert.equal(startedFields(["no json", line({ message: "m", address: "redis" }), line({ message: "m", process: "p" })]), undefined);
  assert.equal(portOf(startedFields(["no json", line(edge)]).public), 5);
  assert.equal(portOf(startedFields([line(dispatcher)]).address), 7);
  assert.deepEqual(kinesisPorts("kinesis on 127.0.0.1:8, control on 127.0.0.1:9\n"), { port: 8, control: 9 });
});

/** Runs a test file as ./test does, and answers with its exit code, its output and the notes of what ran. */
async function runFile(name, text, { pattern, seconds = 20, signalAfter } = {}) {
  const file = join(folder, `${name}.test.mjs`);
  const notes = join(folder, `${name}-running`);
  await writeFile(file, text);
  await mkdir(notes);
  const args = ["--import", WATCHDOG, "--test", ...(pattern ? [`--test-name-pattern=${pattern}`] : [])];
  const reporters = ["spec", REPORTER].flatMap((reporter) => ["--test-reporter", reporter, "--test-reporter-destination", "stdout"]);
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  Object.assign(env, { TEST_FILES: file, TEST_NAME_ONLY: pattern ? "1" : "0", TEST_SECONDS: String(seconds), RUNNING_TESTS: notes });
  const child = spawn(process.execPath, [...args, ...reporters, file], { env, stdio: ["ignore", "pipe", "pipe"], detached: true });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (output += chunk));
  const read = async () => Promise.all((await readdir(notes)).map((note) => readFile(join(notes, note), "utf8")));
  const closed = once(child, "close");
  if (signalAfter) {
    await eventually(() => output.includes(signalAfter), () => `no ${signalAfter}: ${output}`);
    process.kill(-child.pid, "SIGTERM");
  }
  const [code] = await closed;
  return { code, output, running: (await read()).join("") };
}

test("a file whose set-up fails ends although a server is open, and names the failure", async () => {
  const { code, output } = await runFile("setup", `
    import net from "node:net";
    import { before, test } from "node:test";
    before(() => { net.createServer().listen(0); throw new Error("the set-up failed"); });
    test("a test", () => {});`);
  assert.equal(code, 1, output);
  assert.match(output, /the set-up failed/);
});

test("a slow tear-down is awaited, and the handles that it leaves open are named", async () => {
  const { code, output } = await runFile("teardown", `
    import net from "node:net";
    import { after, test } from "node:test";
    test("a test", () => { net.createServer().listen(0); });
    after(async () => { await new Promise((resolve) => setTimeout(resolve, 4_000)); console.log("torn down"); });`);
  assert.equal(code, 0, output);
  assert.match(output, /torn down[^]*teardown\.test\.mjs: ended although these are open: .*TCPServerWrap/);
});

test("a test that hangs is named and ends its file", async () => {
  const { code, output } = await runFile("hangs", `
    import { test } from "node:test";
    test("the one that hangs", () => new Promise((resolve) => setTimeout(resolve, 300_000)));`, { seconds: 2 });
  assert.equal(code, 1, output);
  assert.match(output, /not within 2 s.*\n.*hangs\.test\.mjs: the one that hangs/);
});

test("the tests that ran when a run was ended stay noted", async () => {
  const { running } = await runFile("ended", `
    import { test } from "node:test";
    test("the first", () => {});
    test("the one that runs", () => { console.log("now"); return new Promise((resolve) => setTimeout(resolve, 300_000)); });`, { signalAfter: "now" });
  assert.match(running, /ended\.test\.mjs: the one that runs\n/);
  assert.doesNotMatch(running, /the first/);
});

test("a run by name counts the tests of that name, and fails when there are none", async () => {
  const text = `
    import { test } from "node:test";
    test("one thing", () => {});
    test("another thing", () => {});`;
  const one = await runFile("named", text, { pattern: "another" });
  assert.equal(one.code, 0, one.output);
  assert.match(one.output, /\n1 tests executed in 1 files\n/);
  const none = await runFile("nothing", text, { pattern: "nowhere" });
  assert.equal(none.code, 1, none.output);
  assert.match(none.output, /no test was executed in nothing\.test\.mjs/);
  const skipped = await runFile("skipped", 'import { test } from "node:test"; test("one", () => {}); test("two", { skip: true }, () => {});');
  assert.equal(skipped.code, 1, skipped.output);
  assert.match(skipped.output, /skipped: two/);
});
