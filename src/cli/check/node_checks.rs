//! Nodes that end before a drain is over, and the readiness gates of the AWS Load Balancer Controller: read with the rights of
//! the person, since the operator reads neither nodes nor namespaces.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};

use super::{CheckResult, CheckState};
use crate::cli::cluster_api::describe_error;
use crate::desired::ValidCluster;
use crate::desired::expose::{DrainPhases, has_injected_gates};

/// Label of a namespace into whose pods the controller injects readiness gates (AWS Load Balancer Controller, "Pod readiness gate").
const GATE_LABEL: &str = "elbv2.k8s.aws/pod-readiness-gate-inject";

/// Labels of nodes of spot capacity: of Karpenter and EKS Auto Mode, and of managed node groups.
const SPOT_LABELS: [&str; 2] = ["karpenter.sh/capacity-type=spot", "eks.amazonaws.com/capacityType=SPOT"];

/// Time from the notice to the end of a spot instance (EC2 User Guide, "Spot Instance interruption notices").
const SPOT_NOTICE_GRACE: Duration = Duration::from_mins(2);

/// Objects in one answer of the API server.
const PAGE_SIZE: u32 = 500;

/// The longest drain of a cluster, with the name of its server.
struct LongestDrain {
    server: String,
    drain: DrainPhases,
}

fn find_longest_drain(cluster: &ValidCluster) -> Option<LongestDrain> {
    let drains = cluster.servers.iter().filter_map(|server| {
        let drain = server.edge()?.drain;
        Some(LongestDrain { server: server.kind.name().to_owned(), drain })
    });
    drains.max_by_key(|longest| longest.drain.termination_grace())
}

/// Compares the drain with the ends of nodes: of spot capacity, and by the grace period of Karpenter's node claims.
pub async fn check_nodes(client: &Client, cluster: &ValidCluster) -> CheckResult {
    const CHECK: &str = "nodes";
    let Some(longest) = find_longest_drain(cluster) else { return CheckResult::skipped(CHECK, "no edge is enabled") };
    let nodes: Api<Node> = Api::all(client.clone());
    let mut has_spot = false;
    for label in SPOT_LABELS {
        match nodes.list_metadata(&ListParams::default().labels(label).limit(1)).await {
            Ok(found) => has_spot |= !found.items.is_empty(),
            Err(error) => {
                return CheckResult::skipped(CHECK, format!("nodes are not readable: {}", describe_error(&error)));
            }
        }
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("karpenter.sh", "v1", "NodeClaim"));
    let claims: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    // Without Karpenter there are none.
    let claims =
        claims.list(&ListParams::default().limit(PAGE_SIZE)).await.map(|found| found.items).unwrap_or_default();
    let graces = claims.iter().filter_map(|claim| {
        let grace = parse_duration(claim.data.pointer("/spec/terminationGracePeriod")?.as_str()?)?;
        Some((claim.name_any(), grace))
    });
    judge_nodes(CHECK, &longest, has_spot, graces.min_by_key(|(_, grace)| *grace))
}

fn judge_nodes(
    check: &'static str,
    longest: &LongestDrain,
    has_spot: bool,
    shortest_claim: Option<(String, Duration)>,
) -> CheckResult {
    let LongestDrain { server, drain } = longest;
    let (grace, phases) = (drain.termination_grace(), drain.hold + drain.window);
    if let Some((claim, period)) = shortest_claim.filter(|(_, period)| *period < grace) {
        let message = format!(
            "GraceExceedsNode: a pod of {server} takes {} s to end, and NodeClaim {claim} ends its node after {} s, whatever \
             PodDisruptionBudgets say",
            grace.as_secs(),
            period.as_secs()
        );
        let remedy = "raise terminationGracePeriod of the NodePool, or lower drain.holdSeconds and drain.windowSeconds";
        return CheckResult::new(check, CheckState::Warning, message, remedy);
    }
    if has_spot && phases >= SPOT_NOTICE_GRACE {
        let message = format!(
            "SpotGrace: a pod of {server} drains for {} s, and a spot node ends {} s after its notice",
            phases.as_secs(),
            SPOT_NOTICE_GRACE.as_secs()
        );
        let remedy = "keep the server on on-demand nodes by nodeSelector or affinity, or lower drain.holdSeconds and drain.windowSeconds";
        return CheckResult::new(check, CheckState::Warning, message, remedy);
    }
    CheckResult::passed(check, format!("no node ends before a pod of {server} has drained for {} s", grace.as_secs()))
}

