//! Publishes the sealed snapshots of clusters that ask for it, each as a `ConfigMap` beside its cluster: a pipeline copies it to
//! the namespace of a move. A cluster without the annotation costs no call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::runtime::events::EventType;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::record::MANAGED_BY;
use super::sessions::{EdgeControl, count_opened_sessions, sum_fresh_loads};
use super::snapshot_reader::{SnapshotReader, list_moves, read_delivery};
use super::source::read_digest_key;
use crate::api::migration::SNAPSHOT_KEY_FIELD;
use crate::api::{PUBLISH_SNAPSHOT_ANNOTATION, RealtimeCluster, SecretKeyRef};
use crate::kubernetes::apply::{apply_object, fetch_owned};
use crate::migration::ClusterSnapshot;
use crate::operator::context::{SharedContext, object_key};
use crate::process::clock::{format_time, now_ms};
use crate::process::heartbeat::Heartbeat;
use crate::process::locks::lock_unpoisoned;

/// Time between two looks for clusters whose snapshot is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// Bounds the publication of one snapshot.
const PUBLICATION_TIMEOUT: Duration = Duration::from_mins(1);

/// Longest time without a look or a publication: one that is late, and the call that reports it.
const PUBLISHER_SILENCE_MAX: Duration = PUBLICATION_TIMEOUT.saturating_mul(2);

/// Shortest time between two publications of one snapshot, in ms.
const PUBLICATION_INTERVAL_MS: u64 = 60_000;

/// Age from which a snapshot is published again without a change, in ms: half of the time for which it counts as evidence.
const SNAPSHOT_AGE_MAX_MS: u64 = 180_000;

/// Time for which digests of apps are kept: each takes one read of every part of the registry.
const APPS_TTL: Duration = Duration::from_mins(10);

/// Largest snapshot that is published, in bytes: the API server stores objects up to 1.5 MiB, and a `ConfigMap` holds 1 MiB.
const SNAPSHOT_MAX_BYTES: usize = 1 << 20;

/// Key of the `ConfigMap` with the snapshot.
pub const SNAPSHOT_KEY: &str = "snapshot.yaml";

/// The latest publication of a cluster.
#[derive(Default)]
struct Publication {
    /// Time of the latest snapshot, in ms since 1970; 0 before the first.
    at_ms: u64,
    /// The snapshot without its times.
    content: Option<ClusterSnapshot>,
    /// Cause of the latest failure; empty after a success.
    failure: String,
}

/// Publishes the snapshots of clusters, and remembers the latest of each.
pub struct SnapshotPublisher {
    context: SharedContext,
    edges: Arc<dyn EdgeControl>,
    /// The wall clock, in ms since 1970.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    reader: SnapshotReader,
    heartbeat: Heartbeat,
    published: Mutex<HashMap<String, Publication>>,
}

/// Publishes the snapshots of clusters until the operator stops.
pub async fn run_publisher(context: SharedContext, clusters: Store<RealtimeCluster>, edges: Arc<dyn EdgeControl>) {
    let stop = context.stop.clone();
    let publisher = SnapshotPublisher::new(context, edges, Box::new(now_ms));
    let publishing = async {
        loop {
            sleep(LOOK_INTERVAL).await;
            publisher.publish_all(&clusters.state()).await;
        }
    };
    stop.run_until_cancelled(publishing).await;
}

impl SnapshotPublisher {
    /// A publisher that has published nothing: the first snapshot of a cluster is due at once.
    pub fn new(context: SharedContext, edges: Arc<dyn EdgeControl>, clock: Box<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let reader = SnapshotReader::with_apps_ttl(APPS_TTL);
        let heartbeat = context.heartbeats.register("snapshot publisher", Some(PUBLISHER_SILENCE_MAX), &context.stop);
        Self { context, edges, clock, reader, heartbeat, published: Mutex::default() }
    }

    /// Publishes the snapshots that are due, and forgets clusters that are gone.
    pub async fn publish_all(&self, clusters: &[Arc<RealtimeCluster>]) {
        let wanted = clusters.iter().filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
        let wanted: Vec<_> = wanted
            .filter_map(|cluster| Some((cluster, cluster.annotations().get(PUBLISH_SNAPSHOT_ANNOTATION)?)))
            .collect();
        let uids: Vec<String> = wanted.iter().filter_map(|(cluster, _)| cluster.uid()).collect();
        lock_unpoisoned(&self.published).retain(|uid, _| {
            let stays = uids.contains(uid);
            if !stays {
                self.reader.forget(uid);
            }
            stays
        });
        self.heartbeat.beat();
        for (cluster, key) in wanted {
            let publication = timeout(PUBLICATION_TIMEOUT, self.publish(cluster, key)).await;
            let late = || Err(format!("not published within {} s", PUBLICATION_TIMEOUT.as_secs()));
            self.report(cluster, publication.unwrap_or_else(|_| late())).await;
            self.heartbeat.beat();
        }
    }

