// A Redis that writes each command to its append-only file before it answers, and the transitions in that file.
import { mkdir, readFile, readdir } from "node:fs/promises";
import { join } from "node:path";

import { spawnLogged, startOnFreePorts, waitUntilReady } from "../conformance/processes.mjs";

/** Names of events by the words of the bus. */
const EVENT_NAMES = { occupied: "channel_occupied", vacated: "channel_vacated", added: "member_added", removed: "member_removed" };

/** The Redis with its data in a directory. Its port is the same after each restart. */
export async function startDurableRedis(directory) {
  await mkdir(directory, { recursive: true });
  return startOnFreePorts(1, async (port) => {
    const launch = async () => {
      const options = {
        bind: "127.0.0.1", port, dir: directory, save: "", appendonly: "yes", appendfsync: "always",
        // A rewritten file would not have the transitions any more that were acknowledged.
        "auto-aof-rewrite-percentage": 0,
      };
      const program = spawnLogged("redis-server", Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]));
      await waitUntilReady("redis-server", program, (log) => log.includes("Ready to accept connections"));
      return program;
    };
    let program = await launch();
    return {
      url: `redis://127.0.0.1:${port}`,
      kill: () => program.stop("SIGKILL"),
      restart: async () => void (program = await launch()),
      stop: () => program.stop("SIGTERM"),
      /** Every transition that a script decided, in the order of the file. */
      async readTransitions() {
        const folder = join(directory, "appendonlydir");
        const names = (await readdir(folder)).filter((name) => name.endsWith(".aof")).sort();
        const transitions = [];
        for (const name of names) {
          for (const command of readCommands(await readFile(join(folder, name)))) transitions.push(...readOutboxEntries(command));
        }
        return transitions;
      },
    };
  });
}

/** The commands of an append-only file, as lists of words. A command at the end that was not written in full is left out. */
export function* readCommands(file) {
  const text = file.toString("latin1");
  let at = 0;
  const readNumber = (mark) => {
    const end = text.indexOf("\r\n", at);
    if (end < 0) return undefined;
    if (text[at] !== mark) throw new Error(`no ${mark} at ${at} of the append-only file: ${text.slice(at, at + 40)}`);
    const number = Number(text.slice(at + 1, end));
    at = end + 2;
    return number;
  };
  while (at < text.length) {
    const count = readNumber("*");
    const words = [];
    for (let n = 0; n < count; n += 1) {
      const length = readNumber("$");
      if (length === undefined || at + length + 2 > text.length) return;
      words.push(Buffer.from(text.slice(at, at + length), "latin1").toString("utf8"));
      at += length + 2;
    }
    if (count === undefined) return;
    yield words;
  }
}

/**
 * The transitions that a command writes to an outbox: `HSET rt:{CLUSTER:APP:CHANNEL}:outbox EPOCH:SEQ "PROCESS KIND MS CAUSE
 * USER" …`. A process that takes an entry over writes it again.
 */
export function readOutboxEntries([command, key = "", ...words]) {
  const channel = /^rt:\{[^:]*:[^:]*:(.*)\}:outbox$/.exec(key)?.[1];
  if (!channel || !/^hset(nx)?$/i.test(command)) return [];
  return words.flatMap((word, n) => {
    if (n % 2 === 1) return [];
    const [epoch, seq] = word.split(":").map(Number);
    const [, kind, time, , ...user] = words[n + 1].split(" ");
    const name = EVENT_NAMES[kind];
    if (!name) throw new Error(`an outbox entry of another form: ${words[n + 1]}`);
    return [{ channel, name, user: user.join(" "), epoch, seq, time: Number(time) }];
  });
}
