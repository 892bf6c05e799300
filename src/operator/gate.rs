//! The controller of the gate: keeps journeys running, lets pods in, and is the only one to say Ready.
//!
//! Journeys never run within a turn: a turn tells the prober what there is to prove, reads what it found, and acts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::{ObjectRef, Store};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::admission::{self, Step};
use super::context::{Context, Shared, Stop, key, reference};
use super::decide::{self, Inputs, OWNS, is_open, was_proven};
use super::dereference::{self, Read};
use super::paths::paths;
use super::pods::ServerPod;
use super::status::{self, Part};
use crate::api::cluster::{RealtimeClusterStatus, WebhooksMode};
use crate::api::{RealtimeCluster, Reason};
use crate::contract::Server;
use crate::desired::build::{READINESS_GATE, SECRETS, TEMPLATE, pod_labels};
use crate::desired::{self, Cluster, Desired};
use crate::gate::{Policy, Verdict};
use crate::probe::{self, FormerApps, Plan, PodStanding, ProbeApp, Prober, Proof};
use crate::protocol::{AppId, Transport};
use crate::runtime::admission::ANNOTATION;

/// Between two turns when nothing tells of news.
const STEADY: Duration = Duration::from_secs(5);

/// A remark on a pod that was let in and does not serve.
const REMINDED: &str = "realtime-operator.dev/reminded";

/// How long pods may know the registry of before. Pushed, kubelet takes half a second.
const LEARNING: Duration = Duration::from_secs(30);

/// The probers of all clusters.
pub struct Probers {
    running: Mutex<HashMap<String, Running>>,
    news: mpsc::Sender<ObjectRef<RealtimeCluster>>,
    shutdown: CancellationToken,
}

/// One cluster's prober.
struct Running {
    uid: String,
    prober: Prober,
    stop: CancellationToken,
    app: AppId,
    /// The registry as it was, and until when pods may have it without a word.
    former: Option<(BTreeMap<AppId, String>, Instant)>,
    /// Pods replaced in a row, by server.
    replaced: BTreeMap<Server, usize>,
    /// Pods let in on record.
    on_record: usize,
}

/// What a prober found.
struct Findings {
    verdict: Option<Verdict>,
    standings: BTreeMap<String, PodStanding>,
    replaced: BTreeMap<Server, usize>,
    on_record: usize,
}

