// A customer's endpoint that fails at random. It keeps the events that it processed, in order, also those whose answer it
// did not send.
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

import { shareTexts } from "./shared_texts.mjs";

/** Probabilities of the failures of a request. */
const [REFUSED, REPLY_LOST, HANGING] = [0.05, 0.03, 0.003];

/** Time for which a hanging request is kept: longer than an attempt takes. */
const HANGING_MS = 6_000;

/** Starts the endpoint. It never accepts a body with an event of which `isUnacceptable` holds. */
export async function startFailingReceiver(secret, random, isUnacceptable) {
  const events = [];
  const problems = [];
  const counts = { requests: 0, refused: 0, replyLost: 0, hanging: 0, unacceptable: 0 };
  let faulty = true;
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      counts.requests += 1;
      const raw = Buffer.concat(chunks);
      if (request.headers["x-pusher-signature"] !== createHmac("sha256", secret).update(raw).digest("hex")) {
        problems.push(`a webhook whose signature is not that of its body: ${raw.subarray(0, 200)}`);
      }
      const body = JSON.parse(raw);
      const answer = (status) => response.writeHead(status).end();
      const drawn = faulty ? random.draw() : 1;
      if (body.events.some(isUnacceptable)) {
        counts.unacceptable += 1;
        return answer(422);
      }
      if (drawn < REFUSED) {
        counts.refused += 1;
        return answer(500);
      }
      if (drawn < REFUSED + HANGING) {
        counts.hanging += 1;
        return setTimeout(() => request.socket.destroy(), HANGING_MS).unref();
      }
      const at = Date.now();
      events.push(...body.events.map((event) => ({ ...shareTexts(event), at })));
      if (drawn < REFUSED + HANGING + REPLY_LOST) {
        counts.replyLost += 1;
        return request.socket.destroy();
      }
      return answer(200);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}/hook`,
    events,
    problems,
    counts,
    setFaulty: (value) => void (faulty = value),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
