//! Answers of the admin listener's guarded paths: the configuration that a process runs, and the events that pass
//! through it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{ServerKind, name as contract};

use super::ledger::{DeliveryLedger, EventLedger};
use super::{AppId, ShardId};

/// The answer of `/effective`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveReport {
    /// The process's id, new at each start.
    pub process: String,
    /// The release that the process runs.
    pub version: String,
    /// Hash of build and configuration together; an operator admits a pod by it.
    pub configuration: String,
    /// The process's clock, in ms since 1970.
    pub time_ms: u64,
    /// Every contract variable with defaults filled in, secrets as salted digests.
    pub variables: BTreeMap<String, String>,
    /// A salted digest for each app.
    pub apps: BTreeMap<AppId, String>,
}

/// Variables that differ between pods of one template.
const POD_VARIABLES: [&str; 2] = [contract::POD, contract::POD_IP];

/// Hashes a build and its configuration: two processes with the same hash behave alike. A pod's own name and address do
/// not count, so that another pod of its template need not prove again what one has proven.
#[must_use]
pub fn hash_configuration(build: &str, variables: &BTreeMap<String, String>) -> String {
    let lines = variables.iter().filter(|(name, _)| !POD_VARIABLES.contains(&name.as_str()));
    let lines: Vec<String> = lines.map(|(name, value)| format!("{name}={value}")).collect();
    let digest = Sha256::digest(format!("{build}\n{}", lines.join("\n")));
    hex::encode(digest.get(..8).unwrap_or_default())
}

/// The answer of `/flow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowReport {
    /// The process's id, new at each start.
    pub process: String,
    /// Time of the start, in ms since 1970; 0 from a process of an older release.
    #[serde(default)]
    pub started_ms: u64,
    /// Sessions of clients by the server whose transports carry them, those of journeys apart; present on an edge.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub sessions: BTreeMap<ServerKind, SessionFlow>,
    /// Sessions that the edge takes over all transports, open ones included; 0 while it is not admitted or drains. Absent
    /// from a process of an older release, and from a dispatcher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sessions_max: Option<u64>,
    /// The recorder's flow, present on an edge.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recorder: Option<RecorderFlow>,
    /// The dispatcher's flow, present on a dispatcher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dispatcher: Option<DispatcherFlow>,
}

/// Sessions of clients at an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFlow {
    /// Sessions that are open now.
    pub open: u64,
    /// Sessions that were opened since the process started.
    pub opened: u64,
}

/// Events that passed through an edge's recorder since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecorderFlow {
    /// Whether events are written at all.
    pub state: RecorderState,
    /// Events that were decided for recording: those unwanted and those accepted; 0 from a process of an older release.
    #[serde(default)]
    pub decided: u64,
    /// Events that the recorder accepted.
    pub accepted: u64,
    /// Events that the stream acknowledged.
    pub acknowledged: u64,
    /// Events that wait to be written.
    pub queued: u64,
    /// Events that were not recorded, because no endpoint receives them; not counted as accepted.
    #[serde(default)]
    pub unwanted: u64,
    /// Events dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The stream's last refusal; absent after a success.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
    /// Apps whose events have waited for more than a minute while the stream acknowledged none of the app, ten at most;
    /// absent when there are none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub silent_apps: BTreeSet<AppId>,
}

/// Whether an edge writes events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecorderState {
    /// Events are written to Kinesis.
    #[default]
    Kinesis,
    /// Events are not written, because the configuration says `off`.
    Off,
}

/// The state of a dispatcher's reading and sending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DispatcherFlow {
    /// The stream that it reads.
    pub stream: String,
    /// The shards that it holds.
    pub shards: BTreeMap<ShardId, ShardFlow>,
    /// Webhooks that an endpoint acknowledged.
    pub delivered: u64,
    /// Attempts to post that failed.
    pub failed_attempts: u64,
    /// Events not delivered, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Events read and not yet done.
    pub unfinished: u64,
    /// Events by hop; absent from a process of an older release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub events: Option<EventLedger>,
    /// Deliveries by hop; absent from a process of an older release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deliveries: Option<DeliveryLedger>,
    /// Positions in the stream whose records were trimmed before they were read.
    #[serde(default)]
    pub trimmed: u64,
    /// The reason of the last failed read or attempt; absent after a success.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
    /// The dead letters; absent without a dead-letter stream.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dead_letter: Option<DeadLetterFlow>,
}

