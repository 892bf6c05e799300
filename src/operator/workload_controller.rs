//! Reconciles the children: applies the rendered objects, reverts foreign changes, prunes objects that are not rendered
//! any more; owns `WorkloadsAvailable` and `status.endpoints`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::events::EventType;
use serde_json::{Map, Value, json};

use super::account_settling::{is_settled, needs_settling};
use super::context::{ControllerContext, SharedContext};
use super::dereference::generated_secret_name;
use super::entrance_addresses::list_entrances;
use super::exposure_status::{decide_exposed, find_ungated_pod, keep_condition, list_endpoints};
use super::finalizer;
use super::foreign_fields::{ForeignField, find_foreign_fields, find_repairs};
use super::gateways::read_gateways;
use super::live_difference::needs_apply;
use super::optional_children::{
    OptionalChildren, apply_optional_children, describe_object, extend_record, is_optional, prune_optional_children,
};
use super::reconcile_error::ReconcileError;
use super::rendering::render_cluster;
use super::secret_copies::{list_unrecorded_copies, prune_secret_copies};
use super::secret_reader::SecretUser;
use super::status::{self, ConditionUpdate, StatusPatch};
use super::suspension::decide_suspended;
use crate::api::cluster::EndpointsStatus;
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{self, DesiredObjects, ServerImage, ValidCluster};
use crate::kubernetes::apply;

/// Time between two reconciles of a cluster whose rollout is complete; changes of its objects trigger earlier ones.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two reconciles during a rollout or while waiting for another controller.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Time between recording the copies of Secrets and creating them.
const APPLY_STEP_INTERVAL: Duration = Duration::from_millis(200);

/// Time between two checks whether the pods of a deleted cluster have ended.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Attempts to remove foreign fields from a Deployment in one reconcile. Another writer may add them again each time, so
/// the loop must end.
const REPAIR_ATTEMPTS_MAX: usize = 5;

/// Longest action of an Event that the API server accepts.
const EVENT_ACTION_LEN_MAX: usize = 128;

/// Reconciles the children of one cluster, and returns the time until the next reconcile without a change.
///
/// # Errors
/// A child cannot be rendered, applied or observed; the status has the same reason.
pub async fn reconcile(context: &SharedContext, cluster: &RealtimeCluster) -> Result<Option<Duration>, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        let waiting = finalizer::finalize_cluster(context, cluster).await?;
        return Ok(waiting.map(|_| TERMINATION_POLL_INTERVAL));
    }
    let result = match finalizer::add_finalizer(context, cluster).await {
        // The object changed: reconcile the new version.
        Ok(true) => return Ok(Some(TERMINATION_POLL_INTERVAL)),
        Ok(false) => reconcile_children(context, cluster).await,
        Err(error) => Err(error),
    };
    let mut fields = list_known_fields(cluster);
    let mut exposed = keep_condition(cluster, condition::EXPOSED);
    let (update, wait) = match &result {
        Ok(ChildrenState::Recorded { secret_copies, optional_children, image }) => {
            fields.insert("secretCopies".to_owned(), json!(secret_copies));
            fields.insert("optionalChildren".to_owned(), json!(optional_children));
            fields.insert("image".to_owned(), json!(image.to_record()));
            fields.insert("version".to_owned(), json!(image.release.to_string()));
            let message = "the manifest is being applied";
            let update = ConditionUpdate::new(condition::WORKLOADS_AVAILABLE, "Unknown", Reason::RollingOut, message);
            (update, APPLY_STEP_INTERVAL)
        }
        Ok(ChildrenState::Suspended { update, .. }) => (update.clone(), RESYNC_INTERVAL),
        Ok(ChildrenState::Applied(applied)) => {
            applied.insert_fields(&mut fields);
            exposed.clone_from(&applied.exposed);
            (applied.update.clone(), applied.choose_interval(cluster))
        }
        Err(error) => (ConditionUpdate::of_error(condition::WORKLOADS_AVAILABLE, error), RECHECK_INTERVAL),
    };
    let manager = "realtime-operator-workload";
    let waiting = match &result {
        Ok(ChildrenState::Suspended { waiting, .. }) => Some(waiting.as_slice()),
        _ => None,
    };
    let suspended = decide_suspended(cluster, waiting, Timestamp::now());
    publish_suspension_event(context, cluster, suspended.as_ref()).await;
    let owned_conditions = &[condition::WORKLOADS_AVAILABLE, condition::SUSPENDED, condition::EXPOSED];
    let conditions = std::iter::once(update).chain(suspended).chain(exposed).collect();
    status::write(context, cluster, StatusPatch { manager, owned_conditions, conditions, fields }).await?;
    result.map(|_| Some(wait))
}

