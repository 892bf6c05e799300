//! Wire formats, pure: what goes over a socket, into a record and out in a webhook.
//!
//! In: bytes and values. Out: values and bytes, or an error that says what was wrong. Here stand the Pusher frames and
//! close codes, the frames of the HTTP fallbacks, the three signatures, the Kinesis record, the webhook body, and the
//! one list of transports, and which origins fit a pattern. Edge, dispatcher and probe share this room and nothing else, so that the probe judges the
//! servers by the wire alone.
//!
//! This room must not know I/O, clocks or configuration: whoever calls passes the time.

pub mod admin;
pub mod channel;
pub mod fallback;
pub mod frame;
pub mod names;
pub mod origin;
pub mod record;
pub mod registry;
pub mod relay;
pub mod rest;
pub mod signature;
pub mod sockjs;
pub mod transport;
pub mod webhook;

pub use channel::{ChannelKind, ChannelName};
pub use names::{AppId, AppKey, Secret, ShardId, SocketId, StreamName};
pub use transport::Transport;
