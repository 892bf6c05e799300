//! The channels whose subscription count this process publishes later.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio_util::task::TaskTracker;

use crate::bus::ChannelKey;
use crate::edge::session::drain_signal::DrainSignal;
use crate::process::locks::lock_unpoisoned;

/// The channels for which a later look at the count is planned: one plan per channel.
pub struct PendingCounts {
    pending: Mutex<HashSet<ChannelKey>>,
    /// One task per planned channel.
    pub(crate) tasks: TaskTracker,
    /// Ends the plans: a draining process leaves the last count to others.
    pub(crate) draining: Arc<DrainSignal>,
}

impl PendingCounts {
    /// Creates an empty plan, whose tasks end when the drain starts.
    pub(crate) fn new(tasks: TaskTracker, draining: Arc<DrainSignal>) -> Self {
        Self { pending: Mutex::default(), tasks, draining }
    }

    /// Plans a channel; `false` if it was planned already.
    pub(crate) fn mark_pending(&self, subject: &ChannelKey) -> bool {
        lock_unpoisoned(&self.pending).insert(subject.clone())
    }

    /// Removes the plan of a channel, so that the next change plans anew.
    pub(crate) fn clear_pending(&self, subject: &ChannelKey) {
        lock_unpoisoned(&self.pending).remove(subject);
    }
}
