//! The listeners and the routes of an edge.
//!
//! In: connections of clients and of other processes. Out: requests for the HTTP API, the transports and the relay, each
//! bounded in size and time. This room must not know channels, nor how an edge starts and stops.

mod bounded_body;
pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod proxy_protocol;
pub(crate) mod router;
pub(crate) mod session_routes;
