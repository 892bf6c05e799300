//! Compares a live pod with its own template. Pure.
//!
//! In: the pod and the template of its `ReplicaSet`. Out: the fields that differ, and the additions of known injectors.
//! A pod with a difference is never admitted: journeys show that events pass today, not what the addition does tomorrow.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;

use crate::desired::{FieldKind, KnownInjectors, PodField, list_pod_fields};

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAudit {
    /// The fields that differ.
    pub differences: Vec<PodDifference>,
    /// Names of the injectors whose additions are accepted.
    pub injectors: BTreeSet<String>,
    /// The variables that they added to the server's container, as far as they are texts.
    pub injected_variables: BTreeMap<String, String>,
}

/// A field of a pod that is not as its template has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDifference {
    pub field: PodField,
    /// The value in the template; `None` for a field that it does not have.
    pub wanted: Option<String>,
    /// The value in the pod; `None` for a field that is missing. An added field's value may be confidential.
    pub found: Option<String>,
    /// The injector of the cluster's AWS identity that has not acted, so that a new pod may be right.
    pub missing_injector: Option<String>,
}

impl fmt::Display for PodDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = &self.field;
        match (&self.missing_injector, &self.wanted, &self.found) {
            (Some(injector), ..) => write!(f, "{field}: want it injected by {injector}, found none"),
            (_, Some(wanted), Some(found)) => write!(f, "{field}: want {wanted}, found {found}"),
            (_, Some(wanted), None) if wanted.is_empty() => write!(f, "{field}: want it, found none"),
            (_, Some(wanted), None) => write!(f, "{field}: want {wanted}, found none"),
            (_, None, _) => write!(f, "{field}: want none, found one that no known injector adds"),
        }
    }
}

impl PodAudit {
    /// Whether a new pod may be right although nobody changes a policy: the AWS identity was not injected yet.
    pub fn only_lacks_identity(&self) -> bool {
        !self.differences.is_empty() && self.differences.iter().all(|found| found.missing_injector.is_some())
    }
}

/// The identity with which a pod should run.
#[derive(Clone, Copy)]
pub struct WantedIdentity<'a> {
    /// Type of the identity.
    pub name: &'a str,
    /// Whether the pod reaches AWS, so that its injector must have acted.
    pub is_used: bool,
}

/// Compares a pod with its template. `server` is the name of the server's container.
#[must_use]
pub fn audit_pod(
    template: &PodSpec,
    pod: &PodSpec,
    known: &KnownInjectors,
    identity: WantedIdentity<'_>,
    server: &str,
) -> PodAudit {
    let (wanted, found) = (list_pod_fields(template), list_pod_fields(pod));
    let mut audit = PodAudit::default();
    let is_container_wanted = |name: &str| {
        wanted
            .keys()
            .any(|field| matches!(field.kind, FieldKind::Container | FieldKind::InitContainer) && field.name == name)
    };
    for (field, value) in &found {
        // A container that was added is one difference, whatever is in it.
        if field.container.as_deref().is_some_and(|name| !is_container_wanted(name)) {
            continue;
        }
        // The image has a field of its own.
        let is_container = matches!(field.kind, FieldKind::Container | FieldKind::InitContainer);
        let difference = |wanted: Option<&String>| PodDifference {
            field: field.clone(),
            wanted: wanted.cloned(),
            found: Some(value.clone()),
            missing_injector: None,
        };
        match wanted.get(field) {
            Some(wanted) if wanted == value || is_container => {}
            Some(wanted) if field.kind == FieldKind::Image && known.is_rewritten_image(wanted, value) => {
                audit.injectors.insert("image rewriting".to_owned());
            }
            Some(wanted) => audit.differences.push(difference(Some(wanted))),
            None => match known.find_injector(field, value, identity.name) {
                Some(injector) => {
                    audit.injectors.insert(injector.to_owned());
                }
                None => audit.differences.push(difference(None)),
            },
        }
    }
    let missing = wanted.iter().filter(|(field, _)| !found.contains_key(field));
    audit.differences.extend(missing.map(|(field, value)| PodDifference {
        field: field.clone(),
        wanted: Some(value.clone()),
        found: None,
        missing_injector: None,
    }));
    let container = pod.containers.iter().find(|container| container.name == server);
    let variables = || container.into_iter().flat_map(|container| container.env.iter().flatten());
    let variable =
        |name: &str| PodField { container: Some(server.to_owned()), kind: FieldKind::Variable, name: name.to_owned() };
    for added in variables().filter(|added| !wanted.contains_key(&variable(&added.name))) {
        if let Some(value) = &added.value {
            audit.injected_variables.insert(added.name.clone(), value.clone());
        }
    }
    for (name, injector) in known.required_variables(identity.name).filter(|_| identity.is_used) {
        if !variables().any(|found| found.name == name) {
            audit.differences.push(PodDifference {
                field: variable(name),
                wanted: None,
                found: None,
                missing_injector: Some(injector.to_owned()),
            });
        }
    }
    audit
}

