//! The owner of a Kinesis stream, in its tags. Pure.
//!
//! A stream belongs to the cluster that its owner tag names: the tag is part of the call that creates the stream, so a
//! stream without the tag was created by somebody else, and may be adopted if the manifest says so.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::reconcile_error::ReconcileError;
use crate::api::Reason;
use crate::api::cluster::StreamManagement;
use crate::protocol::StreamName;

/// Tag with the owner: the UID of this Kubernetes cluster, and the realtime cluster in it.
const OWNER_TAG: &str = "realtime-operator.dev/owner";
/// Tag with the cluster id that the stream's records carry.
const CLUSTER_ID_TAG: &str = "realtime-operator.dev/cluster-id";
/// Tag with the time of the adoption, RFC 3339; a stream that the operator created has none.
const ADOPTED_AT_TAG: &str = "realtime-operator.dev/adopted-at";

/// The owner of the streams of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOwner {
    /// Value of the owner tag: the UID of the Kubernetes cluster, namespace and name.
    pub tag: String,
    /// UID of the cluster, which the records of a new stream carry.
    pub uid: String,
}

/// A cluster's right to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamClaim {
    /// The cluster owns the stream, or observes it.
    Held {
        /// Cluster id in the stream's records.
        cluster_id: String,
        /// Time of the adoption, RFC 3339; `None` for a stream that the operator created.
        adopted_at: Option<String>,
    },
    /// The stream has no owner, and becomes the cluster's with these tags.
    Adoptable(BTreeMap<String, String>),
}

impl StreamOwner {
    /// Builds the tags of a stream that is created, whose records carry the UID of the cluster.
    #[must_use]
    pub fn build_tags(&self) -> BTreeMap<String, String> {
        [(OWNER_TAG, &self.tag), (CLUSTER_ID_TAG, &self.uid)]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect()
    }

    fn build_adoption_tags(&self, now: Timestamp) -> BTreeMap<String, String> {
        let mut tags = self.build_tags();
        tags.insert(ADOPTED_AT_TAG.to_owned(), now.to_string());
        tags
    }

    /// Decides whether the cluster may use the stream with these tags; `field` is the manifest's field with its name.
    ///
    /// # Errors
    /// The stream belongs to somebody else, or has no owner and may not be adopted.
    pub fn claim(
        &self,
        tags: &BTreeMap<String, String>,
        management: StreamManagement,
        (name, field): (&StreamName, &str),
        now: Timestamp,
    ) -> Result<StreamClaim, ReconcileError> {
        let refuse = |state: &str, remedy: &str| {
            let message = format!("stream {name} already exists and {state}: it was not changed. {remedy}");
            Err(ReconcileError::terminal(Reason::StreamNotOurs, message))
        };
        let is_observed = management == StreamManagement::Observe;
        match (tags.get(OWNER_TAG), tags.get(CLUSTER_ID_TAG)) {
            (Some(owner), Some(id)) if *owner == self.tag && !id.is_empty() => {
                Ok(StreamClaim::Held { cluster_id: id.clone(), adopted_at: tags.get(ADOPTED_AT_TAG).cloned() })
            }
            (Some(owner), _) if *owner != self.tag => refuse(
                &format!("belongs to {owner}"),
                &format!("Choose another {field}, or delete the stream if nobody needs it"),
            ),
            (owner, _) => match management {
                StreamManagement::Create if owner.is_some() => refuse(
                    &format!("has our owner tag, but no tag {CLUSTER_ID_TAG}"),
                    "Write management: Adopt in webhooks.stream, or delete the stream if nobody needs it",
                ),
                StreamManagement::Create => refuse(
                    "carries no tag of ours",
                    &format!(
                        "Write management: Adopt in webhooks.stream to use this stream, choose another {field}, or delete the stream if nobody needs it"
                    ),
                ),
                _ if is_observed => {
                    Ok(StreamClaim::Held { cluster_id: self.uid.clone(), adopted_at: Some(now.to_string()) })
                }
                _ => Ok(StreamClaim::Adoptable(self.build_adoption_tags(now))),
            },
        }
    }

    /// Whether these tags name the owner.
    #[must_use]
    pub fn owns(&self, tags: &BTreeMap<String, String>) -> bool {
        tags.get(OWNER_TAG) == Some(&self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a claim ends: the cluster id, the number of tags to write, or a part of the refusal.
    fn describe(claim: Result<StreamClaim, ReconcileError>) -> String {
        match claim {
            Ok(StreamClaim::Held { cluster_id, adopted_at }) => format!("{cluster_id} {}", adopted_at.is_some()),
            Ok(StreamClaim::Adoptable(tags)) => format!("{} tags", tags.len()),
            Err(error) => {
                assert!(
                    error.terminal && error.reason == Reason::StreamNotOurs && error.message.contains("not changed")
                );
                error.message
            }
        }
    }

    #[test]
    fn a_stream_is_ours_by_its_tags_and_the_management_decides_about_one_without_an_owner() {
        use StreamManagement::{Adopt, AdoptOrCreate, Create, Observe};
        let owner = StreamOwner { tag: "k/n/eu".to_owned(), uid: "u2".to_owned() };
        let ours: &[_] = &[(OWNER_TAG, "k/n/eu"), (CLUSTER_ID_TAG, "u1")];
        let adopted: &[_] = &[(OWNER_TAG, "k/n/eu"), (CLUSTER_ID_TAG, "u1"), (ADOPTED_AT_TAG, "2026-01-01T00:00:00Z")];
        let incomplete: &[_] = &[(OWNER_TAG, "k/n/eu")];
        let foreign: &[_] = &[(OWNER_TAG, "k/n/us"), (CLUSTER_ID_TAG, "u1")];
        let untagged: &[_] = &[("team", "a"), (CLUSTER_ID_TAG, "u1")];
        for (name, tags, management, expected) in [
            ("our tags", ours, Create, "u1 false"),
            ("our tags, adopted", adopted, Create, "u1 true"),
            ("our tags again", ours, Adopt, "u1 false"),
            ("our tags, observed", ours, Observe, "u1 false"),
            ("another cluster's", foreign, Create, "belongs to k/n/us"),
            ("another cluster's, adopted", foreign, Adopt, "belongs to k/n/us"),
            ("another cluster's, observed", foreign, Observe, "belongs to k/n/us"),
            ("no tag of ours", untagged, Create, "Write management: Adopt"),
            ("no tag of ours, adopted", untagged, Adopt, "3 tags"),
            ("no tag of ours, adopted or created", untagged, AdoptOrCreate, "3 tags"),
            ("no tag of ours, observed", untagged, Observe, "u2 true"),
            ("a part of our tags", incomplete, Create, "no tag realtime-operator.dev/cluster-id"),
            ("a part of our tags, adopted", incomplete, Adopt, "3 tags"),
        ] {
            let tags = tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let stream = StreamName("s".to_owned());
            let claim = owner.claim(&tags, management, (&stream, "webhooks.stream.name"), Timestamp::UNIX_EPOCH);
            let found = describe(claim);
            assert!(found.contains(expected), "{name}: {found}");
        }
    }
}
