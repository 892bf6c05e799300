//! Decodes a record's bytes into events and separates those of this cluster from foreign, newer and broken ones.

use std::collections::{HashSet, VecDeque};

use crate::protocol::record::{RecordError, StreamRecord};

/// Bounds the event ids remembered per shard; a producer's repeats are close together in the stream.
const EVENT_IDS_MAX: usize = 20_000;

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

/// The most recently seen event ids.
#[derive(Debug, Default)]
pub struct RecentEventIds {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl RecentEventIds {
    /// Remembers the id; returns whether it is new.
    pub fn insert(&mut self, id: &str) -> bool {
        if !self.known.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > EVENT_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
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
        assert!(recent.insert("a"));
        assert!(!recent.insert("a"));
        (0..EVENT_IDS_MAX).for_each(|n| assert!(recent.insert(&n.to_string())));
        assert!(recent.insert("a"), "forgotten");
    }
}
