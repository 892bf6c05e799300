//! The life of two streams and of the events in them, with the printed policies and a key of its own for each server.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::post;
use realtime_operator::api::Reason;
use realtime_operator::desired::{StreamCapacity, StreamGoal};
use realtime_operator::gate::Verdict;
use realtime_operator::kinesis::{KinesisClient, ReadPosition};
use realtime_operator::operator::delete_stream_of;
use realtime_operator::process::clock::now_ms;
use realtime_operator::protocol::record::{EventKind, StreamRecord};
use realtime_operator::protocol::webhook::REPLAY_HEADER;
use realtime_operator::rehearsal::{Fault, RunningRehearsal, Switch};

use super::data_plane::rehearse;
use super::management::{new_lifetime, start_kinesis};
use super::{
    Breakage, EVENTS, LETTERS, MANIFEST, breakage_of, print_roles, read_goals, with_longer_retention, with_tag,
};
use crate::cli::realtime;
use crate::dispatcher::dead_letters::read_letters;
use crate::dispatcher::{build_record, state};
use crate::fixtures::{REGION, connect_kinesis_as, serve_routes};
use crate::iam_double::{ADMINISTRATOR, IamDouble};
use crate::kinesis_local::KinesisLocal;
use crate::rehearsal::wait_for_verdict;
use crate::stream_management::{Lifetime, RECONCILES_MAX, owner};
use crate::waiting::{eventually_ok, eventually_within};

/// An app that no registry has: its events become letters after 30 s.
const UNKNOWN_APP: &str = "9999";
const LETTER_TIMEOUT: Duration = Duration::from_secs(90);

/// Follows every edit that the policies allow.
async fn follow_edits(lifetime: &mut Lifetime<'_>, goal: &StreamGoal) {
    let more_shards = StreamGoal { capacity: Some(StreamCapacity::Provisioned(4)), ..goal.clone() };
    let on_demand = StreamGoal { capacity: Some(StreamCapacity::OnDemand), ..goal.clone() };
    let lower = StreamGoal { retention_hours: Some(24), ..goal.clone() };
    for edited in [with_tag(goal), more_shards, with_longer_retention(goal), lower, on_demand] {
        lifetime.settle(&edited).await;
    }
}

/// The cluster id in the records of the edges.
async fn read_cluster_id(events: &KinesisClient) -> String {
    eventually_ok("a record of an edge", async || {
        for shard in events.list_shards().await.map_err(|error| error.to_string())? {
            let iterator = events.request_iterator(&shard.id, &ReadPosition::TrimHorizon).await;
            let iterator = iterator.map_err(|error| error.to_string())?;
            let page = events.read(&iterator, 100).await.map_err(|error| error.to_string())?;
            if let Some(record) = page.records.iter().find_map(|record| StreamRecord::parse(&record.data).ok()) {
                return Ok(record.edge.cluster);
            }
        }
        Err("none".to_owned())
    })
    .await
}

/// Has a dispatcher write an event as a letter: one of an app without a registry entry.
async fn lose_event(kinesis: &KinesisLocal) {
    let events = connect_kinesis_as(ADMINISTRATOR, &kinesis.endpoint, EVENTS).await;
    let occupied = state("lost-1", now_ms(), 1, EventKind::ChannelOccupied);
    let record = build_record(UNKNOWN_APP, &read_cluster_id(&events).await, "room", vec![occupied]);
    let results = events.put_records(&[record]).await.expect("put");
    assert!(results.iter().all(Result::is_ok));
    let letters = connect_kinesis_as(ADMINISTRATOR, &kinesis.endpoint, LETTERS).await;
    eventually_within(LETTER_TIMEOUT, "a letter of the event", async || {
        let reasons: Vec<String> = read_letters(&letters).await.into_iter().map(|letter| letter.reason).collect();
        if reasons.iter().any(|reason| reason == "UnknownApp") { Ok(()) } else { Err(reasons) }
    })
    .await;
}

