//! Settings of a server's pods, with their defaults. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::kubernetes_names::{is_label_value, is_qualified_name};
use crate::api::pods::{
    APP_LABEL_PREFIX, AccountCreation, Amount, OPERATOR_PREFIX, PodSettings, ResourcesSpec, ServiceAccountSpec,
};
use crate::config::Release;

/// Requests of a server whose manifest names neither a request nor a limit of the resource: a pod without any is the first
/// that a node evicts.
const DEFAULT_REQUESTS: [(&str, &str); 2] = [("cpu", "25m"), ("memory", "64Mi")];

/// Node labels over whose values pods spread by default.
const SPREAD_KEYS: [&str; 2] = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"];

/// Settings of the pods of one server, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerPods {
    /// Requests and limits of the server's container.
    pub resources: ResourceRequirements,
    /// Labels of the nodes on which pods run.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that pods tolerate.
    pub tolerations: Vec<Toleration>,
    /// Rules by which the scheduler prefers or demands nodes.
    pub affinity: Option<Affinity>,
    /// Rules by which pods spread; a constraint without a selector counts the pods of the server.
    pub spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pods; `None` for the default one.
    pub priority_class: Option<String>,
    /// Labels in addition to the operator's.
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the operator's.
    pub annotations: BTreeMap<String, String>,
    /// Pods that an eviction may take at once.
    pub max_unavailable: IntOrString,
}

/// A service account of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAccount {
    /// Name of the account.
    pub name: String,
    /// Whether the operator creates and owns it.
    pub is_created: bool,
}

impl ServerPods {
    /// Applies the defaults of a release: pods of an older one stay as they are.
    #[must_use]
    pub fn resolve(settings: &PodSettings, release: Release) -> Self {
        let has_defaults = release >= Release::PLATFORM_DEFAULTS;
        let default_spread = || if has_defaults { SPREAD_KEYS.map(spread_evenly).into() } else { vec![] };
        Self {
            resources: resolve_resources(&settings.resources, if has_defaults { &DEFAULT_REQUESTS } else { &[] }),
            node_selector: settings.node_selector.clone(),
            tolerations: settings.tolerations.clone(),
            affinity: settings.affinity.clone(),
            spread_constraints: settings.topology_spread_constraints.clone().unwrap_or_else(default_spread),
            priority_class: settings.priority_class_name.clone(),
            labels: settings.pod_labels.clone(),
            annotations: settings.pod_annotations.clone(),
            max_unavailable: settings.pod_disruption_budget.max_unavailable.clone(),
        }
    }

    /// The constraints; one without a selector gets these labels as its selector.
    #[must_use]
    pub fn select_spread_pods(&self, labels: &BTreeMap<String, String>) -> Vec<TopologySpreadConstraint> {
        let selector = || LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() };
        let constraints = self.spread_constraints.iter().cloned();
        let select = |mut constraint: TopologySpreadConstraint| {
            constraint.label_selector.get_or_insert_with(selector);
            constraint
        };
        constraints.map(select).collect()
    }
}

impl ServerAccount {
    /// The account of a spec, or the default name.
    #[must_use]
    pub fn resolve(spec: &ServiceAccountSpec, default_name: String) -> Self {
        Self { name: spec.name.clone().unwrap_or(default_name), is_created: spec.create == AccountCreation::Always }
    }
}

fn resolve_resources(spec: &ResourcesSpec, defaults: &[(&str, &str)]) -> ResourceRequirements {
    let amounts = |found: &BTreeMap<String, Amount>| -> BTreeMap<String, Quantity> {
        found.iter().map(|(name, amount)| (name.clone(), Quantity(amount.0.clone()))).collect()
    };
    let (mut requests, limits) = (amounts(&spec.requests), amounts(&spec.limits));
    for (name, amount) in defaults {
        if !limits.contains_key(*name) {
            requests.entry((*name).to_owned()).or_insert_with(|| Quantity((*amount).to_owned()));
        }
    }
    ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        claims: None,
    }
}