/// A duration of Go, such as `24h0m0s`, in whole seconds; `None` for another text.
fn parse_duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut number) = (0_u64, String::new());
    for letter in text.chars() {
        let unit = match letter {
            '0'..='9' => {
                number.push(letter);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// Whether the controller of a load balancer delays the readiness of pods until they are registered; `None` without one that can.
pub async fn check_registration(client: &Client, cluster: &ValidCluster) -> Option<CheckResult> {
    const CHECK: &str = "registration";
    if !cluster.exposures.iter().any(has_injected_gates) {
        return None;
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    Some(match namespaces.get_opt(&cluster.namespace).await {
        Ok(Some(namespace)) => {
            judge_registration(CHECK, &cluster.namespace, namespace.labels().get(GATE_LABEL).map(String::as_str))
        }
        Ok(None) => CheckResult::skipped(CHECK, format!("namespace {} does not exist yet", cluster.namespace)),
        Err(error) => CheckResult::skipped(CHECK, format!("the namespace is not readable: {}", describe_error(&error))),
    })
}

fn judge_registration(check: &'static str, namespace: &str, label: Option<&str>) -> CheckResult {
    if label == Some("enabled") {
        return CheckResult::passed(check, "pods become ready once the load balancer has registered them");
    }
    let message = format!(
        "ReadinessGateMissing: the controller injects no readiness gate into pods of {namespace}: rollouts wait minReadySeconds instead"
    );
    CheckResult::new(
        check,
        CheckState::Warning,
        message,
        format!("kubectl label namespace {namespace} {GATE_LABEL}=enabled"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_end_before_a_drain_are_warned_of() {
        let drain = |hold: u64, window: u64| LongestDrain {
            server: "websocket".to_owned(),
            drain: DrainPhases { hold: Duration::from_secs(hold), window: Duration::from_secs(window) },
        };
        let claim = |seconds| Some(("pool-a".to_owned(), Duration::from_secs(seconds)));
        for (name, drain, has_spot, claim, expected) in [
            ("no node ends early", drain(120, 120), false, claim(86_400), None),
            ("no Karpenter", drain(120, 120), false, None, None),
            ("a claim of the same time", drain(120, 120), false, claim(270), None),
            ("a shorter claim", drain(120, 120), false, claim(269), Some("GraceExceedsNode")),
            ("spot", drain(120, 120), true, claim(86_400), Some("SpotGrace")),
            ("a drain that fits into the notice", drain(15, 60), true, None, None),
        ] {
            let found = judge_nodes("nodes", &drain, has_spot, claim);
            match expected {
                Some(reason) => {
                    assert!(found.state == CheckState::Warning && found.message.starts_with(reason), "{name}");
                }
                None => assert_eq!(found.state, CheckState::Passed, "{name}: {}", found.message),
            }
        }
    }

    #[test]
    fn durations_of_karpenter_are_read() {
        for (text, seconds) in
            [("24h0m0s", Some(86_400)), ("90s", Some(90)), ("1h", Some(3600)), ("", None), ("5", None), ("1d", None)]
        {
            assert_eq!(parse_duration(text), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn the_label_of_the_namespace_decides_on_readiness_gates() {
        for (label, state) in [
            (Some("enabled"), CheckState::Passed),
            (Some("disabled"), CheckState::Warning),
            (None, CheckState::Warning),
        ] {
            assert_eq!(judge_registration("registration", "channels", label).state, state, "{label:?}");
        }
        let missing = judge_registration("registration", "channels", None);
        assert_eq!(missing.remedy, "kubectl label namespace channels elbv2.k8s.aws/pod-readiness-gate-inject=enabled");
    }
}
