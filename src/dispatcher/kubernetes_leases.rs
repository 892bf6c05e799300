//! Leases in Kubernetes: one object per living member, and one per shard with its holder and its checkpoint.
//!
//! They are named by the stream, carry no owner and no label by which an operator prunes: a cluster that is deleted and
//! applied again over the same stream goes on where it was. Whether a member lives is judged by this process's own
//! monotonic clock, from when its object was last seen to change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::leases::{Checkpoint, DEAD_AFTER, Lease, LeaseError, Leases, Standing, View};
use crate::kinesis::Client as Kinesis;
use crate::kubernetes::client::Clients;
use crate::kubernetes::records::{Record, RecordError, Records};
use crate::protocol::ShardId;

/// What a shard's object says of how far it is done.
const CHECKPOINT: &str = "realtime-operator.dev/checkpoint";
/// The shard's id, which an object's name may not spell.
const SHARD: &str = "realtime-operator.dev/shard";
/// Whether a member was let in.
const PROVEN: &str = "realtime-operator.dev/proven";
/// Whether a member gave its shard back for a while.
const RESTING: &str = "realtime-operator.dev/resting";
/// Names the stream.
const STREAM: &str = "realtime-operator.dev/stream-hash";

/// Longest for one answer of the API server: a heartbeat must end before the member counts as dead.
const CALL: Duration = Duration::from_millis(2_500);
/// Between two looks; beyond it nobody is called dead for having been silent meanwhile.
const BLIND: Duration = Duration::from_secs(5);
/// How long the object of a dead member stays, for who looks.
const BURIED_AFTER: Duration = Duration::from_mins(1);

/// The leases of one stream, in a namespace.
pub struct KubernetesLeases {
    clients: Clients,
    namespace: String,
    kinesis: Kinesis,
    /// Known once the stream has answered.
    stream: OnceCell<(Records, String)>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// The version at which each member's object was last seen, and since when.
    seen: HashMap<String, (String, Instant)>,
    /// When everyone was last looked at.
    looked: Option<Instant>,
    /// This process's own object.
    own: Option<Record>,
    /// The objects of shards as last read or written.
    shards: BTreeMap<ShardId, Record>,
}