/// The fields that this controller owns, as they are: a field that an apply leaves out is removed.
fn list_known_fields(cluster: &RealtimeCluster) -> Map<String, Value> {
    let mut fields = Map::new();
    if let Some(known) = &cluster.status {
        fields.extend(known.endpoints.as_ref().map(|endpoints| ("endpoints".to_owned(), json!(endpoints))));
        fields.extend(known.restarted_at.as_ref().map(|value| ("restartedAt".to_owned(), json!(value))));
        fields.extend(known.image.as_ref().map(|image| ("image".to_owned(), json!(image))));
        fields.extend(known.version.as_ref().map(|version| ("version".to_owned(), json!(version))));
        fields.insert("secretCopies".to_owned(), json!(known.secret_copies));
        fields.insert("optionalChildren".to_owned(), json!(known.optional_children));
        fields.insert("publishedHosts".to_owned(), json!(known.published_hosts));
    }
    fields
}

/// Publishes an Event when a suspension begins or ends.
async fn publish_suspension_event(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    suspended: Option<&ConditionUpdate>,
) {
    let known = cluster.status.as_ref().and_then(|status| status.find_condition(condition::SUSPENDED));
    let was_suspended = known.is_some();
    let (reason, note) = match suspended {
        Some(update) if !was_suspended => ("Suspended", update.message.clone()),
        None if was_suspended => ("Resumed", "changes are applied again".to_owned()),
        _ => return,
    };
    context.publish_event(cluster, EventType::Normal, reason, "Suspend", note).await;
}

/// The children after a reconcile.
enum ChildrenState {
    /// The copies of Secrets and the optional children that the next reconcile creates are to be recorded first, with those
    /// that exist, and the image.
    Recorded { secret_copies: Vec<String>, optional_children: Vec<String>, image: Box<ServerImage> },
    /// The cluster is suspended: these objects differ from the rendered ones.
    Suspended { update: ConditionUpdate, waiting: Vec<String> },
    /// All children are applied.
    Applied(Box<AppliedChildren>),
}

/// The children once they are applied.
struct AppliedChildren {
    update: ConditionUpdate,
    /// The state of the entrances; `None` without any.
    exposed: Option<ConditionUpdate>,
    endpoints: EndpointsStatus,
    /// Names of the copies of Secrets that exist.
    secret_copies: Vec<String>,
    /// The optional children that exist.
    optional_children: Vec<String>,
    /// Hosts whose records may exist.
    published_hosts: Vec<String>,
    /// The value that restarts pods, as they carry it.
    restarted_at: Option<String>,
    /// The image to record.
    image: ServerImage,
}

impl AppliedChildren {
    fn insert_fields(&self, fields: &mut Map<String, Value>) {
        fields.insert("endpoints".to_owned(), json!(self.endpoints));
        fields.insert("secretCopies".to_owned(), json!(self.secret_copies));
        fields.insert("optionalChildren".to_owned(), json!(self.optional_children));
        fields.insert("publishedHosts".to_owned(), json!(self.published_hosts));
        fields.extend(self.restarted_at.as_ref().map(|value| ("restartedAt".to_owned(), json!(value))));
        fields.insert("image".to_owned(), json!(self.image.to_record()));
        fields.insert("version".to_owned(), json!(self.image.release.to_string()));
    }