#[cfg(test)]
impl PodDifference {
    /// A variable that differs, or one that an identity's injector should have added.
    pub fn for_test(lacks_identity: bool) -> Self {
        let field = PodField { container: Some("sockjs".to_owned()), kind: FieldKind::Variable, name: "A".to_owned() };
        let missing_injector = lacks_identity.then(|| "EKS Pod Identity".to_owned());
        Self { field, wanted: Some("1".to_owned()), found: Some("2".to_owned()), missing_injector }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::pod_fields_fixture::{read_pod, rendered_pod};
    use serde_json::{Value, json};

    fn audit(change: impl Fn(&mut Value), identity: &str) -> PodAudit {
        let mut pod = serde_json::to_value(rendered_pod()).expect("JSON");
        change(&mut pod);
        let known = KnownInjectors::shipped().expect("the shipped file");
        let identity = WantedIdentity { name: identity, is_used: true };
        audit_pod(&rendered_pod(), &read_pod(&pod), &known, identity, "sockjs")
    }

    /// A change of a pod.
    type Change<'a> = &'a dyn Fn(&mut Value);

    fn push(list: &mut Value, item: Value) {
        list.as_array_mut().expect("a list").push(item);
    }

    #[test]
    fn what_a_known_injector_adds_is_accepted_and_named() {
        let found = audit(
            |pod| {
                push(
                    &mut pod["containers"],
                    json!({ "name": "istio-proxy", "image": "x", "env": [{ "name": "A", "value": "1" }] }),
                );
                push(&mut pod["containers"][0]["env"], json!({ "name": "DD_AGENT_HOST", "value": "10.0.0.1" }));
                push(
                    &mut pod["containers"][0]["volumeMounts"],
                    json!({ "name": "kube-api-access-x", "mountPath": "/var/run" }),
                );
                push(&mut pod["volumes"], json!({ "name": "kube-api-access-x", "projected": {} }));
                pod["containers"][0]["image"] =
                    json!(format!("registry.test/acme/realtime:1@sha256:{}", "0".repeat(64)));
            },
            "StaticKeys",
        );
        assert_eq!(found.differences, []);
        let names: Vec<&str> = found.injectors.iter().map(String::as_str).collect();
        assert_eq!(names, ["Datadog", "Istio", "Kubernetes service account token", "image rewriting"]);
        assert_eq!(found.injected_variables, BTreeMap::from([("DD_AGENT_HOST".to_owned(), "10.0.0.1".to_owned())]));
    }

    #[test]
    fn every_other_difference_is_named_with_its_container_and_field() {
        let says = |change: Change<'_>| {
            let found = audit(change, "StaticKeys");
            assert!(!found.only_lacks_identity());
            found.differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let cases: [(Change<'_>, &str); 8] = [
            (
                &|pod| pod["containers"][0]["env"][0]["value"] = json!("off"),
                "container sockjs: env REALTIME_WEBHOOKS: want kinesis, found off",
            ),
            (
                // Kubernetes takes the later of two variables of one name.
                &|pod| push(&mut pod["containers"][0]["env"], json!({ "name": "REALTIME_WEBHOOKS", "value": "off" })),
                "container sockjs: env REALTIME_WEBHOOKS: want kinesis, found off",
            ),
            (
                &|pod| {
                    push(&mut pod["containers"][0]["env"], json!({ "name": "HTTPS_PROXY", "value": "http://u:p@x" }));
                },
                "container sockjs: env HTTPS_PROXY: want none, found one that no known injector adds",
            ),
            (
                &|pod| push(&mut pod["containers"], json!({ "name": "stranger", "image": "x", "args": ["y"] })),
                "container stranger: want none, found one that no known injector adds",
            ),
            (
                &|pod| pod["hostAliases"] = json!([{ "ip": "10.0.0.1", "hostnames": ["a"] }]),
                "hostAlias 10.0.0.1: want none, found one that no known injector adds",
            ),
            (
                &|pod| pod["containers"][0]["image"] = json!("elsewhere.test/acme/realtime:1"),
                "container sockjs: image: want registry.test/acme/realtime:1, found elsewhere.test/acme/realtime:1",
            ),
            (
                &|pod| pod["readinessGates"] = json!([]),
                "readinessGate realtime-operator.dev/webhooks-delivered: want it, found none",
            ),
            (&|pod| pod["hostNetwork"] = json!(true), "hostNetwork: want none, found one that no known injector adds"),
        ];
        for (change, expected) in cases {
            assert_eq!(says(change), expected);
        }
    }

    #[test]
    fn an_identity_that_was_not_injected_is_named_and_may_come_with_a_new_pod() {
        let found = audit(|_| {}, "IRSA");
        assert!(found.only_lacks_identity());
        assert_eq!(
            found.differences[0].to_string(),
            "container sockjs: env AWS_ROLE_ARN: want it injected by EKS IAM roles for service accounts, found none"
        );
        let injected = |pod: &mut Value| {
            for name in ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"] {
                push(&mut pod["containers"][0]["env"], json!({ "name": name, "value": "x" }));
            }
        };
        assert_eq!(audit(injected, "IRSA").differences, []);
        let strange = audit(injected, "StaticKeys").differences;
        assert_eq!(strange.len(), 2, "an identity beside the one that the manifest names");
    }
}