/// Spreads pods over the values of a node label as far as there is room: a full zone delays no rollout.
fn spread_evenly(topology_key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

/// Finds the labels and annotations that Kubernetes refuses or that belong to the operator, each with its field and message. A
/// schema has no pattern for the names in a map.
pub fn find_key_problems(settings: &PodSettings) -> Vec<(&'static str, String)> {
    let maps = [
        ("podLabels", &settings.pod_labels, &[APP_LABEL_PREFIX, OPERATOR_PREFIX][..]),
        ("podAnnotations", &settings.pod_annotations, &[OPERATOR_PREFIX]),
        ("nodeSelector", &settings.node_selector, &[]),
    ];
    let mut problems = Vec::new();
    for (field, entries, owned_prefixes) in maps {
        for (name, value) in entries {
            let message = if owned_prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                format!("has `{name}`, which belongs to the operator: write another")
            } else if !is_qualified_name(name) {
                format!("has `{name}`, which is no name: write one such as example.com/team")
            } else if field != "podAnnotations" && !is_label_value(value) {
                format!("has the value `{value}` for `{name}`: write at most 63 letters, digits, -, _ and .")
            } else {
                continue;
            };
            problems.push((field, message));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> ServerPods {
        ServerPods::resolve(&serde_yaml::from_str(text).expect("settings"), Release::PLATFORM_DEFAULTS)
    }

    #[test]
    fn a_resource_without_request_and_limit_has_a_default_request() {
        let of = |found: Option<BTreeMap<String, Quantity>>| -> Vec<String> {
            found.unwrap_or_default().into_iter().map(|(name, amount)| format!("{name} {}", amount.0)).collect()
        };
        for (text, requests, limits) in [
            ("{}", vec!["cpu 25m", "memory 64Mi"], vec![]),
            ("resources: { requests: { cpu: 2 } }", vec!["cpu 2", "memory 64Mi"], vec![]),
            ("resources: { limits: { memory: 1Gi } }", vec!["cpu 25m"], vec!["memory 1Gi"]),
            ("resources: { limits: { memory: 1Gi, cpu: \"1\" } }", vec![], vec!["cpu 1", "memory 1Gi"]),
        ] {
            let found = resolve(text).resources;
            assert_eq!((of(found.requests), of(found.limits)), (strings(&requests), strings(&limits)), "{text}");
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn constraints_without_a_selector_count_the_pods_of_the_server() {
        let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
        let selectors = |text: &str| -> Vec<(String, BTreeMap<String, String>)> {
            let found = resolve(text).select_spread_pods(&labels).into_iter();
            found
                .map(|it| (it.topology_key, it.label_selector.unwrap_or_default().match_labels.unwrap_or_default()))
                .collect()
        };
        assert_eq!(selectors("{}"), SPREAD_KEYS.map(|key| (key.to_owned(), labels.clone())));
        assert_eq!(selectors("topologySpreadConstraints: []"), vec![], "an empty list is no default");
        let former = ServerPods::resolve(&PodSettings::default(), Release::FIRST);
        assert_eq!((former.spread_constraints, former.resources), (vec![], ResourceRequirements::default()));
        let own = BTreeMap::from([("b".to_owned(), "c".to_owned())]);
        let text = "topologySpreadConstraints: [{ maxSkew: 2, topologyKey: rack, whenUnsatisfiable: DoNotSchedule, labelSelector: { matchLabels: { b: c } } }]";
        assert_eq!(selectors(text), [("rack".to_owned(), own)]);
    }

    #[test]
    fn names_of_the_operator_and_names_that_kubernetes_refuses_are_problems() {
        let found = |text: &str| -> Vec<String> {
            let problems = find_key_problems(&serde_yaml::from_str(text).expect("settings")).into_iter();
            problems.map(|(field, message)| format!("{field} {message}")).collect()
        };
        let sound = "podLabels: { team: a, example.com/x-y.z: A_1, empty: '' }\npodAnnotations: { app.kubernetes.io/x: 'any text' }\nnodeSelector: { kubernetes.io/os: linux }";
        assert_eq!(found(sound), Vec::<String>::new());
        for (text, expected) in [
            ("podLabels: { app.kubernetes.io/name: x }", "podLabels has `app.kubernetes.io/name`, which belongs"),
            (
                "podAnnotations: { realtime-operator.dev/admitted: x }",
                "podAnnotations has `realtime-operator.dev/admitted`",
            ),
            ("podLabels: { -a: x }", "podLabels has `-a`, which is no name"),
            ("podAnnotations: { Example.com/a: x }", "podAnnotations has `Example.com/a`, which is no name"),
            ("podAnnotations: { example.com/: x }", "podAnnotations has `example.com/`, which is no name"),
            ("nodeSelector: { a: 'b c' }", "nodeSelector has the value `b c` for `a`"),
        ] {
            let problems = found(text);
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{text}: {problems:?}");
        }
    }
}
