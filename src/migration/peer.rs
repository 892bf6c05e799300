//! The source of a move as its snapshot has it: whether the snapshot counts, and what it proves.

use super::track::{ProofReading, TrackProof};
use super::{ClusterSnapshot, SecretDigester, SnapshotOrigin};
use crate::api::cluster::TransportState;
use crate::api::migration::{SnapshotIdentity, SourceKind};
use crate::config::ServerKind;
use crate::protocol::Transport;

/// Expectations of the snapshot of a source.
#[derive(Clone, Copy, Debug)]
pub struct PeerExpectations<'a> {
    /// Kind of the source in the manifest.
    pub kind: SourceKind,
    /// UID of the target, which is not the source.
    pub target_uid: &'a str,
    /// The snapshot that former decisions were made with, while the move has a record.
    pub known: Option<&'a SnapshotIdentity>,
}

impl ClusterSnapshot {
    /// The identity of a sealed snapshot; `None` without a seal.
    #[must_use]
    pub fn identity(&self) -> Option<SnapshotIdentity> {
        let seal = self.seal.as_ref()?;
        Some(SnapshotIdentity { cluster: self.cluster.clone(), uid: seal.uid.clone(), sequence: seal.sequence })
    }

    /// Parses the snapshot of a source, and checks that it counts.
    ///
    /// # Errors
    /// It is no snapshot, its seal does not count, or it is of another cluster or kind than expected: the reason with its
    /// remedy.
    pub fn parse_peer(
        text: &str,
        digester: &SecretDigester,
        expected: PeerExpectations<'_>,
        now_ms: u64,
    ) -> Result<(Self, SnapshotIdentity), String> {
        let none = "the document is no snapshot: print one with `realtime snapshot`";
        let document = Self::read_document(text);
        let snapshot = Self::from_document(&document)?.ok_or(none)?;
        snapshot.check_seal(document, digester, now_ms).map_err(|fault| fault.to_string())?;
        let identity = snapshot.identity().ok_or(none)?;
        if identity.uid == expected.target_uid {
            return Err(format!(
                "the snapshot is of the target itself, {}: publish that of the source",
                identity.cluster
            ));
        }
        match (expected.kind, snapshot.origin) {
            (SourceKind::Operator, SnapshotOrigin::Operator) | (SourceKind::Foreign, SnapshotOrigin::Foreign) => {}
            (kind, origin) => {
                return Err(format!(
                    "source.type is {kind:?}, and the snapshot is of the kind {origin:?}: correct one of them"
                ));
            }
        }
        if let Some(known) = expected.known {
            if known.uid != identity.uid {
                let (found, wanted) = (&identity.cluster, &known.cluster);
                return Err(format!(
                    "the snapshot is of {found}, and the move began from {wanted}: publish that of {wanted}"
                ));
            }
            if known.sequence > identity.sequence {
                return Err("the snapshot is older than one that was read before: publish a new one".to_owned());
            }
        }
        Ok((snapshot, identity))
    }

    /// The proof of the transports of one server at the time of the snapshot; `None` where no operator proves them.
    #[must_use]
    pub fn read_proof(&self, server: ServerKind) -> Option<ProofReading> {
        let (gate, seal) = self.gate.as_ref().zip(self.seal.as_ref())?;
        let is_ours = |name: &str| {
            let known = Transport::ALL.iter().find(|transport| transport.name() == name);
            known.is_some_and(|transport| transport.server_kind() == server)
        };
        let ours = || gate.transports.iter().filter(|transport| is_ours(&transport.name));
        let failing = ours().find(|transport| transport.state == TransportState::Failing);
        let proof = match failing {
            Some(failing) => TrackProof::Failing(failing.hop.clone()),
            None if ours().next().is_some() && ours().all(|found| found.state == TransportState::Passing) => {
                TrackProof::Passing
            }
            None => TrackProof::Unknown,
        };
        Some(ProofReading { proof, at_ms: seal.sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::{GateSnapshot, TransportSnapshot};

    const NOW_MS: u64 = 1_790_000_000_000;

    fn digester() -> SecretDigester {
        SecretDigester::new("0123456789abcdef").expect("a key")
    }

    fn sealed(origin: SnapshotOrigin, uid: &str, state: TransportState) -> ClusterSnapshot {
        let mut snapshot = ClusterSnapshot::new(origin, "old/eu".to_owned(), [].into());
        let transports = ["websocket", "xhr_streaming"].map(|name| TransportSnapshot {
            name: name.to_owned(),
            state: if name == "websocket" { TransportState::Failing } else { state },
            hop: "record".to_owned(),
        });
        snapshot.gate = Some(GateSnapshot { transports: transports.into(), ..GateSnapshot::default() });
        snapshot.seal(&digester(), uid, NOW_MS)
    }

    #[test]
    fn a_snapshot_of_another_cluster_another_kind_or_an_older_one_does_not_count() {
        let known =
            |uid: &str, sequence| SnapshotIdentity { cluster: "old/eu".to_owned(), uid: uid.to_owned(), sequence };
        let (first, other, newer) = (known("s", NOW_MS), known("x", NOW_MS), known("s", NOW_MS + 1));
        let operated = sealed(SnapshotOrigin::Operator, "s", TransportState::Passing);
        let foreign = sealed(SnapshotOrigin::Foreign, "s", TransportState::Passing);
        let ours = sealed(SnapshotOrigin::Operator, "t", TransportState::Passing);
        for (case, snapshot, kind, known, expected) in [
            ("the first", &operated, SourceKind::Operator, None, ""),
            ("the same again", &operated, SourceKind::Operator, Some(&first), ""),
            ("another cluster", &operated, SourceKind::Operator, Some(&other), "the move began from old/eu"),
            ("an older one", &operated, SourceKind::Operator, Some(&newer), "older than one that was read"),
            ("the target's own", &ours, SourceKind::Operator, None, "of the target itself"),
            ("Deployments", &foreign, SourceKind::Operator, None, "the snapshot is of the kind Foreign"),
            ("a foreign source", &foreign, SourceKind::Foreign, None, ""),
        ] {
            let text = serde_json::to_string(snapshot).expect("JSON");
            let expectations = PeerExpectations { kind, target_uid: "t", known };
            let found = ClusterSnapshot::parse_peer(&text, &digester(), expectations, NOW_MS).err().unwrap_or_default();
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{case}: {found}");
        }
        let none = PeerExpectations { kind: SourceKind::Operator, target_uid: "t", known: None };
        let parse = |text: &str| ClusterSnapshot::parse_peer(text, &digester(), none, NOW_MS).err().unwrap_or_default();
        assert!(parse("kind: ConfigMap").contains("no snapshot"));
        let forged = serde_json::to_string(&operated).expect("JSON").replace("old/eu", "old/us");
        assert!(parse(&forged).contains("forged"));
    }

    #[test]
    fn the_proof_of_a_source_is_that_of_the_moved_transports() {
        let proof = |state| sealed(SnapshotOrigin::Operator, "s", state).read_proof(ServerKind::Sockjs);
        let at = |proof| Some(ProofReading { proof, at_ms: NOW_MS });
        assert_eq!(proof(TransportState::Passing), at(TrackProof::Passing));
        assert_eq!(proof(TransportState::Failing), at(TrackProof::Failing("record".to_owned())));
        assert_eq!(proof(TransportState::Unknown), at(TrackProof::Unknown));
        let foreign = ClusterSnapshot::new(SnapshotOrigin::Foreign, "a/b".to_owned(), [].into());
        assert_eq!(foreign.read_proof(ServerKind::Sockjs), None);
    }
}
