// An authoritative server of one zone over UDP, as Route 53 answers: one record of a host, chosen by weight.
import { createSocket } from "node:dgram";

const CNAME = 5;

/** A name in the form of the wire. */
const encodeName = (name) => Buffer.concat([...name.split(".").map((label) => Buffer.from([label.length, ...Buffer.from(label)])), Buffer.from([0])]);

/** The name and the end of the question of a message. */
function readQuestion(message) {
  const labels = [];
  let at = 12;
  while (message[at] !== 0) {
    labels.push(message.toString("ascii", at + 1, at + 1 + message[at]));
    at += message[at] + 1;
  }
  return { name: labels.join("."), end: at + 5 };
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
    let place = count % Math.max(1, found.reduce((sum, { weight }) => sum + weight, 0));
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
