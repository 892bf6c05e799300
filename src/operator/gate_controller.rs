//! Reconciles the gate: keeps journeys running, admits pods, and is the only controller that sets Ready.
//!
//! Journeys never run within a reconcile: a reconcile updates the prober's plan, reads its findings, and acts on them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use kube::runtime::events::EventType;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::cluster_probers::{ClusterProbers, ProberFindings};
use super::conditions::{self, OWNED_CONDITIONS, StatusInputs, is_open, was_proven};
use super::context::{ControllerContext, SharedContext};
use super::dereference;
use super::external_routes::{ExternalInputs, plan_external_routes};
use super::gate_times::{publish_interval_event, report_interval, round_up_seconds};
use super::missing_identity::explain_missing_identity;
use super::pod_admission::{self, AdmissionStep};
use super::pod_annotation::{annotate_pod, patch_parameters};
use super::pods::{PodReader, ServerPod, count_wanted_pods, explain_refusal};
use super::reconcile_error::ReconcileError;
use super::registry_histories::begin_history;
use super::rendered_clusters::RenderedCluster;
use super::rendering::render_cluster;
use super::requested_proof::{decide_proof_status, find_open_request, is_new_request};
use super::secret_reader::SecretUser;
use super::service_routes::find_service_routes;
use super::status::{self, StatusPatch};
use super::suspension::keep_applied;
use crate::api::cluster::{GateStatus, PodReplacements, RealtimeClusterStatus, StreamDeletionPolicy, WebhooksMode};
use crate::api::{RealtimeCluster, Reason};
use crate::config::ServerKind;
use crate::desired::render::{READINESS_GATE, TEMPLATE_ANNOTATION, template_mark};
use crate::desired::{DesiredObjects, SecretTexts, decode_secret, estimate_rollout};
use crate::gate::GatePolicy;
use crate::prober::{ExternalPlan, JourneyProof, ProbePlan, ServiceRoute, TlsTrust};
use crate::process::readiness_annotation::ADMITTED_ANNOTATION;

/// Time between two reconciles without an event; changed pods and findings of the prober trigger earlier ones.
const RESYNC_INTERVAL: Duration = Duration::from_secs(5);

/// Annotation that is changed to make kubelet refresh the downward-API file of an admitted pod.
const REMINDED_ANNOTATION: &str = "realtime-operator.dev/reminded";

