//! Watches the targets of moves from their sources: by the copy of the target's snapshot, a source learns that the operator there
//! has stopped, and has the change that brings its clients back by hand. A cluster without the annotation costs no call.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use kube::runtime::reflector::Store;
use serde_json::Map;
use tokio::time::{sleep, timeout};

use super::publisher::SNAPSHOT_KEY;
use super::source::{read_config_map_key, read_digest_key};
use crate::api::conditions::condition;
use crate::api::migration::SNAPSHOT_KEY_FIELD;
use crate::api::{PUBLISH_SNAPSHOT_ANNOTATION, RealtimeCluster, Reason, SecretKeyRef, TARGET_SNAPSHOT_ANNOTATION};
use crate::migration::{TargetReading, TargetState, TargetVerdict, judge_target};
use crate::operator::context::{SharedContext, object_key};
use crate::operator::status::{self, ConditionUpdate, StatusPatch};
use crate::process::clock::now_ms;
use crate::process::heartbeat::Heartbeat;
use crate::process::locks::lock_unpoisoned;

/// Time between two looks at the copies.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// Bounds the look at one copy.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time without a look: one that is late, and the call that reports it.
const WATCH_SILENCE_MAX: Duration = Duration::from_mins(2);

/// Field manager of the condition.
const STATUS_MANAGER: &str = "realtime-operator-target-watch";

/// The watch of the targets, with the latest snapshot of each.
pub struct TargetWatch {
    context: SharedContext,
    /// The wall clock, in ms since 1970.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    heartbeat: Heartbeat,
    /// The latest snapshot of each source's target, by the UID of the source.
    known: Mutex<HashMap<String, TargetReading>>,
    /// Namespace and name of the clusters that have series.
    measured: Mutex<BTreeSet<(String, String)>>,
}

/// Watches the targets of the clusters until the operator stops.
pub async fn run_target_watch(context: SharedContext, clusters: Store<RealtimeCluster>) {
    let stop = context.stop.clone();
    let watch = TargetWatch::new(context, Box::new(now_ms));
    let watching = async {
        loop {
            sleep(LOOK_INTERVAL).await;
            watch.look_at_all(&clusters.state()).await;
        }
    };
    stop.run_until_cancelled(watching).await;
}

impl TargetWatch {
    /// A watch that has read nothing.
    pub fn new(context: SharedContext, clock: Box<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let heartbeat = context.heartbeats.register("target watch", Some(WATCH_SILENCE_MAX), &context.stop);
        Self { context, clock, heartbeat, known: Mutex::default(), measured: Mutex::default() }
    }

    /// Looks at the copies of all clusters that name one, and forgets the other clusters.
    pub async fn look_at_all(&self, clusters: &[Arc<RealtimeCluster>]) {
        let named = |cluster: &&Arc<RealtimeCluster>| {
            cluster.metadata.deletion_timestamp.is_none()
                && cluster.annotations().contains_key(TARGET_SNAPSHOT_ANNOTATION)
        };
        let wanted: Vec<_> = clusters.iter().filter(named).collect();
        self.forget_others(&wanted);
        self.heartbeat.beat();
        for cluster in clusters {
            let verdict = match cluster.annotations().get(TARGET_SNAPSHOT_ANNOTATION).filter(|_| named(&cluster)) {
                Some(name) => Some(self.look(cluster, name).await),
                None => None,
            };
            self.report(cluster, verdict.as_ref()).await;
            self.heartbeat.beat();
        }
    }

    /// Reads the copy of a cluster, and judges the target by the newest snapshot that was read.
    async fn look(&self, cluster: &RealtimeCluster, name: &str) -> TargetVerdict {
        let read = timeout(LOOK_TIMEOUT, self.read(cluster, name)).await;
        let read = read.unwrap_or_else(|_| Err(format!("not read within {} s", LOOK_TIMEOUT.as_secs())));
        let uid = cluster.uid().unwrap_or_default();
        let mut known = lock_unpoisoned(&self.known);
        let failure = match read {
            Ok(read) => {
                let newest = TargetReading::newer(known.get(&uid), read);
                known.insert(uid.clone(), newest);
                None
            }
            Err(failure) => Some(failure),
        };
        judge_target(known.get(&uid), failure.as_deref(), (self.clock)())
    }

