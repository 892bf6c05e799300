// Programs and ports of tests: no program outlives the process that started it, and no port is given to two tests.
import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer } from "node:net";

/** Below the ephemeral ports, which the kernel gives to any connection, and below the node ports of Kubernetes. */
const [RESERVABLE_PORTS_START, RESERVABLE_PORTS_END] = [20_000, 30_000];

/**
 * A UDP socket on this address is the reservation of the TCP port of its number: it is in no server's way, also not in that
 * of one that listens on all addresses.
 */
const RESERVATION_ADDRESS = "127.77.0.1";

/** Draws until a port is found: far more than there are ports in use. */
const DRAWS_MAX = 1_000;

const children = new Set();

function killChildren() {
  for (const child of children) child.kill("SIGKILL");
}

// The first covers errors that nobody caught, and the end of a run whose set-up failed.
process.on("exit", killChildren);
for (const [signal, number] of [["SIGHUP", 1], ["SIGINT", 2], ["SIGTERM", 15]]) {
  process.on(signal, () => process.exit(128 + number));
}

/** Spawns a program that ends with this process; the kernel sees to it where this process is killed. */
export function spawnBound(program, args = [], options = {}) {
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", program, ...args], options);
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

/**
 * Reserves a port on `address` and on all of loopback for as long as this process runs. For servers that cannot report
 * the port they were given: redis-server takes 0 for "no port", and edges that relay to each other share one port. Tests
 * in other processes, also those in Rust, reserve in the same way.
 */
export async function reservePort(address = "127.0.0.1") {
  for (let draw = 0; draw < DRAWS_MAX; draw += 1) {
    const port = RESERVABLE_PORTS_START + Math.floor(Math.random() * (RESERVABLE_PORTS_END - RESERVABLE_PORTS_START));
    const reservation = await reserve(port);
    if (!reservation) continue;
    // A program that is no test may have a fixed port. The reservation comes first: two tests that look at one port at
    // once would each find the other's look.
    const look = await listen(port, address);
    if (!look) {
      reservation.close();
      continue;
    }
    look.close();
    await once(look, "close");
    return port;
  }
  throw new Error(`none of ${DRAWS_MAX} ports from ${RESERVABLE_PORTS_START} to ${RESERVABLE_PORTS_END} is free on ${address}`);
}

/** The reservation of a port, or nothing if it is reserved. It does not keep this process alive. */
function reserve(port) {
  const socket = createSocket("udp4");
  return unlessTaken(socket, (bound) => socket.bind({ port, address: RESERVATION_ADDRESS, exclusive: true }, bound));
}

/** A server on this port, or nothing if somebody has it. */
function listen(port, host) {
  const server = createServer();
  return unlessTaken(server, (listening) => server.listen({ port, host, exclusive: true }, listening));
}

function unlessTaken(one, bind) {
  return new Promise((resolve, reject) => {
    one.once("error", (error) => (error.code === "EADDRINUSE" ? resolve(undefined) : reject(error)));
    bind(() => resolve(one.unref()));
  });
}

/**
 * The fields of the line that a server logs once it serves, if it did: an edge has `public` and `admin`, a dispatcher
 * `address`. The text of the line is for people and may change.
 */
export function startedFields(lines) {
  const isAddress = (text) => typeof text === "string" && /^\S+:\d+$/.test(text);
  for (const line of lines) {
    let fields;
    try {
      ({ fields } = JSON.parse(line));
    } catch {
      continue;
    }
    if (!fields?.process) continue;
    if ((isAddress(fields.public) && isAddress(fields.admin)) || isAddress(fields.address)) return fields;
  }
  return undefined;
}

/** The port of an address such as `127.0.0.1:80`. */
export const portOf = (address) => Number(address.slice(address.lastIndexOf(":") + 1));

/** The ports of the Kinesis of the tests and of its controls, once it has written them. */
export function kinesisPorts(log) {
  const found = /kinesis on \S+:(\d+), control on \S+:(\d+)/.exec(log);
  return found && { port: Number(found[1]), control: Number(found[2]) };
}