/// Reconciles the gate of one cluster, and returns the time until the next reconcile without a change.
///
/// # Errors
/// The API server does not answer. An error that keeps the cluster from being Ready goes into the status instead.
pub async fn reconcile(
    context: &SharedContext,
    probers: &ClusterProbers,
    cluster: &RealtimeCluster,
) -> Result<Option<Duration>, ReconcileError> {
    let known = cluster.status.clone().unwrap_or_default();
    // Read from the manifest: one that is invalid has a status too.
    let webhooks = cluster.spec.webhooks.mode == WebhooksMode::Kinesis;
    let deadline = i64::from(cluster.spec.gate.deadline_seconds);
    let built = if cluster.metadata.deletion_timestamp.is_some() {
        probers.stop_for_cluster(context, cluster);
        let fate = match cluster.spec.webhooks.stream.deletion_policy {
            StreamDeletionPolicy::Retain => "the servers terminate first; the stream is kept",
            StreamDeletionPolicy::Delete => "the servers terminate first; then the stream is deleted",
        };
        Err(ReconcileError::transient(Reason::Deleting, fate))
    } else {
        Box::pin(render_judged_cluster(context, cluster, &known)).await
    };
    let observation = match &built {
        Ok(built) => Some(observe_and_admit(context, probers, cluster, built, &known).await?),
        Err(_) => None,
    };
    let refusal = observation.as_ref().and_then(|observation| {
        // A server refuses to start without its identity, which has a reason of its own.
        let refuses = |pod: &&ServerPod| pod.current && pod.refusal.is_some() && !pod.audit.only_lacks_identity();
        let pod = observation.pods.iter().find(refuses)?;
        Some(format!("{}: {}", pod.name, explain_refusal(pod.refusal.as_deref().unwrap_or_default())))
    });
    let difference = observation.as_ref().and_then(|observation| {
        let explain_identity = |server| explain_missing_identity(cluster, server);
        pod_admission::describe_difference(&observation.pods, &observation.replacements, explain_identity)
    });
    // Without an observation the journeys run on by the last plan.
    let latest = if observation.is_none() { probers.latest_verdict(cluster) } else { None };
    let decision = conditions::decide_status(&StatusInputs {
        error: built.as_ref().err(),
        startup_refusal: refusal.as_deref(),
        pod_difference: difference.as_ref(),
        verdict: observation.as_ref().map_or(latest.as_ref(), |observation| observation.findings.verdict.as_ref()),
        webhooks,
        fingerprint: observation.as_ref().map_or("", |observation| &observation.fingerprint),
        on_record: observation.as_ref().map_or(0, |observation| observation.findings.on_record),
        known: &known,
        generation: cluster.metadata.generation,
        suspended: cluster.spec.suspend,
        deadline,
        inherited_max: context.inherited_evidence_max,
        now: Timestamp::now(),
    });
    publish_ready_event(context, cluster, &known, &decision).await;
    let mut fields = Map::new();
    fields.insert("observedGeneration".to_owned(), json!(cluster.metadata.generation));
    let proof = observation.as_ref().and_then(|observation| observation.findings.requested.as_ref());
    let requested_proof = decide_proof_status(cluster, &known, proof, Timestamp::now());
    let gate = match &observation {
        Some(GateObservation { pods, replacements, findings, estimated_seconds, .. }) => {
            let known = known.gate.as_ref().and_then(|gate| gate.effective_interval_seconds);
            let interval = findings.effective_interval.map(|interval| report_interval(known, interval));
            GateStatus {
                replacements: replacements.clone(),
                injectors: list_injectors(pods),
                effective_interval_seconds: interval.or(known),
                estimated_seconds: Some(*estimated_seconds),
                ..decision.gate
            }
        }
        // The decision keeps what is known.
        None => decision.gate,
    };
    let gate = GateStatus { requested_proof, ..gate };
    publish_interval_event(context, cluster, known.gate.as_ref(), gate.effective_interval_seconds).await;
    fields.insert("gate".to_owned(), json!(gate));
    fields.insert("transports".to_owned(), json!(decision.transports));
    let part = StatusPatch {
        manager: "realtime-operator-gate",
        owned_conditions: OWNED_CONDITIONS,
        conditions: decision.conditions,
        fields,
    };
    status::write(context, cluster, part).await?;
    // After their count is stored: another leader would not know of them.
    for step in observation.iter().flat_map(|observation| &observation.replaced) {
        replace_pod(context, cluster, step).await?;
    }
    Ok(Some(RESYNC_INTERVAL))
}

/// Publishes an Event when the status or reason of Ready changes.
async fn publish_ready_event(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: &RealtimeClusterStatus,
    decision: &conditions::StatusDecision,
) {
    let Some(ready) = decision.conditions.first() else { return };
    let before = known.find_condition(ready.kind);
    if before.is_some_and(|before| before.status == ready.status && before.reason == ready.reason.name()) {
        return;
    }
    let kind = if ready.status == "False" { EventType::Warning } else { EventType::Normal };
    let note = format!("Ready is {}: {}", ready.status, ready.message);
    context.publish_change(cluster, kind, ready.reason.name(), "Judge", note).await;
}

/// The cluster by which pods are judged: as it is rendered, or as it was applied last while it is suspended. A request for a
/// proof reads Secrets again first.
async fn render_judged_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: &RealtimeClusterStatus,
) -> Result<Arc<RenderedCluster>, ReconcileError> {
    let mut rendered = render_stored_cluster(context, cluster).await?;
    if find_open_request(cluster, known).is_some_and(|token| is_new_request(&token, known)) {
        for name in rendered.read.secrets.keys() {
            context.secrets.forget(&rendered.valid.namespace, name);
        }
        rendered = render_stored_cluster(context, cluster).await?;
    }
    if cluster.spec.suspend {
        rendered = Arc::new(keep_applied(&rendered, &context.live.deployments_of(cluster)));
    }
    Ok(rendered)
}

