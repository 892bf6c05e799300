// HTTP and WebSocket by hand over TCP: what was sent back is kept byte for byte.
import { connect } from "node:net";

/** Longest that anything may take; the longest thing to wait for is a heartbeat. */
const PATIENCE_MS = 40_000;

/** A request as text. */
export function requestText(method, path, { headers = {}, body, version = "1.1" } = {}) {
  const lines = [`${method} ${path} HTTP/${version}`, "Host: localhost"];
  for (const [name, value] of Object.entries(headers)) lines.push(`${name}: ${value}`);
  if (body !== undefined || method === "POST") lines.push(`Content-Length: ${Buffer.byteLength(body ?? "")}`);
  return `${lines.join("\r\n")}\r\n\r\n${body ?? ""}`;
}

/** One connection and what came over it. */
export class Connection {
  constructor(port) {
    this.bytes = Buffer.alloc(0);
    this.closed = false;
    this.waiting = new Set();
    this.socket = connect(port, "127.0.0.1");
    this.socket.on("data", (chunk) => {
      this.bytes = Buffer.concat([this.bytes, chunk]);
      this.look();
    });
    // Either side may be reset once the other has gone.
    this.socket.on("error", () => {});
    this.socket.on("close", () => {
      this.closed = true;
      this.look();
    });
  }

  write(data) {
    this.socket.write(data);
  }

  look() {
    for (const check of this.waiting) check();
  }

  /** Resolves with what `find` finds once there is something. */
  until(find, what) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => {
        this.waiting.delete(check);
        reject(new Error(`in vain: ${what}; so far ${this.bytes.toString("latin1").slice(-600)}`));
      }, PATIENCE_MS);
      const check = () => {
        const found = find();
        if (found === undefined) return;
        this.waiting.delete(check);
        clearTimeout(late);
        resolve(found);
      };
      this.waiting.add(check);
      check();
    });
  }

  end() {
    this.socket.destroy();
  }
}

/** The head of an answer, taken apart. */
export function head(bytes) {
  const at = bytes.indexOf("\r\n\r\n");
  if (at < 0) return undefined;
  const [line, ...fields] = bytes.subarray(0, at).toString("latin1").split("\r\n");
  const headers = fields.map((field) => {
    const colon = field.indexOf(":");
    return [field.slice(0, colon), field.slice(colon + 1).trim()];
  });
  return { line, headers, rest: bytes.subarray(at + 4) };
}

export const header = (headers, name) => headers.find(([found]) => found.toLowerCase() === name)?.[1];

/** The body so far, and whether that is all of it. */
export function body({ line, headers, rest }, closed, method) {
  const status = Number(line.split(" ")[1]);
  if (method === "HEAD" || status === 204 || status === 304) return { text: "", whole: true, how: "none" };
  const length = header(headers, "content-length");
  if (length !== undefined) {
    const text = rest.subarray(0, Number(length)).toString("utf8");
    return { text, whole: rest.length >= Number(length), how: "length" };
  }
  if (header(headers, "transfer-encoding") !== "chunked") return { text: rest.toString("utf8"), whole: closed, how: "close" };
  const parts = [];
  for (let left = rest; ;) {
    const at = left.indexOf("\r\n");
    const size = at < 0 ? NaN : parseInt(left.subarray(0, at).toString("latin1"), 16);
    if (Number.isNaN(size) || left.length < at + 4 + size) break;
    if (size === 0) return { text: Buffer.concat(parts).toString("utf8"), whole: true, how: "chunked" };
    parts.push(left.subarray(at + 2, at + 2 + size));
    left = left.subarray(at + 4 + size);
  }
  return { text: Buffer.concat(parts).toString("utf8"), whole: false, how: "chunked" };
}

/** A client's text frame; the mask is of zeros. */
export function textFrame(text) {
  const data = Buffer.from(text);
  const size = data.length < 126 ? [0x80 | data.length] : [0x80 | 126, data.length >> 8, data.length & 255];
  return Buffer.concat([Buffer.from([0x81, ...size, 0, 0, 0, 0]), data]);
}

/** A server's frames as texts: `text …`, `close CODE REASON`. */
export function frames(bytes) {
  const found = [];
  for (let left = bytes; left.length >= 2;) {
    let [size, at] = [left[1] & 127, 2];
    if (size === 126) [size, at] = [left.length < 4 ? Infinity : left.readUInt16BE(2), 4];
    if (left.length < at + size) break;
    const data = left.subarray(at, at + size);
    const kind = left[0] & 15;
    if (kind === 1) found.push(`text ${data.toString("utf8")}`);
    else if (kind === 8) found.push(`close ${size > 1 ? `${data.readUInt16BE(0)} ${data.subarray(2).toString("utf8")}` : "-"}`);
    else found.push(`other ${kind}`);
    left = left.subarray(at + size);
  }
  return found;
}
