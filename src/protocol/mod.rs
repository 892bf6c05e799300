//! Wire formats: the bytes on a socket, in a record and in a webhook.
//!
//! In: bytes and values. Out: values and bytes, or an error that says what was wrong. The room holds the Pusher frames
//! and close codes, the frames of the HTTP fallbacks, the three signatures, the Kinesis record, the webhook body, the
//! one list of transports, the patterns of allowed origins, and the addresses that webhooks may be sent to. Edge,
//! dispatcher and prober share this room and nothing else, so that the prober judges the servers by the wire alone.
//!
//! Pure. This room must not know I/O, clocks or configuration: the caller passes the time.

pub mod admin;
pub mod bus_frame;
pub mod channel;
pub mod client_json;
pub mod connection_log;
pub mod dead_letter;
pub mod egress_policy;
mod event;
pub mod fallback;
pub mod forwarded;
pub mod frame;
mod journey_app;
pub mod ledger;
pub mod ledger_balance;
pub mod names;
pub mod origin;
pub mod proxy_header;
pub mod record;
pub mod registry;
pub mod relay;
pub mod rest;
pub mod signature;
pub mod sockjs;
pub mod sockjs_route;
pub mod transport;
pub mod webhook;

pub use channel::{ChannelKind, ChannelName};
pub use journey_app::derive_journey_app;
pub use names::{AppId, AppKey, Secret, ShardId, SocketId, StreamName};
pub use transport::Transport;