/// The rendered cluster, once its own generated values are stored. An app without credentials is not served yet, which is
/// no state of the cluster.
async fn render_stored_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Arc<RenderedCluster>, ReconcileError> {
    let rendered = render_cluster(context, cluster).await?;
    if rendered.fresh.is_empty() {
        Ok(rendered)
    } else {
        Err(ReconcileError::transient(Reason::RollingOut, "waiting for generated secrets"))
    }
}

/// Live objects of a cluster.
struct ObservedObjects<'a> {
    pods: &'a [ServerPod],
    services: &'a [Service],
}

struct GateObservation {
    pods: Vec<ServerPod>,
    /// The replacements that count, with those of this turn.
    replacements: Vec<PodReplacements>,
    /// The steps that replace pods in this turn.
    replaced: Vec<AdmissionStep>,
    fingerprint: String,
    findings: ProberFindings,
    estimated_seconds: u32,
}

/// Names the injectors of all pods.
fn list_injectors(pods: &[ServerPod]) -> Vec<String> {
    let names: BTreeSet<&String> = pods.iter().flat_map(|pod| &pod.audit.injectors).collect();
    names.into_iter().cloned().collect()
}

/// Reads the pods, updates the prober's plan, and admits pods by the findings.
async fn observe_and_admit(
    context: &ControllerContext,
    probers: &ClusterProbers,
    cluster: &RealtimeCluster,
    built: &RenderedCluster,
    known: &RealtimeClusterStatus,
) -> Result<GateObservation, ReconcileError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let live = context.live.pods_of(cluster);
    let reader = PodReader { cluster: &built.valid, desired: &built.desired, injectors: &context.known_injectors };
    let live = context.live.pair_with_templates(cluster, &live);
    let pods: Vec<ServerPod> = live.iter().filter_map(|(pod, template)| reader.read(pod, template)).collect();
    let services = context.live.services_of(cluster);
    let fingerprint = compute_fingerprint(known, &built.desired);
    let passed = was_proven(known, &fingerprint);
    let inherited_max = context.inherited_evidence_max;
    let passed_ms = conditions::passed_ms(known).unwrap_or_default();
    let proof = match (passed, is_open(known, &fingerprint, Timestamp::now(), inherited_max)) {
        (_, true) => JourneyProof::Holds { passed_ms },
        (true, false) => JourneyProof::Lapsed { passed_ms },
        (false, false) => JourneyProof::Never,
    };
    let observed = ObservedObjects { pods: &pods, services: &services };
    let registry = context.registries.of_cluster(cluster);
    // The registry of a suspended cluster is written later.
    if !built.read.awaits_credentials() && !cluster.spec.suspend {
        begin_history(&registry, &built.valid);
    }
    let plan = build_plan(context, cluster, built, observed, fingerprint.clone(), proof).await?;
    let plan = ProbePlan { registry, requested: find_open_request(cluster, known), ..plan };
    let former = build_former_plan(context, cluster, built, &pods, &plan).await?;
    let mut findings = probers.update_plan(context, cluster, plan)?;
    let former = probers.update_former_plan(context, cluster, former)?;
    // The dispatchers of that plan are those of the cluster, on whom the main prober decides.
    let is_former = |name: &String| pods.iter().any(|pod| is_former_edge(pod) && pod.name == *name);
    findings.standings.extend(former.into_iter().filter(|(name, _)| is_former(name)));
    let now = Timestamp::now();
    let deployments = built.desired.deployments.iter();
    let rendered: Vec<&str> =
        deployments.filter_map(|(_, found)| template_mark(&found.spec.template, TEMPLATE_ANNOTATION)).collect();
    let known_replacements = known.gate.as_ref().map(|gate| gate.replacements.as_slice()).unwrap_or_default();
    let mut replacements = pod_admission::keep_replacements(known_replacements, &pods, &rendered);
    let steps = pod_admission::decide_steps(&pods, &findings.standings, passed, &replacements, now.as_second());
    pod_admission::add_replacements(&mut replacements, &steps, now);
    let mut replaced = Vec::new();
    for step in steps {
        match step {
            AdmissionStep::Admit { pod, configuration, on_record } => {
                admit_pod(context, &api, &pod, &configuration, on_record).await?;
                probers.update_counts(cluster, |running| running.on_record += usize::from(on_record));
                findings.on_record += usize::from(on_record);
                if on_record {
                    let note = format!("{pod} was admitted on record: its configuration was proven before");
                    context
                        .publish_event(cluster, EventType::Warning, Reason::AdmittedOnRecord.name(), "Admit", note)
                        .await;
                }
            }
            AdmissionStep::Remind { pod, remark } => {
                annotate_pod(context, &api, &pod, REMINDED_ANNOTATION, &remark).await?;
            }
            step @ AdmissionStep::Replace { .. } => replaced.push(step),
        }
    }
    let estimated_seconds = round_up_seconds(estimate_rollout(&built.valid));
    Ok(GateObservation { pods, replacements, replaced, fingerprint, findings, estimated_seconds })
}

