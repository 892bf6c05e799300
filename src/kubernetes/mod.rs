//! Calls to the API server: applies, repairs and deletes objects, and keeps leases.
//!
//! In: rendered objects and their owner. Out: the same objects on the API server, or an error. Only objects of the given
//! owner are written or deleted; a repair holds for the version that was read.
//!
//! This room must not know the content of objects: it treats every object alike.

pub mod apply;
pub mod call_metrics;
pub mod client;
pub mod lease;
pub mod lease_store;
pub mod scope;
pub mod watch;
