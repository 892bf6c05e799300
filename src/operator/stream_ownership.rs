//! The owner of a Kinesis stream, in its tags.
//!
//! A stream belongs to the cluster that its owner tag names: the tag is part of the call that creates the stream, so a
//! stream without the tag was created by somebody else.

use std::collections::BTreeMap;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use crate::api::{RealtimeCluster, Reason};
use crate::kinesis::KinesisClient;

/// Tag with the owner: the UID of this Kubernetes cluster, and the realtime cluster in it.
const OWNER_TAG: &str = "realtime-operator.dev/owner";
/// Tag with the cluster id that the stream's records carry.
const CLUSTER_ID_TAG: &str = "realtime-operator.dev/cluster-id";

/// Builds the tags of a stream that is created for a cluster, whose id its records carry.
pub fn build_owner_tags(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    cluster_id: &str,
) -> BTreeMap<String, String> {
    let tags = [(OWNER_TAG, format_owner(context, cluster)), (CLUSTER_ID_TAG, cluster_id.to_owned())];
    tags.map(|(name, value)| (name.to_owned(), value)).into()
}

fn format_owner(context: &ControllerContext, cluster: &RealtimeCluster) -> String {
    format!("{}/{}", context.kubernetes_uid, super::context::cluster_key(cluster))
}

/// Returns the cluster id that the stream's records carry; `field` is the manifest's field with its name.
///
/// # Errors
/// The stream belongs to somebody else, or its tags cannot be read.
pub async fn claim_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    field: &str,
) -> Result<String, ReconcileError> {
    let (tags, name) = (client.list_tags().await?, client.stream());
    read_cluster_id(&tags, &format_owner(context, cluster)).map_err(|owner| {
        let message = format!(
            "stream {name} already exists and {owner}: it was not changed. Choose another {field}, or delete the stream if nobody needs it"
        );
        ReconcileError::terminal(Reason::StreamNotOurs, message)
    })
}

/// Reads the id of the cluster that created the stream, if the owner tag is ours; otherwise the error is a clause that names its owner.
fn read_cluster_id(tags: &BTreeMap<String, String>, ours: &str) -> Result<String, String> {
    match (tags.get(OWNER_TAG), tags.get(CLUSTER_ID_TAG)) {
        (Some(owner), Some(id)) if owner == ours && !id.is_empty() => Ok(id.clone()),
        (Some(owner), _) if owner == ours => Err(format!("has our owner tag, but no tag {CLUSTER_ID_TAG}")),
        (Some(owner), _) => Err(format!("belongs to {owner}")),
        (None, _) => Err("carries no tag of ours".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_ours_by_its_tags_alone() {
        for (name, tags, expected) in [
            ("our tags", &[(OWNER_TAG, "k/n/eu"), (CLUSTER_ID_TAG, "u1")][..], Ok("u1")),
            ("another cluster's", &[(OWNER_TAG, "k/n/us"), (CLUSTER_ID_TAG, "u1")], Err("belongs to k/n/us")),
            ("the same name in another Kubernetes", &[(OWNER_TAG, "x/n/eu")], Err("belongs to x/n/eu")),
            ("no tag", &[], Err("carries no tag of ours")),
            ("tags of somebody else", &[("team", "a"), (CLUSTER_ID_TAG, "u1")], Err("carries no tag of ours")),
            (
                "a part of our tags",
                &[(OWNER_TAG, "k/n/eu")],
                Err("has our owner tag, but no tag realtime-operator.dev/cluster-id"),
            ),
        ] {
            let tags = tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let found = read_cluster_id(&tags, "k/n/eu");
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{name}");
        }
    }
}
