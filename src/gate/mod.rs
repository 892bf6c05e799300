//! The gate: decides from evidence whether a cluster is operational. Pure.
//!
//! In: finished journeys, the configuration that every process reports, and the targets to be proven: transports, pods,
//! shards, dispatchers. Out: a verdict in one line, with the transport, the hop and, where one is to blame, the variable.
//! Unknown, stale, skipped and void all count as *not ready*.
//!
//! This room must not know clients, clocks or Kubernetes: the caller passes the times.

mod config_drift;
mod evidence;
mod hop;
mod journey;
mod journey_history;
mod policy;
mod verdict;

pub use config_drift::{ConfigDrift, ExpectedConfig, FormerRegistry, find_drifts};
pub use evidence::{CoverageTargets, Evidence, ProcessProof};
pub use hop::Hop;
pub use journey::{HopFailure, Journey, JourneyOutcome};
pub use policy::GatePolicy;
pub use verdict::{GatePhase, TransportVerdict, Verdict};
