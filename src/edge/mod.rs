//! The edge server: clients on one side, the bus and the stream on the other.
//!
//! In: sockets, the HTTP fallbacks of pusher-js, and the HTTP API, all on one listener. Out: events to whoever is in
//! a channel, here and on other edges, and a record in Kinesis for everything that a webhook may tell. Transports feed
//! one [`session`] type; a [`connection`] holds the Pusher protocol and knows no transport; [`channels`] and the bus
//! spread frames; the [`recorder`] writes, and never makes a chat message wait. A request whose session another process
//! has is handed to it by [`peer`].
//!
//! Every queue is bounded, every wait has an end, every loss is counted. No lock is held across an await.
//!
//! This room must not know the operator, Kubernetes, nor who reads the stream; it treats every client alike.

pub(crate) mod apps;
pub(crate) mod http;
pub(crate) mod http_api;
pub(crate) mod hub;
pub(crate) mod metrics;
pub(crate) mod pusher;
pub(crate) mod recorder;
pub(crate) mod relay;
pub mod server;
pub(crate) mod session;
pub(crate) mod transport;

pub use server::{EdgeDependencies, RunningEdge, StartError, StopError, start};
