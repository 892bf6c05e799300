//! Tests of the queue of one endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::queue::{
    BATCH_EVENTS_MAX, BEHIND_AGE_MS, BREAKER_FAILURE_COUNT, CONCURRENT_ATTEMPTS_MAX, EndpointQueue, WebhookBatch,
};
use super::{AttemptOutcome, FinishedDelivery, OutgoingEvent, PendingDelivery};
use crate::dispatcher::reasons::DropReason;
use crate::dispatcher::retry::RetryPolicy;
use crate::protocol::ChannelName;
use crate::protocol::record::EventKind;
use crate::protocol::webhook::WebhookEvent;

const FAILED: AttemptOutcome = AttemptOutcome::Failed { answered: true, retry_after_ms: None };
const UNANSWERED: AttemptOutcome = AttemptOutcome::Failed { answered: false, retry_after_ms: None };
const WINDOW_MS: u64 = 300_000;
/// More than any record.
const HALF_BODY_BYTES: usize = 128 * 1024;

fn new_queue() -> EndpointQueue {
    EndpointQueue::new(RetryPolicy { window_ms: WINDOW_MS, max_backoff_ms: 30_000 })
}

fn delivery(record: u64, channel: &str, kind: EventKind) -> PendingDelivery {
    let channel = ChannelName::parse(channel).expect("a valid name");
    let event = WebhookEvent { kind, channel, id: record.to_string(), order: None };
    PendingDelivery { hold: 1, record, since_ms: 0, outgoing: Arc::new(OutgoingEvent::new(event, 0)) }
}

fn message(record: u64, channel: &str) -> PendingDelivery {
    let kind =
        EventKind::ClientEvent { event: "client-a".into(), data: "1".into(), socket_id: "1.1".into(), user_id: None };
    delivery(record, channel, kind)
}

fn records(batch: &WebhookBatch) -> Vec<u64> {
    batch.deliveries.iter().map(|delivery| delivery.record).collect()
}

fn bodies(queue: &mut EndpointQueue, now: u64) -> Vec<WebhookBatch> {
    let (batches, expired) = queue.take_due(now);
    assert!(expired.is_empty(), "{expired:?}");
    batches
}

fn dropped(finished: &[FinishedDelivery]) -> Vec<(u64, Option<DropReason>)> {
    finished.iter().map(|finished| (finished.delivery.record, finished.dropped)).collect()
}

#[test]
fn a_body_has_at_most_a_hundred_events_and_its_channel_stays_busy() {
    let mut queue = new_queue();
    (0..150).for_each(|n| queue.push(message(n, "a")));
    let first = bodies(&mut queue, 0);
    assert_eq!(first.iter().map(|body| body.deliveries.len()).collect::<Vec<_>>(), [BATCH_EVENTS_MAX]);
    assert!(bodies(&mut queue, 0).is_empty(), "the channel is busy");
    assert_eq!(queue.complete_attempt(first[0].id, AttemptOutcome::Delivered, 0, 0.0).len(), 100);
    let second = bodies(&mut queue, 0);
    assert_eq!(records(&second[0]), (100..150).collect::<Vec<_>>());
    queue.complete_attempt(second[0].id, AttemptOutcome::Delivered, 0, 0.0);
    assert!(queue.is_clean());
}

