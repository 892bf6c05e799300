//! pusher-js's HTTP fallbacks.

pub(crate) mod http;
pub(crate) mod reorder;
pub(crate) mod session;
