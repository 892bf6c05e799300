//! The live objects that the controllers read, from one watch per kind instead of a listing per reconcile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::object_index::{ListedRanges, ObjectIndex};
use crate::api::{RealtimeApp, RealtimeCluster, RealtimeMigration};
use crate::desired::render::{WATCHED_KINDS, is_pruned};
use crate::kubernetes::apply::{self, LiveChild};
use crate::kubernetes::scope::WatchRange;

/// Label of a child with the name of its cluster.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";

/// The objects of all watched kinds, as their watches report them.
#[derive(Debug)]
pub struct LiveObjects {
    /// The apps of all namespaces.
    pub apps: ObjectIndex<RealtimeApp>,
    /// The moves of all namespaces.
    pub migrations: ObjectIndex<RealtimeMigration>,
    /// The pods of all clusters.
    pub pods: ObjectIndex<Pod>,
    /// The other children of all clusters, by kind.
    children: BTreeMap<&'static str, ObjectIndex<DynamicObject>>,
    /// The listings of clusters.
    pub clusters: ListedRanges,
}

impl Default for LiveObjects {
    fn default() -> Self {
        let children = WATCHED_KINDS.iter().map(|(_, kind)| (*kind, ObjectIndex::default())).collect();
        let (apps, pods) = (ObjectIndex::default(), ObjectIndex::default());
        Self { apps, pods, children, migrations: ObjectIndex::default(), clusters: ListedRanges::default() }
    }
}

impl LiveObjects {
    /// Waits until every kind is listed in a range, clusters excepted: before that, a missing object says nothing.
    pub async fn wait_until_listed(&self, range: &WatchRange) {
        self.apps.wait_until_listed(range).await;
        self.pods.wait_until_listed(range).await;
        for index in self.children.values() {
            index.wait_until_listed(range).await;
        }
    }

    /// The index of a kind of [`WATCHED_KINDS`].
    pub fn children(&self, kind: &str) -> Option<&ObjectIndex<DynamicObject>> {
        self.children.get(kind)
    }

    /// The live object of a rendered one, if its kind is watched.
    pub fn find_child(&self, rendered: &Value) -> Option<Arc<DynamicObject>> {
        let text = |pointer| rendered.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        self.children(text("/kind"))?.get(text("/metadata/namespace"), text("/metadata/name"))
    }

    /// The children of a cluster by their label that are deleted when they are not rendered any more, each with its API
    /// version and kind, those that are applied last first.
    pub fn prunable_children_of(&self, cluster: &RealtimeCluster) -> Vec<LiveChild> {
        let found = |types: (&'static str, &'static str)| {
            self.children_of_kind(cluster, types.1).into_iter().map(move |object| (types, object))
        };
        WATCHED_KINDS.into_iter().rev().filter(|(_, kind)| is_pruned(kind)).flat_map(found).collect()
    }

    /// The children of a cluster that are of one kind.
    pub fn children_of_kind(&self, cluster: &RealtimeCluster, kind: &str) -> Vec<Arc<DynamicObject>> {
        let name = cluster.name_any();
        let index = self.children(kind);
        let found = index.map(|index| index.find(&cluster.namespace().unwrap_or_default(), |o| belongs_to(o, &name)));
        found.unwrap_or_default()
    }

    /// The pods of a cluster.
    pub fn pods_of(&self, cluster: &RealtimeCluster) -> Vec<Arc<Pod>> {
        let name = cluster.name_any();
        self.pods.find(&cluster.namespace().unwrap_or_default(), |pod| belongs_to(pod, &name))
    }

    /// Pairs pods with the templates from which they were created, each template parsed once. A pod that no Deployment of the
    /// cluster owns, through its `ReplicaSet`, is left out, whatever labels it has.
    pub fn pair_with_templates(
        &self,
        cluster: &RealtimeCluster,
        pods: &[Arc<Pod>],
    ) -> Vec<(Arc<Pod>, Arc<PodTemplateSpec>)> {
        let mut parsed: HashMap<String, Option<Arc<PodTemplateSpec>>> = HashMap::new();
        let mut find = |pod: &Arc<Pod>| {
            let replica_set = self.find_replica_set(cluster, pod)?;
            let parse = || serde_json::from_value(replica_set.data.pointer("/spec/template")?.clone()).ok();
            let template = parsed.entry(replica_set.name_any()).or_insert_with(|| parse().map(Arc::new)).clone()?;
            Some((pod.clone(), template))
        };
        pods.iter().filter_map(&mut find).collect()
    }

    /// The `ReplicaSet` of a pod, if a Deployment of the cluster owns it.
    fn find_replica_set(&self, cluster: &RealtimeCluster, pod: &Pod) -> Option<Arc<DynamicObject>> {
        let namespace = cluster.namespace()?;
        let owner = |kind: &str, owned: &ObjectMeta| {
            let reference = owned.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
            let found = self.children(kind).filter(|_| reference.kind == kind)?.get(&namespace, &reference.name)?;
            (found.uid().as_deref() == Some(reference.uid.as_str())).then_some(found)
        };
        let replica_set = owner("ReplicaSet", &pod.metadata)?;
        let deployment = owner("Deployment", &replica_set.metadata)?;
        apply::is_owned_by(&*deployment, &cluster.uid()?).then_some(replica_set)
    }

    /// The Services of a cluster.
    pub fn services_of(&self, cluster: &RealtimeCluster) -> Vec<Service> {
        self.parse_children(cluster, "Service")
    }

    /// The Deployments of a cluster.
    pub fn deployments_of(&self, cluster: &RealtimeCluster) -> Vec<Deployment> {
        self.parse_children(cluster, "Deployment")
    }

