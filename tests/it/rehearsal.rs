//! The spine: a cluster in one process is Ready when events arrived, and refused when anything on their way is wrong.

// A wait ends its test where it fails; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use k8s_openapi::ByteString;
use realtime_operator::api::Reason;
use realtime_operator::api::cluster::TransportState;
use realtime_operator::config::ServerKind;
use realtime_operator::desired::Manifests;
use realtime_operator::gate::{GatePhase, Hop, Verdict};
use realtime_operator::kinesis::LiveCapacity;
use realtime_operator::prober::{ControlJourney, ControlResult, EndpointReports};
use realtime_operator::process::metrics::LabelValue;
use realtime_operator::protocol::Transport;
use realtime_operator::rehearsal::{KinesisInterposer, RehearsalOptions, RunningRehearsal};
use serde_json::{Value, json};

use crate::fixtures::connect_kinesis;
use crate::waiting::{describe_last, eventually, eventually_within};

/// A cluster with a gate that is quick to judge.
pub const MANIFEST: &str = concat!(
    include_str!("../fixtures/minimal-cluster.yaml"),
    "  websocket: { replicas: 1 }
  sockjs: { replicas: 1 }
  webhooks: { dispatcher: { replicas: 1 }, stream: { mode: Provisioned, shards: 2 }, deadLetter: {} }
  gate: { intervalSeconds: 1, timeoutSeconds: 8, openAfter: 1 }
",
    include_str!("../fixtures/shop-app.yaml")
);

/// Longest for a change of the verdict: an ambiguous failure is confirmed over 20 s.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(90);

async fn start(edits: &[&str], between: BTreeMap<ServerKind, KinesisInterposer>) -> RunningRehearsal {
    start_from(MANIFEST, edits, between).await
}

/// Starts a rehearsal of a manifest with its apps.
pub async fn start_from(
    manifest: &str,
    edits: &[&str],
    between: BTreeMap<ServerKind, KinesisInterposer>,
) -> RunningRehearsal {
    RunningRehearsal::start(read_options(manifest, edits, between)).await.expect("a rehearsal")
}

/// The options of a rehearsal of a manifest with its apps.
pub fn read_options(
    manifest: &str,
    edits: &[&str],
    between: BTreeMap<ServerKind, KinesisInterposer>,
) -> RehearsalOptions {
    let mut manifests = Manifests::default();
    manifests.add_file("eu.yaml", manifest).expect("a manifest");
    let (_, cluster) = manifests.clusters.remove(0);
    RehearsalOptions {
        cluster,
        apps: manifests.apps.into_iter().map(|(_, app)| app).collect(),
        secrets: BTreeMap::new(),
        edits: edits.iter().map(|edit| edit.parse().expect("an edit")).collect(),
        page_port: None,
        interposers: between,
        account: None,
        group: None,
    }
}

/// Waits for a verdict that `enough` accepts.
pub async fn wait_for_verdict(
    rehearsal: &mut RunningRehearsal,
    awaited: &str,
    enough: impl Fn(&Verdict) -> bool,
) -> Verdict {
    let verdicts = &mut rehearsal.prober.as_mut().expect("journeys").verdicts;
    let found = tokio::time::timeout(VERDICT_TIMEOUT, verdicts.wait_for(|verdict| enough(verdict))).await;
    let found = found.map(|found| found.expect("journeys go on").clone());
    found.unwrap_or_else(|_| {
        panic!("no verdict within {VERDICT_TIMEOUT:?}: {awaited}; {}", describe_last(Some(&*verdicts.borrow())))
    })
}

/// The first verdict that is a decision.
async fn first_verdict(rehearsal: &mut RunningRehearsal) -> Verdict {
    assert_eq!(rehearsal.refusals, [], "every server starts");
    wait_for_verdict(rehearsal, "a decision", decided).await
}

fn decided(verdict: &Verdict) -> bool {
    matches!(verdict.phase, GatePhase::Open | GatePhase::Refused)
}

fn state(verdict: &Verdict, transport: Transport) -> (TransportState, Option<Hop>) {
    let found = verdict.transports.iter().find(|found| found.transport == transport).expect("the transport");
    (found.state, found.hop)
}

