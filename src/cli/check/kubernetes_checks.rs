//! Checks by the API server: its version, CRDs, operator, Secrets, identity and `NetworkPolicies`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::auto_mode::{has_auto_mode_nodes, judge_node_role};
use super::{CheckResult, CheckState};
use crate::api::crd::all_crds;
use crate::api::yaml::yaml_document;
use crate::cli::cluster_api::{build_cluster_api, describe_error};
use crate::cli::files::InputManifests;
use crate::desired::network_policy::{find_isolating_policies, network_policy_name, render_network_policy};
use crate::desired::{self, AwsIdentity, SecretTexts, ServerImage, ValidCluster};
use crate::operator::LEADER_LEASE_NAME;

/// Name of the operator's Deployment, as the chart renders it.
const OPERATOR_DEPLOYMENT: &str = "realtime-operator";

/// Age of the operator's last renewal, in s, above which none leads.
const LEASE_AGE_MAX_SECONDS: i64 = 60;

/// Asks for the version of the API server.
///
/// # Errors
/// It does not answer: nothing else can be checked.
pub async fn check_api_server(client: &Client) -> Result<CheckResult, String> {
    let version = client.apiserver_version().await;
    let version = version.map_err(|error| format!("the API server does not answer: {}", describe_error(&error)))?;
    Ok(CheckResult::passed("api-server", format!("Kubernetes {}", version.git_version)))
}

/// Compares the installed CRDs with those of this program.
pub async fn check_crds(client: &Client) -> CheckResult {
    const CHECK: &str = "crds";
    let remedy = "realtime crd | kubectl apply --server-side -f -, or upgrade the chart of the CRDs";
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let own = match all_crds() {
        Ok(own) => own,
        Err(error) => return CheckResult::new(CHECK, CheckState::Warning, error.to_string(), ""),
    };
    let mut differing = Vec::new();
    for crd in own {
        let name = crd.object.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or_default();
        match api.get_opt(name).await {
            Ok(None) => {
                let message = format!("{name} is not installed");
                return CheckResult::new(CHECK, CheckState::Missing, message, remedy);
            }
            Ok(Some(found)) => {
                let wanted = serde_json::from_value::<CustomResourceDefinition>(crd.object.clone());
                if wanted.is_ok_and(|wanted| wanted.spec.versions != found.spec.versions) {
                    differing.push(name.to_owned());
                }
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                return check_crds_by_listing(client).await;
            }
            Err(error) => return CheckResult::new(CHECK, CheckState::Warning, describe_error(&error), ""),
        }
    }
    if differing.is_empty() {
        return CheckResult::passed(CHECK, format!("installed, and those of release {}", env!("CARGO_PKG_VERSION")));
    }
    let message = format!(
        "{} differ from those of release {}: they are of another release",
        differing.join(", "),
        env!("CARGO_PKG_VERSION")
    );
    CheckResult::new(CHECK, CheckState::Warning, message, remedy)
}

/// Without the right to read CRDs, a listing shows whether they exist.
async fn check_crds_by_listing(client: &Client) -> CheckResult {
    match build_cluster_api(client, None).list(&ListParams::default().limit(1)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let remedy = "have an administrator install the CRDs: realtime crd prints them";
            CheckResult::new("crds", CheckState::Missing, "RealtimeCluster is not installed", remedy)
        }
        _ => CheckResult::new("crds", CheckState::Warning, "CRDs are not readable: their release is unknown", ""),
    }
}

