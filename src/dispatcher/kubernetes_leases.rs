//! Shard leases in Kubernetes: one object per living member, and one per shard with its holder and its checkpoint.
//!
//! The objects are named by the stream and carry neither an owner nor a label by which an operator prunes: a cluster
//! that is deleted and applied again over the same stream resumes at its checkpoints. Whether a member lives is judged
//! by this process's own monotonic clock, from the moment at which its object was last seen to change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::leases::{
    Checkpoint, LeaseError, LeaseSnapshot, MEMBER_TTL, MemberStatus, ShardLease, ShardLeases, call_within,
};
use crate::kinesis::KinesisClient as Kinesis;
use crate::kubernetes::client::KubernetesClients;
use crate::kubernetes::lease_store::{LeaseRecord, LeaseStore, RecordError};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::ShardId;

/// Annotation on a shard's object with its checkpoint as JSON.
const CHECKPOINT_ANNOTATION: &str = "realtime-operator.dev/checkpoint";
/// Annotation with the shard's id, which may contain characters that an object's name may not.
const SHARD_ANNOTATION: &str = "realtime-operator.dev/shard";
/// Annotation on a member's object: whether it was admitted.
const PROVEN_ANNOTATION: &str = "realtime-operator.dev/proven";
/// Annotation on a member's object: whether it backs off after failing to deliver.
const RESTING_ANNOTATION: &str = "realtime-operator.dev/resting";
/// Label that identifies the stream.
const STREAM_HASH_LABEL: &str = "realtime-operator.dev/stream-hash";

/// Bounds one call to the API server: a heartbeat must end before the member counts as dead.
const CALL_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Largest gap between two observations; after a longer one no member is declared dead for its silence meanwhile.
const OBSERVATION_GAP_MAX: Duration = Duration::from_secs(5);
/// Time for which the object of a dead member is kept for inspection.
const DEAD_MEMBER_TTL: Duration = Duration::from_mins(1);

/// The leases of one stream, in a namespace.
pub struct KubernetesLeases {
    clients: KubernetesClients,
    namespace: String,
    kinesis: Kinesis,
    /// Set once the stream has answered.
    stream: OnceCell<(LeaseStore, String)>,
    cache: Mutex<LeaseCache>,
}

#[derive(Default)]
struct LeaseCache {
    /// The version at which each member's object was last seen, and since when.
    last_changes: HashMap<String, (String, Instant)>,
    /// Time of the last observation of all members.
    last_observed_at: Option<Instant>,
    /// This process's own member object.
    own_record: Option<LeaseRecord>,
    /// The objects of shards as last read or written.
    shards: BTreeMap<ShardId, LeaseRecord>,
}

impl KubernetesLeases {
    /// The leases of the stream that `kinesis` reads. Sends no request yet.
    #[must_use]
    pub fn new(clients: KubernetesClients, namespace: &str, kinesis: Kinesis) -> Self {
        Self { clients, namespace: namespace.to_owned(), kinesis, stream: OnceCell::new(), cache: Mutex::default() }
    }

