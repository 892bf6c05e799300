//! Decides the next change of a live stream. Pure.
//!
//! In: the settings that the manifest asks for, the stream as Kinesis describes it, the changes of the last day, the time.
//! Out: one change at most, and a line for each setting that the stream does not have. The state is in Kinesis and in the
//! status alone, so that an operator that restarts between any two calls goes on where the former one stopped.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{Timestamp, ToSpan};

use crate::api::Reason;
use crate::api::cluster::{LimitedChange, StreamChangeRecord, StreamStatus};
use crate::desired::{StreamCapacity, StreamGoal};
use crate::kinesis::{LiveCapacity, StreamChange, StreamSummary};

/// Hours of the window in which AWS counts changes.
const LIMIT_WINDOW_HOURS: i64 = 24;

/// Tags that one call adds or removes (API reference, `AddTagsToStream`).
const TAGS_PER_CALL_MAX: usize = 10;

/// The next change of a stream, and the settings that it does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamPlan {
    /// The change to make now; none while the stream must not be changed.
    pub next: Option<StreamChange>,
    /// A line for each setting that the stream does not have.
    pub pending: Vec<String>,
    /// Whether a setting waits until AWS allows another change.
    pub waits_for_quota: bool,
}

/// A stream as it is.
pub struct LiveStream<'a> {
    /// The description of the stream.
    pub summary: &'a StreamSummary,
    /// Its tags; empty if the manifest asks for none.
    pub tags: &'a BTreeMap<String, String>,
}

/// A setting that the stream does not have.
struct PendingSetting {
    /// The change that brings it nearer.
    change: Result<StreamChange, Refusal>,
    /// The value of the manifest and that of the stream.
    difference: String,
    /// The line of the manifest that accepts the stream as it is.
    acceptance: String,
}

