//! The fingerprint of a cluster in a move: the images and the variables by which a fault may return elsewhere.

use sha2::{Digest, Sha256};

use super::ClusterSnapshot;
use crate::config::{ServerKind, Variable};

/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 16;

/// Digests what the servers of one transport and the dispatchers run: images and variables, without those that each cluster
/// has for itself. Clusters of one fingerprint share their faults.
#[must_use]
pub fn fingerprint_servers(snapshot: &ClusterSnapshot, moved: ServerKind) -> String {
    let is_fleet_wide = |name: &str| Variable::by_name(name).is_none_or(|row| row.key.is_fleet_wide());
    let servers = snapshot.servers.iter().filter(|(kind, _)| kind.serves_as(moved) || **kind == ServerKind::Dispatcher);
    let parts: Vec<_> = servers
        .map(|(kind, server)| {
            let variables: Vec<_> = server.variables.iter().filter(|(name, _)| is_fleet_wide(name)).collect();
            (kind, &server.image, variables)
        })
        .collect();
    let mut digits = hex::encode(Sha256::digest(serde_json::json!(parts).to_string()));
    digits.truncate(FINGERPRINT_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::name;
    use crate::migration::{ServerSnapshot, SnapshotOrigin, VariableValue};

    fn fingerprint(image: &str, variables: &[(&str, &str)]) -> String {
        let text = |value: &str| VariableValue::Text(value.to_owned());
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), text(value)));
        let server =
            ServerSnapshot { image: image.to_owned(), variables: variables.collect(), ..ServerSnapshot::default() };
        let servers = [(ServerKind::Sockjs, server.clone()), (ServerKind::Websocket, ServerSnapshot::default())];
        let snapshot = ClusterSnapshot::new(SnapshotOrigin::Operator, "a/b".to_owned(), servers.into());
        fingerprint_servers(&snapshot, ServerKind::Sockjs)
    }

    #[test]
    fn a_fingerprint_changes_with_the_image_and_with_variables_of_the_fleet_alone() {
        let first = fingerprint("a:1", &[(name::WEBHOOKS, "kinesis"), (name::CLUSTER, "eu")]);
        assert_eq!(first, fingerprint("a:1", &[(name::WEBHOOKS, "kinesis"), (name::CLUSTER, "us")]));
        assert_ne!(first, fingerprint("a:2", &[(name::WEBHOOKS, "kinesis"), (name::CLUSTER, "eu")]));
        assert_ne!(first, fingerprint("a:1", &[(name::WEBHOOKS, "off"), (name::CLUSTER, "eu")]));
        let own = [(name::WEBHOOKS, "kinesis"), (name::CLUSTER, "eu"), ("TZ", "UTC")];
        assert_ne!(first, fingerprint("a:1", &own), "a variable of the user's own");
    }
}