    async fn read(&self, cluster: &RealtimeCluster, name: &str) -> Result<TargetReading, String> {
        let Some(key) = cluster.annotations().get(PUBLISH_SNAPSHOT_ANNOTATION) else {
            return Err(format!(
                "the annotation {PUBLISH_SNAPSHOT_ANNOTATION}, which names the key of the snapshots, is missing at this cluster"
            ));
        };
        let key = SecretKeyRef { name: key.clone(), key: SNAPSHOT_KEY_FIELD.to_owned() };
        let digester = read_digest_key(&self.context, cluster, &key).await?;
        let text = read_config_map_key(&self.context, cluster, name, SNAPSHOT_KEY).await?;
        TargetReading::parse(&text, &digester, &cluster.uid().unwrap_or_default(), (self.clock)())
    }

    /// Sets the series and the condition of a cluster, and publishes an Event for a change of the state. Without a verdict the
    /// condition is removed.
    async fn report(&self, cluster: &RealtimeCluster, verdict: Option<&TargetVerdict>) {
        let known = cluster.status.as_ref().and_then(|status| status.find_condition(condition::TARGET_REPORTING));
        let update = verdict.map(|verdict| {
            self.measure(cluster, verdict);
            let (status, reason) = match verdict.state {
                TargetState::Reporting => ("True", Reason::TargetReports),
                TargetState::Silent => ("False", Reason::TargetSilent),
                TargetState::Unread => ("Unknown", Reason::TargetUnread),
            };
            ConditionUpdate::new(condition::TARGET_REPORTING, status, reason, &verdict.message)
        });
        // An operator that was restarted, and cannot read the copy any more, keeps the changes by hand.
        let is_forgotten = verdict.is_some_and(|verdict| verdict.age_ms.is_none());
        let keeps = is_forgotten && known.is_some_and(|known| known.reason == Reason::TargetSilent.name());
        if keeps || (known.is_none() && update.is_none()) {
            return;
        }
        let news = update.clone().filter(|update| known.is_none_or(|known| known.reason != update.reason.name()));
        let part = StatusPatch {
            manager: STATUS_MANAGER,
            owned_conditions: &[condition::TARGET_REPORTING],
            conditions: Vec::from_iter(update),
            fields: Map::new(),
        };
        let written = timeout(LOOK_TIMEOUT, status::write(&self.context, cluster, part)).await;
        match written {
            Ok(Ok(())) => {}
            // The next look writes it.
            Ok(Err(error)) => {
                tracing::debug!(cluster = object_key(cluster), %error, "state of the target not written");
                return;
            }
            Err(_) => return,
        }
        if let Some(update) = news {
            let kind = if update.status == "True" { EventType::Normal } else { EventType::Warning };
            self.context.publish_change(cluster, kind, update.reason.name(), "WatchTarget", update.message).await;
        }
    }

    fn measure(&self, cluster: &RealtimeCluster, verdict: &TargetVerdict) {
        let (series, namespace, name) =
            (&self.context.metrics.series, cluster.namespace().unwrap_or_default(), cluster.name_any());
        let is_unread = verdict.state == TargetState::Unread;
        series.unread_targets.set(&namespace, &name, if is_unread { 1.0 } else { 0.0 });
        if let Some(age_ms) = verdict.age_ms {
            series.target_snapshot_age_seconds.set(&namespace, &name, Duration::from_millis(age_ms).as_secs_f64());
        }
        if let Some(tracks) = verdict.open_tracks {
            series.target_open_tracks.set(&namespace, &name, u32::try_from(tracks).map_or(f64::MAX, f64::from));
        }
        lock_unpoisoned(&self.measured).insert((namespace, name));
    }