/// Finds the operator by its Lease, and its image by its Deployment.
pub async fn check_operator(client: &Client, namespace: &str) -> (CheckResult, Option<ServerImage>) {
    const CHECK: &str = "operator";
    let remedy = "install the operator (docs/helm.md), or name its namespace by --operator-namespace";
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = match leases.get_opt(LEADER_LEASE_NAME).await {
        Ok(Some(lease)) => lease.spec.unwrap_or_default(),
        Ok(None) => {
            let message = format!("none has run in namespace {namespace}");
            return (CheckResult::new(CHECK, CheckState::Missing, message, remedy), None);
        }
        Err(error) => {
            let message = format!("not known: {}", describe_error(&error));
            return (CheckResult::new(CHECK, CheckState::Warning, message, ""), None);
        }
    };
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let deployment = deployments.get_opt(OPERATOR_DEPLOYMENT).await.ok().flatten();
    let image = deployment.and_then(|deployment| {
        let containers = deployment.spec.template.spec?.containers;
        containers.into_iter().find(|container| container.name == "operator")?.image
    });
    let image = image.map(|reference| ServerImage::of_operator(Some(&reference)));
    let renewed = lease.renew_time.map_or(0, |time| time.0.as_second());
    let age = Timestamp::now().as_second().saturating_sub(renewed);
    let holder = lease.holder_identity.filter(|holder| !holder.is_empty());
    let result = if let Some(holder) = holder.filter(|_| age <= LEASE_AGE_MAX_SECONDS) {
        let shown = image.as_ref().map(|image| format!(", image {image}")).unwrap_or_default();
        CheckResult::passed(CHECK, format!("{holder} leads in namespace {namespace}{shown}"))
    } else {
        let message = format!("no replica leads in namespace {namespace}: the Lease was renewed {age} s ago");
        CheckResult::new(CHECK, CheckState::Missing, message, "read the log and the events of its pods")
    };
    (result, image)
}

/// Reads the Secrets that the files do not hold, and names those that are missing.
pub async fn check_secrets(client: &Client, input: &InputManifests) -> (CheckResult, SecretTexts) {
    let namespace = input.namespace();
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut texts = input.secrets.clone();
    let (mut missing, mut unreadable) = (Vec::new(), BTreeMap::new());
    let references = desired::collect_secret_references(&input.cluster, &input.apps);
    let with_headers: BTreeSet<&str> = input.apps.iter().flat_map(desired::header_secret_names).collect();
    let names = references.iter().map(|reference| reference.name.as_str()).chain(with_headers.iter().copied());
    let names: BTreeSet<&str> = names.filter(|name| !input.secrets.contains_key(*name)).collect();
    for name in names {
        match api.get_opt(name).await {
            Ok(Some(secret)) => {
                texts.insert(name.to_owned(), desired::trim_texts(desired::decode_secret(&secret)));
            }
            Ok(None) => {}
            Err(error) => {
                unreadable.insert(name, format!("{name}: {}", describe_error(&error)));
            }
        }
    }
    for reference in references.iter().filter(|reference| !unreadable.contains_key(reference.name.as_str())) {
        let (name, key) = (&reference.name, &reference.key);
        if texts.get(name).and_then(|found| found.get(key)).is_none_or(String::is_empty) {
            missing.push(format!("{namespace}/{name} with {}, key `{key}`", reference.purpose));
        }
    }
    for name in with_headers.iter().filter(|name| !unreadable.contains_key(**name) && !texts.contains_key(**name)) {
        missing.push(format!("{namespace}/{name} with headers of webhooks"));
    }
    let result = if !missing.is_empty() {
        let message = format!("missing: {}", missing.join("; "));
        CheckResult::new("secrets", CheckState::Missing, message, "create them; no restart is needed")
    } else if !unreadable.is_empty() {
        let unreadable: Vec<String> = unreadable.into_values().collect();
        CheckResult::new("secrets", CheckState::Warning, format!("not readable: {}", unreadable.join("; ")), "")
    } else {
        CheckResult::passed("secrets", format!("{} references exist", references.len() + with_headers.len()))
    };
    (result, texts)
}

/// The image that a cluster of this name already runs.
pub async fn find_recorded_image(client: &Client, input: &InputManifests) -> Option<ServerImage> {
    let api = build_cluster_api(client, Some(input.namespace()));
    let status = api.get_opt(&input.cluster.name_any()).await.ok()??.status?;
    ServerImage::of_record(status.image.as_ref()?, status.version.as_deref()?)
}

