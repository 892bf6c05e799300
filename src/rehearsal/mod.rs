//! A cluster in one process: edges, dispatcher, stream, bus and probe as tasks.
//!
//! In: manifests, and edits such as a hand on a live Deployment would make. Out: the same verdict that the operator
//! would give, and addresses to try the cluster at. It takes what `desired` builds and hands every server exactly the
//! rendered variables; what it stands in for is only what surrounds a pod: kubelet (files, addresses, names), the cloud
//! (Kinesis and its credentials, a region apart from another), Redis, and the network outside, where a webhook for
//! anything but loopback ends in a receiver of its own.
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
pub use overrides::{EditError, ManifestOverride};
pub use page::host_port;
pub use start::{LossInjection, RehearsalOptions, RunningRehearsal, ServingEndpoint, StartRefusal};
pub use webhook_receiver::DeliveredWebhook;