impl Probers {
    /// No prober yet. News are told by the reference of the cluster they are about.
    pub fn new(news: mpsc::Sender<ObjectRef<RealtimeCluster>>, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { running: Mutex::default(), news, shutdown })
    }

    /// Ends the probers of clusters that are gone.
    pub fn forget(&self, context: &Context, store: &Store<RealtimeCluster>) {
        self.lock().retain(|name, running| {
            let there = store
                .state()
                .iter()
                .any(|cluster| key(cluster) == *name && cluster.uid().as_deref() == Some(running.uid.as_str()));
            if !there {
                running.end(context);
            }
            there
        });
    }

    /// Ends the prober of a cluster that goes.
    fn end(&self, context: &Context, cluster: &RealtimeCluster) {
        if let Some(running) = self.lock().remove(&key(cluster)) {
            running.end(context);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the prober what there is to prove, starts it if there is none, and reads what it found.
    fn tell(&self, context: &Context, cluster: &RealtimeCluster, mut plan: Plan) -> Result<Findings, Stop> {
        let (name, uid) = (key(cluster), cluster.uid().unwrap_or_default());
        let mut all = self.lock();
        if all.get(&name).is_some_and(|running| running.uid != uid)
            && let Some(old) = all.remove(&name)
        {
            old.end(context);
        }
        let Some(running) = all.get_mut(&name) else {
            let running = self.start(context, cluster, plan)?;
            let findings =
                Findings { verdict: None, standings: BTreeMap::new(), replaced: BTreeMap::new(), on_record: 0 };
            all.insert(name, running);
            return Ok(findings);
        };
        let before = running.prober.plan.borrow().clone();
        let now = Instant::now();
        if before.app_digests != plan.app_digests {
            running.former = Some((before.app_digests.clone(), now + LEARNING));
        }
        let former = running.former.as_ref();
        plan.former_apps =
            former.map(|(digests, until)| FormerApps { digests: digests.clone(), learning: now < *until });
        if before.fingerprint != plan.fingerprint {
            running.replaced.clear();
            running.on_record = 0;
        }
        if !same(&before, &plan) {
            running.prober.plan.send_replace(Arc::new(plan));
        }
        let verdict = running.prober.verdicts.borrow().clone();
        Ok(Findings {
            // Until it looked at anything, a prober that took over knows no transport.
            verdict: (!verdict.transports.is_empty()).then_some(verdict),
            standings: running.prober.pods.borrow().clone(),
            replaced: running.replaced.clone(),
            on_record: running.on_record,
        })
    }

    fn start(&self, context: &Context, cluster: &RealtimeCluster, plan: Plan) -> Result<Running, Stop> {
        let stop = self.shutdown.child_token();
        let app = plan.app.id.clone();
        let prober = probe::start(plan, context.receiver.clone(), stop.clone())
            .map_err(|error| Stop::waiting(Reason::Proving, format!("journeys cannot be started: {error}")))?;
        let (mut verdicts, mut pods) = (prober.verdicts.clone(), prober.pods.clone());
        let (news, reference, ended) = (self.news.clone(), reference(cluster), stop.clone());
        tokio::spawn(async move {
            loop {
                let open = tokio::select! {
                    () = ended.cancelled() => false,
                    changed = verdicts.changed() => changed.is_ok(),
                    changed = pods.changed() => changed.is_ok(),
                };
                if !open || news.send(reference.clone()).await.is_err() {
                    return;
                }
            }
        });
        let uid = cluster.uid().unwrap_or_default();
        Ok(Running { uid, prober, stop, app, former: None, replaced: BTreeMap::new(), on_record: 0 })
    }

    fn count(&self, cluster: &RealtimeCluster, count: impl FnOnce(&mut Running)) {
        if let Some(running) = self.lock().get_mut(&key(cluster)) {
            count(running);
        }
    }
}

impl Running {
    fn end(&self, context: &Context) {
        self.stop.cancel();
        context.receiver.forget(&self.app);
    }
}

/// Whether two plans ask for the same.
fn same(one: &Plan, other: &Plan) -> bool {
    one.fingerprint == other.fingerprint
        && one.transports == other.transports
        && one.webhooks == other.webhooks
        && one.edges == other.edges
        && one.paths == other.paths
        && one.dispatchers == other.dispatchers
        && one.app_digests == other.app_digests
        && one.former_apps == other.former_apps
        && one.admin_token.expose() == other.admin_token.expose()
        && one.app.key == other.app.key
}

/// One turn.
///
/// # Errors
/// The API server does not answer. What keeps the cluster from being Ready is no error of the turn.
pub async fn reconcile(context: &Shared, probers: &Probers, cluster: &RealtimeCluster) -> Result<Action, Stop> {
    let known = cluster.status.clone().unwrap_or_default();
    let webhooks = cluster.spec.webhooks.mode == WebhooksMode::Kinesis;
    let deadline = i64::from(cluster.spec.gate.deadline_seconds);
    let built = if cluster.metadata.deletion_timestamp.is_some() {
        probers.end(context, cluster);
        Err(Stop::waiting(Reason::Deleting, "the servers end first; the stream stays"))
    } else {
        build(context, cluster).await
    };
    let looked = match &built {
        Ok(built) => Some(look(context, probers, cluster, built, &known).await?),
        Err(_) => None,
    };
    let refusal = looked.as_ref().and_then(|looked| {
        let refuses = |pod: &&ServerPod| pod.current && pod.refusal.is_some();
        let pod = looked.pods.iter().find(refuses)?;
        Some(format!("{}: {}", pod.name, pod.refusal.as_deref().unwrap_or_default()))
    });
    let decision = decide::decide(&Inputs {
        stop: built.as_ref().err(),
        refusal: refusal.as_deref(),
        verdict: looked.as_ref().and_then(|looked| looked.findings.verdict.as_ref()),
        webhooks,
        fingerprint: looked.as_ref().map_or("", |looked| &looked.fingerprint),
        on_record: looked.as_ref().map_or(0, |looked| looked.findings.on_record),
        known: &known,
        generation: cluster.metadata.generation,
        deadline,
        now: Timestamp::now(),
    });
    tell_turn(context, cluster, &known, &decision).await;
    let mut fields = Map::new();
    fields.insert("observedGeneration".to_owned(), json!(cluster.metadata.generation));
    fields.insert("gate".to_owned(), json!(decision.gate));
    fields.insert("transports".to_owned(), json!(decision.transports));
    let part = Part { manager: "realtime-operator-gate", owns: OWNS, said: decision.said, fields };
    status::write(context, cluster, part).await?;
    Ok(Action::requeue(STEADY))
}

/// An Event when Ready turns.
async fn tell_turn(
    context: &Context,
    cluster: &RealtimeCluster,
    known: &RealtimeClusterStatus,
    decision: &decide::Decision,
) {
    let Some(ready) = decision.said.first() else { return };
    let before = known.conditions.iter().find(|condition| condition.type_ == ready.kind);
    if before.is_some_and(|before| before.status == ready.status && before.reason == ready.reason.name()) {
        return;
    }
    let kind = if ready.status == "False" { EventType::Warning } else { EventType::Normal };
    let note = format!("Ready is {}: {}", ready.status, ready.message);
    context.tell(cluster, kind, ready.reason.name(), "Judge", note).await;
}

/// What there is to be proven.
struct Built {
    read: Read,
    valid: Cluster,
    desired: Desired,
}

async fn build(context: &Context, cluster: &RealtimeCluster) -> Result<Built, Stop> {
    let read = dereference::read(context, cluster, true).await?;
    let (valid, made) = dereference::validate(context, cluster, &read)?;
    if !made.is_empty() {
        return Err(Stop::waiting(Reason::RollingOut, "waiting for generated secrets"));
    }
    let desired = desired::build(&valid).map_err(|error| Stop::terminal(Reason::SpecInvalid, error.to_string()))?;
    Ok(Built { read, valid, desired })
}

struct Looked {
    pods: Vec<ServerPod>,
    fingerprint: String,
    findings: Findings,
}

/// Looks at the pods, tells the prober of them, and lets in and replaces as it found.
async fn look(
    context: &Context,
    probers: &Probers,
    cluster: &RealtimeCluster,
    built: &Built,
    known: &RealtimeClusterStatus,
) -> Result<Looked, Stop> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let listed = api.list(&ListParams::default().labels(&pod_labels(&cluster.name_any()))).await;
    let listed = listed.map_err(|error| Stop::call("listing pods", &error))?;
    let read = |pod| ServerPod::read(pod, &built.valid, &built.desired);
    let pods: Vec<ServerPod> = listed.items.iter().filter_map(read).collect();
    let services: Api<Service> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let services = services.list(&ListParams::default().labels(&pod_labels(&cluster.name_any()))).await;
    let services = services.map_err(|error| Stop::call("listing Services", &error))?.items;
    let fingerprint = fingerprint(known, built);
    let passed = was_proven(known, &fingerprint);
    let proof = match (passed, is_open(known, &fingerprint, Timestamp::now())) {
        (_, true) => Proof::Holds,
        (true, false) => Proof::Lapsed,
        (false, false) => Proof::Never,
    };
    let plan = plan(cluster, built, (&pods, &services), fingerprint.clone(), proof).await?;
    let mut findings = probers.tell(context, cluster, plan)?;
    let now = Timestamp::now().as_second();
    for step in admission::decide(&pods, &findings.standings, passed, &findings.replaced, now) {
        match step {
            Step::Admit { pod, configuration, on_record } => {
                admit(context, &api, &pod, &configuration, on_record).await?;
                let server = pods.iter().find(|found| found.name == pod).map(|pod| pod.server);
                probers.count(cluster, |running| {
                    running.on_record += usize::from(on_record);
                    running.replaced.retain(|replaced, _| Some(*replaced) != server);
                });
                findings.on_record += usize::from(on_record);
                if on_record {
                    let note = format!("{pod} was let in on record: what it runs was proven before");
                    context.tell(cluster, EventType::Warning, Reason::AdmittedOnRecord.name(), "Admit", note).await;
                }
            }
            Step::Remind { pod, remark } => {
                annotate(context, &api, &pod, (REMINDED, &remark)).await?;
            }
            Step::Replace { pod, uid } => {
                replace(context, cluster, &api, &pod, uid).await?;
                let server = pods.iter().find(|found| found.name == pod).map(|pod| pod.server);
                probers.count(cluster, |running| {
                    if let Some(server) = server {
                        *running.replaced.entry(server).or_default() += 1;
                    }
                });
            }
        }
    }
    Ok(Looked { pods, fingerprint, findings })
}