/// Checks the platform component that gives pods their AWS identity.
pub async fn check_identity(client: &Client, cluster: &ValidCluster) -> CheckResult {
    const CHECK: &str = "identity";
    let name = cluster.stream.identity.name();
    match &cluster.stream.identity {
        AwsIdentity::StaticKeys(secret) => CheckResult::passed(CHECK, format!("{name} by the Secret {secret}")),
        AwsIdentity::WebIdentity(roles) => {
            CheckResult::passed(CHECK, format!("{name} as {} and {}", roles.edge, roles.dispatcher))
        }
        AwsIdentity::NodeRole => judge_node_role(CHECK, has_auto_mode_nodes(client).await),
        AwsIdentity::PodIdentity => {
            let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
            let found = sets.get_opt("eks-pod-identity-agent").await;
            let accounts = format!(
                "{} and {} in namespace {}",
                cluster.edge_account.name, cluster.dispatcher_account.name, cluster.namespace
            );
            match found {
                Ok(Some(_)) => {
                    CheckResult::passed(CHECK, format!("{name}: the agent is installed; associate {accounts}"))
                }
                Ok(None) if has_auto_mode_nodes(client).await == Some(true) => {
                    CheckResult::passed(CHECK, format!("{name}: a part of EKS Auto Mode; associate {accounts}"))
                }
                Ok(None) => {
                    let remedy = format!(
                        "install the add-on eks-pod-identity-agent and associate {accounts}; outside of EKS use StaticKeys or WebIdentity"
                    );
                    CheckResult::new(CHECK, CheckState::Missing, format!("{name}: no agent in kube-system"), remedy)
                }
                Err(error) => CheckResult::new(CHECK, CheckState::Warning, describe_error(&error), ""),
            }
        }
        AwsIdentity::Irsa(_) => {
            let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
            match webhooks.get_opt("pod-identity-webhook").await {
                Ok(Some(_)) => CheckResult::passed(CHECK, format!("{name}: the webhook is installed")),
                Ok(None) => {
                    let remedy = "use an EKS cluster, install amazon-eks-pod-identity-webhook, or use WebIdentity";
                    CheckResult::new(CHECK, CheckState::Missing, format!("{name}: no pod-identity-webhook"), remedy)
                }
                Err(error) => CheckResult::new(CHECK, CheckState::Warning, describe_error(&error), ""),
            }
        }
    }
}

/// Finds the policies that isolate the pods, and renders the one to add.
pub async fn check_network_policies(
    client: &Client,
    cluster: &ValidCluster,
    secrets: &SecretTexts,
    operator_namespace: &str,
) -> CheckResult {
    const CHECK: &str = "network-policy";
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), &cluster.namespace);
    let policies = match api.list(&ListParams::default()).await {
        Ok(policies) => policies.items,
        Err(error) => return CheckResult::new(CHECK, CheckState::Warning, describe_error(&error), ""),
    };
    let isolating = find_isolating_policies(cluster, &policies);
    if isolating.is_empty() {
        return CheckResult::passed(CHECK, format!("no policy isolates the pods in namespace {}", cluster.namespace));
    }
    let own = network_policy_name(cluster);
    if isolating.contains(&own) {
        return CheckResult::passed(CHECK, format!("{own} is there, beside {}", isolating.len() - 1));
    }
    let redis = secrets.get(&cluster.redis.url.name).and_then(|texts| texts.get(&cluster.redis.url.key));
    let policy = render_network_policy(cluster, redis.map(String::as_str).unwrap_or_default(), operator_namespace);
    let message =
        format!("the pods are isolated by {}: journeys, Redis or webhooks may be cut off", isolating.join(", "));
    CheckResult {
        manifest: yaml_document(&policy).unwrap_or_default(),
        ..CheckResult::new(CHECK, CheckState::Warning, message, "add this policy, unless yours allow the same")
    }
}
