//! The shutdown of an edge, in the order that loses nothing.
//!
//! In: the token of the process, or a failure of a listener. Out: drained sessions, a flushed recorder, and a process
//! that has left the cluster.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::error::StopError;
use crate::edge::http::session_routes::RelayGuard;
use crate::edge::hub::core::Hub;
use crate::edge::hub::user_presence;
use crate::edge::server::drain::EdgeDrain;
use crate::edge::session::opener::SessionOpener;
use crate::edge::transport::xhr::session::XhrSessions;

/// Bounds the wait for HTTP sessions to fetch their close frame.
const SESSION_TASKS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long open requests may take once the listener is closed.
const OPEN_REQUESTS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long what waits may take into the stream.
const RECORDER_FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// The parts of an edge that its shutdown ends, in order.
pub(crate) struct EdgeLifecycle {
    pub(crate) shared: Arc<Hub>,
    pub(crate) opener: Arc<SessionOpener>,
    pub(crate) fallback: Arc<XhrSessions>,
    pub(crate) drain: Arc<EdgeDrain>,
    pub(crate) guard: RelayGuard,
    pub(crate) listening: CancellationToken,
    pub(crate) flushed: CancellationToken,
    pub(crate) writers: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl EdgeLifecycle {
    /// Waits for the shutdown or a failure, and then shuts the edge down.
    ///
    /// # Errors
    /// The failure that ended the edge.
    pub(crate) async fn run_until_shutdown(
        self,
        shutdown: CancellationToken,
        mut failed: mpsc::Receiver<StopError>,
    ) -> Result<(), StopError> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(error) = failed.recv() => {
                tracing::error!(%error, "the edge ends");
                Err(error)
            }
        };
        self.shut_down().await;
        ended
    }

    /// Clients first: once they have left, nothing new is recorded. Then what waits for the stream, while requests are
    /// still answered, because a fallback client between two requests hears of the end with its next one.
    async fn shut_down(self) {
        self.drain.run_to_completion().await;
        if let RelayGuard::Outbound(front) = &self.guard {
            front.relay.end_receives(self.drain.window_end()).await;
        }
        self.opener.session_tasks.close();
        tokio::join!(self.answer_last_requests(), self.flush_recorder(), self.wait_offline_grace());
        self.shared.bus.leave_cluster().await;
        self.tasks.close();
        self.stop.cancel();
        if timeout(OPEN_REQUESTS_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests were still open and are cut");
        }
        tracing::info!("the edge has ended");
    }

    async fn answer_last_requests(&self) {
        if timeout(SESSION_TASKS_TIMEOUT, self.opener.session_tasks.wait()).await.is_err() {
            tracing::info!(sessions = self.fallback.open_count(), "some clients did not hear the goodbye out");
        }
        self.listening.cancel();
    }

    /// Waits until users that did not reconnect elsewhere are reported as offline.
    async fn wait_offline_grace(&self) {
        self.shared.offline_grace_tasks.close();
        if timeout(user_presence::OFFLINE_GRACE + OPEN_REQUESTS_TIMEOUT, self.shared.offline_grace_tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                users = self.shared.offline_grace_tasks.len(),
                "some users stay online until the bus forgets this process"
            );
        }
    }

    async fn flush_recorder(&self) {
        self.writers.close();
        self.flushed.cancel();
        let flushed = timeout(RECORDER_FLUSH_TIMEOUT, self.writers.wait()).await.is_ok();
        // A lane that panicked has ended and leaves its events behind.
        if !flushed || self.shared.recorder.queued_count() > 0 {
            let (kept, lost) = self.shared.recorder.drop_queued();
            tracing::error!(lost, left_to_other_edges = kept, "queued events are dropped at shutdown");
        }
    }
}
