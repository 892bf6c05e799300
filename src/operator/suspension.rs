//! A suspended cluster: the changes that wait, and the state that its pods are judged by meanwhile. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::name_list::list_names;
use super::rendered_clusters::RenderedCluster;
use super::status::ConditionUpdate;
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::render::is_rendered_template;

/// Objects that a message names; the others are counted.
const NAMED_OBJECTS_MAX: usize = 5;

/// The cluster as it was applied last: pods and replicas of a suspended cluster are those of the live Deployments. A
/// template that was never rendered, such as one edited by hand, does not count: its pods are compared with the rendered one.
pub fn keep_applied(rendered: &RenderedCluster, live: &[Deployment]) -> RenderedCluster {
    let mut kept = rendered.clone();
    for (server, wanted) in &mut kept.desired.deployments {
        let name = wanted.name_any();
        let Some(applied) = live.iter().find(|applied| applied.name_any() == name) else { continue };
        if is_rendered_template(&applied.spec.template) {
            wanted.spec.template = applied.spec.template.clone();
        }
        if let (Some(replicas), Some(of_server)) =
            (applied.spec.replicas, kept.valid.servers.iter_mut().find(|found| found.kind == *server))
        {
            of_server.replicas = replicas;
            wanted.spec.replicas = Some(replicas);
        }
    }
    kept
}

/// Names the objects that wait, in one clause.
fn describe_waiting(objects: &[String]) -> String {
    if objects.is_empty() {
        return "no change waits".to_owned();
    }
    format!("changes wait of {}", list_names(objects, NAMED_OBJECTS_MAX))
}

/// The condition of a suspended cluster, with the start of the suspension; `None` for another one. `waiting` is `None` while
/// the changes that wait are unknown, since the manifest cannot be rendered.
pub fn decide_suspended(
    cluster: &RealtimeCluster,
    waiting: Option<&[String]>,
    now: Timestamp,
) -> Option<ConditionUpdate> {
    if !cluster.spec.suspend {
        return None;
    }
    let known = cluster.status.as_ref().and_then(|status| status.find_condition(condition::SUSPENDED));
    let known = known.filter(|known| known.status == "True");
    let since = known.map_or(now, |known| known.last_transition_time.0);
    let seconds = Timestamp::from_second(since.as_second()).unwrap_or(since);
    let waiting = waiting.map_or_else(|| "the manifest cannot be rendered".to_owned(), describe_waiting);
    let message = format!("nothing is applied since {seconds}: {waiting}");
    Some(ConditionUpdate::new(condition::SUSPENDED, "True", Reason::Suspended, message))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use std::collections::BTreeMap;

    use super::*;
    use crate::api::cluster::RealtimeClusterStatus;
    use crate::api::fixture::applied_cluster;
    use crate::config::ServerKind;
    use crate::desired::render::{TEMPLATE_ANNOTATION, template_mark};
    use crate::desired::{self, ClusterInputs, ServerImage};
    use crate::operator::cluster_inputs::Dereferenced;

    fn rendered(extra: &str) -> RenderedCluster {
        let cluster = applied_cluster(extra);
        let credentials = desired::generate_all_credentials(&cluster, &[], str::to_owned);
        let read = Dereferenced {
            apps: vec![],
            secrets: BTreeMap::new(),
            generated: BTreeMap::new(),
            app_credentials: BTreeMap::new(),
            stream: None,
            recorded_image: None,
        };
        let inputs = ClusterInputs {
            cluster: &cluster,
            apps: &[],
            secrets: &read.secrets,
            credentials: &credentials,
            receiver: "receiver.svc:8090",
            own_networks: &[],
            own_image: &ServerImage::of_operator(None),
            recorded_image: None,
            stream: None,
        };
        let valid = desired::validate(&inputs).expect("a cluster");
        let desired = desired::render_objects(&valid).expect("objects");
        RenderedCluster { read, valid, desired, fresh: BTreeMap::new() }
    }

    #[test]
    fn pods_are_judged_by_what_was_applied_unless_somebody_edited_it() {
        let find = |cluster: &RenderedCluster| -> Deployment {
            let mut all = cluster.desired.deployments.iter();
            all.find(|(server, _)| *server == ServerKind::Sockjs).expect("a server").1.clone()
        };
        let mark =
            |deployment: &Deployment| template_mark(&deployment.spec.template, TEMPLATE_ANNOTATION).map(str::to_owned);
        let before = find(&rendered("  sockjs: { replicas: 2 }\n"));
        let changed = rendered("  sockjs: { replicas: 5, env: [{ name: A, value: b }] }\n");
        assert_ne!(mark(&before), mark(&find(&changed)));
        let kept = keep_applied(&changed, std::slice::from_ref(&before));
        assert_eq!((mark(&find(&kept)), find(&kept).spec.replicas), (mark(&before), Some(2)));
        let servers = &kept.valid.servers;
        assert!(servers.iter().any(|server| server.kind == ServerKind::Sockjs && server.replicas == 2));
        let mut edited = before.clone();
        let pod = edited.spec.template.spec.as_mut().expect("a pod");
        pod.containers[0].image = Some("another".to_owned());
        assert_eq!(mark(&find(&keep_applied(&changed, &[edited]))), mark(&find(&changed)), "never rendered");
        assert_eq!(mark(&find(&keep_applied(&changed, &[]))), mark(&find(&changed)), "nothing was applied yet");
    }

    #[test]
    fn the_condition_says_since_when_and_which_changes_wait() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let mut cluster = applied_cluster("");
        assert_eq!(decide_suspended(&cluster, Some(&[]), at(9)), None);
        cluster.spec.suspend = true;
        let message = |cluster: &RealtimeCluster, waiting: Option<&[String]>| {
            decide_suspended(cluster, waiting, at(9)).expect("suspended").message
        };
        assert_eq!(message(&cluster, Some(&[])), "nothing is applied since 1970-01-01T00:00:09Z: no change waits");
        let condition = Condition {
            type_: condition::SUSPENDED.to_owned(),
            status: "True".to_owned(),
            reason: "Suspended".to_owned(),
            message: String::new(),
            observed_generation: Some(1),
            last_transition_time: Time(at(3)),
        };
        cluster.status =
            Some(RealtimeClusterStatus { conditions: vec![condition], ..RealtimeClusterStatus::default() });
        let objects: Vec<String> = (0..7).map(|number| format!("Service {number}")).collect();
        for (waiting, says) in [
            (Some(&objects[..1]), "changes wait of Service 0"),
            (Some(&objects[..]), "changes wait of Service 0, Service 1, Service 2, Service 3, Service 4 and 2 more"),
            (None, "the manifest cannot be rendered"),
        ] {
            let expected = format!("nothing is applied since 1970-01-01T00:00:03Z: {says}");
            assert_eq!(message(&cluster, waiting), expected);
        }
    }
}
