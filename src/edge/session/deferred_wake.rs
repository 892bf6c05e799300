//! Wakes many tasks together.
//!
//! In: a future. Out: the same future, whose wake-ups are deferred until the worker has run everything that is ready.
//!
//! A frame for a hundred sessions makes a hundred tasks ready, one after another. Tokio wakes an idle worker at each of
//! them, and the system may run that worker in place of the waking one: it finds a single task, runs it, sleeps, and is
//! woken again for the next. Tasks deferred to the end of the turn become ready together, and one wake-up suffices.
//! ready all together, and help is asked for once.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use tokio::task::yield_now;

/// Wakes a task at the end of the worker's turn, or at once outside a worker.
struct DeferredWaker(Waker);

impl Wake for DeferredWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Tokio wakes yielding tasks at the end of the turn; there is no other way to ask for it. The yield is never
        // awaited: a stored waker is always used.
        let yielding = pin!(yield_now());
        let _ = yielding.poll(&mut Context::from_waker(&self.0));
    }
}

/// Resolves as the future does, with deferred wake-ups.
pub async fn defer_wakes<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut known: Option<(Waker, Waker)> = None;
    poll_fn(|context| {
        let task = context.waker();
        let same = known.take().filter(|(of, _)| of.will_wake(task));
        let (_, later) =
            known.insert(same.unwrap_or_else(|| (task.clone(), Arc::new(DeferredWaker(task.clone())).into())));
        future.as_mut().poll(&mut Context::from_waker(later))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::{Notify, mpsc};
    use tokio::time::timeout;

    /// Returns the order of two tasks, of which the first was woken and the second became ready later.
    async fn order(first_waits: impl Future<Output = ()> + Send + 'static, notify: &Notify) -> Vec<&'static str> {
        let (sender, mut ran) = mpsc::unbounded_channel();
        let other = sender.clone();
        tokio::spawn(async move {
            first_waits.await;
            let _ = sender.send("woken");
        });
        // The task is pending from here on.
        yield_now().await;
        notify.notify_waiters();
        tokio::spawn(async move {
            let _ = other.send("ready");
        });
        let mut order = Vec::new();
        while let Some(who) = timeout(Duration::from_secs(5), ran.recv()).await.expect("in time") {
            order.push(who);
        }
        order
    }

    #[tokio::test]
    async fn what_is_ready_runs_before_those_that_are_woken_together() {
        let notify = Arc::new(Notify::new());
        let waits = |notify: Arc<Notify>| async move { notify.notified().await };
        assert_eq!(order(waits(notify.clone()), &notify).await, ["woken", "ready"], "as tokio has it");
        assert_eq!(order(defer_wakes(waits(notify.clone())), &notify).await, ["ready", "woken"]);
    }

    #[tokio::test]
    async fn a_thread_without_a_worker_wakes_at_once() {
        let notify = Arc::new(Notify::new());
        let waits = defer_wakes(notify.notified());
        let other = notify.clone();
        let thread = std::thread::spawn(move || other.notify_one());
        timeout(Duration::from_secs(5), waits).await.expect("woken");
        thread.join().expect("the thread");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn nobody_is_forgotten() {
        let notify = Arc::new(Notify::new());
        let (sender, mut ran) = mpsc::unbounded_channel();
        for number in 0..100 {
            let (notify, sender) = (notify.clone(), sender.clone());
            tokio::spawn(async move {
                for turn in 0..50 {
                    let notified = notify.notified();
                    let _ = sender.send((number, turn));
                    defer_wakes(notified).await;
                }
            });
        }
        drop(sender);
        for _ in 0..50 {
            for _ in 0..100 {
                timeout(Duration::from_secs(5), ran.recv()).await.expect("nobody sleeps on").expect("a turn");
            }
            // The same from within a worker.
            let notify = notify.clone();
            tokio::spawn(async move { notify.notify_waiters() }).await.expect("told");
        }
        assert_eq!(timeout(Duration::from_secs(5), ran.recv()).await.expect("all end"), None);
    }
}
