//! Checks of the manifest itself. Pure.

use super::{CheckResult, CheckState};
use crate::cli::files::InputManifests;
use crate::desired::{
    self, ClusterInputs, OPERATOR_NAMESPACE, RECEIVER_PORT, SecretTexts, ServerImage, ValidCluster, receiver_address,
};

/// Validates the cluster with these texts of Secrets. A missing text is a problem of another check, and does not count.
pub fn check_manifest(
    input: &InputManifests,
    mut secrets: SecretTexts,
    own: &ServerImage,
    recorded: Option<&ServerImage>,
) -> (CheckResult, Option<ValidCluster>) {
    desired::add_stand_ins(&input.cluster, &input.apps, &mut secrets, |_| "missing".to_owned());
    let generate = |purpose: &str| format!("<{purpose}>");
    let credentials = desired::generate_all_credentials(&input.cluster, &input.apps, generate);
    let inputs = ClusterInputs {
        cluster: &input.cluster,
        apps: &input.apps,
        secrets: &secrets,
        credentials: &credentials,
        receiver: &receiver_address(OPERATOR_NAMESPACE, RECEIVER_PORT),
        own_networks: &[],
        own_image: own,
        recorded_image: recorded,
        stream: None,
    };
    let valid = match desired::validate(&inputs) {
        Ok(valid) => valid,
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let remedy = "correct the field named";
            return (CheckResult::new("manifest", CheckState::Missing, lines.join("; "), remedy), None);
        }
    };
    let refused: Vec<String> =
        valid.refused.iter().flat_map(|refused| &refused.problems).map(ToString::to_string).collect();
    let result = if refused.is_empty() {
        assess_timeouts(&valid, input.cluster.spec.gate.deadline_seconds)
    } else {
        CheckResult::new("manifest", CheckState::Missing, refused.join("; "), "correct the apps named")
    };
    (result, Some(valid))
}

/// The result for a manifest without a problem, with the timeout that a tool needs.
fn assess_timeouts(valid: &ValidCluster, deadline_seconds: u32) -> CheckResult {
    let estimate = desired::estimate_rollout(valid).as_secs();
    let message = format!(
        "valid; servers run {} as release {}; a rollout takes about {estimate} s until Ready: give tools a timeout of {} s",
        valid.image,
        valid.image.release,
        2 * estimate
    );
    if u64::from(deadline_seconds) < estimate {
        let message = format!("{message}; gate.deadlineSeconds is {deadline_seconds}, shorter than that");
        return CheckResult::new("manifest", CheckState::Warning, message, "raise gate.deadlineSeconds");
    }
    CheckResult::passed("manifest", message)
}
