//! Everything that crosses a process or a room, in one binary. What needs a Kinesis takes the one of the rehearsal.

mod architecture;
#[cfg(feature = "bench")]
mod bench;
mod certificates;
mod cli;
#[cfg(feature = "rehearsal")]
mod dispatcher;
#[cfg(feature = "rehearsal")]
mod edge;
#[cfg(feature = "rehearsal")]
mod external_path;
#[cfg(feature = "rehearsal")]
mod fault_proxy;
mod faults;
mod fixtures;
mod former_release;
mod fuzz;
mod generated;
mod golden;
mod iam;
#[cfg(feature = "rehearsal")]
mod iam_double;
#[cfg(feature = "rehearsal")]
mod kinesis_local;
#[cfg(feature = "rehearsal")]
mod ledger;
mod links;
mod many_apps;
mod metrics;
mod migration;
#[cfg(feature = "rehearsal")]
mod multi_edge;
mod mutated_manifests;
#[cfg(feature = "rehearsal")]
mod openmetrics;
#[cfg(feature = "rehearsal")]
mod permissions;
#[cfg(feature = "rehearsal")]
mod processes;
mod redis;
mod rehearsal;
mod resources;
#[cfg(feature = "rehearsal")]
mod sockjs;
mod source_tree;
#[cfg(feature = "rehearsal")]
mod stream_management;
mod waiting;
mod words;
