//! Clients of each transport: the prober's own, which know the servers by the wire alone.
//!
//! In: a pod's or a route's address, an app's credentials. Out: frames that a session received, or the hop that broke.
//! This room must not know pods, plans or schedules; the transports share the types of [`link`] and nothing else.

pub(super) mod client;
mod fallback;
mod http_reader;
pub(super) mod link;
mod sockjs;
pub(super) mod target;
mod websocket;