    fn cache(&self) -> MutexGuard<'_, LeaseCache> {
        lock_unpoisoned(&self.cache)
    }

    /// The store, and the prefix of its objects' names. They contain the stream's ARN, so the stream must have answered
    /// once.
    async fn stream(&self) -> Result<&(LeaseStore, String), LeaseError> {
        self.stream
            .get_or_try_init(|| async {
                let summary = self.kinesis.describe_stream().await;
                let arn = summary.map_err(|error| LeaseError::Unavailable(error.to_string()))?.arn;
                let hash = hex::encode(&Sha256::digest(arn)[..6]);
                let labels = [("app.kubernetes.io/part-of", "realtime"), (STREAM_HASH_LABEL, hash.as_str())];
                let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
                let records = LeaseStore::new(self.clients.call.clone(), &self.namespace, labels);
                Ok((records, format!("rtl-{hash}")))
            })
            .await
    }

    async fn write_heartbeat(&self, member: &str, status: MemberStatus) -> Result<LeaseSnapshot, LeaseError> {
        let (records, prefix) = self.stream().await?;
        let own = self.cache().own_record.clone();
        let name = member_name(prefix, member);
        let mut record = match own {
            Some(own) => own,
            None => records.get(&name).await.map_err(to_unavailable)?.unwrap_or_default(),
        };
        record.name = name;
        record.holder = Some(member.to_owned());
        let bool_text = |value: bool| if value { "true" } else { "false" }.to_owned();
        record.texts.insert(PROVEN_ANNOTATION.to_owned(), bool_text(status.proven));
        record.texts.insert(RESTING_ANNOTATION.to_owned(), bool_text(status.backing_off));
        match records.write(&record).await {
            Ok(written) => self.cache().own_record = Some(written),
            Err(error) => {
                // Another member considered this one dead and deleted its object: the next heartbeat creates it again.
                self.cache().own_record = None;
                return Err(to_unavailable(error));
            }
        }
        let all = records.list().await.map_err(to_unavailable)?;
        let (view, removed) = self.cache().observe_records(prefix, member, all, Instant::now());
        for name in removed {
            if let Err(error) = records.delete(&name).await {
                tracing::debug!(name, %error, "dead member's object not deleted: trying again later");
            }
        }
        Ok(view)
    }

    async fn try_acquire(&self, shard: &ShardId, member: &str) -> Result<ShardLease, LeaseError> {
        let (records, prefix) = self.stream().await?;
        // The version from the last observation; of two members that saw the same version, one write is refused.
        let known = self.cache().shards.get(shard).cloned();
        let mut record = known.unwrap_or_default();
        record.name = shard_name(prefix, shard);
        record.texts.insert(SHARD_ANNOTATION.to_owned(), shard.to_string());
        record.holder = Some(member.to_owned());
        record.generation += 1;
        let written = records.write(&record).await.map_err(|error| conflict_to_lost(shard, error))?;
        let lease = lease_from_record(&written);
        self.cache().shards.insert(shard.clone(), written);
        Ok(lease)
    }

    async fn write_shard(
        &self,
        shard: &ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
        hold: bool,
    ) -> Result<(), LeaseError> {
        let (records, prefix) = self.stream().await?;
        let known = self.cache().shards.get(shard).cloned();
        let lost_it = || LeaseError::Lost(shard.clone());
        let mut record = match known.filter(|record| record.generation == generation) {
            Some(known) => known,
            // The last observation is older than the acquisition, or the object was deleted.
            None => match records.get(&shard_name(prefix, shard)).await.map_err(to_unavailable)? {
                Some(record) if record.generation == generation => record,
                Some(_) => return Err(lost_it()),
                None => self.own_shard_record(shard, generation).ok_or_else(lost_it)?,
            },
        };
        let text = checkpoint.map(|checkpoint| serde_json::to_string(&checkpoint)).transpose();
        let text = text.map_err(|error| LeaseError::Unavailable(error.to_string()))?;
        let same = text.as_ref().is_none_or(|text| record.texts.get(CHECKPOINT_ANNOTATION) == Some(text));
        if same && hold && !record.version.is_empty() {
            return Ok(());
        }
        if let Some(text) = text {
            record.texts.insert(CHECKPOINT_ANNOTATION.to_owned(), text);
        }
        if !hold {
            record.holder = None;
        }
        let written = match records.write(&record).await {
            Ok(written) => written,
            Err(RecordError::Conflict) => {
                // An observation older than our own last write may have given the version: the object itself names the
                // current holder.
                match records.get(&record.name).await.map_err(to_unavailable)? {
                    Some(now) if now.generation == generation && now.holder.is_some() => record.version = now.version,
                    Some(_) => return Err(lost_it()),
                    // Deleted: it is written anew, with the checkpoint that its holder knows.
                    None => record.version.clear(),
                }
                records.write(&record).await.map_err(|error| conflict_to_lost(shard, error))?
            }
            Err(error) => return Err(to_unavailable(error)),
        };
        self.cache().shards.insert(shard.clone(), written);
        Ok(())
    }

    /// A new object for a shard that this process holds; `None` before its first heartbeat.
    fn own_shard_record(&self, shard: &ShardId, generation: u64) -> Option<LeaseRecord> {
        let member = self.cache().own_record.as_ref()?.holder.clone();
        let (_, prefix) = self.stream.get()?;
        let texts = [(SHARD_ANNOTATION.to_owned(), shard.to_string())].into();
        Some(LeaseRecord { name: shard_name(prefix, shard), version: String::new(), holder: member, generation, texts })
    }
}

