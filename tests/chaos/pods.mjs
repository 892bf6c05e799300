// The edges and dispatchers of a run, as processes that are killed and started again.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { ADMIN_TOKEN, startDispatcher, startEdge } from "../conformance/edge.mjs";
import { portOf, runChecked } from "../conformance/processes.mjs";
import { BIN, cleanEnvironment } from "../conformance/rehearsal.mjs";

/** Number of edges and of dispatchers. */
const [EDGES, DISPATCHERS] = [3, 2];

/** The records and the dead letters. */
export const [EVENTS_STREAM, LETTERS_STREAM] = ["events", "letters"];

/** The cluster of all processes; its namespace has the leases. */
const COMMON = {
  REALTIME_CLUSTER: "default/chaos",
  REALTIME_STREAM_NAME: EVENTS_STREAM,
  REALTIME_AWS_IDENTITY: "StaticKeys",
  AWS_ACCESS_KEY_ID: "a",
  AWS_SECRET_ACCESS_KEY: "b",
};

/** Warnings about what the run does itself. */
const EXPECTED_WARNINGS = /stream unavailable|stream refused records|shard read failed|Broadcasting error|cert bypassed/;

const isComplaint = (line) => /"level":"(WARN|ERROR)"|panicked/.test(line) && !EXPECTED_WARNINGS.test(line);

/** Starts all pods. `redisUrl`, `streamUrl` and `kubeconfig` are those of their outside. */
export async function startPods({ redisUrl, streamUrl, kubeconfig, webhooks }) {
  const shared = { ...COMMON, AWS_ENDPOINT_URL_KINESIS: streamUrl };
  const start = {
    edge: () => startEdge({
      ...shared, REALTIME_SERVER: "websocket", REALTIME_TRANSPORTS: "websocket", REALTIME_WEBHOOKS: "kinesis", REALTIME_BUS: "redis", REALTIME_REDIS_URL: redisUrl,
    }, webhooks),
    dispatcher: () => startDispatcher({
      ...shared, REALTIME_LEASES: "kubernetes", KUBECONFIG: kubeconfig, REALTIME_DEAD_LETTER_STREAM: LETTERS_STREAM,
      // A dead letter of a run of a minute must be written within it.
      REALTIME_RETRY_WINDOW_SECONDS: "15", REALTIME_MAX_BACKOFF_SECONDS: "2",
    }, webhooks),
  };
  const pods = { edge: [], dispatcher: [] };
  const ended = [];
  for (const [kind, count] of [["dispatcher", DISPATCHERS], ["edge", EDGES]]) {
    for (let n = 0; n < count; n += 1) pods[kind].push(await start[kind]());
  }
  const all = () => [...pods.edge, ...pods.dispatcher];
  const flow = async ({ started }) => {
    const address = started.admin ?? started.address;
    const answer = await fetch(`http://${address}/flow`, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
    if (!answer.ok) throw new Error(`/flow of ${address} answered ${answer.status}`);
    return answer.json();
  };
  return {
    /** The ports of the edges that serve now. */
    edgePorts: () => pods.edge.filter((edge) => !edge.hasEnded()).map((edge) => portOf(edge.started.public)),
    /** Kills one of a kind with kill -9, and starts another one in its place after this time. */
    async replace(kind, random, downMs) {
      const victim = random.pick(pods[kind]);
      await victim.kill();
      ended.push(victim);
      await new Promise((resolve) => setTimeout(resolve, downMs));
      pods[kind][pods[kind].indexOf(victim)] = await start[kind]();
    },
    flows: () => Promise.all(all().map(flow)),
    /** The output of `realtime status` on the ledger of all pods; fails when a hop does not balance. */
    async printLedger() {
      const folder = await mkdtemp(join(tmpdir(), "flows-"));
      try {
        const files = [];
        for (const [n, report] of (await this.flows()).entries()) {
          files.push(join(folder, `${n}.json`));
          await writeFile(files[n], JSON.stringify(report));
        }
        return await runChecked(BIN, ["status", "--flow", ...files], { env: cleanEnvironment() });
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    },
    /** The log lines of all pods, also of killed ones, that report something worse than a call that failed. */
    complaints: () => [...ended, ...all()].flatMap((pod) => pod.log().split("\n").filter(isComplaint)),
    logs: () => [...ended, ...all()].map((pod) => `--- ${pod.started.process}\n${pod.log()}`).join("\n"),
    stop: () => Promise.all(all().map((pod) => pod.stop())),
  };
}
