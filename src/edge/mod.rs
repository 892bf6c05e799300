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

mod admission;
mod apps;
mod channels;
mod client;
mod connection;
mod counts;
mod drain;
mod fallback;
mod fallback_http;
mod http_api;
mod inbox;
pub mod limits;
mod listener;
mod liveness;
mod metrics;
mod order;
mod peer;
mod quota;
mod rate;
mod recorder;
mod router;
mod server;
mod session;
mod sessions;
mod shared;
mod signin;
mod sockjs;
mod stream_check;
mod subscribe;
mod together;
mod unasked;
mod user;
mod waiting;
mod websocket;

pub use server::{Dependencies, Running, StartError, StopError, start};