/// Names what is proven: the templates, the Secrets read at their start, the stream. Tags and intervals do not count.
fn fingerprint(known: &RealtimeClusterStatus, built: &Built) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (server, deployment) in &built.desired.deployments {
        let annotations = deployment.spec.template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
        let of = |name: &str| annotations.and_then(|all| all.get(name)).cloned().unwrap_or_default();
        lines.push(format!("{server} {} {}", of(TEMPLATE), of(SECRETS)));
    }
    if let Some(stream) = &known.stream {
        lines.push(format!("stream {} {}", stream.arn, stream.created_ms));
    }
    hex::encode(&Sha256::digest(lines.join("\n"))[..8])
}

async fn plan(
    cluster: &RealtimeCluster,
    built: &Built,
    (pods, services): (&[ServerPod], &[Service]),
    fingerprint: String,
    proof: Proof,
) -> Result<Plan, Stop> {
    let Built { read, valid, desired } = built;
    let edges = pods.iter().filter(|pod| pod.current && pod.server != Server::Dispatcher);
    // One of the former template holds its shards until another is let in.
    let dispatchers =
        pods.iter().filter(|pod| pod.server == Server::Dispatcher && (pod.current || pod.admitted.is_some()));
    let webhooks = valid.spec.webhooks.mode == WebhooksMode::Kinesis;
    let stream = match &read.stream {
        Some(stream) if webhooks => {
            Some(dereference::stream_client(cluster, stream.name.clone(), &read.secrets).await?)
        }
        _ => None,
    };
    let gate = &valid.spec.gate;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let transports: BTreeSet<Transport> =
        Transport::ALL.into_iter().filter(|transport| valid.serves(*transport)).collect();
    Ok(Plan {
        fingerprint,
        proof,
        max_backoff: seconds(valid.spec.webhooks.dispatcher.max_backoff_seconds),
        paths: paths(&valid.name, services, pods, &transports),
        transports,
        webhooks,
        edges: edges.filter_map(|pod| pod.edge(valid, desired, &read.secrets)).collect(),
        dispatchers: dispatchers.filter_map(|pod| pod.dispatcher(valid, desired, &read.secrets)).collect(),
        app: ProbeApp { id: valid.probe.id.clone(), key: valid.probe.key.clone(), secret: valid.probe.secret.clone() },
        app_digests: valid.registry.digests(valid.admin_token.expose()),
        former_apps: None,
        admin_token: valid.admin_token.clone(),
        stream,
        policy: Policy {
            interval: seconds(gate.interval_seconds),
            timeout: seconds(gate.timeout_seconds),
            open_after: gate.open_after as usize,
            close_after: gate.close_after as usize,
            ..Policy::default()
        },
    })
}

