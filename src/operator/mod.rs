//! The operator: makes clusters what their manifests say, and says Ready only of what is proven.
//!
//! In: `RealtimeCluster`s and `RealtimeApp`s on an API server. Out: their children, a stream, pods that are let in one by
//! one, and a status. Four controllers on one kind, each a straight line (read, validate, build, apply, observe, decide,
//! status), each with its own queue and its own part of the status, so that a slow stream stalls no rollout:
//!
//! - [`stream`] makes the stream or takes it back
//! - [`workload`] applies the children and puts back what others changed
//! - [`apps`] writes the registry
//! - [`gate`] runs journeys, lets pods in, says Ready
//!
//! This room must not know the code of edge and dispatcher: they meet in `contract`.

mod admission;
mod apps;
mod context;
mod decide;
mod dereference;
mod gate;
mod metrics;
mod paths;
mod pods;
mod receiver;
mod removal;
mod run;
mod status;
mod stream;
mod workload;

pub use run::{OperatorError, Settings, run};
