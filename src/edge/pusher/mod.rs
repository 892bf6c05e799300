//! The Pusher protocol of one connection; it knows no transport.

pub(crate) mod authorize;
pub(crate) mod connection;
pub(crate) mod pending_subscriptions;
pub(crate) mod sign_in;
