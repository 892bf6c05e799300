//! The recorder of a run, as an edge has it, fed with the events of the workload.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::error::BenchError;
use super::super::load::RunClock;
use super::workload::{ChannelCounts, NextEvents, Workload, record_origin};
use crate::edge::{EdgeMetrics, QueueLimits, Recorder, RecorderTasks, RegistryWatcher};
use crate::kinesis::KinesisClient;

/// Events that wait in the recorder at most while it is fed as fast as it writes: a little fewer than it drops at, as in an
/// edge whose stream takes less than the clients send.
const QUEUED_EVENTS_MAX: usize = QueueLimits::DEFAULT.events / 5 * 4;

/// Events that are emitted between two looks at the recorder's queue or the clock.
const EMIT_BURST: usize = 50;

/// Bounds the wait until events are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(15);

/// How events are collected into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordBatching {
    /// As an edge does.
    Default,
    /// Every event at once and in a record of its own.
    Single,
}

impl RecordBatching {
    fn limits(self) -> QueueLimits {
        match self {
            Self::Default => QueueLimits::DEFAULT,
            Self::Single => QueueLimits { linger_ms: 0, record_bytes: 1, ..QueueLimits::DEFAULT },
        }
    }
}

/// The pace at which events are emitted.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as the recorder writes.
    AsFastAsWritten,
    /// So many events a second, whatever the recorder does.
    PerSecond(u32),
}

/// A recorder and its workload.
pub struct Feeder {
    recorder: Recorder,
    tasks: RecorderTasks,
    failed: mpsc::Receiver<crate::edge::StopError>,
    workload: Workload,
    clock: RunClock,
}

impl Feeder {
    /// Starts a recorder that writes to the stream of this client.
    pub async fn start(
        client: KinesisClient,
        apps_dir: PathBuf,
        workload: Workload,
        batching: RecordBatching,
        clock: RunClock,
    ) -> Result<Self, BenchError> {
        let start_error = |detail: String| BenchError::Start { server: "recorder", detail };
        let (apps, _) = RegistryWatcher::load(apps_dir).await.map_err(|error| start_error(error.to_string()))?;
        let (failures, failed) = mpsc::channel(1);
        let tasks = RecorderTasks { tracker: TaskTracker::new(), closing: CancellationToken::new(), failures };
        let (origin, metrics) = (record_origin(), Arc::<EdgeMetrics>::default());
        let recorder = Recorder::start(Some(client), apps, &origin, metrics, batching.limits(), &tasks);
        Ok(Self { recorder, tasks, failed, workload, clock })
    }

    /// Events emitted so far.
    pub fn emitted(&self) -> u64 {
        self.workload.emitted()
    }

    /// Events of each channel so far.
    pub fn counts(&self) -> &[ChannelCounts] {
        self.workload.counts()
    }

    /// Emits only joins of distinct users from now on.
    pub fn feed_users_only(&mut self) {
        self.workload.emit_users_only();
    }

    /// Emits so many events more.
    pub async fn feed(&mut self, events: u64, pace: Pace) -> Result<(), BenchError> {
        let (goal, began) = (self.emitted() + events, Instant::now());
        let before = self.emitted();
        while self.emitted() < goal {
            match pace {
                Pace::AsFastAsWritten => {
                    self.wait_for_queue(QUEUED_EVENTS_MAX).await?;
                    // Lanes and the receiver share the cores with this task.
                    tokio::task::yield_now().await;
                    for _ in 0..EMIT_BURST {
                        self.record_next().await?;
                    }
                }
                Pace::PerSecond(rate) => {
                    let seconds = super::super::machine::as_f64(self.emitted() - before) / f64::from(rate.max(1));
                    sleep_until((began + Duration::from_secs_f64(seconds)).into()).await;
                    self.record_next().await?;
                }
            }
        }
        self.check_failure()
    }

    /// Waits until every event is written, and returns the number of those that were dropped.
    pub async fn flush(&mut self) -> Result<u64, BenchError> {
        self.wait_for_queue(0).await?;
        Ok(self.recorder.flow_report().dropped.values().sum())
    }

    /// Waits until so many events wait in the recorder at most.
    async fn wait_for_queue(&mut self, events_max: usize) -> Result<(), BenchError> {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        while self.recorder.queued_count() > events_max {
            self.check_failure()?;
            if Instant::now() > deadline {
                let detail = format!("{} events still wait after {FLUSH_TIMEOUT:?}", self.recorder.queued_count());
                return Err(BenchError::Server { server: "recorder", step: "writing", detail });
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn record_next(&mut self) -> Result<(), BenchError> {
        match self.workload.emit_next(self.clock).await? {
            (subject, NextEvents::Client(kind)) => self.recorder.record_event(subject, kind),
            (subject, NextEvents::State(transitions)) => self.recorder.record_transitions(subject, transitions),
        }
        Ok(())
    }

    fn check_failure(&mut self) -> Result<(), BenchError> {
        let failure = self.failed.try_recv().ok();
        failure.map_or(Ok(()), |error| {
            Err(BenchError::Server { server: "recorder", step: "writing", detail: error.to_string() })
        })
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.tasks.closing.cancel();
    }
}