    /// The time until the next reconcile: short while a rollout or the records of proven hosts wait for it.
    fn choose_interval(&self, cluster: &RealtimeCluster) -> Duration {
        let known = cluster.status.as_ref().map(|status| status.published_hosts.as_slice()).unwrap_or_default();
        if self.published_hosts != known {
            return APPLY_STEP_INTERVAL;
        }
        if self.update.status == "True" { RESYNC_INTERVAL } else { RECHECK_INTERVAL }
    }
}

async fn reconcile_children(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<ChildrenState, ReconcileError> {
    let rendered = render_cluster(context, cluster).await?;
    if cluster.spec.suspend {
        let waiting = list_waiting_objects(context, cluster, &rendered.desired).await?;
        let update = summarize_rollout(&context.live.deployments_of(cluster));
        return Ok(ChildrenState::Suspended { update, waiting });
    }
    if !rendered.fresh.is_empty() {
        let mut all = rendered.read.generated.clone();
        all.extend(rendered.fresh.clone());
        context.ensure_leader()?;
        apply::apply_object(&context.client, &render_generated_secret(cluster, &rendered.valid, &all)).await?;
        context.secrets.forget(&rendered.valid.namespace, &generated_secret_name(cluster));
    }
    let known = cluster.status.as_ref().map(|status| status.secret_copies.as_slice()).unwrap_or_default();
    let unrecorded = list_unrecorded_copies(known, &rendered.valid.secret_copies);
    // Before the first Deployment exists: one without a record is taken for that of an operator that kept none.
    let has_image = cluster.status.as_ref().is_some_and(|status| status.image.is_some());
    let recorded = cluster.status.as_ref().map(|status| status.optional_children.as_slice()).unwrap_or_default();
    let extended = extend_record(recorded, &rendered.desired.children);
    if unrecorded.is_some() || extended.is_some() || !has_image {
        let image = rendered.read.recorded_image.clone().unwrap_or_else(|| rendered.valid.image.clone());
        let secret_copies = unrecorded.unwrap_or_else(|| known.to_vec());
        let optional_children = extended.unwrap_or_else(|| recorded.to_vec());
        return Ok(ChildrenState::Recorded { secret_copies, optional_children, image: Box::new(image) });
    }
    let optional = apply_optional_children(context, cluster, &rendered.desired.children).await?;
    let deployments = apply_children(context, cluster, &rendered.desired).await?;
    let optional_children = prune_optional_children(context, cluster, recorded, &rendered.desired.children).await?;
    let update = summarize_rollout(&deployments);
    let gateways = read_gateways(context, &rendered.valid).await;
    let pods = context.live.pods_of(cluster);
    let ungated = find_ungated_pod(&rendered.valid, pods.iter().map(|pod| &**pod));
    let find = |kind: &str, name: &str| find_live_entrance(context, cluster, &optional, (kind, name));
    // The former image stays recorded until every pod has the new one: a manifest that names none returns to it.
    let recorded = rendered.read.recorded_image.clone().filter(|_| update.status != "True");
    Ok(ChildrenState::Applied(Box::new(AppliedChildren {
        update,
        exposed: decide_exposed(&rendered.valid, &optional.refused, ungated.as_deref(), find),
        image: recorded.unwrap_or_else(|| rendered.valid.image.clone()),
        endpoints: list_endpoints(&rendered.valid, list_entrances(&rendered.valid, &gateways, find)),
        secret_copies: prune_secret_copies(context, cluster, &rendered.valid).await?,
        optional_children,
        published_hosts: desired::find_published_hosts(cluster),
        restarted_at: rendered.valid.restarted_at.clone(),
    })))
}

/// Finds the live object of an entrance by kind and name.
fn find_live_entrance(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    optional: &OptionalChildren,
    (kind, name): (&str, &str),
) -> Option<Value> {
    let is_kind = |live: &&DynamicObject| live.types.as_ref().is_some_and(|types| types.kind == kind);
    let read = optional.live.iter().filter(is_kind).find(|live| live.name_any() == name);
    let namespace = cluster.namespace().unwrap_or_default();
    let watched = context.live.children(kind).and_then(|index| index.get(&namespace, name));
    serde_json::to_value(read.or(watched.as_deref())?).ok()
}

/// Names the children that an apply would create, change or delete.
async fn list_waiting_objects(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    desired: &DesiredObjects,
) -> Result<Vec<String>, ReconcileError> {
    let wanted = &desired.children;
    let mut waiting = Vec::new();
    for object in wanted {
        let live = match fetch_live(context, cluster, object).await {
            // A kind that the API server lacks has no objects.
            Err(_) if is_optional(object) => None,
            live => live?,
        };
        let live = live.map(|live| serde_json::to_value(&*live)).transpose()?;
        if live.is_none_or(|live| needs_apply(object, &live)) {
            waiting.push(describe_object(object));
        }
    }
    let uid = cluster.uid().unwrap_or_default();
    let children = context.live.prunable_children_of(cluster);
    let superfluous = apply::find_superfluous(&children, &uid, wanted);
    waiting.extend(superfluous.map(|((_, kind), object)| format!("{kind} {}", object.name_any())));
    Ok(waiting)
}

/// Renders the Secret of generated values. A value is never generated twice: it is read before it is generated.
fn render_generated_secret(cluster: &RealtimeCluster, valid: &ValidCluster, texts: &BTreeMap<String, String>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": generated_secret_name(cluster),
            "namespace": valid.namespace,
            "labels": desired::render::child_labels(valid, "configuration"),
            "ownerReferences": [valid.owner],
        },
        "stringData": texts,
    })
}

