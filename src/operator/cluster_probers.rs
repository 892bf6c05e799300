//! The running probers, one per cluster, and one more while pods of a former template wait for admission.

use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::context::{ControllerContext, cluster_ref, object_key};
use super::metrics::OperatorMetrics;
use super::reconcile_error::ReconcileError;
use crate::api::{RealtimeCluster, Reason};
use crate::gate::Verdict;
use crate::prober::{
    self, EdgeSessions, EndpointReports, PodStanding, ProbePlan, Prober, ProberReports, RequestedProof, SessionShedder,
};
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;

/// Longest time without a turn of a prober: two intervals of the default gate. It takes ten turns a second.
const PROBER_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Running probers, one per cluster.
pub struct ClusterProbers {
    running: Mutex<HashMap<String, RunningProber>>,
    requeue_sender: mpsc::Sender<ObjectRef<RealtimeCluster>>,
    shutdown: CancellationToken,
}

/// Namespace and name of a cluster.
struct ClusterName {
    namespace: String,
    name: String,
}

/// Prober of one cluster, and the counts that outlive a reconcile.
pub struct RunningProber {
    uid: String,
    cluster: ClusterName,
    current: ProberTask,
    app: AppId,
    /// The prober of pods of former templates, while one of them waits for admission: its evidence counts for them alone.
    former: Option<ProberTask>,
    /// Number of pods that were admitted on record.
    pub on_record: usize,
}

/// A running prober and the token that stops it.
struct ProberTask {
    prober: Prober,
    stop: CancellationToken,
}

impl ProberTask {
    /// Sends the plan, unless it asks for the journeys that are running.
    fn update_plan(&self, plan: ProbePlan) {
        if !self.prober.plan.borrow().is_same_as(&plan) {
            self.prober.plan.send_replace(Arc::new(plan));
        }
    }
}

/// Latest results of a prober.
pub struct ProberFindings {
    /// The verdict; `None` before the first observation.
    pub verdict: Option<Verdict>,
    /// The state of each pod, by name.
    pub standings: BTreeMap<String, PodStanding>,
    /// Number of pods that were admitted on record.
    pub on_record: usize,
    /// The latest requested proof.
    pub requested: Option<RequestedProof>,
    /// Time in force between two rounds once the gate is open; `None` before the prober runs.
    pub effective_interval: Option<Duration>,
}

