//! The byte budget of a process for input that is not complete: request bodies and WebSocket messages.
//!
//! Clients without a verified signature share a part of the budget, so that they cannot take it from the backends of
//! apps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::edge::metrics::EdgeMetrics;

/// Bounds the bytes of unfinished input of one process. Thirty bodies of the largest size of the HTTP API fit.
pub const INPUT_BYTES_MAX: i64 = 32 << 20;

/// Bounds the part of [`INPUT_BYTES_MAX`] for input that no verified signature covers.
pub const UNSIGNED_INPUT_BYTES_MAX: i64 = 8 << 20;

/// Bytes of each unfinished request or message that are not counted: small ones are never refused.
pub const UNCOUNTED_INPUT_BYTES: usize = 4 << 10;

/// The byte budget of one process.
pub struct InputBudget {
    used: AtomicI64,
    metrics: Arc<EdgeMetrics>,
}

/// The bytes of one unfinished request or message; given back when dropped.
pub struct InputCharge {
    budget: Arc<InputBudget>,
    bytes: AtomicI64,
    is_signed: AtomicBool,
    is_refused: AtomicBool,
}

impl InputBudget {
    /// A budget of which nothing is used.
    pub fn new(metrics: Arc<EdgeMetrics>) -> Arc<Self> {
        Arc::new(Self { used: AtomicI64::new(0), metrics })
    }

    /// Opens a charge without bytes.
    pub fn open_charge(self: &Arc<Self>) -> InputCharge {
        let (bytes, unset) = (AtomicI64::new(0), || AtomicBool::new(false));
        InputCharge { budget: self.clone(), bytes, is_signed: unset(), is_refused: unset() }
    }

    fn add(&self, bytes: i64) -> i64 {
        self.metrics.unfinished_input_bytes.inc_by(bytes);
        self.used.fetch_add(bytes, Ordering::AcqRel) + bytes
    }
}

impl InputCharge {
    /// Charges bytes that were read. Once refused, a charge stays refused until it is released.
    ///
    /// # Errors
    /// The budget is used up; the bytes are not charged.
    pub fn add(&self, bytes: usize) -> Result<(), InputBudgetExceeded> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        let most = if self.is_signed.load(Ordering::Relaxed) { INPUT_BYTES_MAX } else { UNSIGNED_INPUT_BYTES_MAX };
        if self.is_refused() || self.budget.add(bytes) > most {
            if !self.is_refused.swap(true, Ordering::AcqRel) {
                self.budget.add(-bytes);
            }
            return Err(InputBudgetExceeded);
        }
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Lets the charge use the whole budget, because a verified signature covers the input.
    pub fn mark_signed(&self) {
        self.is_signed.store(true, Ordering::Relaxed);
    }

    /// Whether bytes of this input did not fit.
    pub fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Acquire)
    }

    /// Gives the bytes back: the input was used up, or thrown away.
    pub fn release(&self) {
        let bytes = self.bytes.swap(0, Ordering::AcqRel);
        if bytes != 0 {
            self.budget.add(-bytes);
        }
    }
}

impl Drop for InputCharge {
    fn drop(&mut self) {
        self.release();
    }
}

/// The byte budget for unfinished input is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server holds as much unfinished input as it may, try again later")]
pub struct InputBudgetExceeded;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsigned_input_has_a_part_of_the_budget_and_signed_input_the_whole() {
        let budget = InputBudget::new(Arc::default());
        let part = usize::try_from(UNSIGNED_INPUT_BYTES_MAX).expect("a size");
        let (stranger, second, backend) = (budget.open_charge(), budget.open_charge(), budget.open_charge());
        assert_eq!(stranger.add(part), Ok(()));
        assert_eq!(second.add(1), Err(InputBudgetExceeded));
        assert!(second.is_refused() && !stranger.is_refused());
        backend.mark_signed();
        assert_eq!(backend.add(part), Ok(()));
        assert_eq!(backend.add(4 * part), Err(InputBudgetExceeded), "beyond the whole");
        assert_eq!(budget.metrics.unfinished_input_bytes.get(), 2 * UNSIGNED_INPUT_BYTES_MAX);
        drop((stranger, backend));
        assert_eq!(second.add(1), Err(InputBudgetExceeded), "refused once, it stays refused");
        assert_eq!(budget.open_charge().add(1), Ok(()));
        assert_eq!(budget.metrics.unfinished_input_bytes.get(), 0, "every byte was given back");
    }
}
