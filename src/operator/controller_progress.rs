//! The progress of one controller: which reconciles are due, and whether they are overdue.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::context::RECONCILE_TIMEOUT;
use crate::process::heartbeat::Heartbeat;
use crate::process::locks::lock_unpoisoned;

/// Time by which a reconcile may be late: a controller at its limit of concurrent reconciles keeps others waiting.
const LATENESS_MAX: Duration = Duration::from_secs(30);

/// Longest time without a finished reconcile while one is overdue.
pub const CONTROLLER_SILENCE_MAX: Duration = RECONCILE_TIMEOUT.saturating_add(LATENESS_MAX);

/// Interval at which a controller checks for overdue reconciles.
pub const PROGRESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The reconciles that one controller has to begin or to finish. Pure: the time is an argument.
#[derive(Debug, Default)]
struct DueReconciles {
    /// When the next reconcile of each cluster is due, by the cluster's key.
    scheduled: HashMap<String, Instant>,
    /// When each running reconcile must have ended.
    running: HashMap<String, Instant>,
}

impl DueReconciles {
    fn begin(&mut self, cluster: &str, now: Instant) {
        self.scheduled.remove(cluster);
        self.running.insert(cluster.to_owned(), now + RECONCILE_TIMEOUT);
    }

    fn finish(&mut self, cluster: &str, next: Option<Duration>, now: Instant) {
        self.running.remove(cluster);
        if let Some(next) = next {
            self.scheduled.insert(cluster.to_owned(), now + next);
        }
    }

    fn forget(&mut self, cluster: &str) {
        self.scheduled.remove(cluster);
        self.running.remove(cluster);
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.scheduled.values().chain(self.running.values()).any(|due| now > *due + LATENESS_MAX)
    }
}

/// Reports a controller's progress: a reconcile finished, or none is overdue.
#[derive(Debug)]
pub struct ControllerProgress {
    due: Mutex<DueReconciles>,
    heartbeat: Heartbeat,
}

impl ControllerProgress {
    /// A controller without reconciles.
    pub fn new(heartbeat: Heartbeat) -> Self {
        Self { due: Mutex::default(), heartbeat }
    }

    /// Notes that a reconcile begins.
    pub fn begin(&self, cluster: &str) {
        self.lock_due().begin(cluster, Instant::now());
    }

    /// Notes that a reconcile ended; `next` is the time until the next one.
    pub fn finish(&self, cluster: &str, next: Option<Duration>) {
        self.lock_due().finish(cluster, next, Instant::now());
        self.heartbeat.beat();
    }

    /// A cluster does not exist any more.
    pub fn forget(&self, cluster: &str) {
        self.lock_due().forget(cluster);
    }

    /// Reports progress if no reconcile is overdue.
    pub fn check(&self) {
        if !self.lock_due().is_overdue(Instant::now()) {
            self.heartbeat.beat();
        }
    }

    fn lock_due(&self) -> MutexGuard<'_, DueReconciles> {
        lock_unpoisoned(&self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconcile_is_overdue_when_it_neither_begins_nor_ends_in_time() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let resync = Some(Duration::from_secs(5));
        let mut due = DueReconciles::default();
        assert!(!due.is_overdue(at(3_600)), "an idle controller is never overdue");
        due.begin("a/eu", now);
        assert!(!due.is_overdue(at(120)) && due.is_overdue(at(121)), "a reconcile that does not end");
        due.finish("a/eu", resync, at(1));
        assert!(!due.is_overdue(at(36)) && due.is_overdue(at(37)), "a requeue that nothing takes up");
        due.begin("a/eu", at(36));
        due.finish("a/eu", Some(Duration::from_mins(5)), at(40));
        assert!(!due.is_overdue(at(370)) && due.is_overdue(at(371)), "a controller may ask for any interval");
        due.begin("a/eu", at(360));
        due.finish("a/eu", None, at(361));
        assert!(!due.is_overdue(at(3_600)), "a cluster that waits for a change");
        due.begin("a/eu", at(50));
        due.forget("a/eu");
        assert!(!due.is_overdue(at(3_600)), "a cluster that is gone");
    }
}