impl ClusterProbers {
    /// Starts without probers. A prober with new findings requeues its cluster through `requeue_sender`.
    pub fn new(requeue_sender: mpsc::Sender<ObjectRef<RealtimeCluster>>, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { running: Mutex::default(), requeue_sender, shutdown })
    }

    /// Stops the probers of clusters that do not exist any more.
    pub fn stop_for_removed_clusters(&self, context: &ControllerContext, store: &Store<RealtimeCluster>) {
        self.lock_running().retain(|name, running| {
            let exists = store.state().iter().any(|cluster| {
                object_key(&**cluster) == *name && cluster.uid().as_deref() == Some(running.uid.as_str())
            });
            if !exists {
                running.shut_down(context);
            }
            exists
        });
    }

    /// Stops the prober of a cluster that is being deleted.
    pub fn stop_for_cluster(&self, context: &ControllerContext, cluster: &RealtimeCluster) {
        if let Some(running) = self.lock_running().remove(&object_key(cluster)) {
            running.shut_down(context);
        }
    }

    fn lock_running(&self) -> MutexGuard<'_, HashMap<String, RunningProber>> {
        lock_unpoisoned(&self.running)
    }

    /// Sends the plan to the cluster's prober, or starts one, and returns the prober's latest findings.
    ///
    /// # Errors
    /// The journeys cannot start.
    pub fn update_plan(
        &self,
        context: &ControllerContext,
        cluster: &RealtimeCluster,
        plan: ProbePlan,
    ) -> Result<ProberFindings, ReconcileError> {
        let (name, uid) = (object_key(cluster), cluster.uid().unwrap_or_default());
        let mut all = self.lock_running();
        if all.get(&name).is_some_and(|running| running.uid != uid)
            && let Some(old) = all.remove(&name)
        {
            old.shut_down(context);
        }
        let Some(running) = all.get_mut(&name) else {
            let running = self.start_for_cluster(context, cluster, plan)?;
            let findings = ProberFindings {
                verdict: None,
                standings: BTreeMap::new(),
                on_record: 0,
                requested: None,
                effective_interval: None,
            };
            all.insert(name, running);
            return Ok(findings);
        };
        if running.current.prober.plan.borrow().fingerprint != plan.fingerprint {
            running.on_record = 0;
        }
        running.current.update_plan(plan);
        let verdict = running.current.prober.verdicts.borrow().clone();
        running.report_evidence(&context.metrics, &verdict);
        Ok(ProberFindings {
            // Before its first observation a prober knows no transport, and its verdict means nothing.
            verdict: (!verdict.transports.is_empty()).then_some(verdict),
            standings: running.current.prober.pods.borrow().clone(),
            on_record: running.on_record,
            requested: running.current.prober.requested.borrow().clone(),
            effective_interval: Some(*running.current.prober.effective_interval.borrow()),
        })
    }

    fn start_for_cluster(
        &self,
        context: &ControllerContext,
        cluster: &RealtimeCluster,
        plan: ProbePlan,
    ) -> Result<RunningProber, ReconcileError> {
        let app = plan.app.id.clone();
        let current = self.start_prober(context, cluster, plan, "prober")?;
        let uid = cluster.uid().unwrap_or_default();
        let cluster = ClusterName { namespace: cluster.namespace().unwrap_or_default(), name: cluster.name_any() };
        Ok(RunningProber { uid, cluster, current, app, former: None, on_record: 0 })
    }

    /// Sends the plan of pods of a former template to their prober, starts it with the first plan, and stops it without
    /// one. Returns the state of those pods.
    ///
    /// # Errors
    /// The journeys cannot start.
    pub fn update_former_plan(
        &self,
        context: &ControllerContext,
        cluster: &RealtimeCluster,
        plan: Option<ProbePlan>,
    ) -> Result<BTreeMap<String, PodStanding>, ReconcileError> {
        let mut all = self.lock_running();
        let Some(running) = all.get_mut(&object_key(cluster)) else { return Ok(BTreeMap::new()) };
        let Some(plan) = plan else {
            if let Some(former) = running.former.take() {
                former.stop.cancel();
            }
            return Ok(BTreeMap::new());
        };
        let Some(former) = &running.former else {
            running.former = Some(self.start_prober(context, cluster, plan, "prober of former pods")?);
            return Ok(BTreeMap::new());
        };
        former.update_plan(plan);
        Ok(former.prober.pods.borrow().clone())
    }

    /// Starts a prober that requeues its cluster with each new finding.
    fn start_prober(
        &self,
        context: &ControllerContext,
        cluster: &RealtimeCluster,
        plan: ProbePlan,
        name: &str,
    ) -> Result<ProberTask, ReconcileError> {
        let stop = self.shutdown.child_token();
        let task = format!("{name} of {}", object_key(cluster));
        let heartbeat = context.heartbeats.register(task, Some(PROBER_SILENCE_MAX), &stop);
        let reports =
            ProberReports { heartbeat, metrics: context.metrics.journeys.clone(), budget: context.journeys.share() };
        let prober = prober::start(plan, context.receiver.clone(), reports, stop.clone())
            .map_err(|error| ReconcileError::transient(Reason::Proving, format!("journeys cannot start: {error}")))?;
        let (mut verdicts, mut pods, mut proofs) =
            (prober.verdicts.clone(), prober.pods.clone(), prober.requested.clone());
        let (requeue_sender, reference, ended) = (self.requeue_sender.clone(), cluster_ref(cluster), stop.clone());
        tokio::spawn(async move {
            loop {
                let open = tokio::select! {
                    () = ended.cancelled() => false,
                    changed = verdicts.changed() => changed.is_ok(),
                    changed = pods.changed() => changed.is_ok(),
                    changed = proofs.changed() => changed.is_ok(),
                };
                if !open || requeue_sender.send(reference.clone()).await.is_err() {
                    return;
                }
            }
        });
        Ok(ProberTask { prober, stop })
    }

    /// The latest verdict on a cluster, whatever plan it was reached by; `None` without a prober.
    pub fn latest_verdict(&self, cluster: &RealtimeCluster) -> Option<Verdict> {
        let all = self.lock_running();
        let running =
            all.get(&object_key(cluster)).filter(|running| Some(running.uid.as_str()) == cluster.uid().as_deref())?;
        Some(running.current.prober.verdicts.borrow().clone())
    }

    /// The state of each pod of a cluster, by name; empty without a prober.
    pub fn standings(&self, cluster: &RealtimeCluster) -> BTreeMap<String, PodStanding> {
        let all = self.lock_running();
        let running = all.get(&object_key(cluster));
        let running = running.filter(|running| Some(running.uid.as_str()) == cluster.uid().as_deref());
        running.map(|running| running.current.prober.pods.borrow().clone()).unwrap_or_default()
    }

    /// The endpoints that each dispatcher of a cluster reported; empty without a prober.
    pub fn endpoint_reports(&self, cluster: &RealtimeCluster) -> Arc<EndpointReports> {
        let all = self.lock_running();
        let running = all.get(&object_key(cluster));
        let running = running.filter(|running| Some(running.uid.as_str()) == cluster.uid().as_deref());
        running.map(|running| Arc::clone(&running.current.prober.endpoints.borrow())).unwrap_or_default()
    }

    /// Sessions of clients at the edges of a cluster, those of pods of a former template too; empty without a prober.
    pub fn sessions(&self, cluster: &RealtimeCluster) -> Vec<Arc<EdgeSessions>> {
        self.read_tasks(cluster, |task| task.prober.shedder.sessions())
    }

    /// The means to have clients of a cluster's edges reconnect; empty without a prober.
    pub fn shedders(&self, cluster: &RealtimeCluster) -> Vec<SessionShedder> {
        self.read_tasks(cluster, |task| task.prober.shedder.clone())
    }

    fn read_tasks<T>(&self, cluster: &RealtimeCluster, read: impl Fn(&ProberTask) -> T) -> Vec<T> {
        let all = self.lock_running();
        let running = all.get(&object_key(cluster));
        let running = running.filter(|running| Some(running.uid.as_str()) == cluster.uid().as_deref());
        running.iter().flat_map(|running| iter::once(&running.current).chain(&running.former)).map(read).collect()
    }

    /// Changes the counts of a cluster's prober.
    pub fn update_counts(&self, cluster: &RealtimeCluster, count: impl FnOnce(&mut RunningProber)) {
        if let Some(running) = self.lock_running().get_mut(&object_key(cluster)) {
            count(running);
        }
    }
}

impl RunningProber {
    fn report_evidence(&self, metrics: &OperatorMetrics, verdict: &Verdict) {
        let ClusterName { namespace, name } = &self.cluster;
        let interval = *self.current.prober.round_interval.borrow();
        metrics.series.round_interval_seconds.set(namespace, name, interval.as_secs_f64());
        if let Some(passed_ms) = verdict.passed_ms {
            let age = Duration::from_millis(clock::now_ms().saturating_sub(passed_ms));
            metrics.series.evidence_age_seconds.set(namespace, name, age.as_secs_f64());
        }
    }

    fn shut_down(&self, context: &ControllerContext) {
        for task in iter::once(&self.current).chain(&self.former) {
            task.stop.cancel();
        }
        let series = &context.metrics.series;
        series.evidence_age_seconds.remove(&self.cluster.namespace, &self.cluster.name);
        series.round_interval_seconds.remove(&self.cluster.namespace, &self.cluster.name);
        context.registries.forget(&self.uid);
        context.rendered.forget(&self.uid);
        context.receiver.forget_app(&self.app);
    }
}
