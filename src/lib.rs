//! A Kubernetes operator for realtime clusters, and the data plane that it deploys.
//!
//! The rooms stand on floors, and a room imports only from floors below it (a test holds this). From the ground up:
//!
//! - [`contract`]
//! - [`protocol`], [`api`], [`runtime`]
//! - [`kinesis`], [`bus`], [`kubernetes`], [`desired`], [`gate`]
//! - [`edge`], [`dispatcher`], [`probe`]
//! - [`operator`], and `rehearsal` and `bench`, which a production image leaves out
//! - [`cli`]

pub mod api;
#[cfg(feature = "bench")]
pub mod bench;
pub mod bus;
pub mod cli;
pub mod config;
pub mod desired;
pub mod dispatcher;
pub mod edge;
pub mod gate;
pub mod kinesis;
pub mod kubernetes;
pub mod migration;
pub mod operator;
pub mod prober;
pub mod process;
pub mod protocol;
#[cfg(feature = "rehearsal")]
pub mod rehearsal;
