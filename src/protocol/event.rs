//! An event: its kind, its place in the channel's history, and its fields as JSON has them.
//!
//! Records and webhooks hold the same fields, flat. They are parsed through [`EventFields`]: serde's own flattening keeps a
//! copy of each field until the kind is known, and a dispatcher parses every event.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ChannelName;

/// The position of a state event in its channel's history, decided by the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EventOrder {
    /// Time at which the channel's key was created, in µs of bus time.
    pub epoch: u64,
    /// Counts from 1, without gaps, one counter per channel.
    pub seq: u64,
}

/// The cause of a member's leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaveCause {
    /// Its server is draining and asked it to reconnect.
    Drain,
}

/// The kinds of webhook event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum EventKind {
    /// The first subscriber joined the channel.
    ChannelOccupied,
    /// The last subscriber left the channel.
    ChannelVacated,
    /// A user's first connection joined.
    MemberAdded {
        /// The id of the user.
        user_id: String,
    },
    /// A user's last connection left.
    MemberRemoved {
        /// The id of the user.
        user_id: String,
    },
    /// A client event was accepted.
    ClientEvent {
        /// The event's name, with its prefix.
        event: String,
        /// The payload, always text: some SDKs read nothing else.
        data: String,
        /// Socket id of the sender.
        socket_id: String,
        /// User id of the sender, on presence channels.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
    /// A client subscribed to a cache channel that has no last event.
    CacheMiss,
    /// The number of connections in a channel changed.
    SubscriptionCount {
        /// The new number of connections.
        subscription_count: u64,
    },
}

impl EventKind {
    /// Names of the state events, which the bus decides and numbers.
    pub const STATE_NAMES: [&'static str; 4] =
        ["channel_occupied", "channel_vacated", "member_added", "member_removed"];

    /// The name that webhooks and filters use.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ChannelOccupied => "channel_occupied",
            Self::ChannelVacated => "channel_vacated",
            Self::MemberAdded { .. } => "member_added",
            Self::MemberRemoved { .. } => "member_removed",
            Self::ClientEvent { .. } => "client_event",
            Self::CacheMiss => "cache_miss",
            Self::SubscriptionCount { .. } => "subscription_count",
        }
    }
}

/// A state of a channel, of which each event is one version. A full queue drops the last version last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EventTopic {
    /// The number of connections.
    Count,
    /// Whether the channel has a connection.
    Occupancy,
    /// Whether this user is a member.
    Member(Arc<str>),
}

impl EventTopic {
    /// The state that an event is a version of, if it is one.
    #[must_use]
    pub fn of_kind(kind: &EventKind) -> Option<Self> {
        match kind {
            EventKind::SubscriptionCount { .. } => Some(Self::Count),
            EventKind::ChannelOccupied | EventKind::ChannelVacated => Some(Self::Occupancy),
            EventKind::MemberAdded { user_id } | EventKind::MemberRemoved { user_id } => {
                Some(Self::Member(user_id.as_str().into()))
            }
            EventKind::ClientEvent { .. } | EventKind::CacheMiss => None,
        }
    }
}

/// A field that the kind of the event requires is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missing field `{0}`")]
pub struct MissingField(pub &'static str);

/// The name of an event's kind.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EventName {
    ChannelOccupied,
    ChannelVacated,
    MemberAdded,
    MemberRemoved,
    ClientEvent,
    CacheMiss,
    SubscriptionCount,
}

/// The fields of an event; those of its kind are present.
#[derive(Debug, Deserialize)]
pub struct EventFields {
    pub id: String,
    name: EventName,
    pub time_ms: Option<u64>,
    pub channel: Option<ChannelName>,
    epoch: Option<u64>,
    seq: Option<u64>,
    pub n: Option<u64>,
    pub cause: Option<LeaveCause>,
    user_id: Option<String>,
    event: Option<String>,
    data: Option<String>,
    socket_id: Option<String>,
    subscription_count: Option<u64>,
}

impl EventFields {
    /// The order, if both of its halves are there.
    pub fn order(&self) -> Option<EventOrder> {
        Some(EventOrder { epoch: self.epoch?, seq: self.seq? })
    }

    /// Takes the fields of the kind.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn take_kind(&mut self) -> Result<EventKind, MissingField> {
        let text = |field: &mut Option<String>, name| field.take().ok_or(MissingField(name));
        Ok(match self.name {
            EventName::ChannelOccupied => EventKind::ChannelOccupied,
            EventName::ChannelVacated => EventKind::ChannelVacated,
            EventName::MemberAdded => EventKind::MemberAdded { user_id: text(&mut self.user_id, "user_id")? },
            EventName::MemberRemoved => EventKind::MemberRemoved { user_id: text(&mut self.user_id, "user_id")? },
            EventName::ClientEvent => EventKind::ClientEvent {
                event: text(&mut self.event, "event")?,
                data: text(&mut self.data, "data")?,
                socket_id: text(&mut self.socket_id, "socket_id")?,
                user_id: self.user_id.take(),
            },
            EventName::CacheMiss => EventKind::CacheMiss,
            EventName::SubscriptionCount => EventKind::SubscriptionCount {
                subscription_count: self.subscription_count.ok_or(MissingField("subscription_count"))?,
            },
        })
    }
}
