//! The errors that end the operator's process.

use std::net::SocketAddr;

use crate::kubernetes::client::ConnectError;
use crate::kubernetes::lease::LeaseLost;
use crate::process::heartbeat::TaskFault;

/// An error that ends the operator's process.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The API server cannot be reached or is not configured.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A listener's port cannot be bound.
    #[error("{listener} cannot listen on {address}: {error}. Free the port or choose another")]
    Listen {
        /// The listener, as the subject of the message.
        listener: &'static str,
        /// The address that was asked for.
        address: SocketAddr,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// The API server refuses a call that the start needs.
    #[error("{operation}: {error}")]
    Start {
        /// The call that failed.
        operation: &'static str,
        /// The API server's error.
        error: Box<kube::Error>,
    },
    /// The resolver, by which the servers of zones are found, cannot be made.
    #[error("the resolver cannot be made: {0}. Correct /etc/resolv.conf of the pod")]
    Resolver(String),
    /// The CRDs are not installed.
    #[error("the API server does not know RealtimeCluster: apply the CRDs first (`realtime crd | kubectl apply -f -`)")]
    NoCrds,
    /// The CRDs are those of an older version.
    #[error(
        "the CRDs are older than this operator: they lack {0}. Apply those of this version (`realtime crd | kubectl apply \
         --server-side --force-conflicts -f -`), or upgrade the chart that installs them"
    )]
    OutdatedCrds(String),
    /// Another replica took the lease.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// A task on which the process depends ended or stood still.
    #[error("{0}. The process must restart; if it happens again, read the log before this line")]
    Task(#[from] TaskFault),
}

impl OperatorError {
    /// Wraps the API server's error with the call of the start that failed.
    pub fn from_call(operation: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Start { operation, error: Box::new(error) }
    }
}
