// A receiver of webhooks: checks signatures, drops repeats and outdated states, and prints each event once.
// KEY=… SECRET=… PORT=8080 node receiver.mjs; put a server with TLS in front of it.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

/** Largest body of a webhook, with room. */
const BODY_BYTES_MAX = 1024 * 1024;
/** Events and subjects that are remembered; keep them in your database if several processes receive. */
const REMEMBERED_MAX = 100_000;
/** Kinds of events that are versions of a state. */
const STATES = new Set(["channel_occupied", "channel_vacated", "member_added", "member_removed"]);

/** Whether the body was signed with the secret. The signature is that of the bytes as they came. */
export function isSigned(secret, rawBody, signature) {
  const expected = Buffer.from(createHmac("sha256", secret).update(rawBody).digest("hex"));
  const given = Buffer.from(String(signature));
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/** Decides which events are new: a webhook may come twice, and a repeat may come late. */
export class EventFilter {
  #ids = new Map();
  #latest = new Map();

  /** Whether the event is neither a repeat nor an outdated state. */
  accepts(event) {
    if (this.#ids.has(event.id)) return false;
    remember(this.#ids, event.id, true);
    if (!STATES.has(event.name) || event.epoch === undefined) return true;
    const subject = `${event.channel}\n${event.user_id ?? ""}`;
    const before = this.#latest.get(subject);
    const isOutdated = before && (event.epoch < before.epoch || (event.epoch === before.epoch && event.seq < before.seq));
    if (isOutdated) return false;
    remember(this.#latest, subject, { epoch: event.epoch, seq: event.seq });
    return true;
  }
}

/** Stores an entry as the newest, and forgets the oldest beyond the bound. */
function remember(entries, key, value) {
  entries.delete(key);
  entries.set(key, value);
  if (entries.size > REMEMBERED_MAX) entries.delete(entries.keys().next().value);
}

/** A server that passes each new event to `handle` once. `secrets` has the secret of each key. */
export function createReceiver(secrets, handle, filter = new EventFilter()) {
  return createServer((request, response) => {
    const chunks = [];
    let bytes = 0;
    request.on("data", (chunk) => {
      bytes += chunk.length;
      if (bytes > BODY_BYTES_MAX) request.destroy();
      else chunks.push(chunk);
    });
    request.on("end", async () => {
      const rawBody = Buffer.concat(chunks);
      const secret = secrets[request.headers["x-pusher-key"]];
      if (secret === undefined || !isSigned(secret, rawBody, request.headers["x-pusher-signature"])) {
        response.writeHead(401).end();
        return;
      }
      try {
        for (const event of JSON.parse(rawBody.toString("utf8")).events) {
          if (filter.accepts(event)) await handle(event);
        }
        response.writeHead(200).end();
      } catch (error) {
        // The webhook is sent again; store events before the filter remembers them if none may be lost.
        console.error(error);
        response.writeHead(500).end();
      }
    });
  });
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const { KEY, SECRET, PORT = "8080" } = process.env;
  if (!KEY || !SECRET) throw new Error("KEY and SECRET of the app are missing: set both");
  const server = createReceiver({ [KEY]: SECRET }, (event) => console.log(JSON.stringify(event)));
  server.listen(Number(PORT), () => console.error(`listening on ${server.address().port}`));
}
