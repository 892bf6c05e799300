// Waits of a test, which name what they waited for.
import { inspect } from "node:util";

/** Waits until `check` answers with something; fails with what was waited for, its last answer and what `describe` says. */
export async function eventually(check, describe, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) {
      throw new Error(`not within ${seconds} s: ${describe()}; waited for ${check}, which last gave ${inspect(found)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