/// The reason why a setting is not changed now.
enum Refusal {
    /// AWS allows no further change before this time.
    Quota { limit: usize, changes: &'static str, until: Timestamp },
    /// The change would lose records.
    DataLoss,
}

impl StreamPlan {
    /// The reason of the condition of a stream that can be used.
    pub fn reason(&self) -> Reason {
        match (&self.next, self.pending.is_empty()) {
            (Some(_), _) | (None, true) => Reason::StreamActive,
            (None, false) if self.waits_for_quota => Reason::WaitingForQuota,
            (None, false) => Reason::StreamDiffers,
        }
    }
}

/// Plans the next change: mode, then shards, retention, encryption and tags, one attribute at a time. A setting that has to
/// wait holds up no other.
#[must_use]
pub fn plan_stream(goal: &StreamGoal, live: &LiveStream<'_>, known: &StreamStatus, now: Timestamp) -> StreamPlan {
    let pending = [
        plan_mode(goal, live, known, now),
        plan_shards(goal, live, known, now),
        plan_retention(goal, live),
        plan_encryption(goal, live, known, now),
        plan_tags(goal, live, known),
    ];
    let mut plan = StreamPlan::default();
    for setting in pending.into_iter().flatten() {
        let PendingSetting { change, difference, acceptance } = setting;
        if !goal.is_managed() {
            plan.pending.push(format!(
                "{difference}: with management: Observe nothing is changed; change the stream where it is defined, or write {acceptance}"
            ));
            continue;
        }
        plan.pending.push(match &change {
            Ok(change) if plan.next.is_none() => format!("{difference}: {}", describe_change(change)),
            Ok(_) => format!("{difference}: follows"),
            Err(Refusal::Quota { limit, changes, until }) => {
                plan.waits_for_quota = true;
                format!(
                    "{difference}: AWS allows {limit} {changes} in {LIMIT_WINDOW_HOURS} h, and the next at {until}; nothing is to be done, or write {acceptance}"
                )
            }
            Err(Refusal::DataLoss) => format!(
                "{difference}: a lower retention deletes records; write acknowledgeDataLoss: [LowerRetention], or {acceptance}"
            ),
        });
        plan.next = plan.next.or(change.ok());
    }
    plan
}

/// Adds a change that was made to the status: those that AWS counts, and the names that Kinesis may not return.
pub fn record_change(known: &mut StreamStatus, change: &StreamChange, now: Timestamp) {
    known.changes = recent_changes(known, now).cloned().collect();
    let kind = match change {
        StreamChange::SetShardCount(_) => Some(LimitedChange::Shards),
        StreamChange::SwitchToOnDemand | StreamChange::SwitchToProvisioned => Some(LimitedChange::Mode),
        StreamChange::Encrypt(_) => Some(LimitedChange::Encryption),
        _ => None,
    };
    known.changes.extend(kind.map(|kind| StreamChangeRecord { kind, time: now.to_string() }));
    match change {
        StreamChange::Encrypt(key) => known.requested_key.clone_from(key),
        StreamChange::AddTags(tags) => {
            let keys: BTreeSet<String> = known.written_tags.drain(..).chain(tags.keys().cloned()).collect();
            known.written_tags = keys.into_iter().collect();
        }
        StreamChange::RemoveTags(keys) => known.written_tags.retain(|key| !keys.contains(key)),
        _ => {}
    }
}

/// Changes of the number of shards that AWS still allows.
#[must_use]
pub fn shard_changes_left(known: &StreamStatus, now: Timestamp) -> u32 {
    let limit = change_limit(LimitedChange::Shards).0;
    let made = recent_changes(known, now).filter(|change| change.kind == LimitedChange::Shards).count();
    u32::try_from(limit.saturating_sub(made)).unwrap_or(0)
}

/// States a change in a few words.
#[must_use]
pub fn describe_change(change: &StreamChange) -> String {
    match change {
        StreamChange::SwitchToOnDemand => "switching to OnDemand".to_owned(),
        StreamChange::SwitchToProvisioned => "switching to Provisioned".to_owned(),
        StreamChange::SetShardCount(shards) => format!("setting {shards} shards"),
        StreamChange::RaiseRetention(hours) => format!("raising the retention to {hours} h"),
        StreamChange::LowerRetention(hours) => format!("lowering the retention to {hours} h"),
        StreamChange::Encrypt(key) => format!("encrypting with {key}"),
        StreamChange::AddTags(tags) => format!("writing {} tags", tags.len()),
        StreamChange::RemoveTags(keys) => format!("removing {} tags", keys.len()),
    }
}

/// Number of changes of a kind that AWS allows in [`LIMIT_WINDOW_HOURS`], and their name in a sentence.
fn change_limit(kind: LimitedChange) -> (usize, &'static str) {
    match kind {
        LimitedChange::Shards => (10, "changes of the number of shards"),
        LimitedChange::Mode => (2, "changes of the mode"),
        LimitedChange::Encryption => (25, "changes of the encryption"),
    }
}

fn recent_changes(known: &StreamStatus, now: Timestamp) -> impl Iterator<Item = &StreamChangeRecord> {
    known.changes.iter().filter(move |change| expiry_of(change).is_some_and(|expiry| expiry > now))
}

/// The time from which a change does not count any more; `None` for a time that cannot be read.
fn expiry_of(change: &StreamChangeRecord) -> Option<Timestamp> {
    change.time.parse::<Timestamp>().ok()?.checked_add(LIMIT_WINDOW_HOURS.hours()).ok()
}

/// Allows a change that AWS limits, or refuses it until the oldest one that counts has expired.
fn allow_limited(
    change: StreamChange,
    kind: LimitedChange,
    known: &StreamStatus,
    now: Timestamp,
) -> Result<StreamChange, Refusal> {
    let (limit, changes) = change_limit(kind);
    let mut expiries: Vec<Timestamp> =
        recent_changes(known, now).filter(|change| change.kind == kind).filter_map(expiry_of).collect();
    expiries.sort_unstable();
    let over = expiries.len().checked_sub(limit);
    match over.and_then(|over| expiries.get(over)) {
        Some(until) => Err(Refusal::Quota { limit, changes, until: *until }),
        None => Ok(change),
    }
}

fn plan_mode(goal: &StreamGoal, live: &LiveStream<'_>, known: &StreamStatus, now: Timestamp) -> Option<PendingSetting> {
    let (change, difference, acceptance) = match (goal.capacity?, live.summary.capacity?) {
        (StreamCapacity::OnDemand, LiveCapacity::Provisioned(shards)) => (
            StreamChange::SwitchToOnDemand,
            format!("mode is OnDemand, and the stream is Provisioned with {shards} shards"),
            format!("mode: Provisioned and shards: {shards}"),
        ),
        (StreamCapacity::Provisioned(_), LiveCapacity::OnDemand) => (
            StreamChange::SwitchToProvisioned,
            "mode is Provisioned, and the stream is OnDemand".to_owned(),
            "mode: OnDemand without shards".to_owned(),
        ),
        _ => return None,
    };
    let change = allow_limited(change, LimitedChange::Mode, known, now);
    Some(PendingSetting { change, difference, acceptance })
}

/// Plans the next number of shards: at most double, and at least half of the present one (API reference,
/// `UpdateShardCount`).
fn plan_shards(
    goal: &StreamGoal,
    live: &LiveStream<'_>,
    known: &StreamStatus,
    now: Timestamp,
) -> Option<PendingSetting> {
    let StreamCapacity::Provisioned(wanted) = goal.capacity? else { return None };
    let open = live.summary.open_shards;
    match live.summary.capacity? {
        LiveCapacity::Provisioned(_) if open != wanted && open > 0 => {}
        _ => return None,
    }
    let next = wanted.clamp(open.div_ceil(2), open.saturating_mul(2));
    let change = allow_limited(StreamChange::SetShardCount(next), LimitedChange::Shards, known, now);
    Some(PendingSetting {
        change,
        difference: format!("shards is {wanted}, and the stream has {open}"),
        acceptance: format!("shards: {open}"),
    })
}

fn plan_retention(goal: &StreamGoal, live: &LiveStream<'_>) -> Option<PendingSetting> {
    let (wanted, found) = (goal.retention_hours?, live.summary.retention_hours);
    let change = match wanted.cmp(&found) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => Ok(StreamChange::RaiseRetention(wanted)),
        std::cmp::Ordering::Less if goal.may_lower_retention => Ok(StreamChange::LowerRetention(wanted)),
        std::cmp::Ordering::Less => Err(Refusal::DataLoss),
    };
    Some(PendingSetting {
        change,
        difference: format!("retentionHours is {wanted}, and the stream keeps records for {found} h"),
        acceptance: format!("retentionHours: {found}"),
    })
}