    async fn publish(&self, cluster: &RealtimeCluster, key: &str) -> Result<(), String> {
        let (uid, now_ms) = (cluster.uid().unwrap_or_default(), (self.clock)());
        let is_early = |known: &Publication| now_ms.saturating_sub(known.at_ms) < PUBLICATION_INTERVAL_MS;
        if lock_unpoisoned(&self.published).get(&uid).is_some_and(is_early) {
            return Ok(());
        }
        let wanted = SecretKeyRef { name: key.to_owned(), key: SNAPSHOT_KEY_FIELD.to_owned() };
        let digester = read_digest_key(&self.context, cluster, &wanted).await?;
        let snapshot = self.reader.take_snapshot(&self.context, cluster, cluster, &digester).await;
        if snapshot.servers.is_empty() {
            return Err("no server of the cluster is deployed".to_owned());
        }
        let looks = self.edges.sessions(cluster);
        let snapshot = ClusterSnapshot {
            sessions: count_opened_sessions(&looks, now_ms),
            loads: sum_fresh_loads(&looks, now_ms),
            delivery: Some(read_delivery(&self.context, cluster)),
            moves: list_moves(&self.context, cluster),
            taken_at: Some(format_time(now_ms)),
            ..snapshot
        };
        let content = snapshot.without_times();
        {
            let all = lock_unpoisoned(&self.published);
            let is_known = |known: &&Publication| known.content.as_ref() == Some(&content);
            let known = all.get(&uid).filter(is_known);
            if known.is_some_and(|known| now_ms.saturating_sub(known.at_ms) < SNAPSHOT_AGE_MAX_MS) {
                return Ok(());
            }
        }
        let object = render_config_map(cluster, &snapshot.seal(&digester, &uid, now_ms))?;
        self.context.ensure_leader().map_err(|error| error.to_string())?;
        let client = &self.context.client;
        fetch_owned(client, &object, &uid).await.map_err(|error| error.to_string())?;
        apply_object(client, &object).await.map_err(|error| error.to_string())?;
        let publication = Publication { at_ms: now_ms, content: Some(content), failure: String::new() };
        lock_unpoisoned(&self.published).insert(uid, publication);
        Ok(())
    }

    /// Publishes an Event for each new cause of a failure.
    async fn report(&self, cluster: &RealtimeCluster, result: Result<(), String>) {
        let failure = result.err().unwrap_or_default();
        let is_news = {
            let mut all = lock_unpoisoned(&self.published);
            let known = all.entry(cluster.uid().unwrap_or_default()).or_default();
            let is_news = known.failure != failure && !failure.is_empty();
            known.failure.clone_from(&failure);
            is_news
        };
        if is_news {
            tracing::warn!(cluster = object_key(cluster), failure, "snapshot not published");
            let note = format!("the snapshot of the cluster is not published: {failure}");
            self.context.publish_event(cluster, EventType::Warning, "SnapshotNotPublished", "Publish", note).await;
        }
    }
}

