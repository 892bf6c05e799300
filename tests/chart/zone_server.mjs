// An authoritative server of one zone over UDP, as Route 53 answers: one record of a host, chosen by weight; and the question of
// a client.
import { createSocket } from "node:dgram";

const CNAME = 5;

/** Steps of the golden ratio spread over [0, 1) evenly, whatever part of the sequence one client sees. */
const GOLDEN_RATIO = (Math.sqrt(5) - 1) / 2;

/** Longest wait of a client for an answer. */
const ANSWER_TIMEOUT_MS = 2_000;

/** A name in the form of the wire. */
const encodeName = (name) => Buffer.concat([...name.split(".").map((label) => Buffer.from([label.length, ...Buffer.from(label)])), Buffer.from([0])]);

/** The name that begins at `start`, and the place after it. */
function readName(message, start) {
  const labels = [];
  let at = start;
  while (message[at] !== 0) {
    labels.push(message.toString("ascii", at + 1, at + 1 + message[at]));
    at += message[at] + 1;
  }
  return { name: labels.join("."), after: at + 1 };
}

/** The name and the end of the question of a message. */
function readQuestion(message) {
  const { name, after } = readName(message, 12);
  return { name, end: after + 4 };
}

/** Asks a running server for the CNAME of a host: `{ target, ttl }`, or `undefined` where it has none. */
export async function askZone(address, name) {
  const [host, port] = address.split(":");
  const socket = createSocket("udp4");
  const head = Buffer.alloc(12);
  head.writeUInt16BE(1, 4);
  const question = Buffer.concat([head, encodeName(name), Buffer.from([0, CNAME, 0, 1])]);
  try {
    const answer = await new Promise((resolve, reject) => {
      socket.once("message", resolve).once("error", reject);
      setTimeout(() => reject(new Error(`no answer about ${name}`)), ANSWER_TIMEOUT_MS).unref();
      socket.send(question, Number(port), host);
    });
    if (answer.readUInt16BE(6) === 0) return undefined;
    const { end } = readQuestion(answer);
    return { target: readName(answer, end + 12).name, ttl: answer.readUInt32BE(end + 6) };
  } finally {
    socket.close();
  }
}

/** A running server: `{ address, records, close }`; `records` maps a host to `[{ target, weight, ttl }]`. */
export async function startZone(records, host = "127.0.0.1") {
  const socket = createSocket("udp4");
  const asked = new Map();
  socket.on("message", (message, from) => {
    const { name, end } = readQuestion(message);
    const found = records.get(name) ?? [];
    const count = asked.get(name) ?? 0;
    asked.set(name, count + 1);
    let place = ((count * GOLDEN_RATIO) % 1) * found.reduce((sum, { weight }) => sum + weight, 0);
    const chosen = found.find(({ weight }) => (place -= weight) < 0);
    const head = Buffer.from(message.subarray(0, end));
    // An authoritative answer, with an error for a name that does not exist.
    head.writeUInt16BE(chosen ? 0x8400 : 0x8403, 2);
    head.writeUInt16BE(chosen ? 1 : 0, 6);
    head.writeUInt32BE(0, 8);
    if (!chosen) return socket.send(head, from.port, from.address);
    const target = encodeName(chosen.target);
    const record = Buffer.alloc(12);
    record.writeUInt16BE(0xc00c, 0);
    record.writeUInt16BE(CNAME, 2);
    record.writeUInt16BE(1, 4);
    record.writeUInt32BE(chosen.ttl ?? 60, 6);
    record.writeUInt16BE(target.length, 10);
    socket.send(Buffer.concat([head, record, target]), from.port, from.address);
  });
  await new Promise((resolve) => socket.bind(0, host, resolve));
  return { address: `${host}:${socket.address().port}`, records, close: () => socket.close() };
}