/// Lets a pod in: the annotation is what its own `/readyz` waits for, the condition what Services wait for.
async fn admit(context: &Context, api: &Api<Pod>, pod: &str, configuration: &str, on_record: bool) -> Result<(), Stop> {
    if !annotate(context, api, pod, (ANNOTATION, configuration)).await? {
        return Ok(());
    }
    let reason = if on_record { Reason::AdmittedOnRecord } else { Reason::Proven };
    let condition = json!({ "status": { "conditions": [{
        "type": READINESS_GATE,
        "status": "True",
        "reason": reason.name(),
        "lastTransitionTime": Timestamp::now().to_string(),
    }] } });
    context.leading()?;
    match api.patch_status(pod, &own(), &Patch::Strategic(condition)).await {
        Ok(_) => {
            tracing::info!(pod, on_record, "let in");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Stop::call(&format!("opening the readiness gate of {pod}"), &error)),
    }
}

/// Writes an annotation; for kubelet, a reason to look at the pod. `false` when the pod is gone.
async fn annotate(context: &Context, api: &Api<Pod>, pod: &str, (key, value): (&str, &str)) -> Result<bool, Stop> {
    context.leading()?;
    let annotation = json!({ "metadata": { "annotations": { key: value } } });
    match api.patch(pod, &own(), &Patch::Merge(annotation)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(Stop::call(&format!("letting {pod} in"), &error)),
    }
}

fn own() -> PatchParams {
    PatchParams { field_manager: Some("realtime-operator".to_owned()), ..PatchParams::default() }
}

async fn replace(
    context: &Context,
    cluster: &RealtimeCluster,
    api: &Api<Pod>,
    pod: &str,
    uid: String,
) -> Result<(), Stop> {
    context.leading()?;
    let preconditions = Preconditions { uid: Some(uid), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(pod, &parameters).await {
        Ok(_) => {
            let note = format!("{pod} is told something else than its template says, and never served: it is replaced");
            context.tell(cluster, EventType::Warning, Reason::ConfigurationDrift.name(), "Replace", note).await;
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(Stop::call(&format!("replacing {pod}"), &error)),
    }
}
