//! One pace for the journeys of all clusters: a limit of starts per second, and intervals that stretch when the clusters
//! ask for more.
//!
//! A cluster asks for its routes in each interval of its manifest. While the sum exceeds the limit, every interval is
//! stretched by the same factor, so that each cluster gets its part. Rounds beyond that, of clusters that are being proven
//! or have failed, wait for their turn: turns are taken in order, and a cluster has few journeys of each route waiting.
//!
//! Journeys through gates that are not open also share places. Many clusters that are created at once would otherwise
//! load their nodes with proofs until journeys fail for that alone, and no gate would ever open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::gate::RoundPace;
use crate::process::locks::lock_unpoisoned;

/// Journeys per second of an operator without `--journeys-per-second`.
pub const JOURNEYS_PER_SECOND: u32 = 50;

/// Time whose journeys may start at once after a pause: a round of a small cluster begins without a delay.
const BURST_MAX: Duration = Duration::from_secs(1);

/// Journeys of one cluster whose hops are under way at once.
pub(super) const CONCURRENT_JOURNEYS_MAX: usize = 32;

/// Journeys under way at once through the gates of all clusters that are not open, and as many again through those that
/// failed for long.
const PROOF_PLACES: usize = CONCURRENT_JOURNEYS_MAX;

/// The limit of all clusters of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JourneyBudget {
    state: Arc<Mutex<BudgetState>>,
    /// Places of journeys through gates that may open soon.
    proving: Arc<Semaphore>,
    /// Places of journeys through gates that failed for long: most of them end by a timeout, and proofs do not wait for them.
    failing: Arc<Semaphore>,
}

#[derive(Debug)]
struct BudgetState {
    per_second: u32,
    /// Journeys per second that each cluster asks for.
    demands: HashMap<u64, f64>,
    last_id: u64,
    /// The earliest start of the next journey.
    next_turn: Instant,
}

impl BudgetState {
    /// The factor by which every interval is longer than in its manifest.
    fn stretch(&self) -> f64 {
        let demanded: f64 = self.demands.values().sum();
        (demanded / f64::from(self.per_second)).max(1.0)
    }

    fn reserve_turn(&mut self, now: Instant) -> Instant {
        let turn = self.next_turn.max(now.checked_sub(BURST_MAX).unwrap_or(now));
        self.next_turn = turn + Duration::from_secs(1) / self.per_second;
        turn
    }
}

impl JourneyBudget {
    /// A limit of so many journeys per second, at least one.
    #[must_use]
    pub fn per_second(journeys: u32) -> Self {
        let (demands, next_turn) = (HashMap::new(), Instant::now());
        let state = BudgetState { per_second: journeys.max(1), demands, last_id: 0, next_turn };
        let places = || Arc::new(Semaphore::new(PROOF_PLACES));
        Self { state: Arc::new(Mutex::new(state)), proving: places(), failing: places() }
    }

    /// The share of one more cluster, which asks for nothing yet.
    #[must_use]
    pub fn share(&self) -> BudgetShare {
        let mut state = self.lock();
        state.last_id += 1;
        BudgetShare { id: state.last_id, budget: self.clone() }
    }

    /// Waits for the turn of one journey.
    pub(super) async fn wait_turn(&self) {
        let turn = self.lock().reserve_turn(Instant::now());
        sleep_until(turn).await;
    }

    /// Waits for a place of one journey, which is free again when dropped. Journeys through open gates need none: an outage
    /// of many clusters must be noticed at once.
    pub(super) async fn wait_place(&self, pace: RoundPace) -> Option<OwnedSemaphorePermit> {
        let places = match pace {
            RoundPace::Open => return None,
            RoundPace::Proving => &self.proving,
            RoundPace::Failing => &self.failing,
        };
        // The semaphores are never closed.
        places.clone().acquire_owned().await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        lock_unpoisoned(&self.state)
    }
}

impl Default for JourneyBudget {
    fn default() -> Self {
        Self::per_second(JOURNEYS_PER_SECOND)
    }
}

/// One cluster's share of a budget, released when dropped.
#[derive(Debug)]
pub struct BudgetShare {
    id: u64,
    budget: JourneyBudget,
}

impl BudgetShare {
    /// Asks for a number of journeys in each interval, and returns the interval that is in force.
    pub(super) fn adjust_interval(&self, journeys: usize, interval: Duration) -> Duration {
        let mut state = self.budget.lock();
        let journeys = f64::from(u32::try_from(journeys).unwrap_or(u32::MAX));
        state.demands.insert(self.id, journeys / interval.as_secs_f64().max(f64::EPSILON));
        interval.mul_f64(state.stretch())
    }

    /// The factor by which every interval is longer than in its manifest.
    pub(super) fn stretch(&self) -> f64 {
        self.budget.lock().stretch()
    }

    /// The budget of which this is a share.
    pub(super) fn budget(&self) -> JourneyBudget {
        self.budget.clone()
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.lock().demands.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_spaced_after_a_burst_of_a_second() {
        let budget = JourneyBudget::per_second(10);
        tokio::time::advance(Duration::from_mins(1)).await;
        let began = Instant::now();
        let mut starts = Vec::new();
        for _ in 0..31 {
            budget.wait_turn().await;
            starts.push(began.elapsed().as_millis());
        }
        assert_eq!(starts[10], 0, "a second's journeys at once");
        assert!((1..=110).contains(&starts[11]), "{starts:?}");
        assert!((2_000..=2_030).contains(&starts[30]), "the others at the limit: {starts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn proofs_share_places_and_wait_neither_for_failing_clusters_nor_delay_open_ones() {
        let budget = JourneyBudget::default();
        let wait = |pace| {
            let budget = budget.clone();
            async move { tokio::time::timeout(Duration::from_secs(1), budget.wait_place(pace)).await }
        };
        let mut failing = vec![];
        for _ in 0..PROOF_PLACES {
            failing.push(wait(RoundPace::Failing).await.unwrap().unwrap());
        }
        assert!(wait(RoundPace::Failing).await.is_err(), "every place is taken");
        let mut proving = vec![];
        for _ in 0..PROOF_PLACES {
            proving.push(wait(RoundPace::Proving).await.unwrap().unwrap());
        }
        let waiting = tokio::spawn(wait(RoundPace::Proving));
        tokio::task::yield_now().await;
        assert!(wait(RoundPace::Open).await.unwrap().is_none(), "an open gate needs no place");
        assert!(!waiting.is_finished());
        drop(proving.pop());
        assert!(waiting.await.unwrap().unwrap().is_some(), "the next one begins when one ends");
    }

    #[tokio::test]
    async fn beyond_the_limit_every_interval_stretches_alike_until_a_cluster_is_gone() {
        let budget = JourneyBudget::per_second(10);
        let interval = Duration::from_secs(10);
        let small = budget.share();
        assert_eq!(small.adjust_interval(50, interval), interval, "5 a second");
        let large = budget.share();
        assert_eq!(large.adjust_interval(50, interval), interval, "10 a second");
        assert_eq!(large.adjust_interval(150, interval), 2 * interval, "20 a second");
        assert_eq!(small.adjust_interval(50, interval), 2 * interval, "the other one too");
        drop(large);
        assert_eq!(small.adjust_interval(50, interval), interval);
    }
}
