// A proxy between the servers and the emulator of Kinesis. Some of the puts fail as those of Kinesis do; each record whose
// put the emulator acknowledged is reported.
import { once } from "node:events";
import { Agent, createServer, request as httpRequest } from "node:http";

/** Probabilities of the failures of a PutRecords. */
const [THROTTLED, PARTIAL, REPLY_LOST, SLOW] = [0.02, 0.06, 0.04, 0.02];

/** Part of the records that a put of which a part fails refuses. */
const REFUSED_PART = 0.4;

/** Shortest and longest delay of a slow put, in ms; an edge waits for 5 s. */
const SLOW_MS = [500, 2_000];

/**
 * Starts the proxy before the emulator at `port`. `onAcknowledged` gets `{ text, stream }` of each acknowledged record, and
 * `counts` has how often each failure happened. `setFaulty(false)` ends the failures.
 */
export async function startStreamProxy(port, random, onAcknowledged) {
  const agent = new Agent({ keepAlive: true });
  const counts = { calls: 0, throttled: 0, partial: 0, replyLost: 0, slow: 0, unavailable: 0 };
  let faulty = true;
  let last = Promise.resolve();

  const forward = (headers, body) => new Promise((resolve, reject) => {
    const call = httpRequest({ port, host: "127.0.0.1", method: "POST", agent, headers: { ...headers, "content-length": body.length } }, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks) }));
      answer.on("error", reject);
    });
    call.on("error", reject);
    call.end(body);
  });

  // The emulator numbers a record before it is visible: a read at the same time would pass it.
  const forwardAlone = (headers, body) => {
    const result = last.then(() => forward(headers, body));
    last = result.catch(() => {});
    return result;
  };

  const put = async (headers, body, reply, drop) => {
    counts.calls += 1;
    const call = JSON.parse(body);
    const fault = faulty ? drawFault(random) : "none";
    if (fault !== "none") counts[fault] += 1;
    if (fault === "throttled") return reply(throttledCall());
    if (fault === "slow") await new Promise((resolve) => setTimeout(resolve, random.between(...SLOW_MS)));
    const refused = call.Records.map(() => fault === "partial" && random.happens(REFUSED_PART));
    const stored = call.Records.filter((_, n) => !refused[n]);
    if (stored.length === 0) return reply(throttledCall());
    const answer = await forwardAlone(headers, Buffer.from(JSON.stringify({ ...call, Records: stored })));
    if (answer.status !== 200) return reply(answer);
    const results = JSON.parse(answer.body).Records;
    for (const { Data } of stored) onAcknowledged({ text: Buffer.from(Data, "base64").toString("utf8"), stream: call.StreamName });
    if (fault === "replyLost") return drop();
    const all = refused.map((isRefused) => (isRefused ? REFUSED_ENTRY : results.shift()));
    return reply({ status: 200, headers: {}, body: Buffer.from(JSON.stringify({ FailedRecordCount: refused.filter(Boolean).length, Records: all })) });
  };

  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const action = String(request.headers["x-amz-target"]).split(".")[1];
      const { connection: _, host: __, ...headers } = request.headers;
      const body = Buffer.concat(chunks);
      const reply = (answer) => response.writeHead(answer.status, { "content-type": "application/x-amz-json-1.1" }).end(answer.body);
      const drop = () => request.socket.destroy();
      const call = action === "PutRecords" ? put(headers, body, reply, drop) : forwardAlone(headers, body).then(reply);
      call.catch(() => {
        counts.unavailable += 1;
        drop();
      });
    });
  });
  server.keepAliveTimeout = 60_000;
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    counts,
    setFaulty: (value) => void (faulty = value),
    close: () => {
      server.closeAllConnections();
      server.close();
      agent.destroy();
    },
  };
}

const REFUSED_ENTRY = { ErrorCode: "ProvisionedThroughputExceededException", ErrorMessage: "refused by the proxy" };

function throttledCall() {
  const body = JSON.stringify({ __type: "ProvisionedThroughputExceededException", message: "refused by the proxy" });
  return { status: 400, headers: {}, body: Buffer.from(body) };
}

function drawFault(random) {
  let drawn = random.draw();
  for (const [fault, probability] of [["throttled", THROTTLED], ["partial", PARTIAL], ["replyLost", REPLY_LOST], ["slow", SLOW]]) {
    if (drawn < probability) return fault;
    drawn -= probability;
  }
  return "none";
}
