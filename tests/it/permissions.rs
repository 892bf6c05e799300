//! The policies that `realtime iam` prints, on a double of IAM that evaluates them: with all of them the whole path of an event
//! works and no right is left over; each right that is withdrawn breaks what `docs/aws-permissions.md` says, and nothing else.
//!
//! The rights are those of the printed policies; [`breakage_of`] has the page's row of each.

// A right without a row ends its test; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

mod data_plane;
mod management;
mod whole_path;

use std::collections::BTreeMap;

use realtime_operator::api::Reason;
use realtime_operator::desired::{Manifests, StreamGoal, ValidStream};
use serde_json::Value;

use crate::cli::realtime;
use crate::fixtures::validate_with_stand_ins;
use crate::iam_double::{ACCOUNT, Permission};

/// Names of the streams.
const EVENTS: &str = "events";
const LETTERS: &str = "lost";

/// A cluster whose policies have every right: it creates, changes, encrypts and deletes two streams. One transport, since a
/// machine with two cores runs several of it in debug builds.
const MANIFEST: &str = concat!(
    include_str!("../fixtures/minimal-cluster.yaml"),
    "  websocket: { replicas: 1 }
  sockjs: { state: Disabled }
  webhooks:
    dispatcher: { replicas: 1, maxBackoffSeconds: 1 }
    stream:
      name: events
      mode: Provisioned
      shards: 2
      encryption: { kmsKey: alias/chat }
      deletionPolicy: Delete
      acknowledgeDataLoss: [LowerRetention, Delete]
    deadLetter: { name: lost }
  gate: { intervalSeconds: 1, timeoutSeconds: 8, openAfter: 1 }
",
    include_str!("../fixtures/shop-app.yaml")
);

/// Calls by which the operator manages a stream: the page's row of another action.
const STREAM_CALLS: [&str; 11] = [
    "AddTagsToStream",
    "CreateStream",
    "DecreaseStreamRetentionPeriod",
    "DeleteStream",
    "DescribeStreamSummary",
    "IncreaseStreamRetentionPeriod",
    "ListTagsForStream",
    "RemoveTagsFromStream",
    "StartStreamEncryption",
    "UpdateShardCount",
    "UpdateStreamMode",
];

/// The page's row of a right that is withdrawn.
#[derive(Debug)]
enum Breakage {
    /// Its servers refuse to start.
    RefusedStart,
    /// The gate refuses the cluster with this reason; the message names the call.
    RefusedGate(Reason, &'static str),
    /// A cluster is not proven, and a proven one stays Ready: the operator does not know the shards.
    UnknownShards,
    /// The cluster is Ready; the message about a missing webhook says that this call was refused.
    UnreadStream(&'static str),
    /// The cluster is Ready, and dead letters are not proven: this call was refused.
    UnprovenLetters(&'static str),
    /// The cluster is Ready, and `realtime replay` ends with the error of this call.
    RefusedReplay(&'static str),
    /// The condition of the stream is False with this reason and the call.
    StreamCondition(Reason, &'static str),
}

/// The page's row of a right.
fn breakage_of(permission: &Permission) -> Breakage {
    let stream = permission.resource.rsplit(['/', ':']).next().unwrap_or_default();
    let (service, action) = permission.action.split_once(':').expect("a service");
    match (permission.server.as_str(), action, stream) {
        ("edge" | "dispatcher", "DescribeStreamSummary", EVENTS) => Breakage::RefusedStart,
        ("edge", "PutRecords", EVENTS) | ("edge", "GenerateDataKey", _) => {
            Breakage::RefusedGate(Reason::RecordRefused, "AccessDeniedException")
        }
        ("dispatcher", "ListShards", EVENTS) => Breakage::RefusedGate(Reason::DispatcherStuck, "ListShards"),
        ("dispatcher", "GetShardIterator", EVENTS) => {
            Breakage::RefusedGate(Reason::DispatcherStuck, "GetShardIterator")
        }
        ("dispatcher", "GetRecords", EVENTS) | ("dispatcher", "Decrypt", _) => {
            Breakage::RefusedGate(Reason::DispatcherStuck, "GetRecords")
        }
        ("dispatcher", "PutRecords", LETTERS) | ("dispatcher", "GenerateDataKey", _) => {
            Breakage::RefusedGate(Reason::DeadLetterBroken, "DeadLetterUnavailable")
        }
        ("dispatcher", "ListShards", LETTERS) => Breakage::RefusedReplay("ListShards"),
        ("dispatcher", "GetShardIterator", LETTERS) => Breakage::RefusedReplay("GetShardIterator"),
        ("dispatcher", "GetRecords", LETTERS) => Breakage::RefusedReplay("GetRecords"),
        ("operator", "ListShards", EVENTS) => Breakage::UnknownShards,
        ("operator", "GetShardIterator", EVENTS) => Breakage::UnreadStream("GetShardIterator"),
        ("operator", "GetRecords", EVENTS) => Breakage::UnreadStream("GetRecords"),
        ("operator", "PutRecords", EVENTS) | ("operator", "GenerateDataKey", _) => {
            Breakage::UnprovenLetters("PutRecords")
        }
        ("operator", "ListShards", LETTERS) => Breakage::UnprovenLetters("ListShards"),
        ("operator", "GetShardIterator", LETTERS) => Breakage::UnprovenLetters("GetShardIterator"),
        ("operator", "GetRecords", LETTERS) | ("operator", "Decrypt", _) => Breakage::UnprovenLetters("GetRecords"),
        ("operator", "DescribeKey", _) => Breakage::StreamCondition(Reason::StreamKeyUnusable, "StartStreamEncryption"),
        ("operator", _, EVENTS | LETTERS) if service == "kinesis" => {
            let call = STREAM_CALLS.into_iter().find(|call| *call == action);
            let call = call.unwrap_or_else(|| panic!("the page has no row for {permission:?}"));
            Breakage::StreamCondition(Reason::AccessDenied, call)
        }
        _ => panic!("the page has no row for {permission:?}"),
    }
}

/// The roles of a manifest, as `realtime iam` prints them.
fn print_roles(manifest: &str) -> Value {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), manifest).expect("written");
    let output = realtime(&["iam", file.path().to_str().expect("a path"), "--account", ACCOUNT], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The streams of the manifest: goals of the one for events and of that for dead letters.
fn read_goals() -> [StreamGoal; 2] {
    let mut manifests = Manifests::default();
    manifests.add_file("eu.yaml", MANIFEST).expect("a manifest");
    let (_, cluster) = manifests.clusters.remove(0);
    let apps: Vec<_> = manifests.apps.into_iter().map(|(_, app)| app).collect();
    let ValidStream { goal, dead_letter, .. } = validate_with_stand_ins(cluster, &apps).expect("valid").stream;
    let letters = dead_letter.expect("a stream for dead letters");
    [goal.clone(), goal.of_dead_letters(letters.shards, letters.retention_hours)]
}

/// A goal with one tag more.
fn with_tag(goal: &StreamGoal) -> StreamGoal {
    StreamGoal { tags: BTreeMap::from([("team".to_owned(), "chat".to_owned())]), ..goal.clone() }
}

/// A goal with a longer retention.
fn with_longer_retention(goal: &StreamGoal) -> StreamGoal {
    StreamGoal { retention_hours: Some(goal.retention_hours.unwrap_or(24) + 24), ..goal.clone() }
}