impl LeaseCache {
    /// The snapshot in the objects, and the members dead for so long that their objects can be deleted.
    fn observe_records(
        &mut self,
        prefix: &str,
        member: &str,
        all: Vec<LeaseRecord>,
        now: Instant,
    ) -> (LeaseSnapshot, Vec<String>) {
        let (mut view, mut removed) = (LeaseSnapshot::default(), Vec::new());
        // During an interval in which no observation was possible, no member could be seen to live either.
        if self.last_observed_at.replace(now).is_some_and(|last| now.duration_since(last) > OBSERVATION_GAP_MAX) {
            self.last_changes.values_mut().for_each(|(_, at)| *at = now);
        }
        let mut shards = Vec::new();
        let members = format!("{prefix}-member-");
        let mut there = Vec::new();
        for record in all {
            if !record.name.starts_with(&members) {
                shards.push(record);
                continue;
            }
            let name = record.holder.clone().unwrap_or_default();
            there.push(name.clone());
            let seen = self.last_changes.entry(name.clone()).or_insert_with(|| (record.version.clone(), now));
            if seen.0 != record.version {
                *seen = (record.version.clone(), now);
            }
            let silent = now.duration_since(seen.1);
            if name == member || silent < MEMBER_TTL {
                let is_true = |text: &str| record.texts.get(text).is_some_and(|value| value == "true");
                view.members.insert(
                    name,
                    MemberStatus { proven: is_true(PROVEN_ANNOTATION), backing_off: is_true(RESTING_ANNOTATION) },
                );
            } else if silent > DEAD_MEMBER_TTL {
                removed.push(record.name);
            }
        }
        self.last_changes.retain(|name, _| there.contains(name));
        self.shards.clear();
        for record in shards {
            let Some(shard) = record.texts.get(SHARD_ANNOTATION).map(|id| ShardId(id.clone())) else { continue };
            let mut seen = lease_from_record(&record);
            seen.holder = seen.holder.filter(|holder| view.members.contains_key(holder));
            view.leases.insert(shard.clone(), seen);
            self.shards.insert(shard, record);
        }
        (view, removed)
    }
}

fn lease_from_record(record: &LeaseRecord) -> ShardLease {
    let text = record.texts.get(CHECKPOINT_ANNOTATION);
    let checkpoint = text.and_then(|text| serde_json::from_str(text).ok());
    let unreadable_checkpoint = text.filter(|_| checkpoint.is_none()).cloned();
    ShardLease { holder: record.holder.clone(), generation: record.generation, checkpoint, unreadable_checkpoint }
}

fn member_name(prefix: &str, member: &str) -> String {
    format!("{prefix}-member-{}", member.to_lowercase())
}

