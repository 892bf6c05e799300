//! Bounds for clients before anybody knows them: bytes of unfinished input, connections, and rates.
//!
//! In: bytes that were read and that no complete request or message has used up; source addresses, with the limits of the
//! app that they connect to. Out: whether the process goes on with them, or how long they wait. This room must not know
//! requests, sockets or the bus.

pub(crate) mod app_rates;
pub(crate) mod byte_budget;
pub(crate) mod capacity;
pub(crate) mod connection_input;
pub(crate) mod sources;
