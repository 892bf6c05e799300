//! Faults that are switched on and off in one life of a rehearsal: each is refused with its reason, mended, refused again
//! and mended again.
//!
//! `fast` runs the rows that one journey decides; `./test rehearsal-faults` runs all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use futures::{SinkExt, StreamExt};
use realtime_operator::api::Reason;
use realtime_operator::rehearsal::{Fault, RunningRehearsal, Switch, SwitchError};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::rehearsal::{start_from, wait_for_verdict};

/// A cluster with a gate that is quick to judge, and a dispatcher that soon tries again.
const MANIFEST: &str = concat!(
    include_str!("../fixtures/minimal-cluster.yaml"),
    "  websocket: { replicas: 1 }
  sockjs: { replicas: 1 }
  webhooks: { dispatcher: { replicas: 1, maxBackoffSeconds: 1 }, stream: { mode: Provisioned, shards: 1 } }
  gate: { intervalSeconds: 1, timeoutSeconds: 4, openAfter: 1 }
"
);

const APP: &str = include_str!("../fixtures/shop-app.yaml");

/// The same with two pods of each server, for a fault of one of them.
const PAIRS: &str = concat!(
    include_str!("../fixtures/minimal-cluster.yaml"),
    "  websocket: { replicas: 1 }
  sockjs: { replicas: 2 }
  webhooks: { dispatcher: { replicas: 2, maxBackoffSeconds: 1 }, stream: { mode: Provisioned, shards: 2 } }
  gate: { intervalSeconds: 1, timeoutSeconds: 4, openAfter: 1 }
"
);

/// The same with four shards, for a fault of one of them.
const SHARDS: &str = concat!(
    include_str!("../fixtures/minimal-cluster.yaml"),
    "  websocket: { replicas: 1 }
  sockjs: { replicas: 1 }
  webhooks: { dispatcher: { replicas: 1, maxBackoffSeconds: 1 }, stream: { mode: Provisioned, shards: 4 } }
  gate: { intervalSeconds: 1, timeoutSeconds: 4, openAfter: 1 }
"
);

