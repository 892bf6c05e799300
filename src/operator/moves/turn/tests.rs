//! Moves over a real DNS server, with a double of the API server and of external-dns's copy of records to the zone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kube::runtime::{reflector, watcher};
use serde_json::{Value, json};

use super::super::record_writers::RecordWriters;
use super::super::test_api::TestApi;
use super::super::test_context::{TARGET, TestEdges, build_context};
use super::super::test_zone::{TestRecord, TestZone};
use super::super::zone_reader::ZoneReader;
use super::*;
use crate::api::Reason;
use crate::api::cluster::TransportState;
use crate::api::fixture::applied_cluster;
use crate::api::migration::{GateState, MoveObstacle};
use crate::config::{ServerKind, name};
use crate::gate::{GatePhase, Hop, TransportVerdict, Verdict};
use crate::kubernetes::scope::WatchRange;
use crate::migration::{
    ClusterSnapshot, DeliverySnapshot, EdgeLoad, SecretDigester, ServerSnapshot, SessionSnapshot, SnapshotOrigin,
    VariableValue,
};
use crate::operator::metrics::OperatorMetrics;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::Transport;

const HOST: &str = "sockjs-eu.example.com";
const OLD: &str = "sockjs.old.example.com";
const KEY: &str = "0123456789abcdef";
const MOVE: &str = "realtimemigrations/sockjs-to-eks";
const ENDPOINT: &str = "dnsendpoints/sockjs-to-eks-sockjs";
const START_MS: u64 = 1_790_000_000_000;

/// Two clusters, a zone, and the operator of the target.
struct Bed {
    api: TestApi,
    zone: TestZone,
    driver: MoveDriver,
    now_ms: Arc<AtomicU64>,
    verdict: Arc<Mutex<Verdict>>,
    edges: Arc<TestEdges>,
    /// The store of clusters ends with its writer.
    _clusters: reflector::store::Writer<RealtimeCluster>,
}

fn verdict(state: TransportState) -> Verdict {
    let failing = state == TransportState::Failing;
    let transport = TransportVerdict {
        transport: Transport::XhrStreaming,
        server: ServerKind::Sockjs,
        state,
        hop: failing.then_some(Hop::Record),
        not_applicable: vec![],
        pods_passing: 1,
        pods: 1,
        latency_ms: BTreeMap::new(),
    };
    Verdict {
        fingerprint: "f".to_owned(),
        passed_ms: None,
        inherited: false,
        phase: if failing { GatePhase::Closed } else { GatePhase::Open },
        ready: !failing,
        reason: if failing { Reason::RecordMissing } else { Reason::Proven },
        message: String::new(),
        transports: vec![transport],
        external: None,
    }
}

/// The snapshot of the source at a time, with an edit, sealed under the key of both.
fn source_snapshot(now_ms: u64, edit: impl FnOnce(&mut ClusterSnapshot)) -> String {
    let text = |name: &str, value: &str| (name.to_owned(), VariableValue::Text(value.to_owned()));
    let variables = [text(name::SESSION_HOST, OLD), text(name::BUS_GROUP, "fleet"), text(name::WEBHOOKS, "kinesis")];
    let server = ServerSnapshot { variables: variables.into(), ..ServerSnapshot::default() };
    let servers = [(ServerKind::Sockjs, server)].into();
    let mut snapshot = ClusterSnapshot::new(SnapshotOrigin::Operator, "legacy/eu".to_owned(), servers);
    edit(&mut snapshot);
    let digester = SecretDigester::new(KEY).expect("a key");
    serde_json::to_string(&snapshot.seal(&digester, "source-uid", now_ms)).expect("JSON")
}

fn publish_snapshot(api: &TestApi, now_ms: u64, edit: impl FnOnce(&mut ClusterSnapshot)) {
    let data = json!({ "snapshot.yaml": source_snapshot(now_ms, edit) });
    api.put("configmaps/source-snapshot", json!({ "metadata": { "name": "source-snapshot" }, "data": data }));
}