/// Applies all children in order, and returns the Deployments after the apply.
async fn apply_children(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    desired: &DesiredObjects,
) -> Result<Vec<Deployment>, ReconcileError> {
    let (namespace, uid) = (cluster.namespace().unwrap_or_default(), cluster.uid().unwrap_or_default());
    let wanted = &desired.children;
    let mut deployments = Vec::new();
    // Pods mount the registry, which another controller writes; kubelet backs off long before it retries a mount.
    if let Some(last) = desired.registry.last() {
        let last = serde_json::to_value(last)?;
        if fetch_live(context, cluster, &last).await?.is_none() {
            return Err(ReconcileError::transient(Reason::RollingOut, "waiting for the app registry to be written"));
        }
    }
    // All children are read before the first write, so that an object of another owner does not leave half a cluster.
    let required: Vec<&Value> = wanted.iter().filter(|object| !is_optional(object)).collect();
    let mut lives = Vec::new();
    for object in &required {
        lives.push(fetch_live(context, cluster, object).await?);
    }
    let mut awaits_account = false;
    for (object, live) in required.into_iter().zip(lives) {
        let is_deployment = object["kind"] == "Deployment";
        if needs_settling(object) {
            awaits_account |= live.as_ref().is_none_or(|live| !is_settled(&live.metadata, Timestamp::now()));
        }
        if let Some(live) = &live {
            let value = serde_json::to_value(&**live)?;
            if !needs_apply(object, &value) {
                if is_deployment {
                    deployments.push(serde_json::from_value(value)?);
                }
                continue;
            }
        }
        context.ensure_leader()?;
        if is_deployment && awaits_account {
            let message = "waiting for two seconds, until EKS knows the ServiceAccounts";
            return Err(ReconcileError::transient(Reason::RollingOut, message));
        }
        if !is_deployment {
            // Its annotation may change with this apply.
            awaits_account |= needs_settling(object);
            let applied = apply::apply_object(&context.client, object).await?;
            // The annotation of another identity that somebody else wrote; our own one is removed by the apply.
            let repairs = find_repairs(object, &serde_json::to_value(&applied)?);
            if !repairs.is_empty() {
                apply::repair_object(&context.client, &applied, &repairs).await?;
            }
            if object["kind"] == "Secret" {
                context.secrets.forget(&namespace, object["metadata"]["name"].as_str().unwrap_or_default());
            }
            continue;
        }
        // Read again: it may have changed since, and after the apply reverted fields are not foreign any more.
        let live = apply::fetch_owned(&context.client, object, &uid).await?;
        let mut writers = ForeignWriters { context, cluster, wanted: object, reported: vec![] };
        if let Some(live) = live {
            writers.report_once(&serde_json::to_value(&live)?).await;
        }
        let applied = apply::apply_object(&context.client, object).await?;
        let applied = remove_foreign_fields(&mut writers, applied, &uid).await?;
        let value = serde_json::to_value(&applied)?;
        deployments.push(serde_json::from_value(value)?);
    }
    context.ensure_leader()?;
    for pruned in
        apply::prune_children(&context.client, &context.live.prunable_children_of(cluster), &uid, wanted).await?
    {
        context
            .publish_event(cluster, EventType::Normal, "Removed", "Prune", format!("{pruned} is not rendered any more"))
            .await;
    }
    Ok(deployments)
}

