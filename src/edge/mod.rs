//! The edge server: clients on one side, the bus and the stream on the other.
//!
//! In: sockets, the HTTP fallbacks of pusher-js, and the HTTP API, all on one listener. Out: frames to the subscribers of
//! a channel, on this process and on others, and a record in Kinesis for each event that a webhook may report.
//!
//! Rooms stand on floors, and import only from floors below: [`metrics`]; [`apps`], the registry and who may connect, and
//! [`intake`], the bounds for clients that nobody knows yet;
//! [`session`], one client's queue; [`recorder`], the writer of the stream, which never delays a chat message; [`hub`],
//! channels and users; [`pusher`], the protocol, which knows no transport; [`transport`]; [`relay`], which forwards a
//! request to the process that has its session, and [`http_api`]; [`http`], the listeners and routes; [`server`], start
//! and stop.
//!
//! Every queue is bounded, every wait has an end, every loss is counted. No lock is held across an await.
//!
//! This room must not know the operator, Kubernetes, nor the readers of the stream; it treats every client alike.

pub(crate) mod apps;
pub(crate) mod close_reason;
pub(crate) mod connection_log;
pub(crate) mod drop_reason;
pub(crate) mod error;
pub(crate) mod http;
pub(crate) mod http_api;
pub(crate) mod hub;
pub(crate) mod intake;
pub(crate) mod metrics;
pub(crate) mod pusher;
pub(crate) mod recorder;
pub(crate) mod relay;
pub mod server;
pub(crate) mod session;
pub(crate) mod transport;

#[cfg(feature = "bench")]
pub(crate) use apps::RegistryWatcher;
pub use error::{StartError, StopError};
#[cfg(feature = "bench")]
pub(crate) use metrics::EdgeMetrics;
#[cfg(feature = "bench")]
pub(crate) use recorder::{LANE_COUNT, Recorder, RecorderTasks, limits::QueueLimits};
pub use server::{EdgeDependencies, RunningEdge, start};
