//! The API server: objects are applied, repaired and removed, leases are kept.
//!
//! In: objects as they should be, and whose they are. Out: the same objects on the API server, or why not. Only what
//! belongs to the given owner is written or removed; what others added to it is found and taken out.
//!
//! This room must not know what is applied: it treats every object alike.

pub mod apply;
pub mod client;
pub mod foreign_fields;
pub mod lease;
pub mod lease_store;
