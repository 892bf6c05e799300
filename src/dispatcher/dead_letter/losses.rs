//! The losses of one held shard: each becomes a dead letter, or is counted as dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::Loss;
use super::queue::{QueuedLetter, WrittenLetter};
use super::writer::LetterSender;
use crate::dispatcher::metrics::DispatcherMetrics;
use crate::dispatcher::reasons::{DropReason, LossScope};
use crate::protocol::dead_letter::LetterSource;

/// Least interval between two log lines on one reason.
const LOSS_LOG_INTERVAL_MS: u64 = 5_000;

/// The losses of one held shard. Dropped, its letters that are not written yet are forgotten: the next holder reads their
/// records again.
pub struct ShardLosses {
    /// The writer of letters; `None` without a dead-letter stream.
    letters: Option<LetterSender>,
    metrics: Arc<DispatcherMetrics>,
    written: mpsc::UnboundedReceiver<WrittenLetter>,
    /// Keeps the channel open, and is cloned into each letter.
    acknowledgements: mpsc::UnboundedSender<WrittenLetter>,
    /// Letters that are not acknowledged yet, by reason.
    pending: BTreeMap<DropReason, usize>,
    last_log_ms: BTreeMap<DropReason, u64>,
}

impl ShardLosses {
    /// The part of a shard that was acquired now.
    #[must_use]
    pub fn new(letters: Option<LetterSender>, metrics: Arc<DispatcherMetrics>) -> Self {
        let (acknowledgements, written) = mpsc::unbounded_channel();
        Self { letters, metrics, written, acknowledgements, pending: BTreeMap::new(), last_log_ms: BTreeMap::new() }
    }

    /// Whether lost events become letters.
    #[must_use]
    pub fn keeps_letters(&self) -> bool {
        self.letters.is_some()
    }

    /// Number of letters that are not acknowledged yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.values().sum()
    }

    /// Number of them that report losses of this scope.
    #[must_use]
    pub fn pending_of(&self, scope: LossScope) -> usize {
        self.pending.iter().filter(|(reason, _)| reason.scope() == scope).map(|(_, letters)| letters).sum()
    }

    /// Gives an event or record up: the one place at which anything is lost. Returns whether it is finished now; otherwise
    /// it is once [`Self::next_written`] returns its record.
    pub fn give_up(&mut self, record: u64, source: LetterSource, loss: Loss, now_ms: u64) -> bool {
        let (reason, events) = (loss.reason, loss.events);
        if self.last_log_ms.get(&reason).is_none_or(|at| at + LOSS_LOG_INTERVAL_MS <= now_ms) {
            // Every event is counted; the log gets an example per interval.
            self.last_log_ms.insert(reason, now_ms);
            let (shard, what, is_kept) = (&source.shard, loss.describe(), self.letters.is_some());
            if is_kept {
                tracing::warn!(%shard, ?reason, events, what, "events given up: writing dead letters");
            } else {
                tracing::warn!(%shard, ?reason, events, what, "events dropped");
            }
        }
        let Some(letters) = &self.letters else {
            self.metrics.count_dropped(reason, events);
            return true;
        };
        let written = self.acknowledgements.clone();
        if letters.send(QueuedLetter { record, source, loss, written }).is_err() {
            // The record stays open, and the shard's bound pauses the reading.
            tracing::error!(?reason, "letter not queued: the writer of dead letters ended");
        }
        *self.pending.entry(reason).or_default() += 1;
        false
    }

    /// Waits for the next letter that Kinesis has acknowledged; returns the number of its record.
    pub async fn next_written(&mut self) -> Option<u64> {
        let written = self.written.recv().await?;
        Some(self.count_written(written))
    }

    /// Polls for the next letter that Kinesis has acknowledged; returns the number of its record.
    pub fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<Option<u64>> {
        self.written.poll_recv(context).map(|written| written.map(|written| self.count_written(written)))
    }

    /// Takes an acknowledged letter, if there is one; returns the number of its record.
    pub fn take_written(&mut self) -> Option<u64> {
        let written = self.written.try_recv().ok()?;
        Some(self.count_written(written))
    }

    fn count_written(&mut self, written: WrittenLetter) -> u64 {
        let pending = self.pending.entry(written.reason).or_default();
        *pending = pending.saturating_sub(1);
        self.metrics.count_dead_lettered(written.reason, written.events);
        written.record
    }
}
