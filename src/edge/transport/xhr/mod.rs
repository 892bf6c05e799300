//! pusher-js's HTTP fallbacks, `xhr_streaming` and `xhr_polling`.
//!
//! In: receives and sends of one client, each a request of its own. Out: one session that outlives its requests.
//! [`http`] answers requests, [`session`] keeps sessions between them. This room must not know how a request is relayed.

pub(crate) mod http;
pub(crate) mod session;
