//! Queues the ends of receipts for the task that confirms them with the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::super::ChannelKey;
use super::super::receipt::Outbox;
use crate::protocol::record::EventOrder;

/// The end of one receipt.
pub(super) struct ReceiptEnd {
    /// Channel of the transition.
    pub subject: ChannelKey,
    /// Order of the transition in its channel.
    pub order: EventOrder,
    /// Whether the receipt was acknowledged, and not dropped.
    pub is_acknowledged: bool,
}

/// The receipts' side of this process's outbox. The queue needs no bound: it holds at most one entry per transition in the
/// outbox, which is bounded by the recorder's queue.
pub(super) struct RedisOutbox {
    ends: mpsc::UnboundedSender<ReceiptEnd>,
    /// Number of acknowledgements that the store has not confirmed.
    unconfirmed: Arc<AtomicUsize>,
}

impl RedisOutbox {
    pub fn new(unconfirmed: Arc<AtomicUsize>) -> (Self, mpsc::UnboundedReceiver<ReceiptEnd>) {
        let (ends, receiver) = mpsc::unbounded_channel();
        (Self { ends, unconfirmed }, receiver)
    }

    fn send_end(&self, subject: &ChannelKey, order: EventOrder, is_acknowledged: bool) {
        if is_acknowledged {
            self.unconfirmed.fetch_add(1, Ordering::AcqRel);
        }
        // Fails once the bus has shut down; the outbox in the store then belongs to the sweeper.
        let _ = self.ends.send(ReceiptEnd { subject: subject.clone(), order, is_acknowledged });
    }
}

impl Outbox for RedisOutbox {
    fn acknowledge(&self, subject: &ChannelKey, order: EventOrder) {
        self.send_end(subject, order, true);
    }

    fn take_back(&self, subject: &ChannelKey, order: EventOrder) {
        self.send_end(subject, order, false);
    }
}
