//! The controller of the children: applies what the cluster is built from, puts back what others changed, takes away
//! what is not wanted any more; owns `WorkloadsAvailable` and `status.endpoints`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::{Map, Value, json};

use super::context::{Context, Shared, Stop};
use super::dereference::{self, generated_name};
use super::removal;
use super::status::{self, Part, Said};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::contract::Server;
use crate::desired::{self, Cluster, Desired};
use crate::kubernetes::repair::Foreign;
use crate::kubernetes::{apply, repair};

/// Between two looks at what nobody has changed.
const STEADY: Duration = Duration::from_secs(30);
/// Between two looks while pods come up or something is waited for.
const SOON: Duration = Duration::from_secs(2);

/// Between two looks while a deleted cluster's pods end.
const ENDING: Duration = Duration::from_millis(500);

/// How often a Deployment is repaired in one turn.
const REPAIRS: usize = 5;

/// What may have to be taken away.
const KINDS: [(&str, &str); 6] = [
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
];

/// One turn.
///
/// # Errors
/// What keeps the children from being as they should; it stands in the status too.
pub async fn reconcile(context: &Shared, cluster: &RealtimeCluster) -> Result<Action, Stop> {
    if cluster.metadata.deletion_timestamp.is_some() {
        let waits = removal::take_down(context, cluster).await?;
        return Ok(if waits.is_some() { Action::requeue(ENDING) } else { Action::await_change() });
    }
    let result = match removal::mark(context, cluster).await {
        // The object changed, so what would be decided on it is decided again.
        Ok(true) => return Ok(Action::requeue(ENDING)),
        Ok(false) => turn(context, cluster).await,
        Err(stop) => Err(stop),
    };
    let (said, endpoints) = match &result {
        Ok((said, endpoints)) => (said.clone(), Some(endpoints.clone())),
        Err(stop) => (Said::new(condition::WORKLOADS_AVAILABLE, "False", stop.reason, &stop.message), None),
    };
    let known = cluster.status.as_ref().and_then(|status| status.endpoints.clone());
    let endpoints = endpoints.or_else(|| known.and_then(|known| serde_json::to_value(known).ok()));
    let mut fields = Map::new();
    fields.extend(endpoints.map(|endpoints| ("endpoints".to_owned(), endpoints)));
    let steady = said.status == "True";
    let manager = "realtime-operator-workload";
    let part = Part { manager, owns: &[condition::WORKLOADS_AVAILABLE], said: vec![said], fields };
    status::write(context, cluster, part).await?;
    result.map(|_| Action::requeue(if steady { STEADY } else { SOON }))
}

async fn turn(context: &Context, cluster: &RealtimeCluster) -> Result<(Said, Value), Stop> {
    let read = dereference::read(context, cluster, false).await?;
    let (valid, made) = dereference::validate(context, cluster, &read)?;
    if !made.is_empty() {
        let mut all = read.generated.clone();
        all.extend(made);
        context.leading()?;
        apply::apply(&context.client, &generated(cluster, &valid, &all)).await?;
    }
    let desired = desired::build(&valid).map_err(|error| Stop::terminal(Reason::SpecInvalid, error.to_string()))?;
    let deployments = put(context, cluster, &desired).await?;
    Ok((rollout(&deployments), endpoints(&valid, &desired)))
}

/// The Secret with what was generated. Its values are never made twice: they are read before they are made.
fn generated(cluster: &RealtimeCluster, valid: &Cluster, texts: &BTreeMap<String, String>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": generated_name(cluster),
            "namespace": valid.namespace,
            "labels": desired::build::labels(valid, "configuration"),
            "ownerReferences": [valid.owner],
        },
        "stringData": texts,
    })
}

