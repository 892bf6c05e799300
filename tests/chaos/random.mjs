// Random numbers that a seed repeats. Each part of a run draws from a source of its own, so that the schedule of kills does
// not depend on the number of requests meanwhile.

/** A source of numbers from 0 to 1, by seed and by the name of the part that draws from it. */
export function createRandom(seed, part) {
  let state = [...`${seed}/${part}`].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 0x01000193) >>> 0, 0x811c9dc5);
  const draw = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
  return {
    draw,
    /** A number from `low` to `high`. */
    between: (low, high) => low + draw() * (high - low),
    /** One of the items. */
    pick: (items) => items[Math.floor(draw() * items.length)],
    /** Whether an event of this probability happens. */
    happens: (probability) => draw() < probability,
  };
}