/// Runs `realtime replay` as a dispatcher pod does, to a receiver of this test: its output, and the ids that arrived.
async fn replay_letters(kinesis: &KinesisLocal) -> (Output, Vec<String>) {
    let arrived = Arc::<Mutex<Vec<String>>>::default();
    let sink = arrived.clone();
    let receive = move |headers: HeaderMap, body: String| async move {
        assert_eq!(headers.get(REPLAY_HEADER).map(HeaderValue::as_bytes), Some(&b"true"[..]));
        sink.lock().expect("not poisoned").push(body);
        StatusCode::OK
    };
    let url = format!("{}/hook", serve_routes(Router::new().route("/hook", post(receive))).await);
    let endpoint = kinesis.endpoint.clone();
    let run = move || {
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(secret.path(), "secret").expect("written");
        let file = secret.path().to_str().expect("a path");
        let arguments = ["replay", "--app", UNKNOWN_APP, "--url", &url, "--key", "key", "--secret-file", file];
        let variables = [
            ("REALTIME_DEAD_LETTER_STREAM", LETTERS),
            ("REALTIME_ALLOWED_NETWORKS", "127.0.0.0/8"),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL_KINESIS", &endpoint),
            ("AWS_ACCESS_KEY_ID", "dispatcher.0"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ];
        realtime(&arguments, &variables)
    };
    let output = tokio::task::spawn_blocking(run).await.expect("the program");
    let arrived = arrived.lock().expect("not poisoned").clone();
    (output, arrived)
}

/// Has the operator read the stream back, as it does when a webhook is missing.
async fn miss_webhooks(rehearsal: &mut RunningRehearsal) {
    let fault = Switch::Fault(Fault::ReceiverUnreachable);
    rehearsal.faults.switch(fault, true).await.expect("switched on");
    let missing = |verdict: &Verdict| !verdict.ready && verdict.reason == Reason::WebhookMissing;
    wait_for_verdict(rehearsal, "a missing webhook, found in the stream", missing).await;
    rehearsal.faults.switch(fault, false).await.expect("switched off");
    wait_for_verdict(rehearsal, "Ready again", |verdict| verdict.ready).await;
}

async fn delete_stream(kinesis: &KinesisLocal, lifetime: &Lifetime<'_>, stream: &str) {
    let client = kinesis.client(stream).await;
    for _ in 0..RECONCILES_MAX {
        if delete_stream_of(&client, &lifetime.stored, &owner("eu")).await.expect("allowed").is_none() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(client.describe_stream().await.is_err(), "{stream} is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_printed_policies_everything_works_and_no_right_is_left_over() {
    let iam = IamDouble::new(&print_roles(MANIFEST));
    let kinesis = start_kinesis(&iam).await;
    let goals = read_goals();
    let mut streams = [EVENTS, LETTERS].map(|stream| new_lifetime(&kinesis, stream));
    for (lifetime, goal) in streams.iter_mut().zip(&goals) {
        let found = lifetime.settle(goal).await;
        assert_eq!((found.update.status, found.update.reason), ("True", Reason::StreamActive));
    }

    let mut rehearsal = rehearse(MANIFEST, &iam, Some(kinesis.endpoint.clone())).await;
    assert_eq!(rehearsal.refusals, [], "every server starts");
    let proven = |verdict: &Verdict| verdict.ready && verdict.message.ends_with("; a test record became a dead letter");
    wait_for_verdict(&mut rehearsal, "a proof of events and letters", proven).await;
    tokio::join!(lose_event(&kinesis), miss_webhooks(&mut rehearsal));
    rehearsal.stop().await;

    let (output, arrived) = replay_letters(&kinesis).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 delivered, 0 failed"), "{text}");
    assert!(arrived.len() == 1 && arrived[0].contains("lost-1"), "{arrived:?}");
    assert_eq!(iam.take_denied(), BTreeSet::new(), "so far");
    for permission in iam.list_permissions() {
        let Breakage::RefusedReplay(call) = breakage_of(&permission) else { continue };
        iam.withdraw([permission.clone()]);
        let (output, arrived) = replay_letters(&kinesis).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), arrived), (Some(2), vec![]), "{permission:?}: {text}");
        assert!(text.contains(&format!("{call} on stream {LETTERS}")), "{permission:?}: {text}");
        let denied = BTreeSet::from([(permission.server, permission.action)]);
        assert_eq!(iam.take_denied(), denied);
    }
    iam.withdraw([]);

    for ((lifetime, goal), stream) in streams.iter_mut().zip(&goals).zip([EVENTS, LETTERS]) {
        follow_edits(lifetime, goal).await;
        delete_stream(&kinesis, lifetime, stream).await;
    }
    assert_eq!(iam.take_denied(), BTreeSet::new());
    assert_eq!(iam.list_unused(), BTreeSet::new(), "a right that nothing uses is one too many");
}
