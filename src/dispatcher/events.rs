//! An event on its way through a shard's pipeline.

use crate::protocol::record::{EventKind, RecordedEvent};
use crate::protocol::{AppId, ChannelName};

/// An event with what the pipeline must know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackedEvent {
    /// The tracker's number of the record that it came in.
    pub record: u64,
    /// Whose.
    pub app: AppId,
    /// Where.
    pub channel: ChannelName,
    /// What.
    pub event: RecordedEvent,
}

/// Where an order holds: the channels of two apps may share a name.
pub type ChannelKey = (AppId, ChannelName);

impl TrackedEvent {
    /// The app and channel.
    #[must_use]
    pub fn channel_key(&self) -> ChannelKey {
        (self.app.clone(), self.channel.clone())
    }

    /// Whose state the event tells: a user's, or with `None` the channel's own.
    #[must_use]
    pub fn subject_user_id(&self) -> Option<&str> {
        match &self.event.kind {
            EventKind::MemberAdded { user_id } | EventKind::MemberRemoved { user_id } => Some(user_id),
            _ => None,
        }
    }

    /// Whether it says that its subject went.
    #[must_use]
    pub fn is_departure(&self) -> bool {
        matches!(self.event.kind, EventKind::ChannelVacated | EventKind::MemberRemoved { .. })
    }

    /// Whether it says that its subject came.
    #[must_use]
    pub fn is_arrival(&self) -> bool {
        matches!(self.event.kind, EventKind::ChannelOccupied | EventKind::MemberAdded { .. })
    }
}
