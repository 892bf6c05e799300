//! Waking many tasks at once.
//!
//! In: a future. Out: the same, but what wakes it does so only once the worker has run everything that is ready.
//!
//! A frame for a hundred sessions makes a hundred tasks ready, one after the other. Tokio asks an idle worker for help
//! at each of them, and the system may let that worker run in place of the one that is still waking: it finds a single
//! task, runs it, goes to sleep and is called again for the next. Tasks that wait for the end of the turn are made
//! ready all together, and help is asked for once.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use tokio::task::yield_now;

/// Wakes a task at the end of the worker's turn; at once where no worker is.
struct DeferredWaker(Waker);

impl Wake for DeferredWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Tokio wakes whoever yields at the end of the turn, and has no other way to ask for that. Nobody waits for the
        // yielding itself: a waker that was taken is always used.
        let yielding = pin!(yield_now());
        let _ = yielding.poll(&mut Context::from_waker(&self.0));
    }
}

/// Resolves as the future does, woken together with others.
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

    /// In which order two tasks run of which the first was woken, and the second only became ready then.
    async fn order(first_waits: impl Future<Output = ()> + Send + 'static, notify: &Notify) -> Vec<&'static str> {
        let (sender, mut ran) = mpsc::unbounded_channel();
        let other = sender.clone();
        tokio::spawn(async move {
            first_waits.await;
            let _ = sender.send("woken");
        });
        // It waits now.
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
            // From a worker, too.
            let notify = notify.clone();
            tokio::spawn(async move { notify.notify_waiters() }).await.expect("told");
        }
        assert_eq!(timeout(Duration::from_secs(5), ran.recv()).await.expect("all end"), None);
    }
}
