//! The transports that clients connect by: each feeds one session.

pub(crate) mod inbox;
pub(crate) mod sockjs;
pub(crate) mod websocket;
pub(crate) mod xhr;
