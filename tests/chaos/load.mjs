// The clients of a run: some send numbered client events, the others come and go. All use the same channels through all
// edges, and connect to another edge when theirs is killed.
import { createHmac } from "node:crypto";

import WebSocket from "ws";

/** Clients that send, and those that come and go. */
const [SENDERS, VISITORS] = [24, 60];

/** Channels of the senders, and of the visitors. */
const [ROOMS, PRESENCE_ROOMS] = [12, 10];

/** Time between two events of a sender, in ms. */
const SEND_INTERVAL_MS = 52;

/** Shortest and longest stay of a visitor and its absence, in ms: an absence of less than 3 s is none. */
const [STAY_MS, ABSENCE_MS] = [[1_000, 7_000], [500, 7_000]];

/** Longest until a client is connected or subscribed; then it tries another edge. */
const ANSWER_TIMEOUT_MS = 10_000;

/** Shortest and longest wait before a client connects again, in ms. */
const RECONNECT_MS = [100, 600];

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** One connection to an edge. */
class Connection {
  constructor(port, { key, secret }) {
    this.secret = secret;
    this.waiting = [];
    this.isOpen = false;
    this.socket = new WebSocket(`ws://127.0.0.1:${port}/app/${key}?protocol=7`);
    this.socket.on("message", (raw) => this.accept(JSON.parse(raw)));
    this.closed = new Promise((resolve) => this.socket.once("close", resolve)).then(() => this.end());
    // A killed edge resets its connections; "close" follows.
    this.socket.on("error", () => {});
  }

  end() {
    this.isOpen = false;
    for (const { reject } of this.waiting.splice(0)) reject(new Error("closed"));
  }

  accept(frame) {
    if (frame.event === "pusher:ping") return this.send({ event: "pusher:pong", data: {} });
    this.waiting = this.waiting.filter(({ matches, resolve }) => !matches(frame) || resolve(frame));
    return undefined;
  }

  send(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  async awaitFrame(matches) {
    let entry;
    const found = new Promise((resolve, reject) => {
      entry = { matches, resolve, reject };
      this.waiting.push(entry);
    });
    const late = setTimeout(() => {
      this.waiting = this.waiting.filter((other) => other !== entry);
      entry.reject(new Error("no answer in time"));
    }, ANSWER_TIMEOUT_MS);
    return found.finally(() => clearTimeout(late));
  }

  async establish() {
    const { data } = await this.awaitFrame(({ event }) => event === "pusher:connection_established");
    this.id = JSON.parse(data).socket_id;
    this.isOpen = true;
  }

  async subscribe(channel, key, user) {
    const channelData = user && JSON.stringify({ user_id: user });
    const signed = [this.id, channel, ...(channelData ? [channelData] : [])].join(":");
    const auth = `${key}:${createHmac("sha256", this.secret).update(signed).digest("hex")}`;
    const subscribed = this.awaitFrame((frame) => frame.channel === channel && frame.event === "pusher_internal:subscription_succeeded");
    this.send({ event: "pusher:subscribe", data: { channel, ...(channel.includes("-") ? { auth } : {}), ...(channelData ? { channel_data: channelData } : {}) } });
    await subscribed;
  }

  unsubscribe(channel) {
    this.send({ event: "pusher:unsubscribe", data: { channel } });
  }

  close() {
    this.socket.terminate();
  }
}

/**
 * Starts the clients. `ports()` lists the ports of the edges that serve now. `sent` has the last number of each sender;
 * `stop()` ends all clients, and every visitor leaves.
 */
export function startLoad(app, ports, random) {
  const sent = new Array(SENDERS).fill(0);
  const counts = { connections: 0, failures: 0, visits: 0 };
  const connections = new Set();
  let running = true;

  async function connect() {
    const connection = new Connection(random.pick(ports()), app);
    connections.add(connection);
    connection.closed.finally(() => connections.delete(connection));
    await connection.establish();
    counts.connections += 1;
    return connection;
  }

  /** Runs `use` with a connection, again and again, whatever ends it. */
  async function live(use) {
    while (running) {
      let connection;
      try {
        connection = await connect();
        await use(connection);
      } catch {
        counts.failures += 1;
      }
      connection?.close();
      await sleep(random.between(...RECONNECT_MS));
    }
  }

  const sendNumbers = (sender) => async (connection) => {
    const channel = `private-room-${sender % ROOMS}`;
    await connection.subscribe(channel, app.key);
    const began = Date.now();
    for (let count = 0; running && connection.isOpen; ) {
      // A busy machine wakes this late: the events that are due by then are sent together.
      const due = 1 + Math.floor((Date.now() - began) / SEND_INTERVAL_MS);
      for (; count < due; count += 1) {
        sent[sender] += 1;
        connection.send({ event: "client-number", channel, data: { sender, n: sent[sender] } });
      }
      await sleep(SEND_INTERVAL_MS);
    }
  };

  const visit = (visitor) => async (connection) => {
    const presence = `presence-room-${visitor % PRESENCE_ROOMS}`;
    const own = `room-${visitor}`;
    // A page that is closed and opened again, or one that stays and changes its channels.
    const closes = random.happens(0.5);
    do {
      await Promise.all([connection.subscribe(presence, app.key, `user-${visitor}`), connection.subscribe(own, app.key)]);
      counts.visits += 1;
      await Promise.race([sleep(random.between(...STAY_MS)), connection.closed]);
      if (!connection.isOpen) return;
      if (!closes) {
        connection.unsubscribe(presence);
        connection.unsubscribe(own);
      } else connection.close();
      await sleep(random.between(...ABSENCE_MS));
    } while (running && connection.isOpen);
  };

  const clients = [
    ...sent.map((_, sender) => live(sendNumbers(sender))),
    ...Array.from({ length: VISITORS }, (_, visitor) => live(visit(visitor))),
  ];
  return {
    sent,
    counts,
    async stop() {
      running = false;
      for (const connection of connections) connection.close();
      await Promise.all(clients);
    },
  };
}