/// Clusters that run at once on a machine with two cores.
const CONCURRENT_CLUSTERS: usize = 4;

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The fault, its reason, and a part of its message.
type Row = (Fault, Reason, &'static str);

/// Rows that one journey or one look at the pods decides.
const QUICK_ROWS: [Row; 3] = [
    (Fault::PutDenied, Reason::RecordRefused, "AccessDeniedException"),
    (Fault::AppSecret, Reason::AppsInconsistent, "app 1001 differs"),
    (Fault::WrongStream, Reason::ConfigurationDrift, "REALTIME_STREAM_NAME differs"),
];

const OTHER_ROWS: [Row; 16] = [
    // First, because it takes two minutes.
    (Fault::SilentApps, Reason::Silent, "app 1001 is silent"),
    (Fault::WebhooksOff, Reason::ConfigurationDrift, "REALTIME_WEBHOOKS differs: want kinesis, pod runs off"),
    (Fault::WrongRegion, Reason::ConfigurationDrift, "AWS_REGION differs: want eu-west-1, pod runs us-east-1"),
    (Fault::StreamGone, Reason::StreamMissing, "ResourceNotFoundException"),
    (Fault::DispatcherStream, Reason::ConfigurationDrift, "REALTIME_STREAM_NAME differs"),
    (Fault::ReceiverUnresolved, Reason::WebhookMissing, "no webhook arrived"),
    (Fault::StaleRegistry, Reason::AppsStale, "app 1001 is a former version"),
    (Fault::BusUnreachable, Reason::FanoutBroken, "sockjs/"),
    (Fault::ForeignBus, Reason::FanoutBroken, "another pod does not see the member"),
    (Fault::OldImage, Reason::RecordMissing, "record reached stream"),
    (Fault::ReceiverUnreachable, Reason::WebhookMissing, "no webhook arrived"),
    (Fault::Throttled, Reason::RecordRefused, "ProvisionedThroughputExceededException"),
    (Fault::BadPod, Reason::RecordMissing, "record reached stream"),
    (Fault::MuteDispatcher, Reason::WebhookMissing, "no webhook arrived"),
    (Fault::LostWebhooks, Reason::WebhookMissing, "webhook"),
    (Fault::UnreadShard, Reason::DispatcherStuck, "shardId-000000000000 of stream"),
];

/// Wrong, mended, wrong, mended, in one life.
async fn run_row((fault, reason, part): Row) {
    let began = Instant::now();
    let manifest = match fault {
        Fault::BadPod | Fault::MuteDispatcher => PAIRS,
        Fault::UnreadShard => SHARDS,
        _ => MANIFEST,
    };
    let mut rehearsal = start_from(&format!("{manifest}{APP}"), &[], BTreeMap::new()).await;
    wait_for_verdict(&mut rehearsal, &format!("{fault}: at first"), |verdict| verdict.ready).await;
    for time in ["first", "second"] {
        rehearsal.faults.switch(Switch::Fault(fault), true).await.expect("switched on");
        let visitor = (fault == Fault::SilentApps).then(|| join_channel(&rehearsal, time));
        let _visitor = OptionFuture::from(visitor).await;
        let step = format!("{fault}, {time} time on");
        let refused =
            wait_for_verdict(&mut rehearsal, &step, |verdict| !verdict.ready && verdict.reason == reason).await;
        assert!(refused.message.contains(part), "{step}: {}", refused.message);
        rehearsal.faults.switch(Switch::Fault(fault), false).await.expect("switched off");
        wait_for_verdict(&mut rehearsal, &format!("{fault}, {time} time mended"), |verdict| verdict.ready).await;
    }
    rehearsal.stop().await;
    println!("{fault}: {:.1} s", began.elapsed().as_secs_f64());
}

/// Joins a channel of the customer's app as its first visitor, so that an event is due.
async fn join_channel(rehearsal: &RunningRehearsal, channel: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let (_, key, _) = rehearsal.serving.apps.first().expect("an app");
    let edge = rehearsal.serving.websocket.expect("a websocket pod");
    let url = format!("ws://{edge}/app/{key}?protocol=7");
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("a socket");
    let message = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
    socket.send(Message::text(message.to_string())).await.expect("sent");
    let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, async {
        while let Some(Ok(frame)) = socket.next().await {
            if frame.to_text().is_ok_and(|text| text.contains("pusher_internal:subscription_succeeded")) {
                return true;
            }
        }
        false
    });
    assert!(subscribed.await.expect("an answer"), "{channel} is joined");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_refused_and_mended_twice_in_one_life() {
    let mut rows = QUICK_ROWS.to_vec();
    if std::env::var("FAULT_ROWS").is_ok_and(|rows| rows == "all") {
        rows.extend(OTHER_ROWS);
        assert_eq!(rows.len(), Fault::ALL.len(), "each fault has its row");
    }
    let rows = futures::stream::iter(rows).map(|row| tokio::spawn(run_row(row)));
    let results: Vec<_> = rows.buffer_unordered(CONCURRENT_CLUSTERS).collect().await;
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    assert_eq!(failed, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_an_app_needs_an_app_and_is_not_switched_without() {
    let rehearsal = start_from(MANIFEST, &[], BTreeMap::new()).await;
    assert_eq!(rehearsal.faults.switch(Switch::Fault(Fault::AppSecret), true).await, Err(SwitchError::NoApp));
    assert!(rehearsal.faults.active().is_empty());
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_are_on_at_the_start_and_each_is_switched_off_and_on() {
    let edits = ["sockjs:REALTIME_WEBHOOKS=off", "dispatcher:secret/1001=another"];
    let mut rehearsal = start_from(&format!("{MANIFEST}{APP}"), &edits, BTreeMap::new()).await;
    let [variable, secret] = [Switch::Edit(0), Switch::Edit(1)];
    assert_eq!(rehearsal.faults.active(), [variable, secret].into());
    assert_eq!(rehearsal.faults.switch(Switch::Edit(2), true).await, Err(SwitchError::NoEdit(2)));
    for (step, switched, on, reason) in [
        ("at first", None, true, Reason::ConfigurationDrift),
        ("the variable is mended", Some(variable), false, Reason::AppsInconsistent),
        ("both are mended", Some(secret), false, Reason::Proven),
        ("the variable is wrong again", Some(variable), true, Reason::ConfigurationDrift),
        ("and mended again", Some(variable), false, Reason::Proven),
    ] {
        if let Some(switch) = switched {
            rehearsal.faults.switch(switch, on).await.expect("switched");
        }
        let verdict = wait_for_verdict(&mut rehearsal, step, |verdict| verdict.reason == reason).await;
        assert_eq!(verdict.ready, reason == Reason::Proven, "{step}: {verdict:?}");
    }
    rehearsal.stop().await;
}