/// An object name that Kubernetes accepts: shard ids are letters, digits, `_`, `.` and `-`, up to 128.
fn shard_name(prefix: &str, shard: &ShardId) -> String {
    let lower = shard.as_str().to_lowercase();
    let plain = lower.len() <= 60 && lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain {
        format!("{prefix}-{lower}")
    } else {
        format!("{prefix}-{}", hex::encode(&Sha256::digest(shard.as_str())[..10]))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what a failed call is mapped by")]
fn to_unavailable(error: RecordError) -> LeaseError {
    LeaseError::Unavailable(error.to_string())
}

fn conflict_to_lost(shard: &ShardId, error: RecordError) -> LeaseError {
    match error {
        RecordError::Conflict => LeaseError::Lost(shard.clone()),
        error @ RecordError::Unavailable(_) => to_unavailable(error),
    }
}

impl ShardLeases for KubernetesLeases {
    fn send_heartbeat<'a>(
        &'a self,
        member: &'a str,
        status: MemberStatus,
    ) -> BoxFuture<'a, Result<LeaseSnapshot, LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, self.write_heartbeat(member, status)))
    }

    fn acquire_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        member: &'a str,
    ) -> BoxFuture<'a, Result<ShardLease, LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, self.try_acquire(shard, member)))
    }

    fn renew<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, self.write_shard(shard, generation, checkpoint, true)))
    }

    fn release_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, self.write_shard(shard, generation, checkpoint, false)))
    }

    fn delete_lease<'a>(&'a self, shard: &'a ShardId, generation: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, async move {
            let (records, _) = self.stream().await?;
            let known = self.cache().shards.get(shard).filter(|record| record.generation == generation).cloned();
            let record = known.ok_or_else(|| LeaseError::Lost(shard.clone()))?;
            records.delete_version(&record).await.map_err(|error| conflict_to_lost(shard, error))?;
            self.cache().shards.remove(shard);
            Ok(())
        }))
    }

    fn remove_member<'a>(&'a self, member: &'a str) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(call_within(CALL_TIMEOUT, async move {
            let (records, prefix) = self.stream().await?;
            records.delete(&member_name(prefix, member)).await.map_err(to_unavailable)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member_record(member: &str, version: &str) -> LeaseRecord {
        LeaseRecord {
            name: member_name("rtl-1", member),
            version: version.to_owned(),
            holder: Some(member.to_owned()),
            generation: 0,
            texts: [(PROVEN_ANNOTATION.to_owned(), "true".to_owned())].into(),
        }
    }

    fn shard_record(id: &str, holder: &str) -> LeaseRecord {
        let texts =
            [(SHARD_ANNOTATION, id), (CHECKPOINT_ANNOTATION, r#"{"streamCreatedMs":1,"position":{"through":"5"}}"#)];
        LeaseRecord {
            name: shard_name("rtl-1", &ShardId::from(id)),
            version: "1".to_owned(),
            holder: Some(holder.to_owned()),
            generation: 3,
            texts: texts.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    #[test]
    fn a_member_whose_object_does_not_change_is_dead_by_the_observers_clock() {
        let (mut memory, start) = (LeaseCache::default(), Instant::now());
        let all = |version: &str| {
            vec![member_record("me", "9"), member_record("you", version), shard_record("shardId-000", "you")]
        };
        let holder = |view: &LeaseSnapshot| view.leases[&ShardId::from("shardId-000")].holder.clone();
        let mut observe = |version: &str, seconds: u64| {
            memory.observe_records("rtl-1", "me", all(version), start + Duration::from_secs(seconds))
        };
        let (view, _) = observe("1", 0);
        assert_eq!((view.members.len(), holder(&view)), (2, Some("you".to_owned())));
        assert_eq!((observe("1", 4).0.members.len(), observe("1", 7).0.members.len()), (2, 2));
        let (view, removed) = observe("1", 9);
        assert_eq!((view.members.len(), holder(&view), removed.len()), (1, None, 0));
        assert_eq!(observe("2", 10).0.members.len(), 2, "the member was only slow");
        assert_eq!(observe("2", 50).0.members.len(), 2, "no observation was made for 40 s");
        for second in 51..110 {
            assert_eq!(observe("2", second).1, Vec::<String>::new());
        }
        assert_eq!(observe("2", 111).1, [member_name("rtl-1", "you")]);
    }

    #[test]
    fn object_names_are_valid_for_kubernetes() {
        assert_eq!(shard_name("rtl-1", &"shardId-000000000000".into()), "rtl-1-shardid-000000000000");
        let odd = shard_name("rtl-1", &"shard_A.b".into());
        assert!(odd.starts_with("rtl-1-") && !odd.contains('_'), "{odd}");
        assert_eq!(
            lease_from_record(&shard_record("s", "you")).checkpoint.map(|checkpoint| checkpoint.stream_created_ms),
            Some(1)
        );
    }
}
