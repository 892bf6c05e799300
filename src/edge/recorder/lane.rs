//! One lane of the queue: the events of its keys. Pure.
//!
//! Events in flight stay at the front of their key and count as queued until the stream acknowledges them. A refusal
//! only clears the in-flight mark: they are sent again before anything newer of their key, perhaps together with it.
//!
//! No call does more than the work of one record, because sockets wait for the lane's lock meanwhile.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::event::{DropRank, DroppedEvent, RecordableEvent};
use super::limits::{QueueLimits, compute_backoff};
use crate::bus::{ChannelKey, Receipt};
use crate::edge::drop_reason::DropReason;
use crate::protocol::AppId;
use crate::protocol::record::{EventOrder, EventTopic};

/// Bounds the bytes that a record's envelope adds to its events: a generous estimate.
const RECORD_ENVELOPE_BYTES: usize = 768;

/// Bounds the events between the two halves of a pair that is searched for, because sockets wait for the lane meanwhile.
const PAIR_DISTANCE_MAX: usize = 64;

/// The events of one key that go into one record.
#[derive(Clone, Debug)]
pub struct OutgoingRecord {
    /// The key of the record.
    pub subject: Arc<ChannelKey>,
    /// The events as JSON, oldest first.
    pub events: Vec<Bytes>,
}

/// The room that a batch has left.
#[derive(Clone, Copy, Debug)]
pub struct BatchBudget {
    records: usize,
    bytes: usize,
    /// Records of keys that were refused before.
    refused: usize,
    is_empty: bool,
}

impl BatchBudget {
    /// The room of an empty batch. Keys that were refused before fill at most half of it, so that a hot shard does not
    /// delay the others.
    pub fn new(limits: &QueueLimits) -> Self {
        let (records, bytes) = (limits.batch_records, limits.batch_bytes);
        Self { records, bytes, refused: records.div_ceil(2), is_empty: true }
    }

    /// The room of a batch by which a lane tries whether the stream is available again.
    pub fn of_trial(limits: &QueueLimits) -> Self {
        Self { bytes: limits.trial_bytes, ..Self::new(limits) }
    }
}

/// The events that a lane removed, because the stream acknowledged their record.
#[derive(Debug, Default)]
#[must_use = "the receipts are acknowledged, and the app's share becomes smaller"]
pub struct CompletedRecord {
    /// Number of completed events.
    pub events: usize,
    /// Bytes of these events.
    pub bytes: usize,
    /// Receipts of those that the bus decided.
    pub receipts: Vec<Receipt>,
}

struct QueuedEvent {
    serial: u64,
    at_ms: u64,
    event: RecordableEvent,
}

#[derive(Default)]
struct KeyBacklog {
    /// Boxed, because events are removed from the middle.
    events: VecDeque<Box<QueuedEvent>>,
    /// Number of events at the front that are in flight.
    in_flight: usize,
    refusals: u32,
    /// The key's entry in the lane's schedule, if it has one.
    due: Option<(u64, u64)>,
    /// The highest order that was queued here.
    highest: Option<EventOrder>,
    latest: LatestEvents,
}

/// The order and the serial of the latest event of each topic: by the bus's order, or else by arrival.
type LatestEvents = HashMap<EventTopic, (Option<EventOrder>, u64)>;

/// The droppable events of one app, by rank and oldest first: events that are not in flight.
type Droppable = [BTreeMap<u64, Arc<ChannelKey>>; DropRank::ALL.len()];

/// Keys by the earliest time at which each may be sent.
type Schedule = BTreeMap<(u64, u64), Arc<ChannelKey>>;

/// One lane. A key is in a schedule exactly while it has events and none of them is in flight.
pub struct Lane {
    limits: QueueLimits,
    backlogs: HashMap<Arc<ChannelKey>, KeyBacklog>,
    /// Keys that the stream did not refuse.
    fresh: Schedule,
    /// Keys that the stream refused.
    refused: Schedule,
    droppable: HashMap<AppId, Droppable>,
    serial: u64,
}

