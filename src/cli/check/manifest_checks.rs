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
        let message = format!("valid; servers run {} as release {}", valid.image, valid.image.release);
        CheckResult::passed("manifest", message)
    } else {
        CheckResult::new("manifest", CheckState::Missing, refused.join("; "), "correct the apps named")
    };
    (result, Some(valid))
}