/// Digest of the templates, which name the Secrets that servers read at their start by content, and of the stream. Tags and
/// intervals do not count.
#[must_use]
pub fn compute_fingerprint(known: &RealtimeClusterStatus, desired: &DesiredObjects) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (server, deployment) in &desired.deployments {
        let template = template_mark(&deployment.spec.template, TEMPLATE_ANNOTATION).unwrap_or_default();
        lines.push(format!("{server} {template}"));
    }
    if let Some(stream) = &known.stream {
        lines.push(format!("stream {} {}", stream.arn, stream.created_ms));
    }
    hex::encode(&Sha256::digest(lines.join("\n"))[..8])
}

/// Adds to the plan of the cluster what was observed of it.
async fn build_plan(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    built: &RenderedCluster,
    observed: ObservedObjects<'_>,
    fingerprint: String,
    proof: JourneyProof,
) -> Result<ProbePlan, ReconcileError> {
    let RenderedCluster { read, valid, desired, .. } = built;
    let ObservedObjects { pods, services } = observed;
    let plan = ProbePlan::of_cluster(valid);
    let edges = pods.iter().filter(|pod| pod.current && pod.server != ServerKind::Dispatcher);
    // A dispatcher of the previous template holds its shards until a new one is admitted, and is admitted by its own proof
    // if it is created again meanwhile.
    let dispatchers = pods.iter().filter(|pod| {
        pod.server == ServerKind::Dispatcher && (pod.current || pod.is_former() || pod.admitted.is_some())
    });
    let dispatchers: Vec<&ServerPod> = dispatchers.collect();
    // The templates of a suspended cluster may be older than the rendered Secrets.
    let reads_other =
        |pod: &&ServerPod| cluster.spec.suspend || pod.is_former() && pod.server == ServerKind::Dispatcher;
    let secrets = read_former_secrets(context, cluster, built, pods.iter().filter(reads_other)).await?;
    let stream = match &read.stream {
        Some(_) if plan.webhooks => Some(dereference::connect_stream(context, &valid.stream, &read.secrets).await?),
        _ => None,
    };
    let paths = find_service_routes(&valid.name, services, pods, &plan.transports);
    Ok(ProbePlan {
        fingerprint,
        proof,
        external: plan_external(context, cluster, built, &paths),
        paths,
        wanted_pods: count_wanted_pods(valid, &plan.transports),
        edges: edges.filter_map(|pod| pod.to_edge(valid, desired, &secrets)).collect(),
        dispatchers: dispatchers.iter().filter_map(|pod| pod.to_dispatcher(valid, desired, &secrets)).collect(),
        stream,
        policy: GatePolicy { inherited_evidence_max: context.inherited_evidence_max, ..plan.policy },
        ..plan
    })
}