impl Lane {
    /// Creates an empty lane.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            backlogs: HashMap::new(),
            fresh: Schedule::new(),
            refused: Schedule::new(),
            droppable: HashMap::new(),
            serial: 0,
        }
    }

    /// Queues an event, and returns whether the lane has something to send earlier than before. `serial` is the event's age
    /// among the events of all lanes.
    pub fn push(&mut self, subject: &ChannelKey, event: RecordableEvent, serial: u64, now: u64) -> bool {
        let due_before = self.next_due();
        let known = self.backlogs.get_key_value(subject).map(|(subject, _)| subject.clone());
        let subject = known.unwrap_or_else(|| Arc::new(subject.clone()));
        let backlog = self.backlogs.entry(subject.clone()).or_default();
        let place = backlog.insertion_index(event.order);
        backlog.highest = backlog.highest.max(event.order);
        let droppable = self.droppable.entry(subject.app.clone()).or_default();
        add_droppable(droppable, &mut backlog.latest, &subject, serial, &event);
        backlog.events.insert(place, Box::new(QueuedEvent { serial, at_ms: now, event }));
        self.schedule_key(&subject);
        self.next_due().is_some_and(|due| due_before.is_none_or(|before| due < before))
    }

    /// Takes the next due record that fits into the batch, earliest first.
    pub fn take_record(&mut self, now: u64, budget: &mut BatchBudget) -> Option<OutgoingRecord> {
        if budget.records == 0 {
            return None;
        }
        let first = |schedule: &Schedule| schedule.first_key_value().map(|(due, _)| *due).filter(|due| due.0 <= now);
        let refused = first(&self.refused).filter(|_| budget.refused > 0);
        let is_refused = match (first(&self.fresh), refused) {
            (None, None) => return None,
            (Some(fresh), Some(refused)) => refused < fresh,
            (_, refused) => refused.is_some(),
        };
        let schedule = if is_refused { &mut self.refused } else { &mut self.fresh };
        let entry = schedule.first_entry()?;
        let backlog = self.backlogs.get_mut(entry.get())?;
        let (count, bytes) = backlog.measure_next_record(self.limits.record_bytes);
        let bytes = bytes + RECORD_ENVELOPE_BYTES;
        if bytes > budget.bytes && !budget.is_empty {
            return None;
        }
        let subject = entry.remove();
        (backlog.due, backlog.in_flight) = (None, count);
        let droppable = self.droppable.entry(subject.app.clone()).or_default();
        let mut events = Vec::with_capacity(count);
        for queued in backlog.events.iter().take(count) {
            let rank = queued.event.rank;
            droppable[rank as usize].remove(&queued.serial);
            droppable[rank.superseded() as usize].remove(&queued.serial);
            clear_latest(&mut backlog.latest, queued);
            events.push(queued.event.json.clone());
        }
        self.remove_empty_app(&subject.app);
        budget.records -= 1;
        budget.refused -= usize::from(is_refused);
        budget.bytes = budget.bytes.saturating_sub(bytes);
        budget.is_empty = false;
        Some(OutgoingRecord { subject, events })
    }

    /// Applies the stream's answer to a record. `jitter` is from 0 to 1.
    pub fn complete_record(
        &mut self,
        subject: &ChannelKey,
        acknowledged: bool,
        now: u64,
        jitter: f64,
    ) -> CompletedRecord {
        let Some((subject, _)) = self.backlogs.get_key_value(subject) else { return CompletedRecord::default() };
        let subject = subject.clone();
        let Some(backlog) = self.backlogs.get_mut(&subject) else { return CompletedRecord::default() };
        let count = std::mem::take(&mut backlog.in_flight);
        if acknowledged {
            backlog.refusals = 0;
            let mut completed = CompletedRecord { events: count, ..CompletedRecord::default() };
            for queued in backlog.events.drain(..count) {
                completed.bytes += queued.event.len();
                completed.receipts.extend(queued.event.receipt);
            }
            if backlog.events.is_empty() {
                self.backlogs.remove(&subject);
            } else {
                self.schedule_key(&subject);
            }
            return completed;
        }
        backlog.refusals = backlog.refusals.saturating_add(1);
        let wait = compute_backoff(self.limits.backoff_ms, self.limits.max_backoff_ms, backlog.refusals, jitter);
        let droppable = self.droppable.entry(subject.app.clone()).or_default();
        for queued in backlog.events.iter().take(count) {
            add_droppable(droppable, &mut backlog.latest, &subject, queued.serial, &queued.event);
        }
        self.put_on_schedule(&subject, now + wait);
        CompletedRecord::default()
    }

    /// Returns the time at which the lane next has something to send.
    pub fn next_due(&self) -> Option<u64> {
        let first = |schedule: &Schedule| schedule.first_key_value().map(|(&(due, _), _)| due);
        [first(&self.fresh), first(&self.refused)].into_iter().flatten().min()
    }

    /// Returns the rank and the serial of the event of an app that is dropped first.
    pub fn first_droppable(&self, app: &AppId) -> Option<(DropRank, u64)> {
        let droppable = self.droppable.get(app)?;
        let first = |rank: DropRank| droppable[rank as usize].first_key_value().map(|(serial, _)| (rank, *serial));
        DropRank::ALL.into_iter().find_map(first)
    }

    /// Drops the first droppable event of an app, and returns it with its bytes. A state goes together with the opposite
    /// one that follows, where that is queued: a receiver that gets neither of them ends with the same state, while one
    /// half alone would report a departure without its arrival.
    pub fn drop_first(&mut self, app: &AppId) -> Vec<(DroppedEvent, usize)> {
        let Some((rank, serial)) = self.first_droppable(app) else { return Vec::new() };
        let other = self.find_other_half(app, rank, serial);
        let other = other.and_then(|(rank, serial)| self.drop_event(app, rank, serial, DropReason::Compacted));
        self.drop_event(app, rank, serial, rank.drop_reason()).into_iter().chain(other).collect()
    }

    /// Drops client events that exceeded their age limit, at most this many. Returns each with its app and its bytes.
    pub fn drop_expired(&mut self, now: u64, most: usize) -> Vec<(AppId, DroppedEvent, usize)> {
        let mut dropped = Vec::new();
        let apps: Vec<AppId> = self.droppable.keys().cloned().collect();
        for app in apps {
            for rank in DropRank::ALL.into_iter().filter(|rank| rank.can_expire()) {
                while dropped.len() < most
                    && let Some(serial) = self.find_expired(&app, rank, now)
                {
                    let event = self.drop_event(&app, rank, serial, DropReason::Expired);
                    dropped.extend(event.map(|(event, bytes)| (app.clone(), event, bytes)));
                }
            }
        }
        dropped
    }

    /// Number of events that a bus keeps, and number of the others.
    pub fn count_by_receipt(&self) -> (usize, usize) {
        let events = self.backlogs.values().flat_map(|backlog| &backlog.events);
        let is_kept = |receipt: &Option<Receipt>| receipt.as_ref().is_some_and(Receipt::is_kept);
        events.fold(
            (0, 0),
            |(kept, others), queued| {
                if is_kept(&queued.event.receipt) { (kept + 1, others) } else { (kept, others + 1) }
            },
        )
    }

    /// Finds the event that ends the state of a superseded one, by rank and serial.
    fn find_other_half(&self, app: &AppId, rank: DropRank, serial: u64) -> Option<(DropRank, u64)> {
        if rank != DropRank::SupersededState {
            return None;
        }
        let droppable = self.droppable.get(app)?;
        let backlog = self.backlogs.get(droppable[rank as usize].get(&serial)?)?;
        let other = backlog.find_other_half(serial)?.serial;
        let rank = [DropRank::SupersededState, DropRank::State];
        rank.into_iter().find(|rank| droppable[*rank as usize].contains_key(&other)).map(|rank| (rank, other))
    }

    fn find_expired(&self, app: &AppId, rank: DropRank, now: u64) -> Option<u64> {
        let (serial, subject) = self.droppable.get(app)?[rank as usize].first_key_value()?;
        let (_, queued) = self.backlogs.get(subject)?.find_event(*serial)?;
        (now.saturating_sub(queued.at_ms) >= self.limits.client_event_ms).then_some(*serial)
    }

    fn drop_event(
        &mut self,
        app: &AppId,
        rank: DropRank,
        serial: u64,
        reason: DropReason,
    ) -> Option<(DroppedEvent, usize)> {
        let subject = self.droppable.get_mut(app)?[rank as usize].remove(&serial)?;
        self.remove_empty_app(app);
        let backlog = self.backlogs.get_mut(&subject)?;
        let (place, _) = backlog.find_event(serial)?;
        let queued = backlog.events.remove(place)?;
        clear_latest(&mut backlog.latest, &queued);
        if backlog.events.is_empty() {
            if let Some(due) = backlog.due {
                self.fresh.remove(&due);
                self.refused.remove(&due);
            }
            self.backlogs.remove(&subject);
        }
        let bytes = queued.event.len();
        Some((DroppedEvent { reason, receipt: queued.event.receipt }, bytes))
    }

    fn remove_empty_app(&mut self, app: &AppId) {
        if self.droppable.get(app).is_some_and(|droppable| droppable.iter().all(BTreeMap::is_empty)) {
            self.droppable.remove(app);
        }
    }

    /// Schedules a key that has events, none of them in flight, and no schedule entry yet.
    fn schedule_key(&mut self, subject: &Arc<ChannelKey>) {
        let Some(backlog) = self.backlogs.get(subject) else { return };
        if backlog.in_flight > 0 || backlog.due.is_some() {
            return;
        }
        let Some(first) = backlog.events.front() else { return };
        let due = first.at_ms + self.limits.linger_ms;
        self.put_on_schedule(subject, due);
    }

    fn put_on_schedule(&mut self, subject: &Arc<ChannelKey>, due: u64) {
        self.serial += 1;
        let entry = (due, self.serial);
        if let Some(backlog) = self.backlogs.get_mut(subject) {
            backlog.due = Some(entry);
            let schedule = if backlog.refusals > 0 { &mut self.refused } else { &mut self.fresh };
            schedule.insert(entry, subject.clone());
        }
    }

    /// Whether nothing is left in any of its tables.
    #[cfg(test)]
    pub fn is_clean(&self) -> bool {
        self.backlogs.is_empty() && self.droppable.is_empty() && self.fresh.is_empty() && self.refused.is_empty()
    }
}

