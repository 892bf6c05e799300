//! The transports by which clients connect: WebSocket, pusher-js's HTTP fallbacks, and `SockJS`.
//!
//! In: sockets and requests. Out: one session and one connection each, whatever the transport. What a transport needs of
//! other processes it reads from [`session_ownership`]; it must not know how a request is relayed.

pub(crate) mod inbox;
pub(crate) mod session_ownership;
pub(crate) mod sockjs;
pub(crate) mod websocket;
pub(crate) mod xhr;
