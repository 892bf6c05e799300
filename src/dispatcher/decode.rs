//! From bytes to events: what is ours, what must wait, what is lost.

use std::collections::{HashSet, VecDeque};

use crate::protocol::record::{RecordError, StreamRecord};

/// Ids of events that are remembered per shard. Repeats of a producer stand close together.
const EVENT_IDS_MAX: usize = 20_000;

/// What a record is.
#[derive(Debug)]
pub enum DecodedRecord {
    /// Ours.
    Ours(StreamRecord),
    /// Of another cluster, with so many events.
    Foreign(String, usize),
    /// No record of ours.
    Poison(String),
    /// A newer release wrote it: the shard waits.
    TooNew(String),
}

/// Reads a record's bytes.
#[must_use]
pub fn decode_record(bytes: &[u8], cluster: &str) -> DecodedRecord {
    match StreamRecord::parse(bytes) {
        Ok(record) if record.edge.cluster == cluster => DecodedRecord::Ours(record),
        Ok(record) => DecodedRecord::Foreign(record.edge.cluster, record.events.len()),
        Err(error @ RecordError::TooNew(_)) => DecodedRecord::TooNew(format!("RecordTooNew: {error}")),
        Err(RecordError::Malformed(why)) => DecodedRecord::Poison(why),
    }
}

/// The ids that were seen lately.
#[derive(Debug, Default)]
pub struct RecentEventIds {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl RecentEventIds {
    /// Whether the id is new; it is remembered.
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
    fn a_table_of_records() {
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
    fn ids_are_remembered_for_a_while() {
        let mut recent = RecentEventIds::default();
        assert!(recent.insert("a"));
        assert!(!recent.insert("a"));
        (0..EVENT_IDS_MAX).for_each(|n| assert!(recent.insert(&n.to_string())));
        assert!(recent.insert("a"), "forgotten");
    }
}