/// The object of a sealed snapshot, which goes with its cluster. JSON is YAML too.
fn render_config_map(cluster: &RealtimeCluster, snapshot: &ClusterSnapshot) -> Result<Value, String> {
    let text = serde_json::to_string(snapshot).map_err(|error| error.to_string())?;
    if text.len() > SNAPSHOT_MAX_BYTES {
        let size = text.len();
        return Err(format!(
            "it has {size} bytes, more than a ConfigMap holds: carry that of `realtime snapshot` by hand"
        ));
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": format!("{}-snapshot", cluster.name_any()),
            "namespace": cluster.namespace(),
            "labels": { MANAGED_BY.0: MANAGED_BY.1 },
            "ownerReferences": [cluster.controller_owner_ref(&())],
        },
        "data": { SNAPSHOT_KEY: text },
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use kube::runtime::{reflector, watcher};

    use super::super::test_api::TestApi;
    use super::super::test_context::{TestEdges, build_context};
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::api::migration::SourceKind;
    use crate::config::ServerKind;
    use crate::kubernetes::scope::WatchRange;
    use crate::migration::{PeerExpectations, SecretDigester};
    use crate::operator::metrics::OperatorMetrics;
    use crate::process::heartbeat::TaskFault;

    const OBJECT: &str = "configmaps/eu-snapshot";
    const START_MS: u64 = 1_790_000_000_000;

    fn cluster(annotation: Option<&str>) -> Arc<RealtimeCluster> {
        let mut cluster = applied_cluster("status: { observedGeneration: 2 }\n");
        let annotations = annotation.map(|key| (PUBLISH_SNAPSHOT_ANNOTATION.to_owned(), key.to_owned()));
        cluster.metadata.annotations = Some(annotations.into_iter().collect());
        Arc::new(cluster)
    }

    fn count_publications(api: &TestApi) -> usize {
        api.writes().iter().filter(|(kind, _)| kind == "configmaps").count()
    }

    #[tokio::test]
    async fn a_snapshot_is_published_on_request_after_a_change_and_before_it_is_stale() {
        let api = TestApi::default();
        let context = build_context(&api, Arc::new(OperatorMetrics::default())).await;
        let now_ms = Arc::new(AtomicU64::new(START_MS));
        let (edges, clock) = (Arc::new(TestEdges::new(now_ms.clone())), now_ms.clone());
        let live = context.clone();
        let publisher = SnapshotPublisher::new(context, edges.clone(), Box::new(move || clock.load(Ordering::Relaxed)));
        publisher.publish_all(&[cluster(None)]).await;
        assert_eq!(api.reads(), 0, "a cluster that asks for nothing costs no call");
        publisher.publish_all(&[cluster(Some("absent"))]).await;
        assert_eq!(count_publications(&api), 0, "without the key");
        let key = json!({ "metadata": { "name": "review" }, "data": { "key": "MDEyMzQ1Njc4OWFiY2RlZg==" } });
        api.put("secrets/review", key);
        publisher.publish_all(&[cluster(Some("review"))]).await;
        assert_eq!(count_publications(&api), 1);
        let found = api.get(OBJECT).expect("a ConfigMap");
        assert_eq!(found["metadata"]["ownerReferences"][0]["kind"], "RealtimeCluster");
        assert_eq!(found["metadata"]["labels"][MANAGED_BY.0], MANAGED_BY.1);
        let digester = SecretDigester::new("0123456789abcdef").expect("a key");
        let expected = PeerExpectations { kind: SourceKind::Operator, target_uid: "other", known: None };
        let text = found["data"][SNAPSHOT_KEY].as_str().expect("a text");
        let (snapshot, identity) =
            ClusterSnapshot::parse_peer(text, &digester, expected, START_MS).expect("a snapshot that counts");
        assert_eq!(identity.sequence, START_MS);
        let counted = snapshot.sessions.expect("counts");
        assert_eq!(counted.processes.values().next().and_then(|found| found.get(&ServerKind::Sockjs)), Some(&100));
        assert_eq!(snapshot.loads[&ServerKind::Sockjs].sessions_max, 1_000);
        assert_eq!(snapshot.delivery.map(|delivery| delivery.attempted), Some(0), "no app is listed");
        assert_eq!(snapshot.moves, None, "moves are not listed yet");
        let pass = async |seconds: u64| {
            now_ms.fetch_add(seconds * 1000, Ordering::Relaxed);
            publisher.publish_all(&[cluster(Some("review"))]).await;
            count_publications(&api)
        };
        assert_eq!(pass(90).await, 1, "nothing changed but the time");
        assert_eq!(pass(95).await, 2, "before it is stale");
        edges.open_sessions(1);
        assert_eq!(pass(30).await, 2, "at most once in a minute");
        assert_eq!(pass(31).await, 3, "a change");
        let text = include_str!("../../../tests/fixtures/migration/move.yaml");
        let migration = serde_yaml::from_str(text).expect("a migration");
        for event in [watcher::Event::Init, watcher::Event::InitApply(migration), watcher::Event::InitDone] {
            live.live.migrations.apply_event(&WatchRange::All, event);
        }
        assert_eq!(pass(61).await, 4, "a move to this cluster");
        let found = api.get(OBJECT).expect("a ConfigMap");
        let text = found["data"][SNAPSHOT_KEY].as_str().expect("a text");
        let moves = ClusterSnapshot::parse(text).expect("a snapshot").and_then(|snapshot| snapshot.moves);
        let moves = moves.expect("a list of moves");
        assert_eq!((moves.len(), moves[0].host.as_str()), (1, "sockjs-eu.example.com"));
        assert_eq!(moves[0].change_batch["Changes"][0]["ResourceRecordSet"]["Weight"], 0, "the change by hand");
        api.put(OBJECT, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "eu-snapshot", "namespace": "channels" } }));
        assert_eq!(pass(200).await, 4, "an object of somebody else stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_publisher_that_looks_keeps_its_heartbeat_and_one_that_ends_or_stands_still_is_a_fault() {
        let api = TestApi::default();
        let build = async || build_context(&api, Arc::new(OperatorMetrics::default())).await;
        let edges = || Arc::new(TestEdges::new(Arc::default()));
        let (context, (clusters, _writer)) = (build().await, reflector::store());
        let running = tokio::spawn(run_publisher(context.clone(), clusters, edges()));
        sleep(10 * PUBLISHER_SILENCE_MAX).await;
        assert_eq!(context.heartbeats.check(), Ok(()));
        running.abort();
        assert!(running.await.is_err_and(|error| error.is_cancelled()));
        let ended = TaskFault::Ended { task: "snapshot publisher".to_owned() };
        assert_eq!(context.heartbeats.check(), Err(ended));
        let context = build().await;
        let publisher = SnapshotPublisher::new(context.clone(), edges(), Box::new(|| START_MS));
        sleep(PUBLISHER_SILENCE_MAX + Duration::from_secs(1)).await;
        assert!(matches!(context.heartbeats.check(), Err(TaskFault::Silent { .. })));
        publisher.publish_all(&[]).await;
        assert_eq!(context.heartbeats.check(), Ok(()), "a look");
        context.stop.cancel();
        drop(publisher);
        assert_eq!(context.heartbeats.check(), Ok(()), "it was stopped");
    }
}
