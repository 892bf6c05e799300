//! The hub: channels, their subscribers and their users, on this process and on the bus.
//!
//! In: joins, leaves, frames and sign-ins of local sessions; transitions that the bus applies on its own. Out: frames in
//! the queues of subscribers, on this process and on others, and records for webhooks. The hub must not know the Pusher
//! protocol's requests, nor a transport.

pub(crate) mod bus_events;
pub(crate) mod connection_quota;
pub(crate) mod core;
pub(crate) mod fan_out;
pub(crate) mod pending_counts;
pub(crate) mod subscribers;
pub(crate) mod subscription_count;
pub(crate) mod user_presence;
