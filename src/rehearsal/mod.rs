//! A cluster in one process: edges, dispatcher, stream, bus and probe as tasks.
//!
//! In: manifests, edits such as a manual change of a live Deployment, and faults that are switched meanwhile. Out: the verdict that the operator would give,
//! and addresses to try the cluster at. Every server gets exactly the variables that `desired` renders. Only the
//! environment of a pod is replaced: kubelet (files, addresses, names), the cloud (Kinesis with its credentials, one
//! stream per region), Redis, and the outside network, where webhooks for anything but loopback end in a receiver here.
//!
//! This room must not know a second way to configure a server.

mod error;
mod fault_control;
mod faults;
mod hop_board;
mod kinesis_double;
mod kubelet_double;
pub mod migration;
mod overrides;
mod page;
mod pods;
mod start;
mod webhook_receiver;

pub use error::{RehearsalError, StartRefusal};
pub use fault_control::{FaultControl, SwitchError};
pub use faults::{Fault, Switch};
pub use kinesis_double::separate_reads_from_puts;
pub use kinesis_double::{kinesis_router as cloud, kinesis_router_of as cloud_of};
pub use overrides::{ManifestOverride, OverrideError};
pub use page::host_port;
pub use start::{KinesisInterposer, RehearsalOptions, RunningRehearsal, ServingAddresses, SharedGroup};
pub use webhook_receiver::DeliveredWebhook;