impl KeyBacklog {
    /// The index of a new event: at the end, but before queued state events that the bus decided later. Two connections may
    /// record transitions in another order than the bus decided them.
    fn insertion_index(&self, order: Option<EventOrder>) -> usize {
        let end = self.events.len();
        // In most cases nothing later is queued: a search through thousands of events would hold the lock for long.
        let Some(order) = order.filter(|order| self.highest > Some(*order)) else { return end };
        let later = |queued: &QueuedEvent| queued.event.order.is_some_and(|other| other > order);
        (self.in_flight..end).find(|&place| later(&self.events[place])).unwrap_or(end)
    }

    fn find_event(&self, serial: u64) -> Option<(usize, &QueuedEvent)> {
        let waiting = self.events.iter().enumerate().skip(self.in_flight);
        waiting.map(|(place, queued)| (place, &**queued)).find(|(_, queued)| queued.serial == serial)
    }

    /// Finds the opposite event that follows in the bus's order. Every number between the two is queued here, so that
    /// neither this edge nor another one has an event of the same state between them.
    fn find_other_half(&self, serial: u64) -> Option<&QueuedEvent> {
        let (place, first) = self.find_event(serial)?;
        let mut last = first.event.order?;
        for queued in self.events.iter().skip(place + 1).take(PAIR_DISTANCE_MAX) {
            let Some(order) = queued.event.order else { continue };
            if order.epoch != last.epoch || order.seq != last.seq + 1 {
                return None;
            }
            last = order;
            if queued.event.topic == first.event.topic {
                return queued.event.is_opposite_of(&first.event).then_some(&**queued);
            }
        }
        None
    }

