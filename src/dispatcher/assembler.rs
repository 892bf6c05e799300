//! From events to bodies, and what to do with a body that failed.
//!
//! In: events for an endpoint, in the order in which it must see them per channel, and how each attempt ended. Out:
//! bodies to post now, and events that are finished. A channel is in one unfinished body at a time, which is all that
//! the order needs: a bad event delays its own channel and no other. Pure: the caller passes the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::metrics::Loss;
use super::retry::{Patience, backoff_ms};
use super::tracker;
use crate::protocol::webhook::WebhookEvent;
use crate::protocol::{AppId, ChannelName};

/// Most events of a body.
const MAX_EVENTS: usize = 100;
/// Most bytes of a body's events.
const MAX_BYTES: usize = 256 * 1024;
/// Bodies that an endpoint may have on their way, parts of a split one not counted.
const MAX_BODIES: usize = 4;
/// What one endpoint may hold of a shard's bounds.
const ENDPOINT_EVENTS: usize = tracker::MAX_EVENTS / 4;
const ENDPOINT_BYTES: usize = tracker::MAX_BYTES / 4;
/// Answered failures after which a body is split, lest one bad event keep the others.
const SPLIT_AFTER: u32 = 3;
/// The wait of a body that found no room at its endpoint.
const BUSY_MS: u64 = 200;

/// One endpoint of one app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The app.
    pub app: AppId,
    /// The endpoint's name.
    pub endpoint: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.endpoint)
    }
}

/// An event as it is sent.
#[derive(Debug)]
pub struct Outgoing {
    /// What the customer reads.
    pub event: WebhookEvent,
    /// When it was decided, in ms since 1970.
    pub time_ms: u64,
    /// About how long it is as text.
    pub bytes: usize,
}

/// An event on its way to one endpoint.
#[derive(Clone, Debug)]
pub struct Item {
    /// The tracker's number of its record.
    pub record: u64,
    /// When its turn came; the retry window counts from here.
    pub since_ms: u64,
    /// The event, shared by the endpoints that want it.
    pub outgoing: Arc<Outgoing>,
}

/// Events that are posted together.
#[derive(Debug)]
pub struct Body {
    /// Where to.
    pub target: Target,
    /// What.
    pub items: Vec<Item>,
    failures: u32,
    answered: u32,
    part: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint took it.
    Taken,
    /// It did not, and may have said when to come again.
    Failed {
        /// Whether it answered at all.
        answered: bool,
        /// The wait that it asked for.
        retry_after_ms: Option<u64>,
    },
    /// There was no room; this was no attempt.
    Busy,
    /// There is no such endpoint any more.
    Removed,
}

/// Events that are finished.
#[derive(Debug, Default)]
pub struct Finished {
    /// The tracker's numbers of the records of events that were taken.
    pub taken: Vec<u64>,
    /// What was lost, with the reason.
    pub lost: Vec<(Loss, Item)>,
}

/// The queues of one shard, by endpoint.
#[derive(Debug)]
pub struct Assembler {
    patience: Patience,
    queues: HashMap<Target, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Item>,
    /// Channels of unfinished bodies.
    busy: HashSet<ChannelName>,
    later: Vec<(u64, Body)>,
    bodies: usize,
    events: usize,
    bytes: usize,
    failing: bool,
}

impl Assembler {
    /// Empty queues.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self { patience, queues: HashMap::new() }
    }

    /// Takes an event for an endpoint. An endpoint that fails and holds more than its part loses its oldest.
    pub fn push(&mut self, target: &Target, item: Item) -> Finished {
        let queue = self.queues.entry(target.clone()).or_default();
        queue.events += 1;
        queue.bytes += item.outgoing.bytes;
        queue.waiting.push_back(item);
        let mut finished = Finished::default();
        while queue.failing && queue.over() {
            let Some(oldest) = queue.waiting.pop_front() else { break };
            queue.gone(&oldest);
            finished.lost.push((Loss::EndpointBehind, oldest));
        }
        finished
    }

    /// Whether an endpoint that works holds its part: then nothing more is taken in, since dropping would lose events
    /// that are only waiting for their turn.
    #[must_use]
    pub fn crowded(&self) -> bool {
        self.queues.values().any(|queue| !queue.failing && queue.over())
    }

    /// Bodies to post now. Each is answered by [`Assembler::ended`].
    pub fn ready(&mut self, now_ms: u64) -> Vec<Body> {
        let mut bodies = Vec::new();
        for (target, queue) in &mut self.queues {
            bodies.extend(queue.later.extract_if(.., |(at, _)| *at <= now_ms).map(|(_, body)| body));
            while queue.bodies < MAX_BODIES
                && let Some(items) = queue.assemble()
            {
                queue.bodies += 1;
                queue.busy.extend(items.iter().map(|item| item.outgoing.event.channel.clone()));
                bodies.push(Body { target: target.clone(), items, failures: 0, answered: 0, part: false });
            }
        }
        bodies
    }

    /// An attempt ended; `random` spreads the next one.
    pub fn ended(&mut self, mut body: Body, outcome: Outcome, now_ms: u64, random: f64) -> Finished {
        let patience = self.patience;
        let queue = self.queues.entry(body.target.clone()).or_default();
        let mut finished = Finished::default();
        match outcome {
            Outcome::Taken => {
                queue.failing = false;
                finished.taken.extend(body.items.iter().map(|item| item.record));
                queue.finish(&body);
            }
            Outcome::Removed => {
                queue.finish(&body);
                finished.lost.extend(body.items.drain(..).map(|item| (Loss::EndpointRemoved, item)));
            }
            Outcome::Busy => queue.later.push((now_ms + BUSY_MS, body)),
            Outcome::Failed { answered, retry_after_ms } => {
                queue.failing = true;
                body.failures += 1;
                body.answered += u32::from(answered);
                let over = |item: &mut Item| item.since_ms + patience.window_ms <= now_ms;
                let lost: Vec<Item> = body.items.extract_if(.., over).collect();
                queue.shrink(&body, &lost);
                finished.lost.extend(lost.into_iter().map(|item| (Loss::RetryWindowOver, item)));
                // Never sooner than without the header: an endpoint that says 0 would be asked all the time.
                let wait = backoff_ms(body.failures, patience.max_backoff_ms, random).max(retry_after_ms.unwrap_or(0));
                queue.again(body, now_ms + wait);
            }
        }
        self.queues.retain(|_, queue| queue.events > 0);
        finished
    }
}

