//! The seal of a snapshot: which cluster it is of, until when it counts, and a signature that nobody makes without the key.

use serde_json::Value;

use super::{ClusterSnapshot, SecretDigester, SnapshotSeal};
use crate::process::clock::format_time;

/// Time for which a snapshot counts, in ms: long enough for a review by people, too short for a cluster to change unseen.
const VALIDITY_MS: u64 = 7 * 24 * 3600 * 1000;

/// Purpose of the signature, which keeps it apart from digests of secrets.
const SEAL_PURPOSE: &str = "snapshot";

/// The reason for which a snapshot does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealFault {
    /// It has no seal.
    #[error("the snapshot has no seal: take it with `realtime snapshot` from a live cluster")]
    Unsealed,
    /// It was taken under another key.
    #[error("the snapshot is foreign: it was taken under the key {0}, not under this one; take it with the shared key")]
    ForeignKey(String),
    /// Its signature does not fit.
    #[error("the snapshot is forged, or was changed after it was taken: take another")]
    Forged,
    /// It is too old.
    #[error("the snapshot is stale: it counted until {0}; take another")]
    Stale(String),
}

impl ClusterSnapshot {
    /// Seals the snapshot of a live cluster.
    #[must_use]
    pub fn seal(mut self, digester: &SecretDigester, uid: &str, now_ms: u64) -> Self {
        let expires_at = format_time(now_ms.saturating_add(VALIDITY_MS));
        let seal = SnapshotSeal { uid: uid.to_owned(), sequence: now_ms, expires_at, signature: String::new() };
        self.key_id = Some(digester.key_id());
        self.seal = Some(seal);
        let document = serde_json::to_value(&self).unwrap_or_default();
        let signature = digester.sign(SEAL_PURPOSE, &build_signed_text(document));
        if let Some(seal) = &mut self.seal {
            seal.signature = signature;
        }
        self
    }

    /// Checks the seal. `document` is that of this snapshot: a newer release signs fields that this one does not know.
    ///
    /// # Errors
    /// The snapshot has none, is foreign, forged or stale.
    pub fn check_seal(&self, document: Value, digester: &SecretDigester, now_ms: u64) -> Result<(), SealFault> {
        let seal = self.seal.as_ref().ok_or(SealFault::Unsealed)?;
        let key_id = self.key_id.clone().unwrap_or_default();
        if key_id != digester.key_id() {
            return Err(SealFault::ForeignKey(key_id));
        }
        let signed = build_signed_text(document);
        if !digester.is_signature(SEAL_PURPOSE, &signed, &seal.signature) {
            return Err(SealFault::Forged);
        }
        let expires = seal.expires_at.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
        match expires.map(u64::try_from) {
            Ok(Ok(at)) if now_ms < at => Ok(()),
            _ => Err(SealFault::Stale(seal.expires_at.clone())),
        }
    }
}

