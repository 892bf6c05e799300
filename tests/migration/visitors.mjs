// Clients that we did not write, pusher-js, which find their cluster by the zone while weights move. Each has a resolver with a
// cache of its own, and keeps an answer for its TTL.
import { AsyncLocalStorage } from "node:async_hooks";
import dns from "node:dns";
import http from "node:http";
import { setTimeout as delay } from "node:timers/promises";

import PusherClient from "pusher-js";

import { askZone } from "../chart/zone_server.mjs";

/** Time of a visit, and the longest pause after it. */
const [VISIT_MS, PAUSE_MS_MAX] = [300, 1_500];

/** Longest until a client has joined its channel. */
const JOIN_TIMEOUT_MS = 20_000;

/** Time for which both clients of a pair are in their channel, and after which the next pair comes. */
const PAIR_INTERVAL_MS = 1_000;

/** The client in whose name a lookup is made. */
const current = new AsyncLocalStorage();

/** A resolver that keeps an answer of the zone for its TTL. */
class CachingResolver {
  #answers = new Map();

  constructor(zone) {
    this.zone = zone;
  }

  async targetOf(name) {
    const kept = this.#answers.get(name);
    if (kept && Date.now() < kept.until) return kept.target;
    const answer = await askZone(this.zone, name);
    if (!answer) throw Object.assign(new Error(`${name} does not exist`), { code: "ENOTFOUND" });
    this.#answers.set(name, { target: answer.target, until: Date.now() + answer.ttl * 1000 });
    return answer.target;
  }
}

/**
 * Has hosts below `domain` found by the zone from now on, in this process. `addresses` maps a canonical host to its address; every
 * other host is a CNAME of one of them.
 */
export function resolveByZone(zone, domain, addresses) {
  const system = dns.lookup;
  const shared = new CachingResolver(zone);
  dns.lookup = (host, options, callback) => {
    if (!host.endsWith(`.${domain}`)) return system(host, options, callback);
    const [done, all] = [callback ?? options, options?.all];
    const client = current.getStore();
    const find = async () => {
      if (addresses[host]) return addresses[host];
      const target = await (client?.resolver ?? shared).targetOf(host);
      client?.found.push(target);
      return addresses[target];
    };
    find().then((address) => (all ? done(null, [{ address, family: 4 }]) : done(null, address, 4)), (error) => done(error));
  };
  // As many connections at once as there are streams, each with a lookup of its own.
  http.globalAgent = new http.Agent({ keepAlive: false });
}

/** A pusher-js client at a host, with what it has seen since it joined `channel`. */
function openClient({ host, port, key, transport, channel, resolver }) {
  const opened = { channel, found: [], states: [], failures: [], heard: [], resolver, at: Date.now() };
  current.run(opened, () => {
    const place = { wsHost: host, wsPort: port, httpHost: host, httpPort: port };
    opened.client = new PusherClient(key, { cluster: "", ...place, forceTLS: false, enableStats: false, enabledTransports: [transport] });
    opened.client.connection.bind("error", (error) => opened.failures.push(JSON.stringify(error)));
    opened.subscription = opened.client.subscribe(channel);
    opened.subscription.bind("news", ({ number }) => opened.heard.push(number));
  });
  opened.joined = new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${channel} at ${host} not joined: ${opened.failures}`)), JOIN_TIMEOUT_MS);
    opened.subscription.bind("pusher:subscription_succeeded", () => {
      clearTimeout(timer);
      if (opened.socketId) return;
      opened.socketId = opened.client.connection.socket_id;
      opened.client.connection.bind("state_change", ({ current: state }) => opened.states.push(state));
      resolve(opened);
    });
  });
  return opened;
}

/** Opens clients that stay, and waits until each has joined. */
export async function openResidents(zone, count, settings) {
  const residents = Array.from({ length: count }, () => openClient({ ...settings, resolver: new CachingResolver(zone) }));
  await Promise.all(residents.map(({ joined }) => joined));
  return residents;
}

/**
 * Starts `count` clients that look `host` up, join a channel of their own, and leave it, again and again. `visits` has each with its time, its channel and the
 * canonical host that it was led to (`found`), and with `refusal` where it did not join.
 */
export function startVisitors(zone, count, { prefix, ...settings }) {
  const visits = [];
  let isOver = false;
  const visitRepeatedly = async (number) => {
    const resolver = new CachingResolver(zone);
    for (let visited = 0; !isOver; visited += 1) {
      const visit = openClient({ ...settings, resolver, channel: `${prefix}-${number}-${visited}` });
      const kept = { at: visit.at, channel: visit.channel };
      visits.push(kept);
      await visit.joined.then(() => delay(VISIT_MS), (error) => (kept.refusal = error.message));
      kept.found = visit.found[0];
      kept.states = visit.states.slice();
      visit.client.disconnect();
      // Each at its own pace, so that clients do not come in step.
      await delay(Math.random() * PAUSE_MS_MAX);
    }
  };
  const loops = Array.from({ length: count }, (_, number) => visitRepeatedly(number));
  return { visits, stop: () => ((isOver = true), Promise.all(loops)) };
}

/**
 * Starts pairs of clients, one at each of two hosts, that are in one channel together: the second comes while the first is there,
 * and leaves after it. `channels` are those of pairs that both joined, `refusals` the errors of the others. `pause` waits until the
 * pair that is there has left, and no other comes until `resume`.
 */
export function startPairs(hosts, settings) {
  const [channels, refusals] = [[], []];
  let [isOver, isPaused, meeting] = [false, false, Promise.resolve()];
  const meet = async (count) => {
    const channel = `pair-${count}`;
    const pair = [];
    try {
      for (const host of count % 2 === 0 ? hosts : hosts.toReversed()) {
        pair.push(openClient({ ...settings, host, channel }));
        await pair.at(-1).joined;
      }
      await delay(PAIR_INTERVAL_MS);
      channels.push(channel);
    } catch (error) {
      refusals.push({ at: Date.now(), error: error.message });
    }
    for (const { client } of pair) {
      client.disconnect();
      await delay(PAIR_INTERVAL_MS / 2);
    }
  };
  const meetRepeatedly = async () => {
    for (let count = 0; !isOver; count += 1) {
      while (isPaused && !isOver) await delay(PAIR_INTERVAL_MS / 10);
      if (!isOver) await (meeting = meet(count));
    }
  };
  const loop = meetRepeatedly();
  return { channels, refusals, pause: () => ((isPaused = true), meeting), resume: () => (isPaused = false), stop: () => ((isOver = true), loop) };
}