    fn forget_others(&self, wanted: &[&Arc<RealtimeCluster>]) {
        let uids: Vec<_> = wanted.iter().filter_map(|cluster| cluster.uid()).collect();
        lock_unpoisoned(&self.known).retain(|uid, _| uids.contains(uid));
        let series = &self.context.metrics.series;
        lock_unpoisoned(&self.measured).retain(|(namespace, name)| {
            let is_key = |cluster: &&Arc<RealtimeCluster>| {
                cluster.namespace().as_ref() == Some(namespace) && cluster.name_any() == *name
            };
            let stays = wanted.iter().any(is_key);
            if !stays {
                for gauge in [&series.target_snapshot_age_seconds, &series.target_open_tracks, &series.unread_targets] {
                    gauge.remove(namespace, name);
                }
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::{Value, json};

    use super::super::test_api::TestApi;
    use super::super::test_context::build_context;
    use super::*;
    use crate::api::RealtimeMigration;
    use crate::api::fixture::applied_cluster;
    use crate::api::migration::MigrationPhase;
    use crate::migration::{ClusterSnapshot, MoveSnapshot, SecretDigester, SnapshotOrigin};
    use crate::operator::metrics::OperatorMetrics;

    const START_MS: u64 = 1_790_000_000_000;
    const COPY: &str = "configmaps/target-snapshot";

    /// The source, an operator of it, and its clock.
    struct Source {
        api: TestApi,
        metrics: Arc<OperatorMetrics>,
        watch: TargetWatch,
        now_ms: Arc<AtomicU64>,
    }

    impl Source {
        async fn new() -> Self {
            let (api, metrics) = (TestApi::default(), Arc::new(OperatorMetrics::default()));
            let key = json!({ "metadata": { "name": "review" }, "data": { "key": "MDEyMzQ1Njc4OWFiY2RlZg==" } });
            api.put("secrets/review", key);
            let context = build_context(&api, metrics.clone()).await;
            let now_ms = Arc::new(AtomicU64::new(START_MS));
            let clock = now_ms.clone();
            let watch = TargetWatch::new(context, Box::new(move || clock.load(Ordering::Relaxed)));
            let object = applied_cluster("status: { observedGeneration: 2 }\n");
            api.put("realtimeclusters/eu", serde_json::to_value(&object).expect("JSON"));
            Self { api, metrics, watch, now_ms }
        }

        /// Looks at the cluster as the API server has it, with these annotations.
        async fn look(&self, annotations: &[(&str, &str)]) -> Value {
            let mut cluster: RealtimeCluster =
                serde_json::from_value(self.api.get("realtimeclusters/eu").expect("a cluster")).expect("a cluster");
            let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            cluster.metadata.annotations = Some(annotations.collect());
            self.watch.look_at_all(&[Arc::new(cluster)]).await;
            let live = self.api.get("realtimeclusters/eu").expect("a cluster");
            let conditions = live["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|found| found["type"] == "TargetReporting").unwrap_or_default()
        }

        /// Copies a snapshot of the target with a track in a phase.
        fn copy(&self, taken_ms: u64, phase: MigrationPhase, weight: Option<u8>) {
            let text = include_str!("../../../tests/fixtures/migration/move.yaml");
            let migration: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
            let track = MoveSnapshot::of_migration(&migration).remove(0);
            let source_uid = applied_cluster("").metadata.uid;
            let moves = Some(vec![MoveSnapshot { source_uid, phase, weight, ..track }]);
            let snapshot = ClusterSnapshot::new(SnapshotOrigin::Operator, "new/eu".to_owned(), [].into());
            let digester = SecretDigester::new("0123456789abcdef").expect("a key");
            let sealed = ClusterSnapshot { moves, ..snapshot }.seal(&digester, "target-uid", taken_ms);
            let text = serde_json::to_string(&sealed).expect("JSON");
            self.api.put(COPY, json!({ "metadata": { "name": "target-snapshot" }, "data": { SNAPSHOT_KEY: text } }));
        }

        /// The series of the watch, without their common name and labels.
        fn series(&self) -> Vec<String> {
            let mut registry = prometheus_client::registry::Registry::default();
            self.metrics.register(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
            let labels = "{namespace=\"channels\",cluster=\"eu\"}";
            let ours = text.lines().filter(|line| line.contains("target") && line.contains(labels));
            ours.map(|line| line.replace("realtime_operator_", "").replace(labels, "")).collect()
        }
    }

    const BOTH: &[(&str, &str)] =
        &[(PUBLISH_SNAPSHOT_ANNOTATION, "review"), (TARGET_SNAPSHOT_ANNOTATION, "target-snapshot")];

    #[tokio::test]
    async fn a_source_reports_that_the_operator_of_its_target_has_stopped() {
        let source = Source::new().await;
        assert_eq!(source.look(&[(PUBLISH_SNAPSHOT_ANNOTATION, "review")]).await, Value::Null);
        assert_eq!((source.api.reads(), source.series()), (0, vec![]), "a cluster that asks for nothing costs no call");
        let found = source.look(&[(TARGET_SNAPSHOT_ANNOTATION, "target-snapshot")]).await;
        assert!(found["message"].as_str().is_some_and(|text| text.contains("names the key")), "{found}");
        let found = source.look(BOTH).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("Unknown"), &json!("TargetUnread")));
        assert_eq!(source.series(), ["unread_targets 1.0"], "never seen");
        source.copy(START_MS, MigrationPhase::Baking, Some(20));
        let found = source.look(BOTH).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("True"), &json!("TargetReports")));
        source.now_ms.fetch_add(361_000, Ordering::Relaxed);
        let found = source.look(BOTH).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("TargetSilent")));
        let message = found["message"].as_str().expect("a message");
        assert!(message.contains("stop external-dns of the target") && message.contains("\"Weight\":0"), "{message}");
        let silent = ["target_snapshot_age_seconds 361.0", "target_open_tracks 1.0", "unread_targets 0.0"];
        assert_eq!(source.series(), silent);
        let writes = source.api.writes().len();
        source.look(BOTH).await;
        assert_eq!(source.api.writes().len(), writes, "nothing changed but the time");
        source.copy(START_MS + 360_000, MigrationPhase::RolledBack, None);
        let found = source.look(BOTH).await;
        assert_eq!(found["reason"], "TargetReports", "it was started again");
        assert_eq!(source.series()[..2], ["target_snapshot_age_seconds 1.0", "target_open_tracks 0.0"]);
        assert_eq!(source.look(&[]).await, Value::Null, "the condition goes with the annotation");
        assert!(source.series().is_empty(), "and the series");
    }