/// Plans the journeys through the load balancers, at the addresses that the status has of them.
fn plan_external(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    built: &RenderedCluster,
    services: &[ServiceRoute],
) -> ExternalPlan {
    let endpoints = cluster.status.as_ref().and_then(|status| status.endpoints.as_ref());
    plan_external_routes(&ExternalInputs {
        gate: cluster.spec.gate.external,
        exposures: &built.valid.exposures,
        entrances: endpoints.map(|endpoints| endpoints.entrances.as_slice()).unwrap_or_default(),
        services,
        trust: TlsTrust::of_system().map_err(|error| error.to_string()),
        source: context.own_address.to_string(),
    })
}

/// Plans the journeys through pods of a former template, while one of them waits for admission: during a rollout that
/// stands still, an evicted pod is created again from that template, and clients need it. `None` without such a pod.
async fn build_former_plan(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    built: &RenderedCluster,
    pods: &[ServerPod],
    plan: &ProbePlan,
) -> Result<Option<ProbePlan>, ReconcileError> {
    let former = || pods.iter().filter(|pod| is_former_edge(pod));
    if !former().any(|pod| pod.admitted.is_none() && pod.address.is_some()) {
        return Ok(None);
    }
    let secrets = read_former_secrets(context, cluster, built, former()).await?;
    let edges = former().filter_map(|pod| pod.to_edge(&built.valid, &built.desired, &secrets)).collect();
    // Their own evidence: it admits them, and says nothing of the template that is to be proven.
    Ok(Some(ProbePlan {
        fingerprint: "former templates".to_owned(),
        proof: JourneyProof::Never,
        paths: vec![],
        external: ExternalPlan::default(),
        wanted_pods: BTreeMap::new(),
        edges,
        dead_letter: None,
        requested: None,
        ..plan.clone()
    }))
}

fn is_former_edge(pod: &ServerPod) -> bool {
    pod.is_former() && pod.server != ServerKind::Dispatcher
}

/// The Secrets of the cluster, with those that pods of a former template read.
async fn read_former_secrets<'a, 'b>(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    built: &'b RenderedCluster,
    former: impl Iterator<Item = &'a ServerPod>,
) -> Result<Cow<'b, SecretTexts>, ReconcileError> {
    let mut secrets = Cow::Borrowed(&built.read.secrets);
    let names: BTreeSet<String> = former.flat_map(ServerPod::secret_names).collect();
    for name in names {
        let user = SecretUser::of(cluster);
        if let Some(secret) = context.secrets.read(&built.valid.namespace, &name, &user).await? {
            secrets.to_mut().insert(name, decode_secret(&secret));
        }
    }
    Ok(secrets)
}

/// Admits a pod: its own `/readyz` waits for the annotation, Services wait for the condition.
async fn admit_pod(
    context: &ControllerContext,
    api: &Api<Pod>,
    pod: &str,
    configuration: &str,
    on_record: bool,
) -> Result<(), ReconcileError> {
    if !annotate_pod(context, api, pod, ADMITTED_ANNOTATION, configuration).await? {
        return Ok(());
    }
    let reason = if on_record { Reason::AdmittedOnRecord } else { Reason::Proven };
    let condition = json!({ "status": { "conditions": [{
        "type": READINESS_GATE,
        "status": "True",
        "reason": reason.name(),
        "lastTransitionTime": Timestamp::now().to_string(),
    }] } });
    context.ensure_leader()?;
    match api.patch_status(pod, &patch_parameters(), &Patch::Strategic(condition)).await {
        Ok(_) => {
            tracing::info!(pod, on_record, "pod admitted");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call(&format!("opening the readiness gate of {pod}"), &error)),
    }
}

/// Deletes a pod that differs from its template.
async fn replace_pod(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    step: &AdmissionStep,
) -> Result<(), ReconcileError> {
    let AdmissionStep::Replace { pod, uid, difference, .. } = step else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    context.ensure_leader()?;
    let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(pod, &parameters).await {
        Ok(_) => {
            let note = format!("{pod} differs from its template and was never admitted: it is replaced. {difference}");
            context
                .publish_event(cluster, EventType::Warning, Reason::ConfigurationDrift.name(), "Replace", note)
                .await;
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(ReconcileError::from_call(&format!("replacing {pod}"), &error)),
    }
}