impl Queue {
    fn over(&self) -> bool {
        self.events > ENDPOINT_EVENTS || self.bytes > ENDPOINT_BYTES
    }

    /// The oldest events of channels that are free, as many as a body takes.
    fn assemble(&mut self) -> Option<Vec<Item>> {
        let (mut items, mut left, mut bytes) = (Vec::new(), VecDeque::with_capacity(self.waiting.len()), 0);
        while let Some(item) = self.waiting.pop_front() {
            let fits = items.is_empty() || bytes + item.outgoing.bytes <= MAX_BYTES;
            if items.len() == MAX_EVENTS || !fits {
                left.push_back(item);
                break;
            }
            if self.busy.contains(&item.outgoing.event.channel) {
                left.push_back(item);
                continue;
            }
            bytes += item.outgoing.bytes;
            items.push(item);
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        (!items.is_empty()).then_some(items)
    }

    fn gone(&mut self, item: &Item) {
        self.events -= 1;
        self.bytes -= item.outgoing.bytes;
    }

    fn finish(&mut self, body: &Body) {
        for item in &body.items {
            self.gone(item);
            self.busy.remove(&item.outgoing.event.channel);
        }
        self.bodies -= usize::from(!body.part);
    }

    /// Events left a body; channels that have none in it any more are free.
    fn shrink(&mut self, body: &Body, lost: &[Item]) {
        for item in lost {
            self.gone(item);
            let channel = &item.outgoing.event.channel;
            if !body.items.iter().any(|other| other.outgoing.event.channel == *channel) {
                self.busy.remove(channel);
            }
        }
    }

    /// A failed body waits, or its parts do: by channel, and a single channel by halves.
    fn again(&mut self, mut body: Body, at_ms: u64) {
        if body.items.is_empty() {
            self.bodies -= usize::from(!body.part);
            return;
        }
        if body.answered < SPLIT_AFTER || body.items.len() == 1 {
            self.later.push((at_ms, body));
            return;
        }
        self.bodies -= usize::from(!body.part);
        let mut parts: Vec<Vec<Item>> = Vec::new();
        for item in body.items {
            let same = |part: &&mut Vec<Item>| part[0].outgoing.event.channel == item.outgoing.event.channel;
            match parts.iter_mut().find(same) {
                Some(part) => part.push(item),
                None => parts.push(vec![item]),
            }
        }
        if let [part] = &mut parts[..] {
            // The channel stays busy, so the later half waits at the front for the earlier one.
            let half = part.split_off(part.len().div_ceil(2));
            half.into_iter().rev().for_each(|item| self.waiting.push_front(item));
        }
        body.items = Vec::new();
        self.later.extend(parts.into_iter().map(|items| {
            let target = body.target.clone();
            (at_ms, Body { target, items, failures: body.failures, answered: 0, part: true })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::EventKind;

    const FAILED: Outcome = Outcome::Failed { answered: true, retry_after_ms: None };

    fn target() -> Target {
        Target { app: "1".into(), endpoint: "a".into() }
    }

    fn assembler() -> Assembler {
        Assembler::new(Patience { window_ms: 300_000, max_backoff_ms: 30_000 })
    }

    fn item(record: u64, channel: &str, bytes: usize) -> Item {
        let channel = ChannelName::parse(channel).expect("a valid name");
        let event = WebhookEvent { kind: EventKind::ChannelOccupied, channel, id: record.to_string(), order: None };
        Item { record, since_ms: 0, outgoing: Arc::new(Outgoing { event, time_ms: 0, bytes }) }
    }

    fn records(body: &Body) -> Vec<u64> {
        body.items.iter().map(|item| item.record).collect()
    }

    #[test]
    fn a_body_has_at_most_a_hundred_events_and_its_channel_waits() {
        let mut assembler = assembler();
        for n in 0..150 {
            assembler.push(&target(), item(n, "a", 10));
        }
        let mut first = assembler.ready(0);
        assert_eq!(first.iter().map(|body| body.items.len()).collect::<Vec<_>>(), [100]);
        assert!(assembler.ready(0).is_empty(), "the channel is under way");
        let finished = assembler.ended(first.remove(0), Outcome::Taken, 0, 0.0);
        assert_eq!(finished.taken.len(), 100);
        assert_eq!(records(&assembler.ready(0)[0]), (100..150).collect::<Vec<_>>());
    }

    #[test]
    fn a_body_is_no_longer_than_it_may_be() {
        let mut assembler = assembler();
        for n in 0..3 {
            assembler.push(&target(), item(n, &format!("c{n}"), MAX_BYTES / 2));
        }
        assert_eq!(assembler.ready(0).iter().map(records).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn a_failed_body_waits_and_other_channels_go_on() {
        let mut assembler = assembler();
        assembler.push(&target(), item(1, "a", 1));
        let body = assembler.ready(0).remove(0);
        assembler.ended(body, FAILED, 0, 1.0);
        assembler.push(&target(), item(2, "a", 1));
        assembler.push(&target(), item(3, "b", 1));
        assert_eq!(assembler.ready(499).iter().map(records).collect::<Vec<_>>(), [[3]]);
        assert_eq!(assembler.ready(500).iter().map(records).collect::<Vec<_>>(), [[1]], "2 waits for 1");
    }

    #[test]
    fn after_three_answers_a_body_is_split_by_channel_and_then_by_halves() {
        let mut assembler = assembler();
        for (n, channel) in [(1, "a"), (2, "b"), (3, "a"), (4, "a")] {
            assembler.push(&target(), item(n, channel, 1));
        }
        let mut bodies = assembler.ready(0);
        for _ in 0..3 {
            assembler.ended(bodies.remove(0), FAILED, 0, 0.0);
            bodies = assembler.ready(0);
        }
        assert_eq!(bodies.iter().map(records).collect::<Vec<_>>(), [vec![1, 3, 4], vec![2]]);
        let other = bodies.pop().expect("two parts");
        assert_eq!(assembler.ended(other, Outcome::Taken, 0, 0.0).taken, [2]);
        for _ in 0..3 {
            assembler.ended(bodies.remove(0), FAILED, 0, 0.0);
            bodies = assembler.ready(0);
        }
        assert_eq!(bodies.iter().map(records).collect::<Vec<_>>(), [[1, 3]]);
        assembler.ended(bodies.remove(0), Outcome::Taken, 0, 0.0);
        assert_eq!(records(&assembler.ready(0)[0]), [4]);
    }

    #[test]
    fn a_table_of_endings() {
        for (name, outcome, now, taken, lost) in [
            ("taken", Outcome::Taken, 0, 1, None),
            ("removed", Outcome::Removed, 0, 0, Some(Loss::EndpointRemoved)),
            ("failed within the window", FAILED, 299_999, 0, None),
            ("failed at its end", FAILED, 300_000, 0, Some(Loss::RetryWindowOver)),
            ("no room is no failure", Outcome::Busy, 300_000, 0, None),
        ] {
            let mut assembler = assembler();
            assembler.push(&target(), item(1, "a", 1));
            let body = assembler.ready(0).remove(0);
            let finished = assembler.ended(body, outcome, now, 0.0);
            assert_eq!(finished.taken.len(), taken, "{name}");
            assert_eq!(finished.lost.first().map(|(reason, _)| *reason), lost, "{name}");
            let left = taken == 0 && lost.is_none();
            assert_eq!(assembler.ready(u64::MAX).len(), usize::from(left), "{name}");
        }
    }

    #[test]
    fn only_an_endpoint_that_fails_loses_what_is_too_much() {
        let mut assembler = assembler();
        for n in 0..=ENDPOINT_EVENTS as u64 {
            assert!(assembler.push(&target(), item(n, "a", 1)).lost.is_empty());
        }
        assert!(assembler.crowded(), "one that works makes the reader wait");
        let body = assembler.ready(0).remove(0);
        assembler.ended(body, FAILED, 0, 0.0);
        assert!(!assembler.crowded());
        let lost = assembler.push(&target(), item(9_999, "a", 1)).lost;
        assert_eq!(lost.iter().map(|(_, item)| item.record).collect::<Vec<_>>(), [100, 101], "its oldest that waits");
    }
}
