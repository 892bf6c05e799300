//! The gate: decides from evidence whether a cluster is operational. Pure.
//!
//! In: finished journeys, the configuration that every process reports, and the targets to be proven: transports, pods,
//! shards, dispatchers, paths from outside. Out: a verdict in one line, with the transport, the hop and, where one is to blame, the variable.
//! Unknown, stale, skipped and void all count as *not ready*.
//!
//! This room must not know clients, clocks or Kubernetes: the caller passes the times.

mod checks;
mod config_drift;
mod coverage;
mod coverage_targets;
mod dead_letter;
mod decision;
mod evidence;
mod external;
mod hop;
mod journey;
mod journey_history;
mod loss_window;
mod phase;
mod policy;
mod registry_history;
mod target_index;
mod verdict;

pub use config_drift::{ConfigDrift, ExpectedConfig, find_drifts};
pub use coverage_targets::CoverageTargets;
pub use dead_letter::DeadLetterProof;
pub use evidence::{Evidence, ProcessProof, RestoredProof};
pub use external::{ExternalTargets, ExternalVerdict};
pub use hop::Hop;
pub use journey::{HopFailure, Journey, JourneyOutcome};
pub use phase::GatePhase;
pub use policy::{GatePolicy, RoundPace, RoundState};
pub use registry_history::{RegistryHistory, RegistryReading};
pub use verdict::{TransportVerdict, Verdict};
