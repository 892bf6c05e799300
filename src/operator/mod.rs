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

mod apps_controller;
mod conditions;
mod context;
mod controllers;
mod dereference;
mod finalizer;
mod gate_controller;
mod metrics;
mod pod_admission;
mod pods;
mod receiver;
mod service_routes;
mod status;
mod stream_controller;
mod workload_controller;

pub use controllers::{OperatorError, OperatorSettings, run};
