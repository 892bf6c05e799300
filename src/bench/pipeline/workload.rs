//! The events of a run: client events and state events over many channels of many apps, with the counts that a receiver
//! must see. Pure but for the bus that decides the state events.

use bytes::Bytes;

use super::super::error::BenchError;
use super::super::load::{RunClock, build_event_payload};
use crate::bus::{ChannelKey, DecidedTransitions, JoinLimits, Membership, MemoryBus};
use crate::kinesis::PutEntry;
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::{EventKind, RecordOrigin, RecordedEvent, encode_record, partition_key};
use crate::protocol::registry::App;
use crate::protocol::{ChannelName, SocketId};

/// Bytes of one event in a record.
const EVENT_BYTES: usize = 300;

/// One event in so many is a state event.
const STATE_EVENT_SHARE: u64 = 5;

/// A run has more users in a channel than an app allows by default, and its state is not what is measured.
const JOIN_LIMITS: JoinLimits = JoinLimits { members_max: usize::MAX, connections_max: None };

/// Prefix of every channel's name.
const CHANNEL_PREFIX: &str = "presence-bench-";

/// UID of the run's cluster.
pub const CLUSTER: &str = "bench";

/// Number of events that one channel got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    /// Client events; they are numbered from 0.
    pub client: u64,
    /// State events; they are numbered from 1.
    pub state: u64,
}

/// Emits events to the channels in turn.
pub struct Workload {
    subjects: Vec<ChannelKey>,
    counts: Vec<ChannelCounts>,
    bus: MemoryBus,
    visits: usize,
    emitted: ChannelCounts,
    padding: usize,
    /// One event in so many is a state event.
    state_event_share: u64,
}

/// The next events of one channel.
pub enum NextEvents {
    /// A client event of one sender.
    Client(EventKind),
    /// State events that the bus decided.
    State(DecidedTransitions),
}

impl Workload {
    /// Creates a workload over so many channels, spread evenly over so many apps.
    pub fn new(channels: usize, apps: usize) -> Self {
        let subject = |number: usize| {
            let channel = ChannelName::parse(&channel_name(number)).ok()?;
            Some(ChannelKey { app: app_id(number % apps.max(1)).into(), channel })
        };
        let subjects: Vec<ChannelKey> = (0..channels.max(1)).filter_map(subject).collect();
        let bare = client_event(String::new());
        let sample = RecordedEvent {
            id: "0".repeat(26),
            time_ms: 1_700_000_000_000,
            order: None,
            n: Some(100_000),
            cause: None,
            kind: bare,
        };
        let overhead = serde_json::to_vec(&sample).map_or(0, |json| json.len());
        Self {
            counts: vec![ChannelCounts::default(); subjects.len()],
            subjects,
            bus: MemoryBus::new(),
            visits: 0,
            emitted: ChannelCounts::default(),
            padding: EVENT_BYTES.saturating_sub(overhead),
            state_event_share: STATE_EVENT_SHARE,
        }
    }

    /// Events emitted so far.
    pub fn emitted(&self) -> u64 {
        self.emitted.client + self.emitted.state
    }

    /// Events of each channel so far.
    pub fn counts(&self) -> &[ChannelCounts] {
        &self.counts
    }

    /// Emits state events only from now on, each of a user of its own.
    pub fn emit_users_only(&mut self) {
        self.state_event_share = 1;
    }

    /// Emits the next events: of the next channel in turn, and due at this time of the clock.
    pub async fn emit_next(&mut self, clock: RunClock) -> Result<(&ChannelKey, NextEvents), BenchError> {
        let number = self.visits % self.subjects.len();
        self.visits += 1;
        let (subject, counts) = (&self.subjects[number], &mut self.counts[number]);
        if self.emitted.state * self.state_event_share < self.emitted.client + self.emitted.state + 1 {
            // A new member each time: the return of one within seconds would cancel its departure.
            let user_id = format!("user-{}", self.visits);
            let member = PresenceMember { user_id, user_info: serde_json::Value::Null };
            let (high, low) = (1, self.visits as u64);
            let socket = SocketId::from_random(high, low);
            let joined = self.bus.join_bounded_channel(subject, &socket, Some(&member), JOIN_LIMITS).await;
            let transitions = joined.map_err(|error| bus_error(&error.to_string()))?.transitions;
            let decided = transitions.len() as u64;
            counts.state += decided;
            self.emitted.state += decided;
            return Ok((subject, NextEvents::State(transitions)));
        }
        let data = build_event_payload(counts.client, clock.now_us(), self.padding);
        counts.client += 1;
        self.emitted.client += 1;
        Ok((subject, NextEvents::Client(client_event(data))))
    }
}

fn bus_error(detail: &str) -> BenchError {
    BenchError::Server { server: "the bus in memory", step: "a join", detail: detail.to_owned() }
}

fn client_event(data: String) -> EventKind {
    EventKind::ClientEvent { event: "client-bench".to_owned(), data, socket_id: "1.1".to_owned(), user_id: None }
}

