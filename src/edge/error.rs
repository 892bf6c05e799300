//! The reasons for which an edge does not start, or stops on its own. Each text says what to do.

use std::io;
use std::path::PathBuf;

use crate::kinesis::KinesisError;
use crate::protocol::registry::RegistryError;

/// The reason for which an edge does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No file of the registry can be read.
    #[error("the app registry in {} cannot be read: {error}; mount the registry there", directory.display())]
    AppsUnreadable {
        /// The directory that was read.
        directory: PathBuf,
        /// The error of the operating system.
        error: String,
    },
    /// A file of the registry is broken.
    #[error("{0}; render the registry again with an operator of this release")]
    AppsBroken(#[from] RegistryError),
    /// The identity may not use the stream.
    #[error("{0}; allow kinesis:DescribeStreamSummary and kinesis:PutRecords to this identity")]
    StreamDenied(KinesisError),
    /// The configuration asks for a stream and none was passed, or the reverse.
    #[error("REALTIME_WEBHOOKS is `{webhooks}`, but the edge was given {given} stream; make the two agree")]
    StreamMismatch {
        /// The value of `REALTIME_WEBHOOKS`.
        webhooks: String,
        /// The words `a` or `no`: whether a stream was passed.
        given: &'static str,
    },
    /// Idle connections would be closed before load balancers close theirs.
    #[error(
        "REALTIME_KEEP_ALIVE_SECONDS is {keep_alive}, less than twice REALTIME_ACTIVITY_TIMEOUT_SECONDS, {activity}; raise it"
    )]
    KeepAliveShort {
        /// The value of `REALTIME_KEEP_ALIVE_SECONDS`.
        keep_alive: u64,
        /// The value of `REALTIME_ACTIVITY_TIMEOUT_SECONDS`.
        activity: u64,
    },
    /// Another part of this process reads the bus already.
    #[error("the bus of this process is read by another edge; give each edge an end of its own")]
    BusTaken,
    /// A listener has no address.
    #[error("the listener has no address: {0}; bind it before starting the edge")]
    Listener(#[from] io::Error),
    /// The pod has no address under which other edges reach this one.
    #[error("REALTIME_POD_IP is `{0}`, which is no address: other edges could not reach the sessions of this one")]
    NoAddress(String),
    /// A transport that this release does not serve.
    #[error("{0}")]
    Transport(String),
}

/// The reason for which an edge stopped without a shutdown request.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The stream did not appear.
    #[error("{0}; the stream was missing for two minutes: create it, or correct REALTIME_STREAM_NAME and AWS_REGION")]
    StreamMissing(KinesisError),
    /// A task of the recorder panicked, so that events would no longer reach the stream.
    #[error("the recorder's {task} panicked, see the log: the process must start again; report the panic as a defect")]
    RecorderPanic {
        /// Name of the task.
        task: String,
    },
    /// The listener of the admin endpoints failed.
    #[error("a listener failed: {0}; the process must start again")]
    Listener(String),
}
