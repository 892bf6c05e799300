//! Every bound that an edge keeps for clients, as a page of documentation: the numbers come from the constants that the
//! code works with, and each stands beside what a client is told that goes beyond it.

use std::fmt::Write;
use std::time::Duration;

use super::{channels, connection, fallback, http_api, inbox, listener, liveness, peer, recorder, router, session};
use super::{sessions, signin, sockjs, subscribe, waiting, websocket};
use crate::bus;
use crate::protocol::{channel, frame, rest};

/// A bound with its unit.
#[derive(Clone, Copy)]
enum Most {
    Bytes(u64),
    Time(Duration),
    Count(u64),
}

impl Most {
    fn bytes(bytes: impl TryInto<u64>) -> Self {
        Self::Bytes(bytes.try_into().unwrap_or(u64::MAX))
    }

    fn count(count: impl TryInto<u64>) -> Self {
        Self::Count(count.try_into().unwrap_or(u64::MAX))
    }

    fn seconds(seconds: u64) -> Self {
        Self::Time(Duration::from_secs(seconds))
    }

    fn time(time: Duration) -> Self {
        Self::Time(time)
    }

    fn show(self) -> String {
        match self {
            Self::Bytes(bytes) if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
            Self::Bytes(bytes) if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
            Self::Bytes(bytes) => format!("{bytes} B"),
            Self::Time(time) => format!("{} s", time.as_secs()),
            Self::Count(count) => count.to_string(),
        }
    }
}

/// One bound: of what, how much, what happens beyond it, and where it is written.
struct Limit {
    of: &'static str,
    most: Most,
    beyond: &'static str,
    source: &'static str,
}

/// A bound of the constant that it names, so that the page cannot name another.
macro_rules! limit {
    ($of:literal, $unit:ident($($constant:ident)::+), $beyond:literal) => {
        Limit {
            of: $of,
            most: Most::$unit($($constant)::+),
            beyond: $beyond,
            source: concat!($("::", stringify!($constant)),+),
        }
    };
}

/// The parts of the page: a title, what is to be said of it, its bounds.
fn parts() -> Vec<(&'static str, &'static str, Vec<Limit>)> {
    vec![
        (
            "Requests",
            "Of every connection to the public listener.",
            vec![
                limit!("time for a request's head, and without a request", time(listener::HEAD), "closed"),
                limit!("time for a request's body", time(listener::BODY), "400, closed"),
                limit!("time in which a client reads nothing of its answer", time(listener::WRITE), "closed"),
                limit!("size of a head", bytes(listener::MAX_HEAD), "431, closed"),
                limit!("fields of a head", count(listener::MAX_FIELDS), "431, closed"),
                limit!("declared size of any body", bytes(listener::MAX_BODY), "413 before it arrives"),
                limit!("size of a body of the HTTP API", bytes(listener::MAX_BODY), "413"),
                limit!("size of a body of a send", bytes(router::MAX_SEND_BODY), "413"),
            ],
        ),
        (
            "WebSockets",
            "Text that is not UTF-8 closes the socket with 1007, what is no frame with 1002; binary frames are refused \
             with an error. All of it is counted in `realtime_edge_refused_total`.",
            vec![
                limit!("size of a message, also in parts", bytes(websocket::MAX_MESSAGE), "closed with 1009"),
                limit!("silence before a ping", time(liveness::ACTIVITY_TIMEOUT), "`pusher:ping`"),
                limit!("time for the answer to a ping", time(liveness::PONG_TIMEOUT), "closed with 4201"),
            ],
        ),
        (
            "Connections",
            "Of one client, whatever its transport. An error with a code leaves the connection open; a refused \
             subscription is told by `pusher:error` and `pusher:subscription_error`. How many client events it may send \
             in a second is said in its RealtimeApp; more are refused with error 4301.",
            vec![
                limit!("channels", count(connection::MAX_CHANNELS), "error 4100, status 403"),
                limit!("subscriptions and sign-ins at once", count(connection::ASKS), "error 4100, status 429"),
                limit!("and then in a second", count(connection::ASKS_PER_SECOND), "error 4100, status 429"),
                limit!(
                    "presence channels that wait for the bus",
                    count(waiting::MAX_WAITING),
                    "error 4100, status 503"
                ),
                limit!("time that they wait", time(waiting::WAIT), "error 4100, status 503"),
                limit!("characters of a channel's name", count(channel::MAX_CHANNEL_NAME), "error"),
                limit!("characters of a user's id", count(channel::MAX_USER_ID), "error 4009"),
                limit!("members of a presence channel", count(bus::MAX_MEMBERS), "error 4100, status 403"),
                limit!("size of a member's `user_info`", bytes(subscribe::MAX_USER_INFO), "error 4009, status 401"),
                limit!("size of `user_data`", bytes(signin::MAX_USER_DATA), "error 4009"),
                limit!("users watched", count(signin::MAX_WATCHED), "error 4302, the first ones are watched"),
                limit!("characters of an event's name", count(connection::MAX_EVENT_NAME), "error 4301"),
                limit!("size of a client event's data", bytes(frame::MAX_EVENT_BYTES), "error 4301"),
                limit!("characters of an error's message", count(frame::MAX_EXPLANATION), "cut"),
                limit!("frames that wait for a client", count(session::MAX_FRAMES), "closed with 4100"),
                limit!("bytes that wait for a client", bytes(session::MAX_BYTES), "closed with 4100"),
                limit!("frames held back while it enters", count(channels::MAX_HELD), "closed with 4100"),
            ],
        ),
        (
            "Sessions over HTTP",
            "Of pusher-js's fallbacks and of SockJS. A session that nobody knows is answered with 404.",
            vec![
                limit!("time without a receiving request", time(fallback::GRACE), "closed with 4202"),
                limit!("the same of SockJS", time(sockjs::GRACE), "closed with 4202"),
                limit!("time for the first message of SockJS", time(sockjs::INTRODUCTION), "closed with 4202"),
                limit!("sends that wait", count(inbox::MAX_SENDS), "waits"),
                limit!("bytes of sends that wait", bytes(inbox::MAX_SEND_BYTES), "waits"),
                limit!("time that a send waits", time(inbox::SEND_TIMEOUT), "503, the session is closed with 4200"),
                limit!("bytes of each part of a session's id", count(fallback::MAX_ID), "404"),
            ],
        ),
        (
            "HTTP API",
            "A request that is repeated within its time is accepted, as Pusher does.",
            vec![
                limit!("distance of `auth_timestamp` from the clock", seconds(rest::WINDOW_SECONDS), "401"),
                limit!("channels of an event", count(http_api::MAX_CHANNELS), "400"),
                limit!("events of a batch", count(http_api::MAX_BATCH), "400"),
                limit!("size of an event's data", bytes(frame::MAX_EVENT_BYTES), "413"),
                limit!("characters of an event's name", count(connection::MAX_EVENT_NAME), "400"),
            ],
        ),
        ("Processes", "Of all clients of one edge together.", of_a_process()),
    ]
}