    /// Returns the number of events in the next record, and their bytes.
    fn measure_next_record(&self, most: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for queued in &self.events {
            if count > 0 && bytes + queued.event.len() > most {
                break;
            }
            count += 1;
            bytes += queued.event.len();
        }
        (count, bytes)
    }
}

/// Adds an event to its rank and updates the latest event of its topic.
fn add_droppable(
    droppable: &mut Droppable,
    latest: &mut LatestEvents,
    subject: &Arc<ChannelKey>,
    serial: u64,
    event: &RecordableEvent,
) {
    let mut rank = event.rank;
    if let Some(topic) = &event.topic {
        let own = (event.order, serial);
        match latest.entry(topic.clone()) {
            Entry::Vacant(latest) => {
                latest.insert(own);
            }
            Entry::Occupied(mut latest) if *latest.get() < own => {
                let (_, before) = latest.insert(own);
                droppable[rank as usize].remove(&before);
                droppable[rank.superseded() as usize].insert(before, subject.clone());
            }
            Entry::Occupied(_) => rank = rank.superseded(),
        }
    }
    droppable[rank as usize].insert(serial, subject.clone());
}

/// Removes an event as the latest of its topic, if it is.
fn clear_latest(latest: &mut LatestEvents, queued: &QueuedEvent) {
    let Some(topic) = &queued.event.topic else { return };
    if latest.get(topic).is_some_and(|(_, serial)| *serial == queued.serial) {
        latest.remove(topic);
    }
}
