//! The letters that wait for Kinesis. Pure: the caller passes the time and the results of a put.
//!
//! Letters are put in the order in which they were given up. A letter leaves the queue when Kinesis has acknowledged it, or
//! when the hold of its shard has ended: the next holder gives its event up again.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::{Loss, LostContent};
use crate::dispatcher::reasons::DropReason;
use crate::dispatcher::retry::backoff_ms;
use crate::kinesis::PutEntry;
use crate::protocol::dead_letter::LetterSource;
use crate::protocol::record::partition_key;

/// Bounds the letters of one put (API reference, `PutRecords`).
pub const BATCH_LETTERS_MAX: usize = 500;
/// Bounds the bytes of one put, below the 5 MiB of Kinesis's smallest limit.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest back-off after failed puts, so that the recovery of the stream is noticed soon.
const PUT_BACKOFF_MAX_MS: u64 = 5_000;

/// A letter that waits to be written.
#[derive(Debug)]
pub struct QueuedLetter {
    /// Number that the shard's tracker gave the record.
    pub record: u64,
    /// The record that was read.
    pub source: LetterSource,
    /// The loss that the letter reports.
    pub loss: Loss,
    /// Receives the acknowledgement, while the shard is held.
    pub written: mpsc::UnboundedSender<WrittenLetter>,
}

/// A letter that Kinesis has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenLetter {
    /// Number of the record, of which one event is finished now.
    pub record: u64,
    /// The reason of the loss.
    pub reason: DropReason,
    /// Number of lost events.
    pub events: usize,
}

impl QueuedLetter {
    /// Encodes the letter. Letters of one channel have one partition key, and so one order.
    fn encode(&self, cluster: &str, now_ms: u64) -> PutEntry {
        let partition_key = match &self.loss.content {
            LostContent::Delivery { endpoint, outgoing, .. } => partition_key(&endpoint.app, &outgoing.channel),
            LostContent::Event { app, outgoing } => partition_key(app, &outgoing.channel),
            LostContent::Record { .. } => self.source.sequence.clone(),
        };
        let letter = self.loss.write_letter(cluster, self.source.clone(), now_ms);
        PutEntry { partition_key, data: letter.to_bytes().into() }
    }

    /// Reports the letter as written; fails once the hold of its shard has ended, which needs no report.
    fn acknowledge(self) {
        let Loss { reason, events, .. } = self.loss;
        let _ = self.written.send(WrittenLetter { record: self.record, reason, events });
    }
}

/// The letters of a process that are not written yet.
#[derive(Debug, Default)]
pub struct LetterQueue {
    waiting: VecDeque<QueuedLetter>,
    /// Consecutive puts that failed in part or in all.
    failures: u32,
    /// Earliest time of the next put.
    next_put_ms: u64,
}

impl LetterQueue {
    /// Adds a letter behind the others.
    pub fn push(&mut self, letter: QueuedLetter) {
        self.waiting.push_back(letter);
    }

    /// Number of letters that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Time until the next put, in ms; `None` without letters.
    #[must_use]
    pub fn due_in_ms(&self, now_ms: u64) -> Option<u64> {
        (!self.waiting.is_empty()).then(|| self.next_put_ms.saturating_sub(now_ms))
    }

