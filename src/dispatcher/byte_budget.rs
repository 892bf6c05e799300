//! The bytes of the stream that a process keeps: one bound for all its shards.
//!
//! A reader reserves bytes *before* it reads a page; each record keeps its part until it is done. The size of a page is
//! known only afterwards, so a page larger than its reservation exceeds the bound once, and the next reservation waits.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::process::locks::lock_unpoisoned;

/// Bounds the bytes of the pages and of the unfinished records of a process.
const BUDGET_BYTES_MAX: usize = 48 << 20;
/// Least reservation for a page: the records of a second at the rate at which a shard can be read.
const PAGE_BYTES_MIN: usize = 1 << 20;
/// Largest page that Kinesis answers (API reference, `GetRecords`).
const PAGE_BYTES_MAX: usize = 10 << 20;

/// The budget of one process; clones share it.
#[derive(Clone, Debug)]
pub struct ByteBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    used: Mutex<usize>,
    limit: usize,
    freed: Notify,
}

/// Bytes of the budget, freed when this is dropped.
#[derive(Debug)]
pub struct BudgetShare {
    bytes: usize,
    budget: ByteBudget,
}

impl Default for ByteBudget {
    fn default() -> Self {
        Self::of_bytes(BUDGET_BYTES_MAX)
    }
}

impl ByteBudget {
    fn of_bytes(limit: usize) -> Self {
        Self(Arc::new(BudgetState { used: Mutex::new(0), limit, freed: Notify::new() }))
    }

    /// Waits until a page can be read. `last_page` is the size of the page before it in the same shard.
    pub async fn reserve_page(&self, last_page: usize) -> BudgetShare {
        let bytes = last_page.clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
        loop {
            let freed = self.0.freed.notified();
            if self.try_take(bytes) {
                // Another reservation may fit too.
                self.0.freed.notify_one();
                return BudgetShare { bytes, budget: self.clone() };
            }
            freed.await;
        }
    }

    fn try_take(&self, bytes: usize) -> bool {
        let mut used = lock_unpoisoned(&self.0.used);
        let fits = *used + bytes <= self.0.limit;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Whether more than half of the budget is used: endpoints that are behind must give up events then.
    #[must_use]
    pub fn is_half_used(&self) -> bool {
        *lock_unpoisoned(&self.0.used) > self.0.limit / 2
    }

    /// The bytes that all endpoints that are behind may keep in one of so many shards.
    #[must_use]
    pub fn share_behind(&self, shards: usize) -> usize {
        self.0.limit / 2 / shards.max(1)
    }
}

impl BudgetShare {
    /// Changes the size to that of the page that was read.
    pub fn resize(&mut self, bytes: usize) {
        let mut used = lock_unpoisoned(&self.budget.0.used);
        *used = *used - self.bytes + bytes;
        drop(used);
        let is_less = bytes < self.bytes;
        self.bytes = bytes;
        if is_less {
            self.budget.0.freed.notify_one();
        }
    }

    /// Takes the part of one record out of the share of its page.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, budget: self.budget.clone() }
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        *lock_unpoisoned(&self.budget.0.used) -= self.bytes;
        self.budget.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_reserved(budget: &ByteBudget, last_page: usize) -> bool {
        timeout(Duration::from_millis(10), budget.reserve_page(last_page)).await.is_ok()
    }

    #[tokio::test]
    async fn a_page_is_read_when_its_bytes_are_free_and_kept_until_its_records_are_done() {
        let budget = ByteBudget::of_bytes(3 * PAGE_BYTES_MIN);
        let mut page = budget.reserve_page(0).await;
        page.resize(2 * PAGE_BYTES_MIN + 1);
        assert!(budget.is_half_used());
        assert!(!is_reserved(&budget, 0).await, "the page was larger than reserved");
        let record = page.split(PAGE_BYTES_MIN);
        drop(page);
        assert!(is_reserved(&budget, 0).await && !is_reserved(&budget, 2 * PAGE_BYTES_MIN + 1).await);
        drop(record);
        assert!(is_reserved(&budget, 3 * PAGE_BYTES_MIN).await && !budget.is_half_used());
        assert_eq!(*lock_unpoisoned(&budget.0.used), 0);
    }

    #[tokio::test]
    async fn every_reservation_that_waits_is_served() {
        let budget = ByteBudget::of_bytes(2 * PAGE_BYTES_MIN);
        let held = budget.reserve_page(2 * PAGE_BYTES_MIN).await;
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move { drop(budget.reserve_page(0).await) })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            timeout(Duration::from_secs(5), task).await.expect("served").expect("no panic");
        }
    }

    #[test]
    fn endpoints_that_are_behind_get_half_of_the_budget_over_all_shards() {
        let budget = ByteBudget::default();
        assert_eq!(budget.share_behind(4) * 4, BUDGET_BYTES_MAX / 2);
        assert_eq!(budget.share_behind(0), BUDGET_BYTES_MAX / 2);
    }
}
