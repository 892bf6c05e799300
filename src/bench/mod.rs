//! The benchmarks: CPU, memory and latency of a server, measured from outside, beside others in the same run.
//!
//! In: the size and length of a run, and the peer to measure beside. Out: figures, each with its unit, its target and
//! whether the target is met. Servers are child processes, so that their CPU and memory in `/proc` are theirs alone; they
//! and the load are on loopback only, and both are bounded. Servers that are compared run in turn within one round, so
//! that a noisy host is noisy for all; a figure is the median of its rounds, and a host that was too busy makes the run
//! void.
//!
//! Several edges that share a Redis are measured beside a single one in the same way.
//!
//! The webhook pipeline is measured from the recorder on, which runs in this process: an edge in front of it would be
//! measured instead.
//!
//! This room knows servers by the wire and by the table of variables alone, and of an edge its recorder: it must not know
//! how the rest of an edge works.

mod baseline;
mod document;
mod error;
mod fallback;
mod fanout;
mod figures;
mod gate;
mod http;
mod latency;
mod load;
mod machine;
mod pipeline;
mod plan;
mod pods;
mod report;
mod run;
mod sequence;
mod server;
mod socket;
mod sockets;
mod target;

pub use baseline::serve as serve_bare;
pub use document::render_page;
pub use error::BenchError;
pub use figures::{Figure, TargetOutcome};
pub use gate::{GateRow, find_missed_rows, render_gate_page, render_gate_table, simulate_gate};
pub use pipeline::run as run_pipeline;
pub use plan::{EdgePlan, PeerKind, PeerServer, PipelinePlan, PodsPlan};
pub use pods::run as run_pods;
pub use report::{BenchReport, RunSize, render_text};
pub use run::run;
pub use sequence::{DeliveryTally, EventSequence};