impl Bed {
    /// A move with more fields of its track and of its spec.
    async fn new(track: Value, spec: Value) -> Self {
        let api = TestApi::default();
        let text = include_str!("../../../../tests/fixtures/migration/move.yaml");
        let mut object: Value = serde_yaml::from_str(text).expect("a migration");
        for (part, fields) in [("/spec", spec), ("/spec/tracks/0", track)] {
            let part = object.pointer_mut(part).expect("a part");
            for (field, value) in fields.as_object().expect("fields") {
                part[field] = value.clone();
            }
        }
        api.put(MOVE, object);
        api.put(
            "secrets/realtime-migration",
            json!({ "metadata": { "name": "realtime-migration" }, "data": { "key": "MDEyMzQ1Njc4OWFiY2RlZg==" } }),
        );
        publish_snapshot(&api, START_MS, |_| {});
        let zone = TestZone::start().await;
        zone.set(HOST, [TestRecord::cname(OLD, 20)]);
        zone.set(TARGET, [TestRecord::address(1)]);
        let metrics = Arc::new(OperatorMetrics::default());
        let context = build_context(&api, metrics.clone()).await;
        let (clusters, mut writer) = reflector::store();
        let ready = "status: { observedGeneration: 2, conditions: [{ type: Ready, status: 'True', reason: Proven, message: '', \
                     lastTransitionTime: '2026-01-01T00:00:00Z' }] }\n";
        writer.apply_watcher_event(&watcher::Event::Apply(applied_cluster(ready)));
        let verdict = Arc::new(Mutex::new(verdict(TransportState::Passing)));
        let now_ms = Arc::new(AtomicU64::new(START_MS));
        let (known, time) = (verdict.clone(), now_ms.clone());
        let edges = Arc::new(TestEdges::new(now_ms.clone()));
        let sampler =
            ZoneSampler::new(ZoneReader::new(vec![zone.address], metrics).expect("a reader"), context.stop.clone());
        let driver = MoveDriver {
            context,
            clusters,
            verdicts: Box::new(move |_| Some(lock_unpoisoned(&known).clone())),
            edges: edges.clone(),
            clock: Box::new(move || time.load(Ordering::Relaxed)),
            sampler,
            writers: RecordWriters::default(),
            targets: SnapshotReader::default(),
            shares: ShareMeter::default(),
        };
        Self { api, zone, driver, now_ms, verdict, edges, _clusters: writer }
    }

    fn migration(&self) -> RealtimeMigration {
        serde_json::from_value(self.api.get(MOVE).expect("the move")).expect("a move")
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut object = self.api.get(MOVE).expect("the move");
        edit(&mut object);
        self.api.put(MOVE, object);
    }

    fn track(&self) -> TrackStatus {
        self.migration().status.and_then(|status| status.tracks.into_iter().next()).expect("a track")
    }

    /// Takes a turn ten seconds later; a reading that it began is finished first.
    async fn try_turn(&self) -> Result<Option<Duration>, ReconcileError> {
        self.now_ms.fetch_add(10_000, Ordering::Relaxed);
        let taken = self.driver.take_turn(&self.migration()).await;
        while self.driver.sampler.is_reading() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        taken
    }

    async fn turn(&self) {
        self.try_turn().await.expect("a turn");
    }

    /// Gives the zone the record that external-dns would make of the object.
    fn sync(&self) {
        let endpoint = self.api.get(ENDPOINT);
        let weight = endpoint.as_ref().and_then(|found| {
            let properties = found.pointer("/spec/endpoints/0/providerSpecific")?.as_array()?;
            properties.iter().find(|property| property["name"] == "aws/weight")?["value"].as_str()?.parse().ok()
        });
        let target = weight.map(|weight| TestRecord::cname(TARGET, weight));
        self.zone.set(HOST, [TestRecord::cname(OLD, 20)].into_iter().chain(target));
    }