    /// Takes the oldest letters, as many as one put holds, with their entries. The call ends with [`Self::complete_put`].
    pub fn take_batch(&mut self, cluster: &str, wall_ms: u64) -> (Vec<QueuedLetter>, Vec<PutEntry>) {
        let (mut letters, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        while letters.len() < BATCH_LETTERS_MAX
            && let Some(letter) = self.waiting.pop_front()
        {
            if letter.written.is_closed() {
                continue;
            }
            let entry = letter.encode(cluster, wall_ms);
            bytes += entry.data.len() + entry.partition_key.len();
            if bytes > BATCH_BYTES_MAX && !letters.is_empty() {
                self.waiting.push_front(letter);
                break;
            }
            letters.push(letter);
            entries.push(entry);
        }
        (letters, entries)
    }

    /// Acknowledges the letters that were written, and returns the others to the front; `random` spreads the next put.
    /// Returns the number of written letters.
    pub fn complete_put(&mut self, letters: Vec<QueuedLetter>, is_written: &[bool], now_ms: u64, random: f64) -> usize {
        let all = letters.len();
        let mut refused = Vec::new();
        for (at, letter) in letters.into_iter().enumerate() {
            if is_written.get(at).copied().unwrap_or(false) {
                letter.acknowledge();
            } else {
                refused.push(letter);
            }
        }
        let written = all - refused.len();
        if refused.is_empty() {
            self.failures = 0;
            return written;
        }
        // A put that was accepted in part met a limit of this second; one that failed in all may meet an outage.
        self.failures = if written > 0 { 1 } else { self.failures.saturating_add(1) };
        self.next_put_ms = now_ms + backoff_ms(self.failures, PUT_BACKOFF_MAX_MS, random);
        refused.into_iter().rev().for_each(|letter| self.waiting.push_front(letter));
        // Holds that end while the stream is unavailable must not fill the queue with their letters.
        self.waiting.retain(|letter| !letter.written.is_closed());
        written
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::dead_letter::{DeadLetter, RAW_BYTES_MAX};

    fn letter(record: u64, data: &Bytes, written: &mpsc::UnboundedSender<WrittenLetter>) -> QueuedLetter {
        let loss = Loss::of_record(DropReason::Poison, "no JSON".to_owned(), 1, data);
        let source = LetterSource { stream: "s".into(), shard: "shard-0".into(), sequence: record.to_string() };
        QueuedLetter { record, source, loss, written: written.clone() }
    }

    fn records(letters: &[QueuedLetter]) -> Vec<u64> {
        letters.iter().map(|letter| letter.record).collect()
    }

    #[test]
    fn refused_letters_go_first_and_only_written_ones_are_acknowledged() {
        let (sender, mut written) = mpsc::unbounded_channel();
        let mut queue = LetterQueue::default();
        (0..4).for_each(|record| queue.push(letter(record, &Bytes::from_static(b"{"), &sender)));
        let (letters, entries) = queue.take_batch("u", 7);
        let first = DeadLetter::parse(&entries[0].data).expect("a letter");
        assert_eq!((first.reason.as_str(), first.source.sequence.as_str(), first.written_ms), ("Poison", "0", 7));
        queue.push(letter(4, &Bytes::from_static(b"{"), &sender));
        assert_eq!(queue.complete_put(letters, &[true, false, true, false], 100, 1.0), 2);
        let acknowledged: Vec<u64> = std::iter::from_fn(|| written.try_recv().ok()).map(|it| it.record).collect();
        assert_eq!(acknowledged, [0, 2]);
        assert_eq!(queue.due_in_ms(100), Some(500), "a back-off");
        let (letters, _) = queue.take_batch("u", 7);
        assert_eq!(records(&letters), [1, 3, 4]);
        assert_eq!(queue.complete_put(letters, &[], 600, 1.0), 0, "no answer counts as none written");
        let (letters, _) = queue.take_batch("u", 7);
        queue.complete_put(letters, &[false; 3], 1_600, 1.0);
        assert_eq!(queue.due_in_ms(1_600), Some(2_000), "longer from failure to failure");
    }

    #[test]
    fn a_put_is_bounded_in_letters_and_bytes() {
        let (sender, _written) = mpsc::unbounded_channel();
        let mut queue = LetterQueue::default();
        (0..700).for_each(|record| queue.push(letter(record, &Bytes::from_static(b"{"), &sender)));
        assert_eq!(queue.take_batch("u", 0).0.len(), BATCH_LETTERS_MAX);
        let mut queue = LetterQueue::default();
        let large = Bytes::from(vec![0; 2 * RAW_BYTES_MAX]);
        (0..9).for_each(|record| queue.push(letter(record, &large, &sender)));
        let (letters, entries) = queue.take_batch("u", 0);
        assert!((2..9).contains(&letters.len()), "{}", letters.len());
        assert!(entries.iter().map(|entry| entry.data.len()).sum::<usize>() <= BATCH_BYTES_MAX);
        assert_eq!(queue.len() + letters.len(), 9);
    }

    #[test]
    fn letters_of_a_hold_that_ended_leave_the_queue_also_while_the_stream_is_unavailable() {
        let (ended, receiver) = mpsc::unbounded_channel();
        let (held, _written) = mpsc::unbounded_channel();
        let mut queue = LetterQueue::default();
        (0..2_000).for_each(|record| queue.push(letter(record, &Bytes::from_static(b"{"), &ended)));
        queue.push(letter(1, &Bytes::from_static(b"{"), &held));
        let (letters, _) = queue.take_batch("u", 0);
        drop(receiver);
        queue.complete_put(letters, &[], 0, 0.0);
        assert_eq!(queue.len(), 1);
    }
}
