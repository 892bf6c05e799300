//! Transitions on their path to the stream, each with the receipt by which the bus forgets it.
//!
//! A bus keeps a transition in its outbox until the receipt is acknowledged: the event is in the stream, or was dropped
//! for a reason that somebody counted. A receipt that is dropped without an acknowledgement returns its transition to the
//! bus, which emits it again; no transition is lost because a task ended halfway.

use std::fmt;
use std::sync::Arc;

use super::{ChannelKey, Transition};
use crate::protocol::record::EventOrder;

/// The part of a bus that keeps transitions until their receipts are acknowledged.
pub(super) trait Outbox: Send + Sync {
    /// Forgets a transition, which is recorded or dropped.
    fn acknowledge(&self, subject: &ChannelKey, order: EventOrder);

    /// Emits a transition again: its receipt was dropped.
    fn take_back(&self, subject: &ChannelKey, order: EventOrder);
}

/// The duty to acknowledge one transition.
#[must_use = "a receipt is acknowledged or passed on; a dropped one makes the bus emit its transition again"]
pub struct Receipt(Option<OutboxEntry>);

struct OutboxEntry {
    outbox: Arc<dyn Outbox>,
    subject: Arc<ChannelKey>,
    order: EventOrder,
}

impl Receipt {
    /// Whether a bus keeps the transition until the acknowledgement.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Acknowledges the transition: it is in the stream, or dropped and counted.
    pub fn acknowledge(mut self) {
        if let Some(OutboxEntry { outbox, subject, order }) = self.0.take() {
            outbox.acknowledge(&subject, order);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(OutboxEntry { outbox, subject, order }) = self.0.take() {
            outbox.take_back(&subject, order);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Receipt").field(&self.0.as_ref().map(|entry| entry.order)).finish()
    }
}

/// A transition with its receipt.
#[derive(Debug)]
pub struct DecidedTransition {
    /// The change of the channel's membership.
    pub transition: Transition,
    /// Acknowledges the transition to the bus.
    pub receipt: Receipt,
}

/// Transitions of one channel, in the order of its history.
#[must_use = "transitions are recorded or acknowledged; dropped ones are emitted again"]
#[derive(Debug, Default)]
pub struct DecidedTransitions(Vec<DecidedTransition>);

impl DecidedTransitions {
    /// Transitions that no outbox keeps.
    pub(super) fn without_outbox(transitions: Vec<Transition>) -> Self {
        let item = |transition| DecidedTransition { transition, receipt: Receipt(None) };
        Self(transitions.into_iter().map(item).collect())
    }

    /// Transitions that this outbox keeps.
    pub(super) fn kept_by(outbox: &Arc<dyn Outbox>, subject: &ChannelKey, transitions: Vec<Transition>) -> Self {
        if transitions.is_empty() {
            return Self::default();
        }
        let subject = Arc::new(subject.clone());
        let item = |transition: Transition| {
            let entry = OutboxEntry { outbox: outbox.clone(), subject: subject.clone(), order: transition.order };
            DecidedTransition { transition, receipt: Receipt(Some(entry)) }
        };
        Self(transitions.into_iter().map(item).collect())
    }

    /// The transitions, in order.
    #[must_use]
    pub fn iter(&self) -> <&Self as IntoIterator>::IntoIter {
        self.into_iter()
    }

    /// Whether there is no transition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of transitions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Acknowledges all of them, and returns them.
    #[expect(clippy::must_use_candidate, reason = "a caller may want the acknowledgement alone")]
    pub fn acknowledge_all(self) -> Vec<Transition> {
        let acknowledge = |decided: DecidedTransition| {
            decided.receipt.acknowledge();
            decided.transition
        };
        self.0.into_iter().map(acknowledge).collect()
    }
}

impl<'a> IntoIterator for &'a DecidedTransitions {
    type Item = &'a Transition;
    type IntoIter =
        std::iter::Map<std::slice::Iter<'a, DecidedTransition>, fn(&'a DecidedTransition) -> &'a Transition>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|decided| &decided.transition)
    }
}

impl IntoIterator for DecidedTransitions {
    type Item = DecidedTransition;
    type IntoIter = std::vec::IntoIter<DecidedTransition>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::process::locks::lock_unpoisoned;
    use crate::protocol::ChannelName;
    use crate::protocol::record::EventKind;

    /// Notes each call: the seq, and whether it was an acknowledgement.
    #[derive(Default)]
    struct NotingOutbox(Mutex<Vec<(u64, bool)>>);

    impl Outbox for NotingOutbox {
        fn acknowledge(&self, _: &ChannelKey, order: EventOrder) {
            lock_unpoisoned(&self.0).push((order.seq, true));
        }

        fn take_back(&self, _: &ChannelKey, order: EventOrder) {
            lock_unpoisoned(&self.0).push((order.seq, false));
        }
    }

    #[test]
    fn a_receipt_reaches_the_outbox_exactly_once_acknowledged_or_not() {
        let noting = Arc::new(NotingOutbox::default());
        let outbox: Arc<dyn Outbox> = noting.clone();
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("a").expect("a name") };
        let transitions: Vec<Transition> = (1..=4)
            .map(|seq| {
                let order = EventOrder { epoch: 9, seq };
                Transition { id: seq.to_string(), kind: EventKind::ChannelOccupied, order, time_ms: 1, cause: None }
            })
            .collect();
        let mut decided = DecidedTransitions::kept_by(&outbox, &subject, transitions.clone()).into_iter();
        decided.next().expect("the first").receipt.acknowledge();
        drop(decided.next());
        drop(decided);
        let calls = || std::mem::take(&mut *lock_unpoisoned(&noting.0));
        assert_eq!(calls(), [(1, true), (2, false), (3, false), (4, false)]);
        let all = DecidedTransitions::kept_by(&outbox, &subject, transitions.clone());
        assert_eq!(all.acknowledge_all(), transitions);
        assert_eq!(calls().len(), 4);
        drop(DecidedTransitions::without_outbox(transitions));
        assert_eq!(calls(), [], "no outbox keeps these");
    }
}