impl KubernetesLeases {
    /// The leases of the stream that `kinesis` reads. Nothing is asked yet.
    #[must_use]
    pub fn new(clients: Clients, namespace: &str, kinesis: Kinesis) -> Self {
        Self { clients, namespace: namespace.to_owned(), kinesis, stream: OnceCell::new(), memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store, and the prefix of its objects' names. The stream's ARN names them, so it must have answered once.
    async fn stream(&self) -> Result<&(Records, String), LeaseError> {
        self.stream
            .get_or_try_init(|| async {
                let summary = self.kinesis.summary().await;
                let arn = summary.map_err(|error| LeaseError::Unavailable(error.to_string()))?.arn;
                let hash = hex::encode(&Sha256::digest(arn)[..6]);
                let labels = [("app.kubernetes.io/part-of", "realtime"), (STREAM, hash.as_str())];
                let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
                let records = Records::new(self.clients.call.clone(), &self.namespace, labels);
                Ok((records, format!("rtl-{hash}")))
            })
            .await
    }

    async fn beat(&self, member: &str, standing: Standing) -> Result<View, LeaseError> {
        let (records, prefix) = self.stream().await?;
        let own = self.memory().own.clone();
        let name = member_name(prefix, member);
        let mut record = match own {
            Some(own) => own,
            None => records.get(&name).await.map_err(unavailable)?.unwrap_or_default(),
        };
        record.name = name;
        record.holder = Some(member.to_owned());
        let word = |said: bool| if said { "true" } else { "false" }.to_owned();
        record.texts.insert(PROVEN.to_owned(), word(standing.proven));
        record.texts.insert(RESTING.to_owned(), word(standing.resting));
        match records.write(&record).await {
            Ok(written) => self.memory().own = Some(written),
            Err(error) => {
                // Someone thought this member dead and took its object away: the next beat makes it anew.
                self.memory().own = None;
                return Err(unavailable(error));
            }
        }
        let all = records.list().await.map_err(unavailable)?;
        let (view, buried) = self.memory().look(prefix, member, all, Instant::now());
        for name in buried {
            if let Err(error) = records.delete(&name).await {
                tracing::debug!(name, %error, "the object of a dead member stays for now");
            }
        }
        Ok(view)
    }

    async fn take(&self, shard: &ShardId, member: &str) -> Result<Lease, LeaseError> {
        let (records, prefix) = self.stream().await?;
        // What the last look showed; of two who saw the same, one is refused.
        let known = self.memory().shards.get(shard).cloned();
        let mut record = known.unwrap_or_default();
        record.name = shard_name(prefix, shard);
        record.texts.insert(SHARD.to_owned(), shard.to_string());
        record.holder = Some(member.to_owned());
        record.generation += 1;
        let written = records.write(&record).await.map_err(|error| lost(shard, error))?;
        let lease = lease(&written);
        self.memory().shards.insert(shard.clone(), written);
        Ok(lease)
    }

    async fn put(
        &self,
        shard: &ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
        hold: bool,
    ) -> Result<(), LeaseError> {
        let (records, _) = self.stream().await?;
        let known = self.memory().shards.get(shard).cloned();
        let lost_it = || LeaseError::Lost(shard.clone());
        let mut record = known.filter(|record| record.generation == generation).ok_or_else(lost_it)?;
        let text = checkpoint.map(|checkpoint| serde_json::to_string(&checkpoint)).transpose();
        let text = text.map_err(|error| LeaseError::Unavailable(error.to_string()))?;
        let same = text.as_ref().is_none_or(|text| record.texts.get(CHECKPOINT) == Some(text));
        if same && hold {
            return Ok(());
        }
        if let Some(text) = text {
            record.texts.insert(CHECKPOINT.to_owned(), text);
        }
        if !hold {
            record.holder = None;
        }
        let written = match records.write(&record).await {
            Ok(written) => written,
            Err(RecordError::Conflict) => {
                // An older look than our own last write may have given the version: what stands there tells whose it is.
                let now = records.get(&record.name).await.map_err(unavailable)?.ok_or_else(lost_it)?;
                if now.generation != generation || now.holder.is_none() {
                    return Err(lost_it());
                }
                record.version = now.version;
                records.write(&record).await.map_err(|error| lost(shard, error))?
            }
            Err(error) => return Err(unavailable(error)),
        };
        self.memory().shards.insert(shard.clone(), written);
        Ok(())
    }
}

impl Memory {
    /// What the objects say, and the members that have been dead for so long that their objects can go.
    fn look(&mut self, prefix: &str, member: &str, all: Vec<Record>, now: Instant) -> (View, Vec<String>) {
        let (mut view, mut buried) = (View::default(), Vec::new());
        // While nobody could look, nobody could show that he lives either.
        if self.looked.replace(now).is_some_and(|last| now.duration_since(last) > BLIND) {
            self.seen.values_mut().for_each(|(_, at)| *at = now);
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
            let seen = self.seen.entry(name.clone()).or_insert_with(|| (record.version.clone(), now));
            if seen.0 != record.version {
                *seen = (record.version.clone(), now);
            }
            let silent = now.duration_since(seen.1);
            if name == member || silent < DEAD_AFTER {
                let says = |text: &str| record.texts.get(text).is_some_and(|said| said == "true");
                view.members.insert(name, Standing { proven: says(PROVEN), resting: says(RESTING) });
            } else if silent > BURIED_AFTER {
                buried.push(record.name);
            }
        }
        self.seen.retain(|name, _| there.contains(name));
        self.shards.clear();
        for record in shards {
            let Some(shard) = record.texts.get(SHARD).map(|id| ShardId(id.clone())) else { continue };
            let mut seen = lease(&record);
            seen.holder = seen.holder.filter(|holder| view.members.contains_key(holder));
            view.leases.insert(shard.clone(), seen);
            self.shards.insert(shard, record);
        }
        (view, buried)
    }
}

fn lease(record: &Record) -> Lease {
    Lease {
        holder: record.holder.clone(),
        generation: record.generation,
        checkpoint: record.texts.get(CHECKPOINT).and_then(|text| serde_json::from_str(text).ok()),
    }
}

fn member_name(prefix: &str, member: &str) -> String {
    format!("{prefix}-member-{}", member.to_lowercase())
}

/// A name that Kubernetes takes: shard ids are letters, digits, `_`, `.` and `-`, up to 128.
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
fn unavailable(error: RecordError) -> LeaseError {
    LeaseError::Unavailable(error.to_string())
}

fn lost(shard: &ShardId, error: RecordError) -> LeaseError {
    match error {
        RecordError::Conflict => LeaseError::Lost(shard.clone()),
        error @ RecordError::Unavailable(_) => unavailable(error),
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    let none = || Err(LeaseError::Unavailable(format!("no answer in {} ms", CALL.as_millis())));
    timeout(CALL, call).await.unwrap_or_else(|_| none())
}

impl Leases for KubernetesLeases {
    fn heartbeat<'a>(&'a self, member: &'a str, standing: Standing) -> BoxFuture<'a, Result<View, LeaseError>> {
        Box::pin(bounded(self.beat(member, standing)))
    }

    fn acquire<'a>(&'a self, shard: &'a ShardId, member: &'a str) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        Box::pin(bounded(self.take(shard, member)))
    }

    fn renew<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(bounded(self.put(shard, generation, checkpoint, true)))
    }

