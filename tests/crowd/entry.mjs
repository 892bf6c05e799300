// Where clients connect: a TCP round-robin without keep-alive, in a thread of its own, that sees when servers say goodbye.
import net from "node:net";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";

/** A close frame of WebSocket with the code 4200, but for its length; and how the HTTP fallbacks say the same. */
const [CLOSE, CODE, OVER_HTTP] = [0x88, Buffer.from([0x10, 0x68]), Buffer.from("c[4200,")];

/** Each connection to this address goes to the next of these ports of loopback. */
export async function startEntry(ports, address = "127.0.0.1") {
  const worker = new Worker(new URL(import.meta.url), { workerData: { ports, address } });
  const answer = () => new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  const port = await answer();
  const ask = (question) => {
    const answered = answer();
    worker.postMessage(question);
    return answered;
  };
  return {
    port,
    /** From now on, new connections go to these. */
    to: (ports) => ask({ ports }),
    /** When servers said goodbye, in milliseconds, those that came while this thread stood still, evenly over that time. */
    farewells: () => ask({}),
    close: () => worker.terminate(),
  };
}

function saysGoodbye(chunk) {
  const code = chunk.indexOf(CODE);
  return (code >= 2 && chunk[code - 2] === CLOSE) || chunk.includes(OVER_HTTP);
}

if (!isMainThread) {
  let [ports, turn] = [workerData.ports, 0];
  const farewells = [];
  // What came while the thread stood still is read only after the first look that follows.
  let [before, looked, unseen] = [performance.now(), performance.now(), 0];
  setInterval(() => {
    const now = performance.now();
    for (let n = 1; n <= unseen; n++) farewells.push(before + ((now - before) * n) / unseen);
    [before, looked, unseen] = [looked, now, 0];
  }, 10);
  const server = net.createServer((client) => {
    const edge = net.connect(ports[turn++ % ports.length], "127.0.0.1");
    edge.on("data", (chunk) => saysGoodbye(chunk) && unseen++);
    for (const [one, other] of [[client, edge], [edge, client]]) {
      one.on("error", () => other.destroy());
      one.once("close", () => other.destroy());
      one.pipe(other);
    }
  });
  server.listen(0, workerData.address, () => parentPort.postMessage(server.address().port));
  parentPort.on("message", (question) => {
    ports = question.ports ?? ports;
    // Once what has come is taken down.
    setTimeout(() => parentPort.postMessage(farewells), 50);
  });
}
