//! When a cluster counts as operational. Pure.
//!
//! In: finished journeys, what every process says it runs, and what there is to be proven: transports, pods, shards,
//! dispatchers. Out: a verdict, with the transport, the hop and, where one is to blame, the variable, in one line.
//! Unknown, stale, skipped and void all read as *not ready*.
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