    /// Takes turns until a condition holds, 60 at most.
    async fn turn_until(&self, what: &str, is_reached: impl Fn(&TrackStatus) -> bool) {
        for _ in 0..60 {
            self.turn().await;
            if self.migration().status.is_some() && is_reached(&self.track()) {
                return;
            }
            if !is_written_here(&self.migration().spec.tracks[0]) {
                continue;
            }
            self.sync();
        }
        panic!("not reached: {what}: {:?}", self.track());
    }

    /// Approves the review with the hash that the status names.
    async fn approve(&self) {
        self.turn_until("the review", |track| track.reason == MigrationReason::ReviewNotApproved).await;
        let message = self.track().message;
        let hash = message.rsplit(' ').next().expect("a hash").to_owned();
        self.edit(|object| object["spec"]["review"] = json!({ "approvedHash": hash }));
    }

    /// Weights of the records that were written, `None` for a deletion.
    fn written_weights(&self) -> Vec<Option<u64>> {
        let writes = self.api.writes().into_iter().filter(|(kind, _)| kind == "dnsendpoints");
        let weight = |sent: &Value| {
            let properties = sent.pointer("/spec/endpoints/0/providerSpecific")?.as_array()?;
            properties.iter().find(|found| found["name"] == "aws/weight")?["value"].as_str()?.parse().ok()
        };
        writes.map(|(_, sent)| weight(&sent)).collect()
    }
}