/// Applies everything in order, and returns the Deployments as they are then.
async fn put(context: &Context, cluster: &RealtimeCluster, desired: &Desired) -> Result<Vec<Deployment>, Stop> {
    let uid = cluster.uid().unwrap_or_default();
    let malformed = |error: serde_json::Error| Stop::terminal(Reason::SpecInvalid, error.to_string());
    let wanted = desired.objects().map_err(malformed)?;
    let mut deployments = Vec::new();
    // Pods mount the registry, which another controller writes; kubelet waits long before it tries a mount again.
    if let Some(last) = desired.registry.last() {
        let last = serde_json::to_value(last).map_err(malformed)?;
        if apply::live(&context.client, &last, &uid).await?.is_none() {
            return Err(Stop::waiting(Reason::RollingOut, "waiting for the app registry to be written"));
        }
    }
    // Looked at before anything is written: half a cluster helps nobody.
    let mut lives = Vec::new();
    for object in &wanted {
        lives.push(apply::live(&context.client, object, &uid).await?);
    }
    for (object, live) in wanted.iter().zip(lives) {
        let live = live.map(|live| serde_json::to_value(live).map_err(malformed)).transpose()?;
        if live.as_ref().is_some_and(|live| same(object, live)) && object["kind"] != "Deployment" {
            continue;
        }
        context.leading()?;
        if object["kind"] != "Deployment" {
            apply::apply(&context.client, object).await?;
            continue;
        }
        // Looked at again: it may have changed since, and what the apply puts back is foreign no more.
        let live = apply::live(&context.client, object, &uid).await?;
        let mut hands = Hands { context, cluster, wanted: object, told: vec![] };
        if let Some(live) = live {
            hands.tell(&serde_json::to_value(&live).map_err(malformed)?).await;
        }
        let applied = apply::apply(&context.client, object).await?;
        let applied = repaired(&mut hands, applied, &uid).await?;
        let value = serde_json::to_value(&applied).map_err(malformed)?;
        deployments.push(serde_json::from_value(value).map_err(malformed)?);
    }
    let labels =
        format!("app.kubernetes.io/managed-by=realtime-operator,app.kubernetes.io/instance={}", cluster.name_any());
    context.leading()?;
    let namespace = cluster.namespace().unwrap_or_default();
    for gone in apply::prune(&context.client, (&namespace, &labels, &uid), &KINDS, &wanted).await? {
        context.tell(cluster, EventType::Normal, "Removed", "Prune", format!("{gone} is not wanted any more")).await;
    }
    Ok(deployments)
}

/// Who else wrote into a Deployment of ours.
struct Hands<'a> {
    context: &'a Context,
    cluster: &'a RealtimeCluster,
    wanted: &'a Value,
    told: Vec<Foreign>,
}

impl Hands<'_> {
    /// Tells of what is foreign in the live object, each once.
    async fn tell(&mut self, live: &Value) {
        for foreign in repair::foreign(self.wanted, live) {
            if self.told.contains(&foreign) {
                continue;
            }
            let name = self.wanted.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let note = format!("Deployment {name}: {}, written by {}, was put back", foreign.field, foreign.manager);
            self.context.tell(self.cluster, EventType::Warning, "PutBack", &action(&foreign.field), note).await;
            self.told.push(foreign);
        }
    }
}

/// Removes what others added, which an apply leaves alone. The object may change at any time, if only in its status: what
/// was looked at then is looked at again.
async fn repaired(hands: &mut Hands<'_>, mut applied: DynamicObject, uid: &str) -> Result<DynamicObject, Stop> {
    let malformed = |error: serde_json::Error| Stop::terminal(Reason::SpecInvalid, error.to_string());
    let (context, wanted) = (hands.context, hands.wanted);
    for _ in 0..REPAIRS {
        let live = serde_json::to_value(&applied).map_err(malformed)?;
        let leftovers = repair::leftovers(wanted, &live);
        if leftovers.is_empty() {
            return Ok(applied);
        }
        hands.tell(&live).await;
        context.leading()?;
        if let Err(error) = apply::remove(&context.client, &applied, &leftovers).await {
            tracing::debug!(%error, "what others added is looked at again");
        }
        applied = apply::live(&context.client, wanted, uid).await?.unwrap_or(applied);
    }
    let name = applied.name_any();
    Err(Stop::waiting(
        Reason::ApplyFailed,
        format!("Deployment {name}: what others add comes back as often as it goes"),
    ))
}

