// A Kinesis whose records survive kill -9, as a process of its own, and calls to it.
import { mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

import { spawnLogged, startOnFreePorts, waitUntilReady } from "../conformance/processes.mjs";

const EMULATOR = createRequire(import.meta.url).resolve("kinesalite/cli.js");

/** More shards than the splits and merges of an hour make. */
const SHARDS_MAX = 1_000;

/** Time of a change of a stream, in ms. A kill during a change would leave the stream of this emulator UPDATING for good. */
const CHANGE_MS = 100;

/** Longest until a stream is active, in ms. */
const ACTIVE_TIMEOUT_MS = 20_000;

/** The emulator with its data in a directory. Its port is the same after each restart. */
export async function startEmulator(directory) {
  await mkdir(directory, { recursive: true });
  return startOnFreePorts(1, async (port) => {
    const launch = async () => {
      const options = { port, path: join(directory, "db"), shardLimit: SHARDS_MAX, createStreamMs: CHANGE_MS, updateStreamMs: CHANGE_MS };
      const words = Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
      const program = spawnLogged("node", [EMULATOR, ...words]);
      await waitUntilReady("the emulator of Kinesis", program, (log) => log.includes("Listening at"));
      return program;
    };
    let program = await launch();
    return {
      port,
      kill: () => program.stop("SIGKILL"),
      restart: async () => void (program = await launch()),
      stop: () => program.stop("SIGTERM"),
    };
  });
}

/** A client of the Kinesis at this port. */
export function connectStream(port) {
  const callOnce = async (action, body) => {
    const answer = await fetch(`http://127.0.0.1:${port}`, {
      method: "POST",
      headers: {
        "content-type": "application/x-amz-json-1.1",
        "x-amz-target": `Kinesis_20131202.${action}`,
        "x-amz-date": new Date().toISOString().replace(/[-:]|\.\d+/g, ""),
        authorization: "AWS4-HMAC-SHA256 Credential=a/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host, Signature=0",
      },
      body: JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${action}: ${answer.status} ${text}`);
    return text === "" ? {} : JSON.parse(text);
  };
  // The emulator may close an idle connection just when the next call is sent on it, which nothing but a read may repeat.
  const call = (action, body) =>
    callOnce(action, body).catch((error) => {
      if (!(error instanceof TypeError) || !/^(Describe|Get|List)/.test(action)) throw error;
      return callOnce(action, body);
    });
  const waitUntilActive = async (stream) => {
    const end = Date.now() + ACTIVE_TIMEOUT_MS;
    for (;;) {
      const { StreamDescriptionSummary: summary } = await call("DescribeStreamSummary", { StreamName: stream });
      if (summary.StreamStatus === "ACTIVE") return;
      if (Date.now() > end) throw new Error(`stream ${stream} is ${summary.StreamStatus} after ${ACTIVE_TIMEOUT_MS} ms`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const listShards = async (stream) => (await call("ListShards", { StreamName: stream })).Shards;
  const openShards = async (stream) => {
    const open = (await listShards(stream)).filter((shard) => shard.SequenceNumberRange.EndingSequenceNumber === undefined);
    return open.sort((one, other) => (startOf(one) < startOf(other) ? -1 : 1));
  };
  return {
    async create(stream, shards) {
      await call("CreateStream", { StreamName: stream, ShardCount: shards });
      await waitUntilActive(stream);
    },
    openShards,
    /** Splits the widest shard into halves; answers with its id and those of the halves. */
    async split(stream) {
      const before = await openShards(stream);
      const [widest] = [...before].sort((one, other) => (widthOf(one) > widthOf(other) ? -1 : 1));
      const middle = startOf(widest) + widthOf(widest) / 2n;
      await call("SplitShard", { StreamName: stream, ShardToSplit: widest.ShardId, NewStartingHashKey: String(middle) });
      await waitUntilActive(stream);
      return describeChange(before, await openShards(stream));
    },
    /** Merges the two narrowest neighbours; answers with their ids and that of the new shard. */
    async merge(stream) {
      const before = await openShards(stream);
      const pairs = before.slice(1).map((shard, n) => [before[n], shard]);
      const width = ([one, other]) => widthOf(one) + widthOf(other);
      const [[one, other]] = pairs.sort((left, right) => (width(left) < width(right) ? -1 : 1));
      await call("MergeShards", { StreamName: stream, ShardToMerge: one.ShardId, AdjacentShardToMerge: other.ShardId });
      await waitUntilActive(stream);
      return describeChange(before, await openShards(stream));
    },
    /** Every record of a stream, one after the other: its data as text, its time in ms, and its shard. */
    async *readAll(stream) {
      for (const { ShardId } of await listShards(stream)) {
        const first = await call("GetShardIterator", { StreamName: stream, ShardId, ShardIteratorType: "TRIM_HORIZON" });
        for (let iterator = first.ShardIterator; iterator;) {
          const page = await call("GetRecords", { ShardIterator: iterator });
          for (const { Data, ApproximateArrivalTimestamp: seconds } of page.Records) {
            yield { text: Buffer.from(Data, "base64").toString("utf8"), at: Math.round(seconds * 1_000), shard: ShardId };
          }
          iterator = page.Records.length > 0 ? page.NextShardIterator : undefined;
        }
      }
    },
  };
}

const startOf = (shard) => BigInt(shard.HashKeyRange.StartingHashKey);
const widthOf = (shard) => BigInt(shard.HashKeyRange.EndingHashKey) - startOf(shard) + 1n;

/** The open shards that a change has closed, and those that it has opened. */
function describeChange(before, after) {
  const missing = (from, other) => from.map(({ ShardId }) => ShardId).filter((id) => !other.some(({ ShardId }) => ShardId === id));
  return { closed: missing(before, after), opened: missing(after, before) };
}
