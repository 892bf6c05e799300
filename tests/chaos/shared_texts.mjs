// One copy of each text that many events have, as a parser makes one for every event.

/** Fields with few values. */
const SHARED_FIELDS = ["name", "channel", "user", "user_id", "socket_id", "event", "shard"];

const known = new Map();

/** The same event, whose texts are those of the events before it. */
export function shareTexts(event) {
  for (const field of SHARED_FIELDS) {
    const text = event[field];
    if (typeof text !== "string") continue;
    if (!known.has(text)) known.set(text, text);
    event[field] = known.get(text);
  }
  return event;
}
