// The schedule of a run: which process is killed when, and when the stream changes its shards.

/** Seconds between two kills of a kind, in a run of at most a minute and in a longer one: 20 on a busy machine too. */
const [SHORT_INTERVAL, LONG_INTERVAL] = [20.5, 30];

/** First kill of each kind, in seconds. The kinds take turns, so that a process dies while another one recovers. */
const FIRST_KILLS = { edge: 2, dispatcher: 6.5, stream: 11, redis: 15.5 };

/** Largest shift of the kills of a kind, in seconds. */
const SHIFT_MAX = 3;

/** The first split and the first merge, in seconds, and the interval of each. */
const [FIRST_SPLIT, FIRST_MERGE, CHANGE_INTERVAL] = [9.5, 29.5, 60];

/** The steps of a run of so many seconds, by time: `{ at, action, target }`, `action` is `kill`, `split` or `merge`. */
export function planChaos(seconds, random) {
  const interval = seconds > 60 ? LONG_INTERVAL : SHORT_INTERVAL;
  const steps = [];
  const repeat = (first, every, step) => {
    for (let at = first; at < seconds; at += every) steps.push({ at, ...step });
  };
  for (const [target, first] of Object.entries(FIRST_KILLS)) {
    repeat(first + random.between(0, SHIFT_MAX), interval, { action: "kill", target });
  }
  repeat(FIRST_SPLIT, CHANGE_INTERVAL, { action: "split", target: "stream" });
  repeat(FIRST_MERGE, CHANGE_INTERVAL, { action: "merge", target: "stream" });
  return steps.sort((one, other) => one.at - other.at);
}
