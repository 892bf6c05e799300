//! The check whether a session of the HTTP fallbacks stays in its cluster while its client's lookups are weighted.

use super::ClusterSnapshot;
use crate::api::RealtimeMigrationSpec;
use crate::api::migration::{SourceKind, TrackTransport};
use crate::config::{ServerKind, name};

/// The reason for which sessions would break, with its remedy; `None` if they stay where they began. A foreign source cannot
/// be looked into: the manifest has a word for its sessions.
#[must_use]
pub fn find_session_obstacle(
    spec: &RealtimeMigrationSpec,
    source: &ClusterSnapshot,
    target: &ClusterSnapshot,
) -> Option<String> {
    let track = spec.tracks.iter().find(|track| track.transport == TrackTransport::Sockjs)?;
    let sides = [("source", source), ("target", target)];
    let looked_into = sides.iter().filter(|(side, _)| *side == "target" || spec.source.kind == SourceKind::Operator);
    looked_into.clone().find_map(|(side, snapshot)| {
        let kinds = || snapshot.servers.keys().filter(|kind| kind.serves_as(ServerKind::Sockjs));
        let host = kinds().find_map(|kind| snapshot.effective_text(*kind, name::SESSION_HOST));
        match host.unwrap_or_default() {
            "" => Some(format!(
                "SessionsUnpinned: the {side} has no canonicalHost, so that requests of a session follow the weights: write \
                 sockjs.canonicalHost"
            )),
            host if host == track.host => Some(format!(
                "SessionsUnpinned: the canonicalHost of the {side} is {host} itself, whose lookups are weighted: write a host \
                 of the cluster's own"
            )),
            _ => None,
        }
    })
}