fn channel_name(number: usize) -> String {
    format!("{CHANNEL_PREFIX}{number}")
}

/// The number of a channel, by its name.
pub fn channel_number(channel: &str) -> Option<usize> {
    channel.strip_prefix(CHANNEL_PREFIX)?.parse().ok()
}

/// The id of an app, by its number.
pub fn app_id(number: usize) -> String {
    (1_000 + number).to_string()
}

/// The process that writes the records of a run.
pub fn record_origin() -> RecordOrigin {
    let name = "bench".to_owned();
    RecordOrigin { cluster: CLUSTER.to_owned(), server: "websocket".to_owned(), pod: name.clone(), process: name }
}

/// Builds the apps of a run, each with one endpoint of its own at this URL.
///
/// # Errors
/// The registry's format does not accept the app.
pub fn build_apps(apps: usize, url: &str, is_single: bool) -> Result<Vec<App>, BenchError> {
    let app = |number: usize| {
        let id = app_id(number);
        serde_json::from_value(serde_json::json!({
            "id": id,
            "credentials": [{ "key": format!("key-{id}"), "secret": "bench-secret", "state": "Active" }],
            "enabled": true,
            "clientEvents": true,
            "limits": { "clientEventsPerSecond": 10 },
            "webhooks": [{
                "name": "bench",
                "url": format!("{url}/{id}"),
                "events": [],
                "channelPrefix": "",
                "timeoutSeconds": 4,
                "batch": if is_single { "One" } else { "Many" },
            }],
        }))
    };
    let invalid = |error: serde_json::Error| BenchError::Start { server: "dispatcher", detail: error.to_string() };
    (0..apps).map(app).collect::<Result<_, _>>().map_err(invalid)
}

/// Builds records of one client event each, as a recorder would: the body of a bare loop.
pub fn build_entries(events: usize, channels: usize, apps: usize) -> Vec<PutEntry> {
    let (workload, origin) = (Workload::new(channels, apps), record_origin());
    let build = |n: usize| {
        let subject = &workload.subjects[n % workload.subjects.len()];
        let kind = client_event(build_event_payload(n as u64, 0, workload.padding));
        let id = ulid::Ulid::new().to_string();
        let event = RecordedEvent { id, time_ms: 1_700_000_000_000, order: None, n: Some(n as u64), cause: None, kind };
        let json = serde_json::to_vec(&event).unwrap_or_default();
        // Values of this type always serialise.
        let data = encode_record(&subject.app, &subject.channel, &origin, &[json]).unwrap_or_default();
        PutEntry { partition_key: partition_key(&subject.app, &subject.channel), data: Bytes::from(data) }
    };
    (0..events).map(build).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::load::parse_event;
    use super::*;

    #[tokio::test]
    async fn one_event_in_five_is_state_and_every_channel_counts_its_own() {
        let mut workload = Workload::new(100, 7);
        let clock = RunClock::start();
        let (mut client, mut state) = (0, 0);
        while workload.emitted() < 5_000 {
            match workload.emit_next(clock).await.expect("events").1 {
                NextEvents::Client(kind) => {
                    let EventKind::ClientEvent { data, .. } = kind else { unreachable!("a client event") };
                    assert!(parse_event(data.as_bytes()).is_some(), "{data}");
                    client += 1;
                }
                NextEvents::State(transitions) => state += transitions.acknowledge_all().len() as u64,
            }
        }
        let total: ChannelCounts = workload.counts().iter().fold(ChannelCounts::default(), |total, counts| {
            ChannelCounts { client: total.client + counts.client, state: total.state + counts.state }
        });
        assert_eq!((total.client, total.state), (client, state));
        assert!((990..=1_010).contains(&state), "{state}");
        assert!(workload.counts().iter().all(|counts| counts.client > 0 && counts.state > 1), "spread evenly");
    }

    #[tokio::test]
    async fn users_join_without_a_limit() {
        let mut workload = Workload::new(2, 1);
        workload.emit_users_only();
        let clock = RunClock::start();
        for user in 0..500 {
            let Ok((_, NextEvents::State(transitions))) = workload.emit_next(clock).await else {
                panic!("user {user} does not join")
            };
            assert!(!transitions.acknowledge_all().is_empty(), "user {user}");
        }
    }

    #[test]
    fn an_event_of_a_bare_loop_has_the_size_of_the_run() {
        let entries = build_entries(3, 10, 2);
        let record = crate::protocol::record::StreamRecord::parse(&entries[2].data).expect("a record");
        let event = serde_json::to_vec(&record.events[0]).expect("json");
        assert!((295..=EVENT_BYTES).contains(&event.len()), "{}", event.len());
        assert_eq!(
            (entries[2].partition_key.as_str(), record.edge.cluster.as_str()),
            ("1000/presence-bench-2", CLUSTER)
        );
        assert_eq!(channel_number(record.channel.as_str()), Some(2));
    }
}
