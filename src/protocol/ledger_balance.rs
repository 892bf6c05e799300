//! Compares the hops of the ledger. In: the counts of processes. Out: the first hop at which they do not balance. Pure.
//!
//! A process counts an event when the event enters a hop. The sum behind a hop equals the hop, except for what is between
//! the two counts while a process answers: so counts are compared twice, and a difference is one that both have.

use std::collections::BTreeMap;
use std::fmt;

use super::admin::{FlowReport, RecorderFlow, RecorderState};
use super::ledger::{DeliveryLedger, EventLedger};

/// A hop whose events are not all accounted for, or are counted twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imbalance {
    /// Process that counted them; `None` between processes.
    pub process: Option<String>,
    /// Hop that does not balance.
    pub hop: LedgerHop,
    /// Events that entered the hop.
    pub entered: u64,
    /// Events that are accounted for behind the hop.
    pub accounted: u64,
}

/// The hops at which counts are compared, in the order of an event's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LedgerHop {
    /// Decided = unwanted + enqueued, at an edge.
    Decided,
    /// Enqueued = put + dropped + queued, at an edge.
    Enqueued,
    /// Put at the edges ≤ read at the dispatchers, less duplicates.
    Put,
    /// Read = every outcome + waiting, at a dispatcher.
    Read,
    /// Deliveries = every outcome + waiting, at a dispatcher.
    Delivery,
}

impl LedgerHop {
    /// Every hop, in the order of an event's way.
    pub const ALL: [Self; 5] = [Self::Decided, Self::Enqueued, Self::Put, Self::Read, Self::Delivery];

    /// The hop in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decided => "decided → enqueued",
            Self::Enqueued => "enqueued → put",
            Self::Put => "put → read",
            Self::Read => "read → released",
            Self::Delivery => "released → delivered",
        }
    }
}

impl fmt::Display for Imbalance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, hop, entered, accounted } = self;
        let at = process.as_ref().map_or_else(String::new, |process| format!(" at {process}"));
        let difference = entered.abs_diff(*accounted);
        let what = if entered > accounted { "are not accounted for" } else { "are counted twice" };
        write!(formatter, "{}{at}: {difference} {what} ({entered} entered, {accounted} accounted for)", hop.name())
    }
}

/// Finds the first hop that does not balance in either of two observations of the same processes, the second some
/// seconds after the first.
#[must_use]
pub fn find_imbalance(before: &[FlowReport], after: &[FlowReport]) -> Option<Imbalance> {
    let (first, second) = (compare_hops(before), compare_hops(after));
    let put = compare_stream(before, after);
    let in_both = |hop: LedgerHop| {
        let found = second.iter().filter(move |((of, _), _)| *of == hop);
        found.filter(|(key, _)| first.contains_key(key)).map(|(_, imbalance)| imbalance.clone()).next()
    };
    LedgerHop::ALL.into_iter().find_map(|hop| if hop == LedgerHop::Put { put.clone() } else { in_both(hop) })
}

/// The hops within processes that do not balance.
fn compare_hops(flows: &[FlowReport]) -> BTreeMap<(LedgerHop, &str), Imbalance> {
    let mut found = BTreeMap::new();
    for flow in flows {
        let mut compare = |hop, entered: u64, accounted: u64| {
            if entered != accounted {
                let process = Some(flow.process.clone());
                found.insert((hop, flow.process.as_str()), Imbalance { process, hop, entered, accounted });
            }
        };
        // Processes of an older release do not count all hops.
        if let Some(recorder) = flow.recorder.as_ref().filter(|recorder| recorder.decided > 0) {
            compare(LedgerHop::Decided, recorder.decided, recorder.unwanted + recorder.accepted);
            if recorder.state == RecorderState::Kinesis {
                compare(LedgerHop::Enqueued, recorder.accepted, settled(recorder) + recorder.queued);
            }
        }
        if let Some((events, deliveries)) = ledgers_of(flow) {
            compare(LedgerHop::Read, events.read, events.accounted());
            compare(LedgerHop::Delivery, deliveries.created, deliveries.accounted());
        }
    }
    found
}

fn settled(recorder: &RecorderFlow) -> u64 {
    recorder.acknowledged + recorder.dropped.values().sum::<u64>()
}

fn ledgers_of(flow: &FlowReport) -> Option<(EventLedger, DeliveryLedger)> {
    let dispatcher = flow.dispatcher.as_ref()?;
    Some((dispatcher.events?, dispatcher.deliveries?))
}

/// Whether the events that were put by the first observation are read by the second. Without an answer while a dispatcher
/// still reads, or started after an edge: then others may have read the events.
fn compare_stream(before: &[FlowReport], after: &[FlowReport]) -> Option<Imbalance> {
    let edges = || before.iter().filter_map(|flow| Some((flow.started_ms, flow.recorder.as_ref()?)));
    let dispatchers = || after.iter().filter(|flow| flow.dispatcher.is_some());
    let first_edge = edges().map(|(started_ms, _)| started_ms).min()?;
    let knows_all = dispatchers().all(|flow| (1..=first_edge).contains(&flow.started_ms));
    let has_read_all = dispatchers().filter_map(|flow| flow.dispatcher.as_ref()).all(|flow| {
        let mut shards = flow.shards.values();
        shards.all(|shard| shard.behind_ms == 0 && shard.paused.is_none())
    });
    if !knows_all || !has_read_all || dispatchers().next().is_none() {
        return None;
    }
    let entered: u64 = edges().map(|(_, recorder)| recorder.acknowledged).sum();
    let accounted = dispatchers().filter_map(ledgers_of).map(|(events, _)| events.read_once()).sum();
    (entered > accounted).then_some(Imbalance { process: None, hop: LedgerHop::Put, entered, accounted })
}

