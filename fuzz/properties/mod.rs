//! What must hold of every parser for any bytes: it answers, what it read can be written and read again as the same, and
//! what it makes of an input is bounded by the input.
//!
//! A fuzzer calls these with bytes of its own; `tests/it/fuzz.rs` with the bytes that are kept in `fuzz/corpus/`. Each
//! function panics where something does not hold.

use super::protocol;

pub mod bus_frame;
pub mod channel_name;
pub mod client_message;
pub mod fallback;
pub mod forwarded;
pub mod origin;
pub mod proxy_header;
pub mod record;
pub mod registry;
pub mod relay_header;
pub mod signature;
pub mod sockjs;
pub mod sockjs_route;

/// A property by the name of its target and of the folder of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every property.
pub const TARGETS: &[Target] = &[
    ("bus_frame", bus_frame::check),
    ("channel_name", channel_name::check),
    ("client_message", client_message::check),
    ("fallback", fallback::check),
    ("forwarded", forwarded::check),
    ("origin", origin::check),
    ("proxy_header", proxy_header::check),
    ("record", record::check),
    ("registry", registry::check),
    ("relay_header", relay_header::check),
    ("signature", signature::check),
    ("sockjs", sockjs::check),
    ("sockjs_route", sockjs_route::check),
];