async fn refused(edits: &[&str], between: BTreeMap<ServerKind, KinesisInterposer>) -> Verdict {
    let mut rehearsal = start(edits, between).await;
    let verdict = first_verdict(&mut rehearsal).await;
    assert!(!verdict.ready && verdict.phase == GatePhase::Refused, "{verdict:?}");
    rehearsal.stop().await;
    verdict
}

const PASSING: (TransportState, Option<Hop>) = (TransportState::Passing, None);

fn failing_at(hop: Hop) -> (TransportState, Option<Hop>) {
    (TransportState::Failing, Some(hop))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_cluster_becomes_ready_over_every_transport() {
    let mut rehearsal = start(&[], BTreeMap::new()).await;
    let verdict = first_verdict(&mut rehearsal).await;
    assert!(verdict.ready && verdict.phase == GatePhase::Open, "{verdict:?}");
    assert_eq!(verdict.reason, Reason::Proven);
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), PASSING, "{verdict:?}");
    }
    let endpoints = &mut rehearsal.prober.as_mut().expect("journeys").endpoints;
    let is_reported = |reports: &Arc<EndpointReports>| reports.values().any(|reports| !reports.is_empty());
    let reports = tokio::time::timeout(VERDICT_TIMEOUT, endpoints.wait_for(is_reported)).await;
    let reports = reports.expect("the report of the dispatcher").expect("journeys go on").clone();
    let report = reports.values().flatten().find(|report| report.name == "receiver").expect("the receiver of journeys");
    assert!(report.last_delivered_ms.is_some() && report.failing_since_ms.is_none(), "{report:?}");
    // The open gate refuses the journeys that it must refuse, through the same receiver and the same servers.
    let metrics = rehearsal.journeys.clone();
    let counts = || {
        ControlResult::ALL.iter().map(|result| {
            let of = |control| metrics.controls_of(control, *result);
            (*result, [ControlJourney::OtherSecret, ControlJourney::UnclaimedWebhooks].map(of))
        })
    };
    let refused = |counts: &BTreeMap<ControlResult, [u64; 2]>| counts[&ControlResult::Refused] == [1, 1];
    let counts = eventually_within(VERDICT_TIMEOUT, "refused control journeys", async || {
        let seen: BTreeMap<_, _> = counts().collect();
        if refused(&seen) { Ok(seen) } else { Err(seen) }
    });
    assert_eq!(counts.await[&ControlResult::Passed], [0, 0]);
    assert!(rehearsal.prober.as_ref().expect("journeys").verdicts.borrow().ready);
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_deployment_for_both_becomes_ready_over_every_transport() {
    let both = MANIFEST.replace("  sockjs: { replicas: 1 }\n", "  servers: Combined\n");
    let mut rehearsal = start_from(&both, &[], BTreeMap::new()).await;
    assert_eq!(rehearsal.serving.websocket, rehearsal.serving.sockjs, "one process");
    let verdict = first_verdict(&mut rehearsal).await;
    assert!(verdict.ready && verdict.phase == GatePhase::Open, "{verdict:?}");
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), PASSING, "{verdict:?}");
    }
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_deployment_for_both_with_webhooks_off_is_refused_with_the_variable() {
    let both = MANIFEST.replace("  sockjs: { replicas: 1 }\n", "  servers: Combined\n");
    let mut rehearsal = start_from(&both, &["edge:REALTIME_WEBHOOKS=off"], BTreeMap::new()).await;
    let verdict = first_verdict(&mut rehearsal).await;
    assert!(!verdict.ready && verdict.phase == GatePhase::Refused, "{verdict:?}");
    assert_eq!(verdict.reason, Reason::ConfigurationDrift, "{verdict:?}");
    assert!(verdict.message.contains("REALTIME_WEBHOOKS differs"), "{}", verdict.message);
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_off_on_the_fallbacks_alone_is_refused_with_the_variable() {
    let verdict = refused(&["sockjs:REALTIME_WEBHOOKS=off"], BTreeMap::new()).await;
    assert_eq!(state(&verdict, Transport::Websocket), PASSING, "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrStreaming), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrPolling), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(verdict.reason, Reason::ConfigurationDrift, "{verdict:?}");
    for part in ["REALTIME_WEBHOOKS", "kinesis", "off", "xhr_streaming"] {
        assert!(verdict.message.contains(part), "{part}: {}", verdict.message);
    }
    assert!(!verdict.message.contains('\n'), "one line: {}", verdict.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_stream_name_is_refused() {
    let verdict = refused(&["sockjs:REALTIME_STREAM_NAME=another"], BTreeMap::new()).await;
    assert_eq!(state(&verdict, Transport::Websocket), PASSING, "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrPolling), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(verdict.reason, Reason::ConfigurationDrift, "{verdict:?}");
    assert!(verdict.message.contains("REALTIME_STREAM_NAME differs"), "{}", verdict.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_region_is_refused() {
    let verdict = refused(&["websocket:AWS_REGION=us-east-1"], BTreeMap::new()).await;
    assert_eq!(state(&verdict, Transport::Websocket), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrStreaming), PASSING, "{verdict:?}");
    assert_eq!(verdict.reason, Reason::ConfigurationDrift, "{verdict:?}");
    assert!(verdict.message.contains("AWS_REGION differs: want eu-west-1, pod runs us-east-1"), "{}", verdict.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_at_the_dispatcher_is_refused() {
    let verdict = refused(&["dispatcher:secret/probe=wrong"], BTreeMap::new()).await;
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), failing_at(Hop::Authenticity), "{verdict:?}");
    }
    assert_eq!(verdict.reason, Reason::AppsInconsistent, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_wrong_secret_at_the_dispatcher_is_refused_although_every_journey_passes() {
    let verdict = refused(&["dispatcher:secret/1001=wrong"], BTreeMap::new()).await;
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), PASSING, "{verdict:?}");
    }
    assert_eq!(verdict.reason, Reason::AppsInconsistent, "{verdict:?}");
    assert!(verdict.message.contains("1001"), "{}", verdict.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_on_another_stream_is_refused() {
    let verdict = refused(&["dispatcher:REALTIME_STREAM_NAME=another"], BTreeMap::new()).await;
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), failing_at(Hop::Dispatch), "{verdict:?}");
    }
    assert_eq!(verdict.reason, Reason::ConfigurationDrift, "{verdict:?}");
    assert!(verdict.message.contains("REALTIME_STREAM_NAME"), "{}", verdict.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_acknowledges_and_stores_nothing_is_refused_without_blaming_a_variable() {
    let between: KinesisInterposer = Arc::new(|kinesis| Box::pin(proxy(kinesis, Behaviour::Swallow)));
    let verdict = refused(&[], BTreeMap::from([(ServerKind::Sockjs, between)])).await;
    assert_eq!(state(&verdict, Transport::Websocket), PASSING, "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrStreaming), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(state(&verdict, Transport::XhrPolling), failing_at(Hop::Record), "{verdict:?}");
    assert_eq!(verdict.reason, Reason::RecordMissing, "{verdict:?}");
    assert!(!verdict.message.contains("REALTIME_"), "no variable is to blame: {}", verdict.message);
    assert!(!verdict.message.contains("AWS_"), "no variable is to blame: {}", verdict.message);
}

/// A cluster whose dead-letter stream has a known name, and whose letters are awaited for a shorter time.
fn manifest_of_letters() -> String {
    MANIFEST.replace("deadLetter: {}", "deadLetter: { name: lost }").replace("timeoutSeconds: 8", "timeoutSeconds: 4")
}

/// Requests a proof, as the annotation of a cluster does.
fn request_proof(rehearsal: &RunningRehearsal, token: &str) {
    let prober = rehearsal.prober.as_ref().expect("journeys");
    prober.plan.send_modify(|plan| {
        let plan = Arc::make_mut(plan);
        plan.requested = Some(token.to_owned());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_stream_that_is_gone_is_found_by_the_next_proof_and_its_return_opens_the_gate() {
    let cloud = Arc::new(OnceLock::new());
    // Nothing is put between; the address is noted.
    let between: KinesisInterposer = {
        let cloud = cloud.clone();
        Arc::new(move |kinesis| {
            cloud.get_or_init(|| kinesis);
            Box::pin(async move { Ok(kinesis) })
        })
    };
    let mut rehearsal =
        start_from(&manifest_of_letters(), &[], BTreeMap::from([(ServerKind::Dispatcher, between)])).await;
    let proven = |verdict: &Verdict| verdict.ready && verdict.message.ends_with("; a test record became a dead letter");
    let verdict = first_verdict(&mut rehearsal).await;
    assert!(proven(&verdict), "the gate opens with the proof and not before: {verdict:?}");

    let kinesis = cloud.get().expect("the address of Kinesis");
    let letters = connect_kinesis(&format!("http://{kinesis}"), "lost").await;
    letters.delete_stream().await.expect("deleted");
    eventually("the stream is gone", async || letters.describe_stream().await.is_err(), |gone| *gone).await;
    request_proof(&rehearsal, "without a stream");
    let closed = wait_for_verdict(&mut rehearsal, "a closed gate", |verdict| !verdict.ready).await;
    assert_eq!((closed.phase, closed.reason), (GatePhase::Closed, Reason::DeadLetterBroken), "{closed:?}");
    assert!(closed.message.contains("dead-letter stream lost does not exist"), "{}", closed.message);
    assert!(closed.transports.iter().all(|found| found.state == TransportState::Passing), "{closed:?}");

    letters.create_stream(LiveCapacity::Provisioned(1), &BTreeMap::new()).await.expect("created");
    wait_for_verdict(&mut rehearsal, "Ready again", proven).await;
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_may_not_write_dead_letters_is_refused_and_named_with_its_error() {
    // A dispatcher puts nothing but letters.
    let always = Arc::new(AtomicBool::new(true));
    let between: KinesisInterposer =
        Arc::new(move |kinesis| Box::pin(proxy(kinesis, Behaviour::FailWhile(always.clone()))));
    let between = BTreeMap::from([(ServerKind::Dispatcher, between)]);
    let mut rehearsal = start_from(&manifest_of_letters(), &[], between).await;
    let verdict = first_verdict(&mut rehearsal).await;
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Refused, Reason::DeadLetterBroken), "{verdict:?}");
    for part in ["eu-dispatcher", "read a test record", "DeadLetterUnavailable: ", "allow kinesis:PutRecords on"] {
        assert!(verdict.message.contains(part), "{part}: {}", verdict.message);
    }
    for transport in Transport::ALL {
        assert_eq!(state(&verdict, transport), PASSING, "{verdict:?}");
    }
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_goes_away_closes_the_gate_and_its_return_opens_it() {
    let away = Arc::new(AtomicBool::new(false));
    let between: KinesisInterposer = {
        let away = away.clone();
        Arc::new(move |kinesis| Box::pin(proxy(kinesis, Behaviour::FailWhile(away.clone()))))
    };
    let mut rehearsal = start(&[], BTreeMap::from([(ServerKind::Sockjs, between)])).await;
    assert!(first_verdict(&mut rehearsal).await.ready);
    away.store(true, Ordering::Relaxed);
    let closed = wait_for_verdict(&mut rehearsal, "a closed gate", |verdict| !verdict.ready).await;
    assert_eq!(closed.phase, GatePhase::Closed, "{closed:?}");
    assert_eq!(closed.reason, Reason::RecordRefused, "{closed:?}");
    away.store(false, Ordering::Relaxed);
    let again = wait_for_verdict(&mut rehearsal, "Ready again", |verdict| verdict.ready).await;
    assert_eq!(again.phase, GatePhase::Open, "{again:?}");
    rehearsal.stop().await;
}

/// The verdicts on clusters of which one server loses the events of one kind, for kinds that stand or fall alone.
async fn without_one_kind(server: ServerKind) -> Vec<(&'static str, Verdict)> {
    let rehearse = async |kind| {
        let between: KinesisInterposer = Arc::new(move |kinesis| Box::pin(proxy(kinesis, Behaviour::Lose(kind))));
        (kind, refused(&[], BTreeMap::from([(server, between)])).await)
    };
    futures::future::join_all(["cache_miss", "subscription_count"].map(rehearse)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_loses_one_kind_of_event_is_refused_and_the_kind_is_named() {
    for (kind, verdict) in without_one_kind(ServerKind::Sockjs).await {
        for transport in Transport::ALL {
            let other = transport.server_kind() == ServerKind::Websocket;
            let expected = if other { PASSING } else { failing_at(Hop::Record) };
            assert_eq!(state(&verdict, transport), expected, "{kind}: {verdict:?}");
        }
        assert_eq!(verdict.reason, Reason::RecordMissing, "{kind}: {verdict:?}");
        assert!(verdict.message.contains(&format!("no {kind} record reached stream")), "{kind}: {}", verdict.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_loses_one_kind_of_event_is_refused_and_the_kind_is_named() {
    for (kind, verdict) in without_one_kind(ServerKind::Dispatcher).await {
        for transport in Transport::ALL {
            assert_eq!(state(&verdict, transport), failing_at(Hop::Delivery), "{kind}: {verdict:?}");
        }
        assert_eq!(verdict.reason, Reason::WebhookMissing, "{kind}: {verdict:?}");
        let expected = format!("eu-dispatcher-0 read the {kind} of");
        assert!(verdict.message.contains(&expected), "{kind}: {}", verdict.message);
    }
}

/// What the double between a server and Kinesis does to records; everything else goes through.
#[derive(Clone)]
enum Behaviour {
    /// Answers `PutRecords` with success and stores nothing.
    Swallow,
    /// Answers `PutRecords` with 500 while the flag is set.
    FailWhile(Arc<AtomicBool>),
    /// Takes the events of one kind out of every record on its way.
    Lose(&'static str),
}

async fn proxy(kinesis: SocketAddr, behaviour: Behaviour) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    realtime_operator::process::install_tls();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let router = Router::new().fallback(pass).with_state((kinesis, behaviour, client));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

async fn pass(
    State((kinesis, behaviour, client)): State<(SocketAddr, Behaviour, reqwest::Client)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let (puts, gets) = (target.ends_with(".PutRecords"), target.ends_with(".GetRecords"));
    let mut body = body;
    match &behaviour {
        Behaviour::Swallow if puts => return acknowledged(&body),
        Behaviour::FailWhile(away) if puts && away.load(Ordering::Relaxed) => {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        Behaviour::Lose(kind) if puts => body = without(kind, &body),
        _ => {}
    }
    let mut request = client.post(format!("http://{kinesis}/")).body(body);
    for (name, value) in headers.iter().filter(|(name, _)| !["host", "content-length"].contains(&name.as_str())) {
        request = request.header(name.as_str(), value.as_bytes());
    }
    match request.send().await {
        Ok(answer) => {
            let status = StatusCode::from_u16(answer.status().as_u16()).expect("a status");
            let kind = answer.headers().get("content-type").cloned();
            let mut answer = answer.bytes().await.unwrap_or_default();
            if let (Behaviour::Lose(kind), true, true) = (&behaviour, gets, status.is_success()) {
                answer = without(kind, &answer);
            }
            let mut response = (status, answer).into_response();
            if let Some(kind) = kind {
                response.headers_mut().insert("content-type", kind);
            }
            response
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// The same request or answer, with the events of one kind taken out of its records.
fn without(kind: &str, body: &[u8]) -> Bytes {
    let mut body: Value = serde_json::from_slice(body).expect("JSON");
    for entry in body["Records"].as_array_mut().into_iter().flatten() {
        // Base64 in JSON, as Kubernetes has it too.
        let ByteString(data) = serde_json::from_value(entry["Data"].take()).expect("base64");
        // The test record of a proof of dead letters is no JSON, and its letter has no events.
        let mut record: Value = serde_json::from_slice(&data).unwrap_or_default();
        let data = match record["events"].as_array_mut() {
            Some(events) => {
                events.retain(|event| event["name"] != kind);
                record.to_string().into_bytes()
            }
            None => data,
        };
        entry["Data"] = json!(ByteString(data));
    }
    body.to_string().into()
}

fn acknowledged(body: &[u8]) -> Response {
    let request: Value = serde_json::from_slice(body).expect("a request");
    let count = request["Records"].as_array().map_or(0, Vec::len);
    let one = json!({ "SequenceNumber": "49590338271490256608559692538361571095921575989136588898", "ShardId": "shardId-000000000000" });
    let answer = json!({ "FailedRecordCount": 0, "Records": vec![one; count] });
    ([("content-type", "application/x-amz-json-1.1")], answer.to_string()).into_response()
}
