//! Runs one controller: bounds each reconcile, survives its panic, backs off after a failure, and reports progress.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kube::Resource;
use kube::runtime::controller::{Action, Controller, Error};
use kube::runtime::events::EventType;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::Instrument;

use super::context::{ControllerContext, RECONCILE_TIMEOUT, SharedContext, object_key};
use super::controller_progress::{CONTROLLER_SILENCE_MAX, ControllerProgress, PROGRESS_CHECK_INTERVAL};
use super::metrics::{ControllerName, ReconcileResult};
use super::reconcile_error::ReconcileError;
use crate::api::{RealtimeCluster, Reason};
use crate::process::metrics::LabelValue;

/// Delay before a reconcile is repeated whose object changed since it was read.
pub const CONFLICT_RETRY_DELAY: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FailedReconcile(ReconcileError);

/// Runs one controller until its trigger ends. `reconcile` returns the time until the next reconcile without a change;
/// `None` waits for one.
pub async fn drive_controller<F, R>(
    name: ControllerName,
    controller: Controller<RealtimeCluster>,
    context: SharedContext,
    reconcile: F,
) where
    F: Fn(SharedContext, Arc<RealtimeCluster>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Option<Duration>, ReconcileError>> + Send + 'static,
{
    let task = format!("{} controller", name.name());
    let heartbeat = context.heartbeats.register(task, Some(CONTROLLER_SILENCE_MAX), &context.stop);
    let progress = Arc::new(ControllerProgress::new(heartbeat));
    let reconcile = Arc::new(reconcile);
    let (running, policy_progress) = (progress.clone(), progress.clone());
    let bounded_reconcile = move |cluster: Arc<RealtimeCluster>, context: SharedContext| {
        let (reconcile, progress) = (reconcile.clone(), running.clone());
        async move {
            let key = object_key(&*cluster);
            progress.begin(&key);
            let span = tracing::info_span!("reconcile", controller = name.name(), cluster = key);
            let work = async { reconcile(context.clone(), cluster.clone()).await };
            let result = run_bounded(name, &context, &*cluster, work).instrument(span).await;
            match result {
                Ok(next) => {
                    context.reset_failures(name.name(), &*cluster);
                    progress.finish(&key, next);
                    Ok(next.map_or_else(Action::await_change, Action::requeue))
                }
                Err(error) if error.is_conflict => {
                    progress.finish(&key, Some(CONFLICT_RETRY_DELAY));
                    Ok(Action::requeue(CONFLICT_RETRY_DELAY))
                }
                Err(error) => {
                    tracing::info!(controller = name.name(), cluster = key, %error, "reconcile failed");
                    Err(FailedReconcile(error))
                }
            }
        }
    };
    let policy = move |cluster: Arc<RealtimeCluster>, failed: &FailedReconcile, context: SharedContext| {
        let backoff = context.count_failure(name.name(), &*cluster, &failed.0);
        policy_progress.finish(&object_key(&*cluster), Some(backoff));
        Action::requeue(backoff)
    };
    let mut results = pin!(controller.run(bounded_reconcile, policy, context));
    let mut check = interval(PROGRESS_CHECK_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = check.tick() => progress.check(),
            result = results.next() => match result {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(Error::ObjectNotFound(cluster))) => {
                    progress.forget(&format!("{}/{}", cluster.namespace.unwrap_or_default(), cluster.name));
                }
                Some(Err(error)) => tracing::debug!(controller = name.name(), %error, "controller reported an error"),
            },
        }
    }
}

/// Runs one reconcile to its end, its timeout or its panic, and counts it.
///
/// # Errors
/// The reconcile returns an error, exceeds its time limit or panics.
pub async fn run_bounded<K: Resource<DynamicType = ()>>(
    name: ControllerName,
    context: &ControllerContext,
    object: &K,
    work: impl Future<Output = Result<Option<Duration>, ReconcileError>>,
) -> Result<Option<Duration>, ReconcileError> {
    let series = &context.metrics.series;
    let (began, running) = (Instant::now(), series.running_reconciles.with_label(name));
    running.inc();
    let end = await_end(work).await;
    running.dec();
    series.reconcile_duration_seconds.with_label(name).observe(began.elapsed());
    let (result, class) = match end {
        ReconcileEnd::Returned(Ok(next)) => (Ok(next), ReconcileResult::Success),
        ReconcileEnd::Returned(Err(error)) => {
            let class = error.metric_result();
            (Err(error), class)
        }
        ReconcileEnd::TimedOut => {
            let message = format!("the reconcile did not end within {} s; it is retried", RECONCILE_TIMEOUT.as_secs());
            (Err(ReconcileError::transient(Reason::ApplyFailed, message)), ReconcileResult::TimedOut)
        }
        ReconcileEnd::Panicked(text) => {
            (Err(report_panic(name, context, object, &text).await), ReconcileResult::Panicked)
        }
    };
    series.reconciles.with_label((name, class)).inc();
    result
}

/// The end of a reconcile.
#[derive(Debug, PartialEq, Eq)]
enum ReconcileEnd<T> {
    Returned(T),
    TimedOut,
    /// Message of the panic.
    Panicked(String),
}

/// Waits for the end of a reconcile, at most [`RECONCILE_TIMEOUT`]. A panic that left this function would end the
/// controller, and with it the reconciles of all other objects.
async fn await_end<T>(work: impl Future<Output = T>) -> ReconcileEnd<T> {
    match AssertUnwindSafe(timeout(RECONCILE_TIMEOUT, work)).catch_unwind().await {
        Ok(Ok(result)) => ReconcileEnd::Returned(result),
        Ok(Err(_)) => ReconcileEnd::TimedOut,
        Err(panic) => ReconcileEnd::Panicked(describe_panic(&*panic)),
    }
}

/// Reports a panic on the object whose reconcile caused it: other objects go on.
async fn report_panic<K: Resource<DynamicType = ()>>(
    name: ControllerName,
    context: &ControllerContext,
    object: &K,
    text: &str,
) -> ReconcileError {
    let message = format!("the {} controller failed at this object: {text}; it is retried", name.name());
    tracing::error!(controller = name.name(), object = object_key(object), panic = text, "reconcile panicked");
    let reason = Reason::OperatorFault;
    context.publish_event(object, EventType::Warning, reason.name(), "Reconcile", message.clone()).await;
    ReconcileError::transient(reason, message)
}

fn describe_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_panics_or_hangs_ends_itself_alone() {
        let index = std::hint::black_box(3);
        let panics = async { [1, 2].get(index).copied().expect("an item of the list") };
        let returns = async { 1 };
        let (first, second, third) =
            tokio::join!(await_end(panics), await_end(returns), await_end(std::future::pending::<i32>()));
        assert_eq!(first, ReconcileEnd::Panicked("an item of the list".to_owned()));
        assert_eq!((second, third), (ReconcileEnd::Returned(1), ReconcileEnd::TimedOut));
    }
}