/// The dead letters of a dispatcher since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterFlow {
    /// The stream that they are written to.
    pub stream: String,
    /// Events whose letters were written, by reason.
    pub written: BTreeMap<String, u64>,
    /// Letters that are not written yet.
    pub waiting: u64,
    /// Why the stream cannot be written now; absent after a success.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// One shard as its holder sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardFlow {
    /// The newest record read; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_to: Option<String>,
    /// The end of the contiguous done prefix; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<String>,
    /// Distance to the newest record, in ms, as Kinesis reports it; it grows with the clock while nothing is read.
    pub behind_ms: u64,
    /// Time of the last read without an error, in ms since 1970.
    pub read_at_ms: u64,
    /// Why the shard is not read now; absent while it is read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paused: Option<String>,
}

/// The answer of `/endpoints`: the endpoints that a dispatcher sent to since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsReport {
    /// The process's id, new at each start.
    pub process: String,
    /// The endpoints, by app and name.
    pub endpoints: Vec<EndpointReport>,
}

/// One endpoint as a dispatcher sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// The app of the endpoint.
    pub app: AppId,
    /// The endpoint's name within the app.
    pub name: String,
    /// Time of the last acknowledged attempt, in ms since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_delivered_ms: Option<u64>,
    /// Time of the first attempt that failed after the last acknowledged one; absent while none fails.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failing_since_ms: Option<u64>,
    /// Time of the last attempt that failed; absent while none fails.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_failed_ms: Option<u64>,
    /// The last answer, or the reason why none came.
    #[serde(default)]
    pub last_answer: String,
    /// Events that were dropped, because the endpoint did not acknowledge them.
    #[serde(default)]
    pub dropped: u64,
    /// Events that became dead letters, because the endpoint did not acknowledge them.
    #[serde(default)]
    pub dead_lettered: u64,
}

impl EndpointReport {
    /// The report on an endpoint before its first attempt.
    #[must_use]
    pub fn new(app: AppId, name: String) -> Self {
        Self {
            app,
            name,
            last_delivered_ms: None,
            failing_since_ms: None,
            last_failed_ms: None,
            last_answer: String::new(),
            dropped: 0,
            dead_lettered: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pods_of_one_template_have_the_same_hash() {
        let named = |variables: &[(&str, &str)]| {
            hash_configuration("b", &variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
        };
        let one = named(&[("REALTIME_POD", "a"), ("REALTIME_POD_IP", "10.0.0.1"), ("REALTIME_BUS", "redis")]);
        assert_eq!(one, named(&[("REALTIME_POD", "b"), ("REALTIME_POD_IP", "10.0.0.2"), ("REALTIME_BUS", "redis")]));
        assert_ne!(one, named(&[("REALTIME_POD", "a"), ("REALTIME_POD_IP", "10.0.0.1"), ("REALTIME_BUS", "memory")]));
    }

    #[test]
    fn a_report_has_the_flow_of_its_own_kind_of_server_only() {
        let flow = FlowReport {
            process: "b".into(),
            started_ms: 1,
            sessions: BTreeMap::new(),
            sessions_max: None,
            recorder: Some(RecorderFlow::default()),
            dispatcher: None,
        };
        let value = serde_json::to_value(&flow).expect("json");
        assert!(value.get("dispatcher").is_none() && value.get("sessions").is_none());
        assert_eq!(value["recorder"]["state"], "kinesis");
        assert_eq!(serde_json::from_value::<FlowReport>(value).ok(), Some(flow));
    }
}
