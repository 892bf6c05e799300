//! Discovers the shards of the stream.
//!
//! In: listings and descriptions of the stream. Out: the latest listing. A task of its own, because a Kinesis that does
//! not answer must not delay a member's heartbeat.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::metrics::{DispatcherMetrics, ErrorSource};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, Shard, covers_all};
use crate::protocol::ShardId;

/// Interval between two listings of the shards, after which a reshard is noticed at the latest.
const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// Least interval between two listings that were requested.
const RELIST_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between two descriptions of the stream, whose creation time distinguishes it from a later one of the same name.
/// AWS allows 20 a second for the whole account, and every dispatcher of every cluster makes them. A read error brings the
/// next one forward: a position in a replaced stream is invalid in its successor.
const DESCRIBE_INTERVAL: Duration = Duration::from_mins(5);
/// Delay before the shards are listed again after an error.
const LIST_RETRY_DELAY: Duration = Duration::from_secs(2);
/// Longest wait for a stream that has never existed.
const MISSING_STREAM_TIMEOUT: Duration = Duration::from_mins(2);

/// The stream's shards as last listed.
#[derive(Debug, Default)]
pub struct ShardListing {
    /// When the stream was created, in ms since 1970.
    pub created_ms: u64,
    /// The shards, open and closed.
    pub shards: Vec<Shard>,
}

impl ShardListing {
    /// The shards that came from this one by a split or a merge.
    pub fn children_of<'a>(&'a self, parent: &'a ShardId) -> impl Iterator<Item = &'a Shard> {
        self.shards.iter().filter(|shard| shard.parents.contains(parent))
    }

    /// The listed shard with this id.
    #[must_use]
    pub fn find(&self, id: &ShardId) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.id == *id)
    }
}

/// Lists the shards until the token is cancelled. For a stream that stays missing, it returns with a line that says so.
pub async fn discover_shards(
    client: KinesisClient,
    metrics: Arc<DispatcherMetrics>,
    listings: watch::Sender<Arc<ShardListing>>,
    relist: Arc<Notify>,
    shutdown: CancellationToken,
) -> Option<String> {
    let started = Instant::now();
    let mut found = false;
    let mut described: Option<(Instant, u64)> = None;
    loop {
        let since = described.map(|(at, _)| at.elapsed());
        let known = described.filter(|_| !is_description_due(since, metrics.has_read_error()));
        let listing = tokio::select! {
            () = shutdown.cancelled() => return None,
            listing = list_shards(&client, known.map(|(_, created_ms)| created_ms)) => listing,
        };
        described = listing.as_ref().ok().map(|found| known.unwrap_or((Instant::now(), found.created_ms)));
        let pause = match listing {
            Ok(listing) => {
                found = true;
                let whole = covers_all(&listing.shards);
                if whole {
                    metrics.clear_error(&ErrorSource::Discovery);
                } else {
                    // During a reshard a listing may be older than the change; the shards in it can be read all the
                    // same.
                    metrics.set_error(
                        ErrorSource::Discovery,
                        "the open shards do not cover all hash keys: listing again".into(),
                    );
                }
                listings.send_replace(Arc::new(listing));
                if whole { LIST_INTERVAL } else { LIST_RETRY_DELAY }
            }
            Err(error) => {
                tracing::warn!(%error, "shard listing failed: trying again");
                metrics.set_error(ErrorSource::Discovery, error.to_string());
                if error.class == KinesisErrorClass::NotFound && !found && started.elapsed() > MISSING_STREAM_TIMEOUT {
                    return Some(format!("{error}: create the stream, or correct its name, region and account"));
                }
                LIST_RETRY_DELAY
            }
        };
        tokio::time::sleep(RELIST_INTERVAL).await;
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = relist.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the stream must be described with the next listing; `since` is the time since the last description that a
/// listing followed.
fn is_description_due(since: Option<Duration>, has_read_error: bool) -> bool {
    has_read_error || since.is_none_or(|since| since >= DESCRIBE_INTERVAL)
}

/// Lists the shards, and describes the stream unless its creation time is known.
async fn list_shards(client: &KinesisClient, known_ms: Option<u64>) -> Result<ShardListing, KinesisError> {
    let created_ms = match known_ms {
        Some(known) => known,
        None => client.describe_stream().await?.created_ms,
    };
    Ok(ShardListing { created_ms, shards: client.list_shards().await? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_described_every_five_minutes_and_when_it_cannot_be_read() {
        for (name, since, has_read_error, expected) in [
            ("at the start, and after a failed listing", None, false, true),
            ("a listing later", Some(LIST_INTERVAL), false, false),
            ("after the interval", Some(DESCRIBE_INTERVAL), false, true),
            ("a shard cannot be read", Some(LIST_INTERVAL), true, true),
        ] {
            assert_eq!(is_description_due(since, has_read_error), expected, "{name}");
        }
    }
}