/// Finds the live object of a rendered one: from its watch, from the last read of the Secret, and from the API server when
/// neither has it, since an object of another owner is not watched.
async fn fetch_live(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    rendered: &Value,
) -> Result<Option<Arc<DynamicObject>>, ReconcileError> {
    let uid = cluster.uid().unwrap_or_default();
    let known = if rendered["kind"] == "Secret" {
        let name = rendered["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = cluster.namespace().unwrap_or_default();
        let Some(secret) = context.secrets.read(&namespace, name, &SecretUser::of(cluster)).await? else {
            return Ok(None);
        };
        let malformed = |error: serde_json::Error| ReconcileError::transient(Reason::ApplyFailed, error.to_string());
        let value = serde_json::to_value(&*secret).map_err(malformed)?;
        Some(Arc::new(serde_json::from_value(value).map_err(malformed)?))
    } else {
        context.live.find_child(rendered)
    };
    match known {
        Some(live) => {
            apply::ensure_owned(&live, &uid)?;
            Ok(Some(live))
        }
        None => Ok(apply::fetch_owned(&context.client, rendered, &uid).await?.map(Arc::new)),
    }
}

/// Reports foreign fields of one Deployment.
struct ForeignWriters<'a> {
    context: &'a ControllerContext,
    cluster: &'a RealtimeCluster,
    wanted: &'a Value,
    reported: Vec<ForeignField>,
}

impl ForeignWriters<'_> {
    /// Publishes an Event for each foreign field of the live object, once per field.
    async fn report_once(&mut self, live: &Value) {
        for foreign in find_foreign_fields(self.wanted, live) {
            if self.reported.contains(&foreign) {
                continue;
            }
            let name = self.wanted.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let note = format!("Deployment {name}: {}, written by {}, was reverted", foreign.field, foreign.manager);
            self.context
                .publish_event(self.cluster, EventType::Warning, "PutBack", &format_event_action(&foreign.field), note)
                .await;
            self.reported.push(foreign);
        }
    }
}

