//! Every bound that an edge keeps for clients, as a page of documentation: the numbers come from the constants that the
//! code works with, and each stands beside the answer to a client that exceeds it.

use std::fmt::Write;
use std::time::Duration;

use crate::edge::http::{listener, session_routes};
use crate::edge::hub::subscribers;
use crate::edge::intake::{byte_budget, capacity, sources};
use crate::edge::pusher::connection;
use crate::edge::pusher::{authorize, pace, pending_subscriptions, sign_in};
use crate::edge::session::liveness;
use crate::edge::transport::inbox;
use crate::edge::transport::session_ownership;
use crate::edge::transport::xhr::session as xhr_session;
use crate::edge::transport::{socket, sockjs};
use crate::edge::{http_api, recorder, relay, session};
use crate::protocol::registry as protocol_registry;
use crate::protocol::{channel, frame, rest};

/// A limit with its unit.
#[derive(Clone, Copy)]
enum LimitValue {
    Bytes(u64),
    Time(Duration),
    Count(u64),
}

impl LimitValue {
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

    fn to_text(self) -> String {
        match self {
            Self::Bytes(bytes) if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
            Self::Bytes(bytes) if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
            Self::Bytes(bytes) => format!("{bytes} B"),
            Self::Time(time) => format!("{} s", time.as_secs()),
            Self::Count(count) => count.to_string(),
        }
    }
}

/// One row: the limited thing, the limit, the answer beyond it, and the constant.
struct LimitRow {
    of: &'static str,
    most: LimitValue,
    beyond: &'static str,
    source: &'static str,
}

/// Builds a row from the constant that it names, so that the page cannot name another one.
macro_rules! limit {
    ($of:literal, $unit:ident($($constant:ident)::+), $beyond:literal) => {
        LimitRow {
            of: $of,
            most: LimitValue::$unit($($constant)::+),
            beyond: $beyond,
            source: concat!($("::", stringify!($constant)),+),
        }
    };
}

/// The sections of the page: a title, an introduction, and rows.
fn list_sections() -> Vec<(&'static str, &'static str, Vec<LimitRow>)> {
    vec![
        (
            "Requests",
            "Of every connection to the public listener. A connection without a request, or with an unfinished head, is \
             closed after `REALTIME_KEEP_ALIVE_SECONDS`.",
            vec![
                limit!("time for a request's body", time(listener::REQUEST_BODY_TIMEOUT), "400, closed"),
                limit!(
                    "time in which a client reads nothing of its answer",
                    time(listener::WRITE_STALL_TIMEOUT),
                    "closed"
                ),
                limit!("size of a head", bytes(listener::HEAD_BYTES_MAX), "431, closed"),
                limit!("fields of a head", count(listener::HEAD_FIELDS_MAX), "431, closed"),
                limit!("declared size of any body", bytes(listener::BODY_BYTES_MAX), "413 before it arrives"),
                limit!("size of a body of the HTTP API", bytes(listener::BODY_BYTES_MAX), "413"),
                limit!("size of a body of a send", bytes(session_routes::SEND_BODY_BYTES_MAX), "413"),
            ],
        ),
        (
            "WebSockets",
            "Text that is not UTF-8 closes the socket with 1007, what is no frame with 1002; binary frames are refused \
             with an error. All of it is counted in `realtime_edge_refusals_total`. A client is pinged after a silence of \
             `REALTIME_ACTIVITY_TIMEOUT_SECONDS`.",
            vec![
                limit!("size of a message, also in parts", bytes(socket::MESSAGE_BYTES_MAX), "closed with 1009"),
                limit!("time for the answer to a ping", time(liveness::PONG_TIMEOUT), "closed with 4201"),
            ],
        ),
        (
            "Connections",
            "Of one client, whatever its transport. An error with a code leaves the connection open; a refused \
             subscription is told by `pusher:error` and `pusher:subscription_error`. How many client events it may send \
             in a second is said in its RealtimeApp; more are refused with error 4301.",
            list_connection_limits(),
        ),
        (
            "Sessions over HTTP",
            "Of pusher-js's fallbacks and of SockJS. A session that nobody knows is answered with 404.",
            vec![
                limit!("time without a receiving request", time(xhr_session::XHR_RECEIVER_GRACE), "closed with 4202"),
                limit!("the same of SockJS", time(sockjs::SOCKJS_RECEIVER_GRACE), "closed with 4202"),
                limit!("time for the first message of SockJS", time(sockjs::INTRODUCTION_TIMEOUT), "closed with 4202"),
                limit!("sends that wait", count(inbox::INBOX_REQUESTS_MAX), "waits"),
                limit!("bytes of sends that wait", bytes(inbox::INBOX_BYTES_MAX), "waits"),
                limit!(
                    "time that a send waits",
                    time(inbox::INBOX_SEND_TIMEOUT),
                    "503, the session is closed with 4200"
                ),
                limit!(
                    "bytes of each part of a session's id",
                    count(session_ownership::SESSION_ID_PART_MAX_LEN),
                    "404"
                ),
            ],
        ),
        (
            "HTTP API",
            "A request that is repeated within its time is accepted, as Pusher does.",
            vec![
                limit!("distance of `auth_timestamp` from the clock", seconds(rest::CLOCK_SKEW_MAX_SECONDS), "401"),
                limit!("channels of an event", count(http_api::EVENT_CHANNELS_MAX), "400"),
                limit!("events of a batch", count(http_api::BATCH_EVENTS_MAX), "400"),
                limit!("size of an event's data", bytes(frame::EVENT_BYTES_MAX), "413"),
                limit!("characters of an event's name", count(connection::EVENT_NAME_MAX_LEN), "400"),
            ],
        ),
        (
            "Source addresses",
            "Of all clients of one app behind one address, on each edge; a network of IPv6 with a prefix of 64 bits is one \
             address. Private addresses that no trusted proxy reports are not counted, nor are those of trusted proxies: \
             list proxies in `REALTIME_TRUSTED_PROXIES`. RealtimeApps set the number of connections.",
            list_source_limits(),
        ),
        ("Processes", "Of all clients of one edge together.", list_process_limits()),
    ]
}