fn of_a_process() -> Vec<Limit> {
    vec![
        limit!("sessions", count(sessions::MAX_SESSIONS), "closed with 4100"),
        limit!("sessions of pusher-js's fallbacks", count(fallback::MAX_SESSIONS), "503"),
        limit!("sessions of SockJS over HTTP", count(sockjs::MAX_SESSIONS), "503"),
        limit!(
            "bytes that wait for clients",
            bytes(session::MAX_TOTAL_BYTES),
            "who has more than its part waiting is closed with 4100"
        ),
        limit!("such a part", bytes(session::FAIR_BYTES), "see above"),
        limit!("presence channels that wait for the bus", count(waiting::MAX_ALL), "error 4100, status 503"),
        limit!("connections of other edges", count(peer::MAX_CONNECTIONS), "closed, counted as `full`"),
        limit!("requests that are handed to other edges", count(peer::MAX_RELAYS), "as if nobody had the session"),
        limit!(
            "events that wait for the stream",
            count(recorder::MAX_EVENTS),
            "counted in `realtime_edge_recorder_dropped_total`: old counts go first, then client events, last \
                     counts, states that ended, last states"
        ),
        limit!("bytes of them", bytes(recorder::MAX_BYTES), "the same"),
        limit!("time that a client event waits", time(recorder::CLIENT_EVENT), "counted as `expired`"),
    ]
}

/// `docs/limits.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "<!-- Generated by `realtime limits`; a test compares. -->\n\
         # Limits\n\n\
         What an edge takes from clients, and what it answers beyond that. Each number is the one that the code works\n\
         with; the last column says where it stands in `src/edge/`, `src/protocol/` or `src/bus/`. Codes are those of Pusher's\n\
         protocol: 4100 means come back after a while, 4200 at once. What is refused is counted by reason in\n\
         `realtime_edge_refused_total`, clients closed because they do not read in\n\
         `realtime_edge_slow_consumers_total`.\n",
    );
    for (title, about, limits) in parts() {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {title}\n\n{about}\n\n| of | at most | beyond it | constant |\n|---|---|---|---|\n");
        for Limit { of, most, beyond, source } in limits {
            let source = source.trim_start_matches("::");
            let _ = writeln!(page, "| {of} | {} | {beyond} | `{source}` |", most.show());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_shown_in_their_largest_whole_unit() {
        for (most, shown) in [
            (Most::bytes(1_usize << 20), "1 MiB"),
            (Most::bytes(10_240_u32), "10 KiB"),
            (Most::bytes(1_000_u32), "1000 B"),
            (Most::time(Duration::from_mins(2)), "120 s"),
            (Most::seconds(600), "600 s"),
            (Most::count(0_u32), "0"),
        ] {
            assert_eq!(most.show(), shown);
        }
    }
}
