//! When a cluster counts as operational. Pure.
//!
//! In: finished journeys, what every process says it runs, and what there is to be proven: transports, pods, shards,
//! dispatchers. Out: a verdict, with the transport, the hop and, where one is to blame, the variable, in one line.
//! Unknown, stale, skipped and void all read as *not ready*.
//!
//! This room must not know clients, clocks or Kubernetes: the caller passes the times.

mod drift;
mod evidence;
mod hop;
mod journey;
mod series;
mod verdict;

pub use drift::{Drift, Expected, Former, compare};
pub use evidence::{Dimensions, Evidence, Policy, Standing};
pub use hop::Hop;
pub use journey::{Failure, Journey, Outcome};
pub use verdict::{Phase, TransportVerdict, Verdict};
