//! Connections to endpoints: a name is resolved, every address is judged, one is connected to, TLS is set up.
//!
//! In: the scheme, host and port of an endpoint, and its egress class. Out: a connection, or the phase that failed with its
//! reason. Every phase has a time limit and is cancelled with its attempt. Must not know requests.

pub mod connector;
pub mod phase;
pub mod resolver;
