//! Decodes a record's bytes into events and separates those of this cluster from foreign, newer and broken ones.

use super::aging_map::{AgingMap, hash_key};
use super::events::ShardSlot;
use crate::protocol::record::{RecordError, StreamRecord};

/// Bounds the event ids that are remembered; a producer's repeats are close together in the stream.
const EVENT_IDS_MAX: usize = 28_672;
/// Time for which an id is remembered: far longer than a producer repeats a put.
const EVENT_ID_TTL_MS: u64 = 600_000;

/// A record, classified by origin.
#[derive(Debug)]
pub enum DecodedRecord {
    /// A record of this cluster.
    Ours(StreamRecord),
    /// Another cluster's record, with its name and number of events.
    Foreign(String, usize),
    /// Bytes that are no record, with the reason.
    Poison(String),
    /// A record of a newer release, at which the shard waits.
    TooNew(String),
}

/// Decodes and classifies a record's bytes.
#[must_use]
pub fn decode_record(bytes: &[u8], cluster: &str) -> DecodedRecord {
    match StreamRecord::parse(bytes) {
        Ok(record) if record.edge.cluster == cluster => DecodedRecord::Ours(record),
        Ok(record) => DecodedRecord::Foreign(record.edge.cluster, record.events.len()),
        Err(error @ RecordError::TooNew(_)) => DecodedRecord::TooNew(format!("RecordTooNew: {error}")),
        Err(RecordError::Malformed(why)) => DecodedRecord::Poison(why),
    }
}

/// The most recently seen event ids, each with its shard. They are kept as hashes of 64 bits, because every shard has as
/// many.
#[derive(Debug)]
pub struct RecentEventIds(AgingMap<u64, ShardSlot>);

impl Default for RecentEventIds {
    fn default() -> Self {
        Self(AgingMap::new(EVENT_IDS_MAX, EVENT_ID_TTL_MS))
    }
}

impl RecentEventIds {
    /// Remembers the id of an event of this shard; returns whether it is new.
    pub fn insert(&mut self, id: &str, slot: ShardSlot, now_ms: u64) -> bool {
        self.0.insert(hash_key(id), slot, now_ms)
    }

    /// Forgets the ids of a shard that is no longer held: its next holder, who may be this process, reads some again.
    pub fn remove_slot(&mut self, slot: ShardSlot) {
        self.0.retain(|of| *of != slot);
    }

    /// Adds the ids that another lineage has seen.
    pub fn absorb(&mut self, other: Self, now_ms: u64) {
        self.0.absorb(other.0, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_classified_by_origin_and_version() {
        let record = |cluster: &str| {
            format!(
                r#"{{"v":1,"app":"1","channel":"a","edge":{{"cluster":"{cluster}","server":"s","pod":"p","process":"b"}},"events":[]}}"#
            )
        };
        for (name, text, expected) in [
            ("ours", record("u"), "Ours"),
            ("of another cluster", record("v"), "Foreign"),
            ("of a newer release", r#"{"v":2}"#.to_owned(), "TooNew"),
            ("rubbish", "{".to_owned(), "Poison"),
        ] {
            let read = format!("{:?}", decode_record(text.as_bytes(), "u"));
            assert!(read.starts_with(expected), "{name}: {read}");
        }
    }

    #[test]
    fn the_oldest_ids_are_forgotten() {
        let mut recent = RecentEventIds::default();
        for id in ["a", "01HF8Z0A1B2C3D4E5F6G7H8J9K"] {
            assert!(recent.insert(id, 1, 0), "{id}");
            assert!(!recent.insert(id, 1, 0), "{id}");
        }
        (0..EVENT_IDS_MAX).for_each(|n| assert!(recent.insert(&n.to_string(), 1, 0)));
        assert!(recent.insert("a", 1, 0), "forgotten");
        assert!(recent.insert("a", 1, 2 * EVENT_ID_TTL_MS), "aged out");
        recent.remove_slot(1);
        assert!(recent.insert("a", 2, 2 * EVENT_ID_TTL_MS), "its shard is read again");
    }
}
