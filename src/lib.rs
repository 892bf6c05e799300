//! A Kubernetes operator for realtime clusters, and the data plane that it deploys.
//!
//! The rooms, lowest floor first; a room imports only from floors below it (a test holds this):
//!

pub mod api;
pub mod bus;
pub mod contract;
pub mod desired;
pub mod dispatcher;
pub mod edge;
pub mod gate;
pub mod kinesis;
pub mod probe;
pub mod protocol;
pub mod runtime;
