// What must hold of the events of a run. In: the transitions of Redis's append-only file, the records that the stream
// stored and acknowledged, the dead letters, and the events that the receiver processed. Out: problems, in words.

const orderOf = ({ channel, epoch, seq }) => `${channel} ${epoch}:${seq}`;
const subjectOf = ({ channel, user }) => (user ? `${user} in ${channel}` : channel);
const isLater = (one, other) => one.epoch > other.epoch || (one.epoch === other.epoch && one.seq > other.seq);
const isAbsence = ({ name }) => name === "channel_vacated" || name === "member_removed";
const describe = (event) => `${event.name} of ${subjectOf(event)} (${event.epoch}:${event.seq})`;

/** A webhook event in the form of a transition. */
const asTransition = ({ user_id: user = "", ...event }) => ({ ...event, user });

/** The first arrival of each id, in order of arrival. */
export function firstArrivals(events) {
  const known = new Set();
  return events.filter(({ id }) => !known.has(id) && known.add(id));
}

/** The distinct transitions of each subject in the bus's order. */
function groupBySubject(transitions) {
  const subjects = new Map();
  const distinct = new Map(transitions.map((transition) => [orderOf(transition), transition]));
  for (const transition of distinct.values()) {
    const subject = subjectOf(transition);
    if (!subjects.has(subject)) subjects.set(subject, []);
    subjects.get(subject).push(transition);
  }
  for (const list of subjects.values()) list.sort((one, other) => (isLater(one, other) ? 1 : -1));
  return subjects;
}

/**
 * Every transition that the bus decided arrived or is a dead letter, unless it needs no delivery: it is half of an absence
 * that ended, or it came to the stream after a later event of its subject that was delivered. `stored` has the events of
 * the stream with the times of their records. `traces` has the neighbours of each transition that is missing, and
 * `counts.longestCancelledMs` the longest absence that was cancelled.
 */
export function judgeTransitions({ transitions, arrivals, letters, stored }) {
  const [problems, traces] = [[], []];
  const counts = { decided: 0, delivered: 0, deadLettered: 0, cancelled: 0, superseded: 0, longestCancelledMs: 0 };
  const arrived = new Map(arrivals.filter(({ seq }) => seq !== undefined).map((event) => [orderOf(event), asTransition(event)]));
  const seen = new Map(arrived);
  const lettered = new Set(letters.filter(({ seq }) => seq !== undefined).map(orderOf));
  const storedAt = new Map();
  for (const event of stored.filter(({ seq }) => seq !== undefined)) {
    storedAt.set(orderOf(event), Math.min(event.at, storedAt.get(orderOf(event)) ?? Infinity));
  }
  for (const list of groupBySubject(transitions).values()) {
    const isFinished = (transition) => arrived.has(orderOf(transition)) || lettered.has(orderOf(transition));
    for (const [n, transition] of list.entries()) {
      counts.decided += 1;
      const key = orderOf(transition);
      const found = arrived.get(key);
      if (found && (found.name !== transition.name || found.user !== transition.user)) {
        problems.push(`${describe(transition)} arrived as ${describe(found)}`);
      }
      const partner = list[isAbsence(transition) ? n + 1 : n - 1];
      const isCancelled = () => partner && isAbsence(partner) !== isAbsence(transition) && !isFinished(partner);
      const isLateTo = (later) => arrived.has(orderOf(later)) && storedAt.get(orderOf(later)) <= storedAt.get(key);
      if (found) counts.delivered += 1;
      else if (lettered.has(key)) counts.deadLettered += 1;
      else if (storedAt.has(key) && isCancelled()) {
        counts.cancelled += 1;
        counts.longestCancelledMs = Math.max(counts.longestCancelledMs, Math.abs(partner.time - transition.time) || 0);
      } else if (storedAt.has(key) && list.slice(n + 1).some(isLateTo)) counts.superseded += 1;
      else {
        problems.push(`${describe(transition)} ${storedAt.has(key) ? "is neither delivered nor dead-lettered" : "is not in the stream"}`);
        traces.push(list.slice(Math.max(0, n - 2), n + 4).map((near) => traceOf(near, { arrived: seen, lettered, storedAt })).join(", "));
      }
      arrived.delete(key);
    }
  }
  for (const event of arrived.values()) problems.push(`${describe(event)} arrived, and the bus did not decide it`);
  return { problems, traces, counts };
}

