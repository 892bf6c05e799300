//! An event in a shard's pipeline.

use crate::protocol::record::{EventKind, RecordedEvent};
use crate::protocol::{AppId, ChannelName};

/// An event with its record, app and channel.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackedEvent {
    /// The tracker's number of the event's record.
    pub record: u64,
    /// The app that the event belongs to.
    pub app: AppId,
    /// The channel that changed or received it.
    pub channel: ChannelName,
    /// The event as the edge recorded it.
    pub event: RecordedEvent,
}

/// The scope of an order: two apps may have channels of one name.
pub type ChannelKey = (AppId, ChannelName);

impl TrackedEvent {
    /// The app and channel, as the key of the event's order.
    #[must_use]
    pub fn channel_key(&self) -> ChannelKey {
        (self.app.clone(), self.channel.clone())
    }

    /// The user whose state the event changes; `None` for the channel's own state.
    #[must_use]
    pub fn subject_user_id(&self) -> Option<&str> {
        match &self.event.kind {
            EventKind::MemberAdded { user_id } | EventKind::MemberRemoved { user_id } => Some(user_id),
            _ => None,
        }
    }

    /// Bytes that the event takes in memory, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let texts = match &self.event.kind {
            EventKind::MemberAdded { user_id } | EventKind::MemberRemoved { user_id } => user_id.len(),
            EventKind::ClientEvent { event, data, socket_id, user_id } => {
                event.len() + data.len() + socket_id.len() + user_id.as_ref().map_or(0, String::len)
            }
            _ => 0,
        };
        let names = self.app.as_str().len() + self.channel.as_str().len() + self.event.id.len();
        size_of::<Self>() + texts + names
    }

    /// Whether the event is a departure of its subject.
    #[must_use]
    pub fn is_departure(&self) -> bool {
        matches!(self.event.kind, EventKind::ChannelVacated | EventKind::MemberRemoved { .. })
    }

    /// Whether the event is an arrival of its subject.
    #[must_use]
    pub fn is_arrival(&self) -> bool {
        matches!(self.event.kind, EventKind::ChannelOccupied | EventKind::MemberAdded { .. })
    }
}
