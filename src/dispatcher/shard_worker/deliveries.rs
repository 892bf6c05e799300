//! The deliveries of a held shard: the fan-out of released events to endpoints, evictions, and outcomes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ShardWorker;
use crate::dispatcher::checkpoint_tracker::{UNFINISHED_BYTES_MAX, UNFINISHED_EVENTS_MAX};
use crate::dispatcher::dead_letter::Loss;
use crate::dispatcher::endpoint::pool::FinishedAt;
use crate::dispatcher::endpoint::share::EventAmount;
use crate::dispatcher::endpoint::{EndpointId, OutgoingEvent};
use crate::dispatcher::events::TrackedEvent;
use crate::dispatcher::ledger::DeliveryHop;
use crate::dispatcher::reasons::SkipReason;
use crate::protocol::registry::WebhookEndpoint;

/// Least interval between two evictions from endpoints that are behind.
const EVICTION_INTERVAL_MS: u64 = 100;
/// Unfinished deliveries of a shard to endpoints that keep up, beyond which no record is taken. More would only take memory:
/// these endpoints take a thousand a second and more, the rate of a shard.
const READY_DELIVERIES_MAX: usize = 500;
/// Least interval between two looks at all endpoints for room.
const ROOM_LOOK_INTERVAL_MS: u64 = 20;

impl ShardWorker {
    /// Queues an event whose turn has come to every endpoint that subscribes to it.
    pub fn fan_out(&mut self, event: TrackedEvent) {
        let Some(app) = self.registry.by_id(&event.app) else {
            self.tracker.park_event(event.record);
            for evicted in self.unknown_apps.push(event, self.mono_ms()) {
                self.give_up_unknown_app(evicted);
            }
            return;
        };
        let wants = |it: &&WebhookEndpoint| it.wants_event(event.event.kind.name(), event.channel.as_str());
        let targets: Vec<EndpointId> = app
            .webhooks
            .iter()
            .filter(wants)
            .map(|it| EndpointId { app: event.app.clone(), endpoint: it.name.clone() })
            .collect();
        let disabled = app.disabled_webhooks.iter().filter(wants).count();
        self.resources.metrics.count_skipped(SkipReason::EndpointDisabled, disabled);
        let record = event.record;
        self.tracker.add_deliveries(record, targets.len());
        self.resources.metrics.count_released(targets.len());
        self.held_deliveries += targets.len();
        self.room = self.room.saturating_sub(targets.len());
        if !targets.is_empty() {
            let outgoing = Arc::new(OutgoingEvent::of_event(event));
            for target in targets {
                self.hold.push(&target, record, Arc::clone(&outgoing));
            }
        }
        // The event itself is done: its deliveries count in its place.
        self.tracker.finish_event(record);
    }

    /// Updates the number of deliveries that may be queued. Those to endpoints that are slow or fail do not count: the
    /// others must not wait for them.
    pub(super) fn update_room(&mut self) {
        let now = self.mono_ms();
        if self.held_deliveries < READY_DELIVERIES_MAX {
            self.room = READY_DELIVERIES_MAX - self.held_deliveries;
        } else if !self.page.is_empty() && self.room == 0 && now >= self.next_room_ms {
            self.next_room_ms = now + ROOM_LOOK_INTERVAL_MS;
            self.room = READY_DELIVERIES_MAX.saturating_sub(self.hold.count_keeping_up());
        }
    }

    /// Drops events of endpoints that are behind, once they hold more than half of a bound together: the other endpoints
    /// must not wait for them.
    pub(super) fn evict_excess(&mut self) {
        let now = self.mono_ms();
        let is_budget_short = self.resources.budget.is_half_used();
        if !(self.tracker.is_half_full() || is_budget_short) || now < self.next_eviction_ms {
            return;
        }
        self.next_eviction_ms = now + EVICTION_INTERVAL_MS;
        let mut most = EventAmount { events: UNFINISHED_EVENTS_MAX / 2, bytes: UNFINISHED_BYTES_MAX / 2 };
        if is_budget_short {
            let held = self.resources.held_shards.load(Ordering::Relaxed);
            most.bytes = most.bytes.min(self.resources.budget.share_behind(held));
        }
        for finished in self.hold.evict_excess(most) {
            self.complete_delivery(finished);
        }
    }

    /// Completes a finished delivery, and all others that are known by now.
    pub fn complete_deliveries(&mut self, first: FinishedAt) {
        let (mut next, mut delivered) = (Some(first), 0);
        while let Some(finished) = next {
            delivered += usize::from(self.complete_delivery(finished));
            next = self.hold.take_finished();
        }
        self.resources.metrics.count_deliveries(DeliveryHop::Delivered, delivered);
    }

    /// Completes a finished delivery. Returns whether the endpoint took the event, which the caller counts.
    fn complete_delivery(&mut self, finished: FinishedAt) -> bool {
        let record = finished.1.delivery.record;
        self.held_deliveries = self.held_deliveries.saturating_sub(1);
        if finished.1.dropped.is_some() {
            let is_kept = self.losses.keeps_letters();
            self.resources.metrics.endpoints.count_lost(&finished.0.app, &finished.0.endpoint, is_kept);
        }
        if let Some(loss) = Loss::of_delivery(finished) {
            self.give_up(record, loss);
            return false;
        }
        self.tracker.finish_event(record);
        true
    }
}