fn list_connection_limits() -> Vec<LimitRow> {
    vec![
        limit!("channels", count(connection::CONNECTION_CHANNELS_MAX), "error 4100, status 403"),
        limit!("subscriptions and sign-ins at once", count(pace::REQUEST_BURST_MAX), "error 4100, status 429"),
        limit!("and then in a second", count(pace::REQUESTS_PER_SECOND_MAX), "error 4100, status 429"),
        limit!("pings and invalid messages answered at once", count(pace::ANSWER_BURST_MAX), "dropped"),
        limit!("and then in a second", count(pace::ANSWERS_PER_SECOND_MAX), "dropped"),
        limit!(
            "presence channels that wait for the bus",
            count(pending_subscriptions::CONNECTION_PENDING_MAX),
            "error 4100, status 503"
        ),
        limit!("time that they wait", time(pending_subscriptions::PENDING_TIMEOUT), "error 4100, status 503"),
        limit!("characters of a channel's name", count(channel::CHANNEL_NAME_MAX_LEN), "error"),
        limit!("characters of a user's id", count(channel::USER_ID_MAX_LEN), "error 4009"),
        limit!(
            "members of a presence channel, unless its app has another limit",
            count(protocol_registry::PRESENCE_MEMBERS_DEFAULT),
            "error 4100, status 403"
        ),
        limit!("size of a member's `user_info`", bytes(authorize::USER_INFO_BYTES_MAX), "error 4009, status 401"),
        limit!("size of `user_data`", bytes(sign_in::USER_DATA_BYTES_MAX), "error 4009"),
        limit!("users watched", count(sign_in::WATCHED_USERS_MAX), "error 4302, the first ones are watched"),
        limit!("characters of an event's name", count(connection::EVENT_NAME_MAX_LEN), "error 4301"),
        limit!("size of a client event's data", bytes(frame::EVENT_BYTES_MAX), "error 4301"),
        limit!("characters of an error's message", count(frame::EXPLANATION_MAX_LEN), "cut"),
        limit!("frames that wait for a client", count(session::QUEUED_FRAMES_MAX), "closed with 4100"),
        limit!("bytes that wait for a client", bytes(session::QUEUED_BYTES_MAX), "closed with 4100"),
        limit!("frames held back while it enters", count(subscribers::HELD_FRAMES_MAX), "closed with 4100"),
    ]
}