fn plan_encryption(
    goal: &StreamGoal,
    live: &LiveStream<'_>,
    known: &StreamStatus,
    now: Timestamp,
) -> Option<PendingSetting> {
    let wanted = goal.encryption_key.as_ref()?;
    let found = live.summary.encryption_key.as_ref();
    // An encrypted stream whose key was set to the wanted name has that key, under whatever name Kinesis returns.
    if found.is_some_and(|found| found == wanted || known.requested_key == *wanted) {
        return None;
    }
    let state = found.map_or_else(|| "is not encrypted".to_owned(), |found| format!("is encrypted with {found}"));
    let acceptance = found.map_or_else(|| "no encryption".to_owned(), |found| format!("kmsKey: {found}"));
    let change = allow_limited(StreamChange::Encrypt(wanted.clone()), LimitedChange::Encryption, known, now);
    Some(PendingSetting {
        change,
        difference: format!("encryption.kmsKey is {wanted}, and the stream {state}"),
        acceptance,
    })
}

fn plan_tags(goal: &StreamGoal, live: &LiveStream<'_>, known: &StreamStatus) -> Option<PendingSetting> {
    let differs = |(key, value): &(&String, &String)| live.tags.get(*key) != Some(*value);
    let missing: BTreeMap<String, String> =
        goal.tags.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone())).collect();
    let superfluous: BTreeSet<String> =
        known.written_tags.iter().filter(|key| !goal.tags.contains_key(*key)).cloned().collect();
    let names = |keys: Vec<&String>| keys.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (change, difference) = if let Some(first) = missing.keys().next() {
        let some = missing.iter().take(TAGS_PER_CALL_MAX).map(|(key, value)| (key.clone(), value.clone()));
        let difference = format!("tags has {first}, and {} tags are missing or differ", missing.len());
        (StreamChange::AddTags(some.collect()), difference)
    } else if superfluous.is_empty() {
        return None;
    } else {
        let difference = format!("tags has no {} any more, and the stream has", names(superfluous.iter().collect()));
        (StreamChange::RemoveTags(superfluous.into_iter().take(TAGS_PER_CALL_MAX).collect()), difference)
    };
    Some(PendingSetting { change: Ok(change), difference, acceptance: "the tags that the stream has".to_owned() })
}

#[cfg(test)]
mod tests;
