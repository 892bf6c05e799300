//! The Pusher protocol of one connection.
//!
//! In: the messages of one client. Out: joins, leaves, publishes and sign-ins on the hub, and the answers to the client.
//! This room must not know the transport of the connection.

pub(crate) mod authorize;
pub(crate) mod client_event;
pub(crate) mod connection;
pub(crate) mod pace;
pub(crate) mod pending_subscriptions;
pub(crate) mod sent_error;
pub(crate) mod sign_in;