    fn parse_children<K: Resource + DeserializeOwned>(&self, cluster: &RealtimeCluster, kind: &str) -> Vec<K> {
        let found = self.children_of_kind(cluster, kind);
        found.iter().filter_map(|object| (**object).clone().try_parse().ok()).collect()
    }

    /// The apps of a cluster, the oldest first: of two with the same id the older keeps it.
    pub fn apps_of(&self, cluster: &RealtimeCluster) -> Vec<Arc<RealtimeApp>> {
        let mut apps = self.apps.find(&cluster.namespace().unwrap_or_default(), |_| true);
        apps.sort_by_cached_key(|app| (app.metadata.creation_timestamp.clone(), app.name_any()));
        apps
    }
}

fn belongs_to<K: ResourceExt>(object: &K, cluster: &str) -> bool {
    object.labels().get(INSTANCE_LABEL).is_some_and(|name| name == cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    #[test]
    fn a_clusters_objects_are_those_of_its_namespace_and_label() {
        let live = LiveObjects::default();
        let cluster = applied_cluster("");
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        for (namespace, child, instance) in
            [(namespace.as_str(), "a", name.as_str()), (namespace.as_str(), "b", "another"), ("elsewhere", "c", &name)]
        {
            let metadata = json!({ "name": child, "namespace": namespace, "labels": { INSTANCE_LABEL: instance } });
            let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata });
            let service = serde_json::from_value(service).expect("a Service");
            live.children("Service").expect("a watched kind").apply_event(&WatchRange::All, Event::Apply(service));
            let pod = serde_json::from_value(json!({ "metadata": metadata })).expect("a pod");
            live.pods.apply_event(&WatchRange::All, Event::Apply(pod));
        }
        let pods: Vec<_> = live.pods_of(&cluster).iter().map(|pod| pod.name_any()).collect();
        let services: Vec<_> = live.services_of(&cluster).iter().map(ResourceExt::name_any).collect();
        assert_eq!((pods, services), (vec!["a".to_owned()], vec!["a".to_owned()]));
        let rendered = json!({ "kind": "Service", "metadata": { "name": "b", "namespace": namespace } });
        assert_eq!(live.find_child(&rendered).expect("a live object").name_any(), "b");
        assert!(live.find_child(&json!({ "kind": "Secret" })).is_none(), "Secrets are not watched");
        let children: Vec<_> =
            live.prunable_children_of(&cluster).into_iter().map(|(types, o)| (types.1, o.name_any())).collect();
        assert_eq!(children, [("Service", "a".to_owned())]);
    }

    #[test]
    fn the_template_of_a_pod_is_that_of_its_replica_set_if_the_clusters_deployment_owns_it() {
        let cluster = applied_cluster("");
        let (namespace, uid) = (cluster.namespace().expect("a namespace"), cluster.uid().expect("a UID"));
        let owner = |kind: &str, name: &str, uid: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true }]);
        let found = |pods: Value, replica_sets: Value, deployments: &str| {
            let live = LiveObjects::default();
            for (kind, name, uid, owners) in [
                ("Deployment", "eu-sockjs", "d1", owner("RealtimeCluster", "eu", deployments)),
                ("ReplicaSet", "eu-sockjs-1", "r1", replica_sets),
            ] {
                let object = json!({
                    "apiVersion": "apps/v1", "kind": kind,
                    "metadata": { "name": name, "namespace": namespace, "uid": uid, "ownerReferences": owners },
                    "spec": { "template": { "spec": { "containers": [{ "name": "sockjs" }] } } },
                });
                let object = serde_json::from_value(object).expect("an object");
                live.children(kind).expect("a watched kind").apply_event(&WatchRange::All, Event::Apply(object));
            }
            let pod = json!({ "metadata": { "name": "p", "namespace": namespace, "ownerReferences": pods } });
            let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).expect("a pod"));
            let pairs = live.pair_with_templates(&cluster, &[pod.clone(), pod]);
            assert!(pairs.windows(2).all(|pair| Arc::ptr_eq(&pair[0].1, &pair[1].1)), "a template is parsed once");
            pairs.len() == 2
        };
        let (of_set, of_deployment) =
            (owner("ReplicaSet", "eu-sockjs-1", "r1"), owner("Deployment", "eu-sockjs", "d1"));
        assert!(found(of_set.clone(), of_deployment.clone(), &uid));
        assert!(!found(json!([]), of_deployment.clone(), &uid), "a pod that somebody created");
        assert!(!found(owner("Job", "eu-sockjs-1", "r1"), of_deployment.clone(), &uid), "a pod of a Job");
        assert!(
            !found(owner("ReplicaSet", "eu-sockjs-1", "r0"), of_deployment.clone(), &uid),
            "a former one of this name"
        );
        assert!(!found(of_set.clone(), json!([]), &uid), "a ReplicaSet that somebody created");
        assert!(!found(of_set, of_deployment, "another"), "a Deployment of another cluster");
    }

    #[test]
    fn apps_are_ordered_by_age() {
        let live = LiveObjects::default();
        let cluster = applied_cluster("");
        for (name, created) in [("young", "2026-01-02T00:00:00Z"), ("old", "2026-01-01T00:00:00Z")] {
            let app = json!({
                "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp",
                "metadata": { "name": name, "namespace": cluster.namespace(), "creationTimestamp": created },
                "spec": { "appID": "1" },
            });
            live.apps.apply_event(&WatchRange::All, Event::Apply(serde_json::from_value(app).expect("an app")));
        }
        let names: Vec<_> = live.apps_of(&cluster).iter().map(|app| app.name_any()).collect();
        assert_eq!(names, ["old", "young"]);
    }
}
