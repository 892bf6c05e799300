//! The transports by which clients connect: WebSocket, pusher-js's HTTP fallbacks, and `SockJS`.
//!
//! In: sockets and requests. Out: one session and one connection each, whatever the transport: [`socket`] and
//! [`http_session`] have the loops that run them. A transport reads from [`session_ownership`] whether another process
//! has a session; it must not know how a request is relayed.

pub(crate) mod context;
pub(crate) mod http_session;
pub(crate) mod inbox;
pub(crate) mod reorder;
pub(crate) mod session_ownership;
pub(crate) mod session_timers;
pub(crate) mod socket;
pub(crate) mod sockjs;
pub(crate) mod websocket;
pub(crate) mod xhr;