function traceOf(transition, { arrived, lettered, storedAt }) {
  const key = orderOf(transition);
  const end = arrived.has(key) ? `arrived ${arrived.get(key).at}` : lettered.has(key) ? "dead letter" : "missing";
  return `${describe(transition)} decided ${transition.time} stored ${storedAt.get(key)} ${end}`;
}

/**
 * Of first arrivals, the order of the bus rises strictly per subject, and no decision has two ids. `traces` has the records
 * and the arrivals of each two events that arrived in the wrong order.
 */
export function judgeOrder(arrivals, stored = []) {
  const [problems, traces] = [[], []];
  const [last, ids] = [new Map(), new Map()];
  for (const event of firstArrivals(arrivals).filter(({ seq }) => seq !== undefined).map(asTransition)) {
    const subject = subjectOf(event);
    const before = last.get(subject);
    if (ids.has(orderOf(event))) problems.push(`${describe(event)} has the ids ${ids.get(orderOf(event))} and ${event.id}`);
    else if (before && !isLater(event, before)) {
      problems.push(`${describe(event)} arrived after ${describe(before)}`);
      traces.push([event, before].map((one) => traceRecords(one, stored, arrivals)).join(", "));
    }
    ids.set(orderOf(event), event.id);
    last.set(subject, event);
  }
  return { problems, traces };
}

/** Times and shards of an event's records, and times of its arrivals, each repeat too. */
function traceRecords(event, stored, arrivals) {
  const isSame = (other) => other.seq !== undefined && orderOf(other) === orderOf(event);
  const records = stored.filter(isSame).map(({ at, shard, time_ms: decided }) => `${at} in ${shard} (decided ${decided})`);
  return `${describe(event)} stored ${records.join(" and ")} arrived ${arrivals.filter(isSame).map(({ at }) => at).join(" and ")}`;
}

/**
 * Every client event whose put was acknowledged arrived or is a dead letter; those of a socket arrived in the order sent,
 * with the numbers that their sender gave them. `acknowledged` and `letters` are events, `sent` the last number of each
 * sender.
 */
export function judgeClientEvents({ acknowledged, arrivals, letters, sent }) {
  const problems = [];
  const isClientEvent = ({ name }) => name === "client_event";
  const first = firstArrivals(arrivals.filter(isClientEvent));
  const finished = new Set([...first, ...letters].map(({ id }) => id));
  const put = firstArrivals(acknowledged.filter(isClientEvent));
  for (const { id, channel, data } of put) {
    if (!finished.has(id)) problems.push(`the client event ${data} in ${channel} (${id}) was put, and is neither delivered nor dead-lettered`);
  }
  const [last, ids] = [new Map(), new Map()];
  for (const { id, data, channel, socket_id: socket } of first) {
    const { sender, n } = JSON.parse(data);
    const [subject, number] = [`${socket} in ${channel}`, `${sender}/${n}`];
    if (!(n >= 1 && n <= sent[sender])) problems.push(`the sender ${sender} did not send the number ${n}`);
    if (ids.has(number)) problems.push(`the number ${n} of the sender ${sender} has the ids ${ids.get(number)} and ${id}`);
    else if (n <= last.get(subject)) problems.push(`the number ${n} of the socket ${subject} arrived after ${last.get(subject)}`);
    ids.set(number, id);
    last.set(subject, n);
  }
  return { problems, counts: { put: put.length, delivered: first.length } };
}