/// Removes fields that other managers added, which an apply leaves alone. Each patch holds for one version of the object;
/// since its status may change at any time, the object is read again and the patch retried.
async fn remove_foreign_fields(
    writers: &mut ForeignWriters<'_>,
    mut applied: DynamicObject,
    uid: &str,
) -> Result<DynamicObject, ReconcileError> {
    let (context, wanted) = (writers.context, writers.wanted);
    for _ in 0..REPAIR_ATTEMPTS_MAX {
        let live = serde_json::to_value(&applied)?;
        let repairs = find_repairs(wanted, &live);
        if repairs.is_empty() {
            return Ok(applied);
        }
        writers.report_once(&live).await;
        context.ensure_leader()?;
        if let Err(error) = apply::repair_object(&context.client, &applied, &repairs).await {
            tracing::debug!(%error, "removing foreign fields failed: retrying with the new version");
        }
        applied = apply::fetch_owned(&context.client, wanted, uid).await?.unwrap_or(applied);
    }
    let name = applied.name_any();
    Err(ReconcileError::transient(
        Reason::ApplyFailed,
        format!("Deployment {name}: another writer adds fields again as often as they are removed; stop that writer"),
    ))
}

/// Puts the field into the action: Events of one action and reason would be merged into one series.
fn format_event_action(field: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    "PutBack-".chars().chain(field.chars().map(word)).take(EVENT_ACTION_LEN_MAX).collect()
}

/// Decides `WorkloadsAvailable`: True when every pod of every Deployment has the rendered template and is ready.
fn summarize_rollout(deployments: &[Deployment]) -> ConditionUpdate {
    let behind: Vec<String> = deployments.iter().filter_map(describe_lag).collect();
    if behind.is_empty() {
        let message = format!("{} Deployments are up to date and ready", deployments.len());
        return ConditionUpdate::new(condition::WORKLOADS_AVAILABLE, "True", Reason::Applied, message);
    }
    ConditionUpdate::new(condition::WORKLOADS_AVAILABLE, "False", Reason::RollingOut, behind.join("; "))
}

fn describe_lag(deployment: &Deployment) -> Option<String> {
    let name = deployment.name_any();
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some(format!("{name}: not observed by the Deployment controller yet"));
    }
    let (updated, ready, all) =
        (status.updated_replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
    // Why a pod is not even created: a quota, a policy, a missing ServiceAccount.
    let failure = status.conditions.iter().flatten().find(|condition| {
        condition.type_.as_deref() == Some("ReplicaFailure") && condition.status.as_deref() == Some("True")
    });
    if let Some(message) = failure.and_then(|condition| condition.message.as_ref()) {
        return Some(format!("{name}: pods cannot be created: {message}"));
    }
    if updated < wanted || all > updated {
        return Some(format!("{name}: {updated} of {wanted} pods have the rendered template, {all} in all"));
    }
    (ready < wanted).then(|| format!("{name}: {ready} of {wanted} pods are ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(generation: i64, observed: i64, replicas: [i32; 4]) -> Deployment {
        let [wanted, updated, ready, all] = replicas;
        serde_json::from_value(json!({
            "metadata": { "name": "eu-sockjs", "generation": generation },
            "spec": { "replicas": wanted, "selector": {}, "template": {} },
            "status": { "observedGeneration": observed, "replicas": all, "updatedReplicas": updated, "readyReplicas": ready },
        }))
        .expect("a deployment")
    }

    #[test]
    fn a_rollout_lags_until_every_pod_has_the_template_and_is_ready() {
        for (name, deployment, expected) in [
            ("done", deployment(2, 2, [3, 3, 3, 3]), None),
            (
                "not observed",
                deployment(2, 1, [3, 3, 3, 3]),
                Some("eu-sockjs: not observed by the Deployment controller yet"),
            ),
            (
                "an old pod is left",
                deployment(2, 2, [3, 3, 3, 4]),
                Some("eu-sockjs: 3 of 3 pods have the rendered template, 4 in all"),
            ),
            (
                "the first new pod",
                deployment(2, 2, [3, 1, 3, 4]),
                Some("eu-sockjs: 1 of 3 pods have the rendered template, 4 in all"),
            ),
            ("coming up", deployment(2, 2, [3, 3, 1, 3]), Some("eu-sockjs: 1 of 3 pods are ready")),
        ] {
            assert_eq!(describe_lag(&deployment).as_deref(), expected, "{name}");
        }
    }
}
