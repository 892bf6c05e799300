//! An event in a shard's pipeline.

use crate::protocol::record::{EventKind, RecordedEvent};
use crate::protocol::{AppId, ChannelName};

/// Identifies one hold of a shard by this process; another hold of the same shard has another number.
pub type ShardSlot = u64;

/// The slot of events of a shard that this process does not hold.
pub const FOREIGN_SLOT: ShardSlot = 0;
/// The number of records that were read again to learn their order: no tracker has it open.
pub const HISTORY_RECORD: u64 = u64::MAX;

/// An event with its record, app and channel.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackedEvent {
    /// The hold of the shard that the event was read from.
    pub slot: ShardSlot,
    /// The number of the event's record in the tracker of that shard.
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