    #[tokio::test]
    async fn a_copy_that_is_deleted_or_replaced_by_an_older_one_does_not_silence_the_report() {
        let source = Source::new().await;
        source.copy(START_MS, MigrationPhase::Baking, Some(20));
        source.look(BOTH).await;
        source.copy(START_MS - 1, MigrationPhase::RolledBack, None);
        source.look(BOTH).await;
        assert_eq!(source.series()[1], "target_open_tracks 1.0", "an older one");
        source.api.put(COPY, json!({ "metadata": { "name": "target-snapshot" }, "data": {} }));
        assert_eq!(source.look(BOTH).await["reason"], "TargetReports");
        source.now_ms.fetch_add(361_000, Ordering::Relaxed);
        let found = source.look(BOTH).await;
        assert_eq!(found["reason"], "TargetSilent");
        assert!(found["message"].as_str().is_some_and(|text| text.contains("has no key snapshot.yaml")), "{found}");
        let (context, clock) = (source.watch.context.clone(), source.now_ms.clone());
        let watch = TargetWatch::new(context, Box::new(move || clock.load(Ordering::Relaxed)));
        let restarted = Source { watch, ..source };
        assert_eq!(restarted.look(BOTH).await, found, "an operator that was restarted keeps the changes by hand");
        assert!(restarted.series().contains(&"unread_targets 1.0".to_owned()), "{:?}", restarted.series());
    }
}
