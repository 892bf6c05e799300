//! A Kubernetes operator for realtime clusters, and the data plane that it deploys.
//!
//! The rooms, lowest floor first; a room imports only from floors below it (a test holds this):
//!

pub mod contract;
pub mod protocol;