fn short_steps() -> Value {
    json!({ "steps": [{ "weight": 1, "bakeSeconds": 120 }, { "weight": 20, "bakeSeconds": 120 }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_proven_reviewed_braked_and_baked_and_a_failure_takes_its_record_back() {
    let bed = Bed::new(short_steps(), json!({ "approval": "None" })).await;
    bed.turn().await;
    assert_eq!(bed.migration().finalizers(), [RECORD_FINALIZER], "before anything else");
    bed.approve().await;
    assert!(bed.written_weights().is_empty(), "no record without approval");
    bed.turn_until("a bake at weight 20", |track| {
        track.progress.phase == MigrationPhase::Baking && track.desired == "20"
    })
    .await;
    assert_eq!(bed.written_weights(), [Some(1), Some(0), Some(1), Some(20)]);
    let endpoint = bed.api.get(ENDPOINT).expect("a record");
    assert!(endpoint["metadata"].get("ownerReferences").is_none(), "{endpoint}");
    let ready = |bed: &Bed| {
        let conditions = bed.migration().status.expect("a status").conditions;
        conditions.into_iter().find(|found| found.type_ == "Ready").map(|found| (found.status, found.reason))
    };
    assert_eq!(ready(&bed), Some(("True".to_owned(), "BakeRunning".to_owned())));
    assert!(bed.track().applied.starts_with("50.0 %"), "{:?}", bed.track());
    *lock_unpoisoned(&bed.verdict) = verdict(TransportState::Failing);
    bed.turn().await;
    assert_eq!(bed.written_weights().last(), Some(&Some(0)), "in the same turn");
    assert!(bed.track().message.contains("fails at hop record"), "{}", bed.track().message);
    bed.turn_until("the way back", |track| track.progress.phase == MigrationPhase::RolledBack).await;
    assert_eq!(bed.written_weights().last(), Some(&None));
    assert_eq!((bed.api.get(ENDPOINT), ready(&bed).map(|found| found.0)), (None, Some("False".to_owned())));
    assert!(bed.edges.asked().is_empty(), "not before the lookups are back");
    bed.turn_until("a drain", |track| track.reason == MigrationReason::DrainingSessions).await;
    bed.turn_until("its end", |track| track.reason == MigrationReason::RecordDeleted).await;
    assert_eq!(bed.track().sessions_left, Some(0));
    let asked = bed.edges.asked();
    assert!(asked.iter().all(|(server, _)| *server == ServerKind::Sockjs) && asked[0].1 == 20, "{asked:?}");
    // Each write carries out a decision that was stored before.
    let mut stored = Value::Null;
    for (kind, sent) in bed.api.writes() {
        match kind.as_str() {
            "status" => stored = sent["status"]["tracks"][0]["desired"].clone(),
            "dnsendpoints" if sent.is_null() => assert_eq!(stored, "no record"),
            "dnsendpoints" => assert!(sent.to_string().contains(&format!("\"value\":{stored}")), "{stored}: {sent}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weight_that_is_not_applied_names_the_part_of_external_dns_that_holds_it_up() {
    let bed = Bed::new(short_steps(), json!({ "approval": "None" })).await;
    bed.turn().await;
    bed.approve().await;
    // Nobody copies the object into the zone.
    for _ in 0..120 {
        bed.turn().await;
        if bed.track().reason == MigrationReason::WeightNotApplied {
            break;
        }
    }
    assert_eq!(bed.track().reason, MigrationReason::WeightNotApplied);
    assert!(bed.track().next_step.contains("has not read the DNSEndpoint"), "{}", bed.track().next_step);
    for (observed, expected) in [(2, "has read the DNSEndpoint"), (1, "has not read the DNSEndpoint")] {
        let mut endpoint = bed.api.get(ENDPOINT).expect("a record");
        endpoint["metadata"]["generation"] = json!(2);
        endpoint["status"] = json!({ "observedGeneration": observed });
        bed.api.put(ENDPOINT, endpoint);
        bed.turn().await;
        assert!(bed.track().next_step.contains(expected), "{observed}: {}", bed.track().next_step);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_is_repeated_and_a_record_that_is_edited_by_hand_is_repaired() {
    let bed = Bed::new(short_steps(), json!({ "approval": "None" })).await;
    bed.turn().await;
    bed.approve().await;
    bed.api.fail_writes_of_records(1);
    let mut failed = 0;
    for _ in 0..4 {
        failed += usize::from(bed.try_turn().await.is_err());
    }
    assert_eq!((failed, bed.track().desired.as_str(), bed.written_weights()), (1, "1", vec![Some(1)]));
    let mut edited = bed.api.get(ENDPOINT).expect("a record");
    edited["spec"]["endpoints"][0]["targets"] = json!(["elsewhere.example.com"]);
    bed.api.put(ENDPOINT, edited);
    bed.turn().await;
    assert_eq!(bed.api.get(ENDPOINT).expect("a record")["spec"]["endpoints"][0]["targets"], json!([TARGET]));
    bed.turn_until("the bake", |track| track.progress.phase == MigrationPhase::Baking).await;
    bed.zone.set(HOST, [TestRecord::cname(TARGET, 1)]);
    while bed.track().reason != MigrationReason::WeightsDiffer {
        bed.turn().await;
    }
    bed.edit(|object| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    bed.turn().await;
    bed.turn().await;
    assert!(bed.api.get(ENDPOINT).is_some(), "the last answer stays");
    assert_eq!(bed.track().reason, MigrationReason::NoWayBack);
    for _ in 0..60 {
        bed.sync();
        if bed.migration().finalizers().is_empty() {
            break;
        }
        bed.turn().await;
    }
    assert!(bed.migration().finalizers().is_empty() && bed.api.get(ENDPOINT).is_none(), "{:?}", bed.track());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_somebody_else_is_followed_by_its_answers_alone() {
    let mut track = short_steps();
    track["engine"] = json!("External");
    let bed = Bed::new(track, json!({ "approval": "None" })).await;
    bed.turn().await;
    bed.approve().await;
    let set = |weight: u32| bed.zone.set(HOST, [TestRecord::cname(OLD, 20), TestRecord::cname(TARGET, weight)]);
    bed.turn_until("weight 1", |track| track.desired == "1").await;
    assert!(bed.track().next_step.contains("set the record of sockjs-eu.example.com"), "{:?}", bed.track());
    set(1);
    bed.turn_until("the brake", |track| track.desired == "0").await;
    set(0);
    bed.turn_until("weight 1 again", |track| track.desired == "1").await;
    set(1);
    bed.turn_until("weight 20", |track| track.desired == "20").await;
    set(20);
    bed.turn_until("the bake", |track| track.progress.phase == MigrationPhase::Baking).await;
    set(200);
    bed.turn_until("a weight by hand", |track| track.reason == MigrationReason::WeightsDiffer).await;
    assert!(bed.api.writes().iter().all(|(kind, _)| kind != "dnsendpoints"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_obstacle_is_a_state_with_its_remedy_and_no_failed_turn() {
    let message = async |bed: &Bed| {
        for _ in 0..4 {
            bed.turn().await;
        }
        assert!(bed.written_weights().is_empty());
        bed.track().message
    };
    let bed = Bed::new(json!({}), json!({})).await;
    bed.api.remove_kind("dnsendpoints");
    assert!(message(&bed).await.contains("DNSEndpointUnavailable"), "{}", bed.track().message);
    let bed = Bed::new(json!({}), json!({})).await;
    bed.zone.set(HOST, [TestRecord::address(1)]);
    assert!(message(&bed).await.contains("RecordTypesDiffer"), "{}", bed.track().message);
    let bed = Bed::new(json!({}), json!({ "review": { "accepted": ["Everything"] } })).await;
    assert!(message(&bed).await.contains("FindingUnknown"), "{}", bed.track().message);
    let bed = Bed::new(json!({}), json!({})).await;
    bed.api
        .put(ENDPOINT, json!({ "metadata": { "name": "sockjs-to-eks-sockjs", "namespace": "channels" }, "spec": {} }));
    assert!(message(&bed).await.contains("RecordNotOurs"), "{}", bed.track().message);
    let bed = Bed::new(json!({}), json!({})).await;
    bed.api.put("configmaps/source-snapshot", json!({ "metadata": { "name": "source-snapshot" }, "data": {} }));
    assert!(message(&bed).await.contains("has no key snapshot.yaml"), "{}", bed.track().message);
    assert_eq!(bed.track().reason, MigrationReason::SnapshotMissing);
    let bed = Bed::new(json!({}), json!({ "clusterRef": { "name": "none" } })).await;
    message(&bed).await;
    assert_eq!(bed.track().reason, MigrationReason::ClusterMissing);
    bed.edit(|object| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    assert_eq!(bed.try_turn().await.expect("a turn"), None);
    assert!(bed.migration().finalizers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_share_of_new_connections_is_known_from_two_snapshots_of_the_source_on() {
    let bed = Bed::new(short_steps(), json!({})).await;
    let publish = |opened| {
        let at_ms = bed.now_ms.load(Ordering::Relaxed);
        let processes = [("old".to_owned(), [(ServerKind::Sockjs, opened)].into())].into();
        publish_snapshot(&bed.api, at_ms, |snapshot| snapshot.sessions = Some(SessionSnapshot { at_ms, processes }));
    };
    bed.turn().await;
    bed.turn().await;
    assert_eq!(bed.track().observed, "not known", "a snapshot without counts");
    publish(300);
    for _ in 0..6 {
        bed.edges.open_sessions(1);
        bed.turn().await;
    }
    assert_eq!(bed.track().observed, "not known", "one snapshot with counts");
    publish(318);
    bed.turn().await;
    assert_eq!(bed.track().observed, "25.0 %");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_waits_while_endpoints_fail_at_the_target_or_it_has_no_room() {
    let bed = Bed::new(short_steps(), json!({ "approval": "None" })).await;
    let publish = || {
        publish_snapshot(&bed.api, bed.now_ms.load(Ordering::Relaxed), |snapshot| {
            let load = EdgeLoad { edges: 2, sessions_max: 4_000, open: 2_000, others: 0 };
            snapshot.loads = [(ServerKind::Sockjs, load)].into();
            snapshot.delivery = Some(DeliverySnapshot { attempted: 9, ..DeliverySnapshot::default() });
        });
    };
    let set_endpoint = |state: &str| {
        let app = json!({
            "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp",
            "metadata": { "name": "shop", "namespace": "channels" }, "spec": { "appID": "17" },
            "status": { "endpoints": [{ "cluster": "eu", "name": "orders", "state": state }] },
        });
        let app = serde_json::from_value(app).expect("an app");
        bed.driver.context.live.apps.apply_event(&WatchRange::All, watcher::Event::Apply(app));
    };
    let gates = |track: &TrackStatus| track.gates.iter().map(|gate| gate.state).collect::<Vec<_>>();
    set_endpoint("Delivering");
    bed.turn().await;
    bed.approve().await;
    let is_baking = |track: &TrackStatus| track.progress.phase == MigrationPhase::Baking;
    bed.turn_until("a bake at weight 1", is_baking).await;
    let unavailable = [GateState::Unavailable, GateState::Unavailable];
    assert_eq!(gates(&bed.track()), unavailable, "a snapshot of an older release holds nothing");
    publish();
    set_endpoint("Failing");
    bed.turn().await;
    bed.turn().await;
    assert_eq!(bed.track().reason, MigrationReason::GateFailing, "{:?}", bed.track());
    assert_eq!((gates(&bed.track())[0], bed.track().message.contains("17/orders")), (GateState::Failing, true));
    set_endpoint("Delivering");
    // The 40 sessions of the edges, and a half of the source's.
    bed.edges.limit_sessions(1_485);
    bed.turn().await;
    assert_eq!(gates(&bed.track()), [GateState::Passing, GateState::Failing], "{:?}", bed.track());
    for _ in 0..20 {
        bed.turn().await;
    }
    assert_eq!((bed.track().desired.as_str(), bed.track().reason), ("1", MigrationReason::GateFailing));
    let conditions = bed.migration().status.expect("a status").conditions;
    assert!(conditions.iter().any(|found| found.type_ == "Ready" && found.status == "False"), "{conditions:?}");
    publish();
    bed.edges.limit_sessions(1_486);
    bed.turn_until("weight 20", |track| track.desired == "20").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_its_writer_would_not_remove_or_not_own_is_not_begun() {
    let bed = Bed::new(json!({}), json!({})).await;
    let external_dns = |policy: &str| {
        let args = ["--provider=aws", "--source=crd", "--txt-owner-id=new", "--txt-prefix=owner-", policy];
        let pod = json!({ "spec": { "containers": [{ "name": "external-dns", "args": args }] } });
        let metadata = json!({ "name": "external-dns", "namespace": "dns" });
        bed.api.put(
            "deployments/external-dns",
            json!({ "metadata": metadata, "spec": { "selector": {}, "template": pod } }),
        );
    };
    let owned = |owner: &str, resource: &str| {
        let text = format!("heritage=external-dns,external-dns/owner={owner},external-dns/resource={resource}");
        bed.zone.set(&format!("owner-cname-{HOST}"), [TestRecord::text(&text, 20)]);
    };
    let reached = async |word: &str| {
        bed.turn_until(word, |track| track.message.starts_with(word)).await;
        let track = bed.track();
        assert_eq!((track.reason, bed.written_weights()), (MigrationReason::PreflightFailed, vec![]), "{word}");
        assert!(MoveObstacle::of_message(&track.message).is_some_and(|found| track.message.ends_with(found.remedy())));
    };
    external_dns("--policy=upsert-only");
    reached("RecordsKept").await;
    external_dns("--policy=sync");
    owned("former", "crd/channels/sockjs-to-eks-sockjs");
    reached("OwnerForeign").await;
    owned("new", "crd/legacy/sockjs-old");
    reached("OwnerShared").await;
    bed.api.put("dnsendpoints/sockjs-old", json!({ "metadata": { "name": "sockjs-old", "namespace": "legacy" } }));
    bed.turn_until("the review", |track| track.reason == MigrationReason::ReviewNotApproved).await;
    assert!(bed.written_weights().is_empty());
}
