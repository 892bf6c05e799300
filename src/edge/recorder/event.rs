//! An event on its path to the stream: its bytes, its rank when the queue is full, and its receipt. Pure.

use bytes::Bytes;

use crate::bus::Receipt;
use crate::edge::drop_reason::DropReason;
use crate::protocol::record::{EventKind, EventOrder, EventTopic, RecordedEvent};

/// An event that was serialised once; records share its bytes.
#[derive(Debug)]
pub struct RecordableEvent {
    /// The event as JSON, in the form of a record.
    pub json: Bytes,
    /// Its rank when the queue is full.
    pub rank: DropRank,
    /// The state of which it is a version.
    pub topic: Option<EventTopic>,
    /// Its position among the channel's state events.
    pub order: Option<EventOrder>,
    /// Whether it begins a state, which an opposite event ends.
    pub is_arrival: bool,
    /// Acknowledges it to the bus, if the bus decided it.
    pub receipt: Option<Receipt>,
}

impl RecordableEvent {
    /// Serialises an event, once.
    pub fn new(event: &RecordedEvent, receipt: Option<Receipt>) -> Self {
        // Values of this type always serialise; an empty event would make a record that is dead-lettered.
        // Without the spare room of a vector that grew by doubling: a full queue would take up to twice its bound.
        let json = Bytes::from(serde_json::to_vec(event).unwrap_or_default().into_boxed_slice());
        let topic = EventTopic::of_kind(&event.kind);
        let is_arrival = matches!(event.kind, EventKind::ChannelOccupied | EventKind::MemberAdded { .. });
        Self { json, rank: DropRank::of_topic(topic.as_ref()), topic, order: event.order, is_arrival, receipt }
    }

    /// Whether the other event ends the state that this one begins, or the reverse.
    pub fn is_opposite_of(&self, other: &Self) -> bool {
        self.topic.is_some() && self.topic == other.topic && self.is_arrival != other.is_arrival
    }

    /// Bytes that the event adds to a record.
    pub fn len(&self) -> usize {
        self.json.len() + 1
    }
}

/// An event that the queue dropped.
#[must_use = "a drop is counted and its receipt acknowledged"]
#[derive(Debug)]
pub struct DroppedEvent {
    /// Why it never reaches the stream.
    pub reason: DropReason,
    /// Its receipt, to be acknowledged.
    pub receipt: Option<Receipt>,
}

/// The order in which events are dropped when the queue is full; of one rank the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropRank {
    /// A subscription count that a later one has replaced.
    SupersededCount,
    /// A client event, or a cache miss.
    Client,
    /// The latest subscription count of a channel.
    Count,
    /// A state that a later one has ended.
    SupersededState,
    /// The latest state, with which a receiver must end.
    State,
}

impl DropRank {
    /// Every rank, the first to be dropped first.
    pub const ALL: [Self; 5] = [Self::SupersededCount, Self::Client, Self::Count, Self::SupersededState, Self::State];

    fn of_topic(topic: Option<&EventTopic>) -> Self {
        match topic {
            None => Self::Client,
            Some(EventTopic::Count) => Self::Count,
            Some(EventTopic::Occupancy | EventTopic::Member(_)) => Self::State,
        }
    }

    /// The rank of an event once a later one of the same topic is queued.
    pub fn superseded(self) -> Self {
        match self {
            Self::Count | Self::SupersededCount => Self::SupersededCount,
            Self::State | Self::SupersededState => Self::SupersededState,
            Self::Client => Self::Client,
        }
    }

    /// The reason that is counted for a drop.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::SupersededCount | Self::SupersededState => DropReason::Compacted,
            Self::Client | Self::Count => DropReason::ClientEventOverflow,
            Self::State => DropReason::StateOverflow,
        }
    }

    /// Whether events of this rank have an age limit.
    pub fn can_expire(self) -> bool {
        self < Self::SupersededState
    }
}