#[test]
fn a_body_is_bounded_in_bytes_and_takes_events_of_all_shards() {
    let mut queue = new_queue();
    for n in 0..3 {
        let mut large = message(n, &format!("c{n}"));
        let text = format!("\"{}\"", "x".repeat(HALF_BODY_BYTES - 2));
        let outgoing = Arc::get_mut(&mut large.outgoing).expect("the only one");
        outgoing.json = RawValue::from_string(text).expect("JSON");
        queue.push(PendingDelivery { hold: n, ..large });
    }
    assert_eq!(bodies(&mut queue, 0).iter().map(records).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
}

#[test]
fn a_failed_body_backs_off_and_other_channels_are_delivered() {
    let mut queue = new_queue();
    queue.push(message(1, "a"));
    let body = bodies(&mut queue, 0).remove(0);
    assert!(queue.complete_attempt(body.id, FAILED, 0, 1.0).is_empty());
    queue.push(message(2, "a"));
    queue.push(message(3, "b"));
    assert_eq!(queue.next_due_ms(), Some(500));
    assert_eq!(bodies(&mut queue, 499).iter().map(records).collect::<Vec<_>>(), [[3]]);
    assert_eq!(bodies(&mut queue, 500).iter().map(records).collect::<Vec<_>>(), [[1, 2]], "in their order");
}

#[test]
fn a_bad_event_is_posted_alone_and_the_others_share_bodies_again() {
    let mut queue = new_queue();
    (0..64).for_each(|n| queue.push(message(n, &format!("c{n}"))));
    let (mut delivered, mut alone, mut attempts, mut now) = (BTreeSet::new(), 0, 0, 0);
    while delivered.len() < 63 {
        now += 60_000;
        for body in queue.take_due(now % WINDOW_MS).0 {
            attempts += 1;
            let is_bad = records(&body).contains(&13);
            alone += usize::from(records(&body) == [13]);
            let outcome = if is_bad { FAILED } else { AttemptOutcome::Delivered };
            let finished = queue.complete_attempt(body.id, outcome, 0, 0.0);
            delivered.extend(finished.iter().map(|finished| finished.delivery.record));
        }
        assert!(attempts < 200, "{delivered:?}");
    }
    for _ in 0..3 {
        let body = queue.take_due(0).0.remove(0);
        assert_eq!(records(&body), [13]);
        queue.complete_attempt(body.id, FAILED, 0, 0.0);
    }
    (100..150).for_each(|n| queue.push(message(n, &format!("c{n}"))));
    let sizes: Vec<usize> = bodies(&mut queue, 0).iter().map(|body| body.deliveries.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 51, "{sizes:?} {alone}");
    assert!(sizes.contains(&1) && sizes.contains(&50), "the bad one alone, the others together: {sizes:?}");
}

#[test]
fn after_an_outage_full_bodies_are_posted_at_once() {
    let mut queue = new_queue();
    (0..400).for_each(|n| queue.push(message(n, &format!("c{n}"))));
    for round in 0..20 {
        for body in queue.take_due(round * 10_000).0 {
            queue.complete_attempt(body.id, FAILED, round * 10_000, 1.0);
        }
    }
    let now = 200_000 + 30_000;
    let trial = bodies(&mut queue, now);
    assert_eq!(trial.len(), 1, "one attempt at a time");
    assert!(trial[0].deliveries.len() < 10, "small while it fails: {}", trial[0].deliveries.len());
    let done = queue.complete_attempt(trial[0].id, AttemptOutcome::Delivered, now, 0.0).len();
    // The last body is not full, and waits for a while beside the others.
    let posted = [now, now + 50].map(|now| bodies(&mut queue, now));
    let sizes: Vec<usize> = posted.iter().flatten().map(|body| body.deliveries.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>() + done, 400, "nothing backs off any more");
    assert!(sizes.len() <= 5, "{sizes:?}");
}

#[test]
fn an_endpoint_that_fails_gets_one_attempt_at_a_time_and_backs_off() {
    let mut queue = new_queue();
    (0..2_000).for_each(|n| queue.push(message(n, &format!("c{n}"))));
    let all = bodies(&mut queue, 0);
    assert_eq!(all.len(), CONCURRENT_ATTEMPTS_MAX);
    for body in all {
        queue.complete_attempt(body.id, UNANSWERED, 0, 1.0);
    }
    let next = queue.next_due_ms().expect("a time");
    assert!(bodies(&mut queue, next - 1).is_empty());
    let trial = bodies(&mut queue, 5_000);
    assert_eq!(trial.len(), 1);
    assert!(bodies(&mut queue, 60_000).is_empty(), "the trial is under way");
    queue.complete_attempt(trial[0].id, AttemptOutcome::Delivered, 60_000, 0.0);
    assert_eq!(bodies(&mut queue, 60_000).len(), CONCURRENT_ATTEMPTS_MAX);
    const { assert!(BREAKER_FAILURE_COUNT < 16) };
}

#[test]
fn beside_two_attempts_a_body_waits_to_be_full_but_not_for_long() {
    let mut queue = new_queue();
    for n in 0..2 {
        queue.push(message(n, &format!("first-{n}")));
        assert_eq!(bodies(&mut queue, 0).len(), 1, "at once");
    }
    (0..99).for_each(|n| queue.push(message(10 + n, &format!("more-{n}"))));
    assert!(bodies(&mut queue, 49).is_empty(), "the third body is not full");
    assert_eq!(queue.next_due_ms(), Some(50));
    queue.push(message(200, "last"));
    assert_eq!(bodies(&mut queue, 49).iter().map(|body| body.deliveries.len()).collect::<Vec<_>>(), [100]);
    queue.push(message(300, "rest"));
    assert!(bodies(&mut queue, 98).is_empty() && queue.next_due_ms() == Some(99), "since the last attempt");
    assert_eq!(bodies(&mut queue, 99).iter().map(records).collect::<Vec<_>>(), [[300]]);
    queue.set_batch_limit(1);
    queue.push(message(400, "one"));
    assert_eq!(bodies(&mut queue, 99).len(), 1, "a body of one event is full");
}

#[test]
fn attempt_outcomes_drop_or_keep_events() {
    for (name, outcome, now, expected) in [
        ("taken", AttemptOutcome::Delivered, 0, Some(None)),
        ("removed", AttemptOutcome::Removed, 0, Some(Some(DropReason::EndpointRemoved))),
        ("failed within the window", FAILED, WINDOW_MS - 1, None),
        ("failed at the window's end", FAILED, WINDOW_MS, Some(Some(DropReason::RetryWindowOver))),
    ] {
        let mut queue = new_queue();
        queue.push(message(1, "a"));
        let body = bodies(&mut queue, 0).remove(0);
        let finished = queue.complete_attempt(body.id, outcome, now, 0.0);
        assert_eq!(finished.first().map(|finished| finished.dropped), expected, "{name}");
        assert_eq!(queue.is_clean(), expected.is_some(), "{name}");
    }
}

#[test]
fn events_behind_a_failing_one_do_not_outlive_the_retry_window() {
    let mut queue = new_queue();
    queue.push(message(1, "a"));
    let body = bodies(&mut queue, 0).remove(0);
    queue.push(message(2, "a"));
    queue.push(PendingDelivery { since_ms: 10, ..message(3, "b") });
    queue.complete_attempt(body.id, FAILED, 0, 1.0);
    assert_eq!(queue.next_due_ms(), Some(500));
    let (_, expired) = queue.take_due(WINDOW_MS);
    assert_eq!(dropped(&expired), [1, 2].map(|n| (n, Some(DropReason::RetryWindowOver))));
}

#[test]
fn an_event_behind_a_refused_one_gets_its_own_attempt_while_the_endpoint_takes_others() {
    let mut queue = new_queue();
    queue.push(message(1, "a"));
    for round in 0..4 {
        let now = round * 60_000;
        let refused = bodies(&mut queue, now).remove(0);
        queue.complete_attempt(refused.id, FAILED, now, 1.0);
        queue.push(message(10 + round, "b"));
        let taken = bodies(&mut queue, now).remove(0);
        queue.complete_attempt(taken.id, AttemptOutcome::Delivered, now, 0.0);
    }
    queue.push(message(2, "a"));
    let alone = bodies(&mut queue, WINDOW_MS - 1).remove(0);
    assert_eq!(records(&alone), [1]);
    let finished = queue.complete_attempt(alone.id, FAILED, WINDOW_MS, 1.0);
    assert_eq!(dropped(&finished), [(1, Some(DropReason::RetryWindowOver))]);
    let next = bodies(&mut queue, WINDOW_MS + 30_000).remove(0);
    assert_eq!(records(&next), [2]);
    let finished = queue.complete_attempt(next.id, FAILED, WINDOW_MS + 30_000, 1.0);
    assert_eq!(dropped(&finished), [(2, Some(DropReason::RetryWindowOver))], "it gets no second one");
    assert!(queue.is_clean());
}

#[test]
fn an_eviction_takes_client_events_first_and_last_states_last() {
    let mut queue = new_queue();
    let added = |n, user: &str| delivery(n, "presence-a", EventKind::MemberAdded { user_id: user.into() });
    let removed = |n, user: &str| delivery(n, "presence-a", EventKind::MemberRemoved { user_id: user.into() });
    for event in [added(1, "ann"), message(2, "presence-a"), removed(3, "ann"), added(4, "bob"), message(5, "b")] {
        queue.push(event);
    }
    queue.push(PendingDelivery { hold: 2, ..message(6, "b") });
    for (expected, share) in [(vec![2, 5], 3), (vec![1], 2), (vec![3], 1), (vec![4], 0)] {
        let evicted = queue.evict(1, expected.len(), 0);
        assert_eq!(
            dropped(&evicted),
            expected.iter().map(|n| (*n, Some(DropReason::EndpointBehind))).collect::<Vec<_>>()
        );
        assert_eq!(queue.held_share(1, 0).events, share);
    }
    assert!(queue.evict(1, 9, 9).is_empty(), "events of another hold stay");
    assert_eq!(queue.held_share(2, 0).events, 1);
}

#[test]
fn an_endpoint_is_behind_once_its_oldest_event_is_old_whatever_it_answers() {
    let mut queue = new_queue();
    queue.push(message(1, "a"));
    queue.push(PendingDelivery { since_ms: 1_000, ..message(2, "b") });
    assert!(!queue.held_share(1, BEHIND_AGE_MS - 1).is_behind && queue.held_share(1, BEHIND_AGE_MS).is_behind);
    let body = bodies(&mut queue, 0).remove(0);
    assert!(queue.held_share(1, BEHIND_AGE_MS).is_behind, "in flight");
    queue.complete_attempt(body.id, AttemptOutcome::Delivered, BEHIND_AGE_MS, 0.0);
    assert!(!queue.held_share(1, BEHIND_AGE_MS).is_behind && queue.is_clean());
}

#[test]
fn an_endpoint_keeps_up_while_it_takes_its_events_soon_and_without_failures() {
    let mut queue = new_queue();
    let keeps_up = |queue: &EndpointQueue, now_ms| queue.held_share(1, now_ms).keeps_up;
    queue.push(message(1, "a"));
    assert!(keeps_up(&queue, 500) && !keeps_up(&queue, 501), "its oldest event is old");
    let body = bodies(&mut queue, 0).remove(0);
    assert!(!keeps_up(&queue, 501), "in flight");
    queue.complete_attempt(body.id, FAILED, 10, 0.0);
    assert!(!keeps_up(&queue, 10), "its last attempt failed");
    let body = bodies(&mut queue, WINDOW_MS - 1).remove(0);
    queue.complete_attempt(body.id, AttemptOutcome::Delivered, WINDOW_MS, 0.0);
    assert!(keeps_up(&queue, WINDOW_MS) && queue.is_clean());
}

#[test]
fn a_hold_that_ends_takes_its_events_with_it() {
    let mut queue = new_queue();
    for n in 0..10 {
        queue.push(PendingDelivery { hold: n % 2, ..message(n, &format!("c{n}")) });
    }
    let body = bodies(&mut queue, 0).remove(0);
    (10..20).for_each(|n| queue.push(PendingDelivery { hold: n % 2, ..message(n, &format!("c{n}")) }));
    assert_eq!(queue.in_flight_of(1), 5);
    queue.remove_hold(1);
    let finished = queue.complete_attempt(body.id, AttemptOutcome::Delivered, 0, 0.0);
    assert!(finished.iter().all(|finished| finished.delivery.hold == 0) && finished.len() == 5);
    let body = bodies(&mut queue, 0).remove(0);
    assert_eq!(records(&body), [10, 12, 14, 16, 18]);
    queue.remove_hold(0);
    assert!(queue.complete_attempt(body.id, FAILED, 0, 0.0).is_empty() && queue.is_clean());
}

proptest! {
    /// For any outcomes, evictions and ended holds: every event of a living hold ends exactly once, delivered events of
    /// a channel are in order, and the queue ends empty.
    #[test]
    fn every_event_ends_once_and_in_order(
        steps in proptest::collection::vec((0_u8..10, 0_u64..6, any::<u16>()), 1..300),
    ) {
        let mut queue = new_queue();
        let (mut now, mut pushed, mut ended) = (0, 0, BTreeMap::new());
        let mut in_flight: Vec<WebhookBatch> = Vec::new();
        let mut delivered: Vec<(u64, u64)> = Vec::new();
        let mut end = |finished: Vec<FinishedDelivery>| {
            for finished in finished {
                let (record, channel) = (finished.delivery.record, finished.delivery.outgoing.channel.clone());
                *ended.entry(record).or_insert(0) += 1;
                if finished.dropped.is_none() {
                    let channel = channel.as_str()[1..].parse().unwrap_or(0);
                    delivered.push((channel, record));
                }
            }
        };
        for (step, channel, random) in steps {
            match step {
                0..4 => {
                    pushed += 1;
                    let kind = if random % 3 == 0 { EventKind::ChannelOccupied } else { EventKind::CacheMiss };
                    let hold = channel % 2;
                    queue.push(PendingDelivery { hold, since_ms: now, ..delivery(pushed, &format!("c{channel}"), kind) });
                }
                4 => now += u64::from(random),
                5 => {
                    let (batches, expired) = queue.take_due(now);
                    in_flight.extend(batches);
                    end(expired);
                }
                6..9 if !in_flight.is_empty() => {
                    let batch = in_flight.swap_remove(usize::from(random) % in_flight.len());
                    let outcome = match random % 4 {
                        0 => UNANSWERED,
                        1 => AttemptOutcome::Failed { answered: true, retry_after_ms: Some(1_000) },
                        _ => AttemptOutcome::Delivered,
                    };
                    end(queue.complete_attempt(batch.id, outcome, now, f64::from(random) / 65_535.0));
                }
                9 => end(queue.evict(channel % 2, usize::from(random) % 4, 0)),
                _ => {}
            }
        }
        for _ in 0..2_000 {
            if queue.is_empty() {
                break;
            }
            now += 1_000;
            let (batches, expired) = queue.take_due(now);
            in_flight.extend(batches);
            end(expired);
            for batch in in_flight.drain(..) {
                end(queue.complete_attempt(batch.id, AttemptOutcome::Delivered, now, 0.5));
            }
        }
        prop_assert!(queue.is_clean());
        prop_assert_eq!(ended, (1..=pushed).map(|record| (record, 1)).collect::<BTreeMap<_, _>>());
        let mut last = BTreeMap::new();
        for (channel, record) in delivered {
            prop_assert!(last.insert(channel, record) < Some(record), "{record} of channel {channel}");
        }
    }
}

#[test]
fn an_endpoint_that_takes_one_event_gets_bodies_of_one_also_after_successes_and_failures() {
    let mut queue = new_queue();
    queue.set_batch_limit(1);
    (0..3).for_each(|n| queue.push(message(n, "a")));
    (3..5).for_each(|n| queue.push(message(n, "b")));
    let first = bodies(&mut queue, 0);
    assert_eq!(first.iter().map(records).collect::<Vec<_>>(), [[0], [3]], "a channel is in one body at a time");
    queue.complete_attempt(first[0].id, AttemptOutcome::Delivered, 0, 1.0);
    queue.complete_attempt(first[1].id, FAILED, 0, 1.0);
    assert_eq!(bodies(&mut queue, 0).iter().map(records).collect::<Vec<_>>(), [[1]]);
    assert_eq!(bodies(&mut queue, 1_000).iter().map(records).collect::<Vec<_>>(), [[3]]);
    queue.set_batch_limit(BATCH_EVENTS_MAX);
    assert!(bodies(&mut queue, 1_000).is_empty(), "both channels are in flight");
}
