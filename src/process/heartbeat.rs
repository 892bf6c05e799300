//! Heartbeats: long-lived tasks report their progress, so that one which ended or stands still is noticed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::process::locks::lock_unpoisoned;

/// Interval at which the tasks are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Delay of a check beyond which the whole process was suspended: no task could make progress meanwhile.
const CHECK_DELAY_MAX: Duration = Duration::from_secs(3);

/// Time between a failing `/livez` and the end of the process for a silent task.
const SILENCE_GRACE: Duration = Duration::from_secs(15);

/// The failure of a task on which the process depends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskFault {
    /// The task returned or panicked, and nobody had stopped it.
    #[error("the task `{task}` ended")]
    Ended {
        /// Name of the task.
        task: String,
    },
    /// The task made no progress for longer than it may.
    #[error("the task `{task}` has made no progress for {} s", silence.as_secs())]
    Silent {
        /// Name of the task.
        task: String,
        /// Time since its last progress.
        silence: Duration,
    },
}

/// The tasks on which the process depends. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    table: Arc<Mutex<HeartbeatTable>>,
}

/// One task's report of its progress. Dropped before its token is cancelled, by a return or a panic, it means that the
/// task ended.
#[derive(Debug)]
pub struct Heartbeat {
    id: u64,
    heartbeats: Heartbeats,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct HeartbeatTable {
    tasks: BTreeMap<u64, TaskRecord>,
    last_id: u64,
}

#[derive(Debug)]
struct TaskRecord {
    name: String,
    /// Longest time without progress; `None` for a task that only has to go on.
    silence_max: Option<Duration>,
    last_beat: Instant,
    has_ended: bool,
}

impl HeartbeatTable {
    fn find_fault(&self, now: Instant, grace: Duration) -> Option<TaskFault> {
        let ended = self.tasks.values().find(|task| task.has_ended);
        if let Some(task) = ended {
            return Some(TaskFault::Ended { task: task.name.clone() });
        }
        self.tasks.values().find_map(|task| {
            let silence = now.saturating_duration_since(task.last_beat);
            let is_silent = task.silence_max.is_some_and(|longest| silence > longest + grace);
            is_silent.then(|| TaskFault::Silent { task: task.name.clone(), silence })
        })
    }

    /// Leaves out a time in which no task could make progress.
    fn leave_out(&mut self, suspension: Duration) {
        for task in self.tasks.values_mut() {
            task.last_beat += suspension;
        }
    }
}

impl Heartbeats {
    /// Registers a task that is stopped by `stop`. `silence_max` bounds its time without progress.
    #[must_use]
    pub fn register(
        &self,
        name: impl Into<String>,
        silence_max: Option<Duration>,
        stop: &CancellationToken,
    ) -> Heartbeat {
        let mut table = self.lock();
        table.last_id += 1;
        let id = table.last_id;
        let task = TaskRecord { name: name.into(), silence_max, last_beat: Instant::now(), has_ended: false };
        table.tasks.insert(id, task);
        Heartbeat { id, heartbeats: self.clone(), stop: stop.clone() }
    }

    /// Checks every task, for `/livez`.
    ///
    /// # Errors
    /// A task ended, or has made no progress for too long.
    pub fn check(&self) -> Result<(), TaskFault> {
        self.lock().find_fault(Instant::now(), Duration::ZERO).map_or(Ok(()), Err)
    }

    /// Waits until a task has ended, or was silent for so long that `/livez` has failed for a while.
    pub async fn wait_for_fault(&self) -> TaskFault {
        let mut checked = Instant::now();
        loop {
            sleep(CHECK_INTERVAL).await;
            let now = Instant::now();
            let suspension = now.saturating_duration_since(checked).saturating_sub(CHECK_INTERVAL);
            checked = now;
            let mut table = self.lock();
            if suspension > CHECK_DELAY_MAX {
                table.leave_out(suspension);
            }
            if let Some(fault) = table.find_fault(now, SILENCE_GRACE) {
                return fault;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HeartbeatTable> {
        lock_unpoisoned(&self.table)
    }
}

impl Heartbeat {
    /// Reports that the task makes progress.
    pub fn beat(&self) {
        if let Some(task) = self.heartbeats.lock().tasks.get_mut(&self.id) {
            task.last_beat = Instant::now();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let mut table = self.heartbeats.lock();
        if self.stop.is_cancelled() {
            table.tasks.remove(&self.id);
        } else if let Some(task) = table.tasks.get_mut(&self.id) {
            task.has_ended = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn a_task_is_silent_after_its_own_limit_and_never_without_one() {
        let now = Instant::now();
        for (name, silence_max, age, is_silent) in [
            ("at its limit", Some(LONGEST), 30, false),
            ("beyond its limit", Some(LONGEST), 31, true),
            ("without a limit", None, 3_600, false),
        ] {
            let mut table = HeartbeatTable::default();
            let task = TaskRecord { name: "gate".to_owned(), silence_max, last_beat: now, has_ended: false };
            table.tasks.insert(1, task);
            let later = now + Duration::from_secs(age);
            assert_eq!(table.find_fault(later, Duration::ZERO).is_some(), is_silent, "{name}");
            assert_eq!(
                table.find_fault(later, SILENCE_GRACE),
                None,
                "{name}: the process ends later than /livez fails"
            );
            table.leave_out(Duration::from_secs(5));
            assert_eq!(table.find_fault(later, Duration::ZERO), None, "{name}: a suspension is no silence");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_task_fails_livez_first_and_is_reported_then() {
        let (heartbeats, stop) = (Heartbeats::default(), CancellationToken::new());
        let heartbeat = heartbeats.register("gate", Some(LONGEST), &stop);
        sleep(LONGEST / 2).await;
        heartbeat.beat();
        let began = Instant::now();
        let fault = tokio::select! {
            fault = heartbeats.wait_for_fault() => fault,
            () = async { sleep(LONGEST + CHECK_INTERVAL).await; assert!(heartbeats.check().is_err()); std::future::pending().await } => unreachable!(),
        };
        assert!(matches!(&fault, TaskFault::Silent { task, .. } if task == "gate"), "{fault}");
        assert_eq!(began.elapsed(), LONGEST + SILENCE_GRACE + CHECK_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_returns_has_ended_and_one_that_was_stopped_has_not() {
        for (name, panics, stopped) in
            [("it panics", true, false), ("it returns", false, false), ("it was stopped", false, true)]
        {
            let (heartbeats, stop) = (Heartbeats::default(), CancellationToken::new());
            let heartbeat = heartbeats.register("gate", None, &stop);
            if stopped {
                stop.cancel();
            }
            let task = tokio::spawn(async move {
                heartbeat.beat();
                assert!(!panics, "the panic of this test");
            });
            assert_eq!(task.await.is_err(), panics, "{name}");
            assert_eq!(heartbeats.check().is_err(), !stopped, "{name}");
        }
    }
}
