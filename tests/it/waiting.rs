//! Waits with a limit. A wait that fails names what it awaited and the last value that it saw.

// A wait ends its test where it fails; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{sleep, timeout};

/// Longest that a test waits for one thing, unless that thing is known to take longer.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Characters of the last value that a failure shows: its end, where the newest of a list stands.
const SEEN_LENGTH_MAX: usize = 4_000;

/// Looks until the value is as wanted, and answers with it.
pub async fn eventually<S: Debug>(awaited: &str, mut look: impl AsyncFnMut() -> S, holds: impl Fn(&S) -> bool) -> S {
    eventually_ok(awaited, async || {
        let seen = look().await;
        if holds(&seen) { Ok(seen) } else { Err(seen) }
    })
    .await
}

/// Looks until it succeeds. The error of a look is the value that it saw instead.
pub async fn eventually_ok<T, S: Debug>(awaited: &str, look: impl AsyncFnMut() -> Result<T, S>) -> T {
    eventually_within(WAIT_TIMEOUT, awaited, look).await
}

/// The same, with a limit of its own.
pub async fn eventually_within<T, S: Debug>(
    limit: Duration,
    awaited: &str,
    mut look: impl AsyncFnMut() -> Result<T, S>,
) -> T {
    let mut last = None;
    let found = async {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(seen) => last = Some(seen),
            }
            sleep(LOOK_INTERVAL).await;
        }
    };
    let found = timeout(limit, found).await;
    found.unwrap_or_else(|_| panic!("not within {limit:?}: {awaited}; {}", describe_last(last.as_ref())))
}

/// Waits for a future's end.
pub async fn within<T>(limit: Duration, awaited: &str, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {awaited}"))
}

/// The end of a failure's message: the last value, or that there was none.
pub fn describe_last(last: Option<&impl Debug>) -> String {
    let Some(last) = last else { return "nothing was seen".to_owned() };
    let text = format!("{last:?}");
    let skipped = text.chars().count().saturating_sub(SEEN_LENGTH_MAX);
    let end: String = text.chars().skip(skipped).collect();
    if skipped == 0 { format!("seen last: {end}") } else { format!("seen last: … {end}") }
}

/// The message with which a future panics.
pub async fn panic_of<T>(future: impl Future<Output = T>) -> String {
    let panic = AssertUnwindSafe(future).catch_unwind().await.err().expect("a panic");
    *panic.downcast::<String>().expect("a text")
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_fails_names_what_it_awaited_and_the_last_value() {
    let mut looks = 0;
    let mut look = async || {
        looks += 1;
        looks
    };
    assert_eq!(eventually("the third look", &mut look, |looks| *looks == 3).await, 3);
    let failing = eventually("a negative number of looks", async || 7, |looks| *looks < 0);
    let message = panic_of(failing).await;
    assert_eq!(message, "not within 20s: a negative number of looks; seen last: 7");
    let hanging = eventually_ok("an answer", async || std::future::pending::<Result<(), u8>>().await);
    let message = panic_of(hanging).await;
    assert_eq!(message, "not within 20s: an answer; nothing was seen");
    let long = describe_last(Some(&"x".repeat(5_000)));
    assert!(long.starts_with("seen last: … xxx") && long.len() < 4_100, "{long}");
}