/// Events of one action and reason are told as one series: the field keeps them apart.
fn action(field: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("PutBack-{}", field.chars().map(word).collect::<String>())
}

/// Whether everything that is wanted stands in the live object as it is.
fn same(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(name, value)| match live.get(name) {
            Some(found) => same(value, found),
            None => value.is_null(),
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| same(wanted, live))
        }
        _ => wanted == live,
    }
}

/// Whether every pod of every Deployment is of the wanted template and up.
fn rollout(deployments: &[Deployment]) -> Said {
    let behind: Vec<String> = deployments.iter().filter_map(behind).collect();
    if behind.is_empty() {
        let message = format!("{} Deployments are as they should be", deployments.len());
        return Said::new(condition::WORKLOADS_AVAILABLE, "True", Reason::Applied, message);
    }
    Said::new(condition::WORKLOADS_AVAILABLE, "False", Reason::RollingOut, behind.join("; "))
}

fn behind(deployment: &Deployment) -> Option<String> {
    let name = deployment.name_any();
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some(format!("{name}: not looked at yet"));
    }
    let (updated, ready, all) =
        (status.updated_replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
    // Why a pod is not even made: a quota, a policy, an account that is gone.
    let failure = status.conditions.iter().flatten().find(|condition| {
        condition.type_.as_deref() == Some("ReplicaFailure") && condition.status.as_deref() == Some("True")
    });
    if let Some(message) = failure.and_then(|condition| condition.message.as_ref()) {
        return Some(format!("{name}: pods cannot be made: {message}"));
    }
    if updated < wanted || all > updated {
        return Some(format!("{name}: {updated} of {wanted} pods are of the wanted template, {all} in all"));
    }
    (ready < wanted).then(|| format!("{name}: {ready} of {wanted} pods are ready"))
}

fn endpoints(cluster: &Cluster, desired: &Desired) -> Value {
    let of = |server: Server| {
        let name = format!("{}-{}", cluster.name, server.name());
        let there = desired.services.iter().any(|service| service.metadata.name.as_deref() == Some(&*name));
        if there { format!("{name}.{}.svc:80", cluster.namespace) } else { String::new() }
    };
    json!({ "websocket": of(Server::Websocket), "sockjs": of(Server::Sockjs) })
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
    fn a_table_of_rollouts() {
        for (name, deployment, expected) in [
            ("done", deployment(2, 2, [3, 3, 3, 3]), None),
            ("not looked at", deployment(2, 1, [3, 3, 3, 3]), Some("eu-sockjs: not looked at yet")),
            (
                "an old pod is left",
                deployment(2, 2, [3, 3, 3, 4]),
                Some("eu-sockjs: 3 of 3 pods are of the wanted template, 4 in all"),
            ),
            (
                "the first new pod",
                deployment(2, 2, [3, 1, 3, 4]),
                Some("eu-sockjs: 1 of 3 pods are of the wanted template, 4 in all"),
            ),
            ("coming up", deployment(2, 2, [3, 3, 1, 3]), Some("eu-sockjs: 1 of 3 pods are ready")),
        ] {
            assert_eq!(behind(&deployment).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_an_api_server_adds_is_no_difference() {
        let wanted = json!({ "spec": { "ports": [{ "port": 80 }], "selector": { "a": "b" } } });
        let mut live = json!({ "spec": { "ports": [{ "port": 80, "protocol": "TCP" }], "selector": { "a": "b" }, "clusterIP": "x" } });
        assert!(same(&wanted, &live));
        live["spec"]["selector"]["a"] = json!("c");
        assert!(!same(&wanted, &live));
    }
}
