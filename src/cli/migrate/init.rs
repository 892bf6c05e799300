//! `realtime migrate init`: the key that both sides of a move share.

use rand::Rng;
use serde_json::json;

use super::super::output::{OutputFormat, print_value};
use crate::api::migration::{SNAPSHOT_KEY_FIELD, SNAPSHOT_KEY_SECRET};

/// Bytes of a new key: as many as an HMAC-SHA-256 uses.
const KEY_BYTES: usize = 32;

/// Print a Secret with a new key for the snapshots of both clusters: the same key is applied on both sides.
///
/// Each run prints another key. Digests of secrets under one key are equal for equal secrets, and nobody without the key can
/// forge a snapshot.
///
/// Exit codes: 0 the Secret is printed.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    realtime migrate init -n channels >key.yaml\n  \
    kubectl apply --context old -f key.yaml\n  \
    kubectl apply --context new -f key.yaml\n  \
    kubectl get secret realtime-migration -n channels -o 'go-template={{.data.key | base64decode}}' >review.key")]
pub struct InitArguments {
    /// Namespace of the Secret
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Name of the Secret
    #[arg(long, default_value = SNAPSHOT_KEY_SECRET)]
    name: String,
}

/// Prints the Secret, and returns the exit code.
pub fn print_key_secret(arguments: &InitArguments) -> u8 {
    let mut key = [0_u8; KEY_BYTES];
    rand::rng().fill(&mut key);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": arguments.name, "namespace": arguments.namespace },
        "stringData": { SNAPSHOT_KEY_FIELD: hex::encode(key) },
    });
    print_value(OutputFormat::Yaml, &secret)
}
