//! A cluster in one process: edges, dispatcher, stream, bus and probe as tasks.
//!
//! In: manifests, and edits such as a manual change of a live Deployment. Out: the verdict that the operator would give,
//! and addresses to try the cluster at. Every server gets exactly the variables that `desired` renders. Only the
//! environment of a pod is replaced: kubelet (files, addresses, names), the cloud (Kinesis with its credentials, one
//! stream per region), Redis, and the outside network, where webhooks for anything but loopback end in a receiver here.
//!
//! This room must not know a second way to configure a server.

mod error;
mod kinesis_double;
mod kubelet_double;
mod overrides;
mod page;
mod start;
mod webhook_receiver;

pub use error::RehearsalError;
pub use kinesis_double::kinesis_router as cloud;
pub use overrides::{ManifestOverride, OverrideError};
pub use page::host_port;
pub use start::{KinesisInterposer, RehearsalOptions, RunningRehearsal, ServingAddresses, StartRefusal};
pub use webhook_receiver::DeliveredWebhook;