    fn release<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(bounded(self.put(shard, generation, checkpoint, false)))
    }

    fn leave<'a>(&'a self, member: &'a str) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(bounded(async move {
            let (records, prefix) = self.stream().await?;
            records.delete(&member_name(prefix, member)).await.map_err(unavailable)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(member: &str, version: &str) -> Record {
        Record {
            name: member_name("rtl-1", member),
            version: version.to_owned(),
            holder: Some(member.to_owned()),
            generation: 0,
            texts: [(PROVEN.to_owned(), "true".to_owned())].into(),
        }
    }

    fn shard(id: &str, holder: &str) -> Record {
        let texts = [(SHARD, id), (CHECKPOINT, r#"{"streamCreatedMs":1,"position":{"through":"5"}}"#)];
        Record {
            name: shard_name("rtl-1", &ShardId::from(id)),
            version: "1".to_owned(),
            holder: Some(holder.to_owned()),
            generation: 3,
            texts: texts.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    #[test]
    fn a_member_whose_object_does_not_change_is_dead_by_our_own_clock() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let all = |version: &str| vec![object("me", "9"), object("you", version), shard("shardId-000", "you")];
        let holder = |view: &View| view.leases[&ShardId::from("shardId-000")].holder.clone();
        let mut look = |version: &str, seconds: u64| {
            memory.look("rtl-1", "me", all(version), start + Duration::from_secs(seconds))
        };
        let (view, _) = look("1", 0);
        assert_eq!((view.members.len(), holder(&view)), (2, Some("you".to_owned())));
        assert_eq!((look("1", 4).0.members.len(), look("1", 7).0.members.len()), (2, 2));
        let (view, buried) = look("1", 9);
        assert_eq!((view.members.len(), holder(&view), buried.len()), (1, None, 0));
        assert_eq!(look("2", 10).0.members.len(), 2, "it was only slow");
        assert_eq!(look("2", 50).0.members.len(), 2, "nobody could look for 40 s");
        for second in 51..110 {
            assert_eq!(look("2", second).1, Vec::<String>::new());
        }
        assert_eq!(look("2", 111).1, [member_name("rtl-1", "you")]);
    }

    #[test]
    fn names_are_such_as_kubernetes_takes() {
        assert_eq!(shard_name("rtl-1", &"shardId-000000000000".into()), "rtl-1-shardid-000000000000");
        let odd = shard_name("rtl-1", &"shard_A.b".into());
        assert!(odd.starts_with("rtl-1-") && !odd.contains('_'), "{odd}");
        assert_eq!(lease(&shard("s", "you")).checkpoint.map(|checkpoint| checkpoint.stream_created_ms), Some(1));
    }
}
