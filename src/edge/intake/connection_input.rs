//! The unfinished message of one upgraded connection, counted below the protocol: a codec that joins fragments does not
//! say how many bytes it holds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::edge::intake::byte_budget::{InputBudgetExceeded, InputCharge, UNCOUNTED_INPUT_BYTES};

/// Bytes of a control frame beside its payload: header and mask (RFC 6455, 5.2).
const CONTROL_FRAME_OVERHEAD_BYTES: usize = 6;

/// The bytes that were read from a connection since its last complete message. Requests before the upgrade are not
/// counted here.
pub struct ConnectionInput {
    counts: AtomicBool,
    bytes: AtomicUsize,
    charge: InputCharge,
}

impl ConnectionInput {
    /// A connection that was not upgraded.
    pub fn new(charge: InputCharge) -> Self {
        Self { counts: AtomicBool::new(false), bytes: AtomicUsize::new(0), charge }
    }

    /// Counts from now on: the connection is upgraded.
    pub fn begin_messages(&self) {
        self.counts.store(true, Ordering::Release);
    }

    /// Adds bytes that were read.
    ///
    /// # Errors
    /// The budget is used up: the connection must end.
    pub fn add_read(&self, bytes: usize) -> Result<(), InputBudgetExceeded> {
        if !self.counts.load(Ordering::Acquire) {
            return Ok(());
        }
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let counted = |bytes: usize| bytes.saturating_sub(UNCOUNTED_INPUT_BYTES);
        match counted(before + bytes) - counted(before) {
            0 => Ok(()),
            more => self.charge.add(more).inspect_err(|_| self.charge.release()),
        }
    }

    /// A message is complete.
    pub fn complete_message(&self) {
        if self.bytes.swap(0, Ordering::AcqRel) > UNCOUNTED_INPUT_BYTES {
            self.charge.release();
        }
    }

    /// A control frame with so many bytes of payload arrived. Returns whether it is a sign of life: between the fragments
    /// of a message it is none, or a client could keep an unfinished message for ever.
    pub fn is_alive_by_control_frame(&self, payload: usize) -> bool {
        let frame = payload + CONTROL_FRAME_OVERHEAD_BYTES;
        let before =
            self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| Some(bytes.saturating_sub(frame)));
        before.unwrap_or_default() <= frame
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::edge::intake::byte_budget::InputBudget;

    #[test]
    fn bytes_count_until_their_message_is_complete() {
        let metrics = Arc::<crate::edge::metrics::EdgeMetrics>::default();
        let input = ConnectionInput::new(InputBudget::new(metrics.clone()).open_charge());
        let used = || metrics.unfinished_input_bytes.get();
        assert_eq!(input.add_read(100 << 10), Ok(()), "a request");
        assert_eq!(used(), 0);
        input.begin_messages();
        assert_eq!(input.add_read(4 << 10), Ok(()));
        assert_eq!(used(), 0, "a small message");
        assert_eq!(input.add_read(6 << 10), Ok(()));
        assert_eq!(used(), 6 << 10);
        input.complete_message();
        assert_eq!(used(), 0);
        assert_eq!(input.add_read(64 << 20), Err(InputBudgetExceeded));
        assert_eq!(used(), 0, "a connection that ends gives its bytes back");
    }

    #[test]
    fn a_ping_is_life_only_between_messages() {
        let input = ConnectionInput::new(InputBudget::new(Arc::default()).open_charge());
        input.begin_messages();
        let ping = || {
            input.add_read(6).expect("room");
            input.is_alive_by_control_frame(0)
        };
        assert!(ping());
        input.add_read(10).expect("room");
        assert!(!ping() && !ping(), "a fragment is unfinished");
        input.complete_message();
        assert!(ping());
    }
}