/// The text that is signed: the snapshot as JSON without its signature, the fields of each object in the order of their names.
fn build_signed_text(mut document: Value) -> String {
    if let Some(signature) = document.pointer_mut("/seal/signature") {
        *signature = Value::String(String::new());
    }
    document.sort_all_objects();
    document.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerKind;
    use crate::migration::{DeliverySnapshot, EdgeLoad, SnapshotOrigin};

    const NOW_MS: u64 = 1_790_000_000_000;

    fn digester(key: &str) -> SecretDigester {
        SecretDigester::new(key).expect("a key")
    }

    fn sealed(cluster: &str) -> ClusterSnapshot {
        let snapshot = ClusterSnapshot::new(SnapshotOrigin::Operator, cluster.to_owned(), [].into());
        snapshot.seal(&digester("0123456789abcdef"), "1a2b", NOW_MS)
    }

    fn check(snapshot: &ClusterSnapshot, key: &SecretDigester, now_ms: u64) -> Result<(), SealFault> {
        snapshot.check_seal(serde_json::to_value(snapshot).expect("JSON"), key, now_ms)
    }

    #[test]
    fn a_sealed_snapshot_is_read_back_from_a_file_and_counts_for_a_week() {
        let value = serde_json::to_value(sealed("a/b")).expect("JSON");
        let yaml = serde_yaml::to_string(&value).expect("YAML");
        let read = ClusterSnapshot::parse(&yaml).expect("a snapshot").expect("a snapshot");
        let key = digester("0123456789abcdef");
        assert_eq!(read.check_seal(ClusterSnapshot::read_document(&yaml), &key, NOW_MS), Ok(()));
        assert_eq!(read.check_seal(ClusterSnapshot::read_document(&yaml), &key, NOW_MS + VALIDITY_MS - 1), Ok(()));
        assert!(matches!(
            read.check_seal(ClusterSnapshot::read_document(&yaml), &key, NOW_MS + VALIDITY_MS),
            Err(SealFault::Stale(_))
        ));
    }

    #[test]
    fn the_numbers_of_gates_are_signed_and_read_back() {
        let mut snapshot = ClusterSnapshot::new(SnapshotOrigin::Operator, "a/b".to_owned(), [].into());
        let load = EdgeLoad { edges: 2, sessions_max: 9_000, open: 70, others: 5 };
        let names = ["orders".to_owned()].into();
        snapshot.loads = [(ServerKind::Sockjs, load)].into();
        snapshot.delivery = Some(DeliverySnapshot { attempted: 3, failing: [("17".into(), names)].into() });
        let key = digester("0123456789abcdef");
        let snapshot = snapshot.seal(&key, "1a2b", NOW_MS);
        let value = serde_json::to_value(&snapshot).expect("JSON");
        let yaml = serde_yaml::to_string(&value).expect("YAML");
        let read = ClusterSnapshot::parse(&yaml).expect("a snapshot").expect("a snapshot");
        assert_eq!((read.check_seal(ClusterSnapshot::read_document(&yaml), &key, NOW_MS), &read), (Ok(()), &snapshot));
        let mut forged = read;
        forged.loads.clear();
        assert_eq!(check(&forged, &key, NOW_MS), Err(SealFault::Forged));
    }

    #[test]
    fn fields_of_a_newer_release_are_signed_too() {
        let key = digester("0123456789abcdef");
        let mut document = serde_json::to_value(sealed("a/b")).expect("JSON");
        document["later"] = 1.into();
        document["seal"]["later"] = "x".into();
        let text = document.to_string();
        let read = ClusterSnapshot::parse(&text).expect("a snapshot").expect("a snapshot");
        assert_eq!(
            read.check_seal(ClusterSnapshot::read_document(&text), &key, NOW_MS),
            Err(SealFault::Forged),
            "added afterwards"
        );
        document["seal"]["signature"] = key.sign(SEAL_PURPOSE, &build_signed_text(document.clone())).into();
        let yaml = serde_yaml::to_string(&document).expect("YAML");
        let read = ClusterSnapshot::parse(&yaml).expect("a snapshot").expect("a snapshot");
        assert_eq!(read.check_seal(ClusterSnapshot::read_document(&yaml), &key, NOW_MS), Ok(()));
    }

    #[test]
    fn a_forged_a_foreign_and_an_unsealed_snapshot_are_named() {
        let key = digester("0123456789abcdef");
        let mut longer = sealed("a/b");
        longer.seal.as_mut().expect("a seal").expires_at = "2099-01-01T00:00:00Z".to_owned();
        let mut other = sealed("a/b");
        "c/d".clone_into(&mut other.cluster);
        let mut renumbered = sealed("a/b");
        renumbered.seal.as_mut().expect("a seal").sequence += 1;
        for forged in [longer, other, renumbered] {
            assert_eq!(check(&forged, &key, NOW_MS), Err(SealFault::Forged));
        }
        let foreign = check(&sealed("a/b"), &digester("another key of them"), NOW_MS);
        assert!(matches!(foreign, Err(SealFault::ForeignKey(_))));
        let plain = ClusterSnapshot::new(SnapshotOrigin::Manifest, "a/b".to_owned(), [].into());
        assert_eq!(check(&plain, &key, NOW_MS), Err(SealFault::Unsealed));
    }
}
