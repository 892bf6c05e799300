//! The channels whose subscription count this process publishes later.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::bus::ChannelKey;

/// The channels for which a later look at the count is planned: one plan per channel.
#[derive(Default)]
pub struct PendingCounts {
    pending: Mutex<HashSet<ChannelKey>>,
}

impl PendingCounts {
    /// Plans a channel; `false` if it was planned already.
    pub(crate) fn mark_pending(&self, subject: &ChannelKey) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone())
    }

    /// Removes the plan of a channel, so that the next change plans anew.
    pub(crate) fn clear_pending(&self, subject: &ChannelKey) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
    }
}