fn list_source_limits() -> Vec<LimitRow> {
    vec![
        limit!(
            "connections, unless their app has another limit",
            count(protocol_registry::CONNECTIONS_PER_SOURCE_DEFAULT),
            "closed with 4100"
        ),
        limit!(
            "new connections in a second, after as many at once as it may have",
            count(sources::SOURCE_HANDSHAKES_PER_SECOND),
            "closed with 4100"
        ),
        limit!(
            "subscriptions, sign-ins and look-ups of sessions at once",
            count(sources::SOURCE_REQUESTS_BURST),
            "see the next"
        ),
        limit!(
            "and then in a second",
            count(sources::SOURCE_REQUESTS_PER_SECOND),
            "the connection is read again later; a look-up is answered at once"
        ),
        limit!("such a pause", time(sources::SOURCE_PAUSE_MAX), "error 4100, status 429"),
    ]
}

fn list_process_limits() -> Vec<LimitRow> {
    vec![
        limit!(
            "sessions, unless the memory or `REALTIME_CONNECTIONS_MAX` allows fewer",
            count(capacity::OPEN_CONNECTIONS_MAX),
            "closed with 4100"
        ),
        limit!(
            "bytes of unfinished requests and messages",
            bytes(byte_budget::INPUT_BYTES_MAX),
            "503, or closed with 4100"
        ),
        limit!(
            "such bytes without a verified signature",
            bytes(byte_budget::UNSIGNED_INPUT_BYTES_MAX),
            "503, or closed with 4100"
        ),
        limit!("bytes of each of them that are not counted", bytes(byte_budget::UNCOUNTED_INPUT_BYTES), "see above"),
        limit!("sessions of pusher-js's fallbacks", count(xhr_session::XHR_SESSIONS_MAX), "503"),
        limit!("sessions of SockJS over HTTP", count(sockjs::SOCKJS_SESSIONS_MAX), "503"),
        limit!(
            "bytes that wait for clients",
            bytes(session::TOTAL_QUEUED_BYTES_MAX),
            "who has more than its part waiting is closed with 4100"
        ),
        limit!("such a part", bytes(session::FAIR_SHARE_BYTES), "see above"),
        limit!(
            "presence channels that wait for the bus",
            count(pending_subscriptions::PROCESS_PENDING_MAX),
            "error 4100, status 503"
        ),
        limit!("connections of other edges", count(relay::RELAY_CONNECTIONS_MAX), "closed, counted as `full`"),
        limit!(
            "requests that are handed to other edges",
            count(relay::CONCURRENT_RELAYS_MAX),
            "as if nobody had the session"
        ),
        limit!(
            "events that wait for the stream",
            count(recorder::RECORDER_EVENTS_MAX),
            "counted in `realtime_edge_recorder_events_dropped_total`: old counts go first, then client events, last \
                     counts, states that ended, last states"
        ),
        limit!("bytes of them", bytes(recorder::RECORDER_BYTES_MAX), "the same"),
        limit!("time that a client event waits", time(recorder::CLIENT_EVENT_TTL), "counted as `expired`"),
    ]
}

/// Renders the text of `docs/limits.md`.
#[must_use]
pub fn render_limits_page() -> String {
    let mut page = String::from(
        "<!-- Generated by `realtime limits`; a test compares. -->\n\
         # Limits\n\n\
         What an edge takes from clients, and what it answers beyond that. Each number is the one that the code works\n\
         with; the last column says where it stands in `src/edge/`, `src/protocol/` or `src/bus/`. Codes are those of Pusher's\n\
         protocol: 4100 means come back after a while, 4200 at once. What is refused is counted by reason in\n\
         `realtime_edge_refusals_total`, clients closed because they do not read in\n\
         `realtime_edge_slow_consumers_total`.\n",
    );
    for (title, about, limits) in list_sections() {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {title}\n\n{about}\n\n| of | at most | beyond it | constant |\n|---|---|---|---|\n");
        for LimitRow { of, most, beyond, source } in limits {
            let source = source.trim_start_matches("::");
            let _ = writeln!(page, "| {of} | {} | {beyond} | `{source}` |", most.to_text());
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
            (LimitValue::bytes(1_usize << 20), "1 MiB"),
            (LimitValue::bytes(10_240_u32), "10 KiB"),
            (LimitValue::bytes(1_000_u32), "1000 B"),
            (LimitValue::time(Duration::from_mins(2)), "120 s"),
            (LimitValue::seconds(600), "600 s"),
            (LimitValue::count(0_u32), "0"),
        ] {
            assert_eq!(most.to_text(), shown);
        }
    }
}