#[cfg(test)]
mod tests {
    use super::super::admin::{DispatcherFlow, ShardFlow};
    use super::*;

    fn edge(process: &str, recorder: RecorderFlow) -> FlowReport {
        FlowReport { process: process.to_owned(), started_ms: 200, recorder: Some(recorder), ..FlowReport::default() }
    }

    fn dispatcher(events: EventLedger, deliveries: DeliveryLedger) -> FlowReport {
        let dispatcher = DispatcherFlow {
            shards: [(crate::protocol::ShardId("s".to_owned()), ShardFlow::default())].into(),
            events: Some(events),
            deliveries: Some(deliveries),
            ..DispatcherFlow::default()
        };
        FlowReport { process: "d".to_owned(), started_ms: 100, dispatcher: Some(dispatcher), ..FlowReport::default() }
    }

    /// An edge and a dispatcher that balance: ten events decided, of which one is in each of ten hops.
    fn balanced() -> (RecorderFlow, EventLedger, DeliveryLedger) {
        let recorder = RecorderFlow {
            decided: 12,
            unwanted: 1,
            accepted: 11,
            acknowledged: 9,
            queued: 1,
            dropped: BTreeMap::from([("compacted".to_owned(), 1)]),
            ..RecorderFlow::default()
        };
        let events = EventLedger {
            read: 12,
            duplicate: 1,
            foreign: 1,
            poison: 1,
            unknown_app: 1,
            superseded: 1,
            cancelled: 2,
            unwanted: 1,
            released: 2,
            relinquished: 1,
            waiting: 1,
        };
        let deliveries = DeliveryLedger {
            created: 6,
            attempted: 9,
            delivered: 2,
            dead_lettered: 1,
            dropped: 1,
            relinquished: 1,
            waiting: 1,
        };
        (recorder, events, deliveries)
    }

    #[test]
    fn the_first_hop_that_does_not_balance_is_found() {
        type Change = fn(&mut RecorderFlow, &mut EventLedger, &mut DeliveryLedger);
        type Found = Option<(LedgerHop, u64, u64)>;
        let cases: [(&str, Change, Found); 9] = [
            ("all balance", |_, _, _| {}, None),
            ("a decided event vanishes", |edge, _, _| edge.decided += 1, Some((LedgerHop::Decided, 13, 12))),
            ("a queued one vanishes", |edge, _, _| edge.queued = 0, Some((LedgerHop::Enqueued, 11, 10))),
            ("one is put twice", |edge, _, _| edge.acknowledged += 2, Some((LedgerHop::Enqueued, 11, 13))),
            (
                "the stream swallows one",
                |_, events, _| (events.read, events.released) = (11, 1),
                Some((LedgerHop::Put, 9, 8)),
            ),
            ("a read one vanishes", |_, events, _| events.waiting = 0, Some((LedgerHop::Read, 12, 11))),
            ("a delivery vanishes", |_, _, deliveries| deliveries.created += 1, Some((LedgerHop::Delivery, 7, 6))),
            (
                "the first of two",
                |_, events, deliveries| {
                    events.cancelled = 0;
                    deliveries.created = 0;
                },
                Some((LedgerHop::Read, 12, 10)),
            ),
            ("an edge of an older release", |edge, _, _| (edge.decided, edge.queued) = (0, 0), None),
        ];
        for (name, change, expected) in cases {
            let (mut recorder, mut events, mut deliveries) = balanced();
            change(&mut recorder, &mut events, &mut deliveries);
            let flows = [edge("e", recorder), dispatcher(events, deliveries)];
            let found = find_imbalance(&flows, &flows);
            assert_eq!(found.map(|it| (it.hop, it.entered, it.accounted)), expected, "{name}");
        }
    }

    #[test]
    fn an_event_between_two_counts_is_no_imbalance_and_a_lasting_one_is_described() {
        let (recorder, events, deliveries) = balanced();
        let moving = EventLedger { read: events.read + 1, ..events };
        let flows = |events| [edge("e", recorder.clone()), dispatcher(events, deliveries)];
        assert_eq!(find_imbalance(&flows(moving), &flows(events)), None);
        assert_eq!(find_imbalance(&flows(events), &flows(moving)), None);
        let found = find_imbalance(&flows(moving), &flows(moving)).expect("lasting").to_string();
        assert_eq!(found, "read → released at d: 1 are not accounted for (13 entered, 12 accounted for)");
    }

    #[test]
    fn the_stream_is_judged_only_by_dispatchers_that_have_read_it_all() {
        let (recorder, events, deliveries) = balanced();
        let recorder = RecorderFlow { acknowledged: 10, queued: 0, ..recorder };
        let flows = |started_ms, behind_ms| {
            let mut flow = dispatcher(events, deliveries);
            flow.started_ms = started_ms;
            let shards = flow.dispatcher.iter_mut().flat_map(|flow| flow.shards.values_mut());
            shards.for_each(|shard| shard.behind_ms = behind_ms);
            [edge("e", recorder.clone()), flow]
        };
        let hop = |flows: [FlowReport; 2]| find_imbalance(&flows, &flows).map(|found| found.hop);
        assert_eq!(hop(flows(100, 0)), Some(LedgerHop::Put));
        assert_eq!(hop(flows(100, 5)), None, "it still reads");
        assert_eq!(hop(flows(300, 0)), None, "a former dispatcher may have read it");
        assert_eq!(hop(flows(0, 0)), None, "an older release does not say when it started");
    }
}
