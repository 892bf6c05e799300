//! Servers of a run in this process, on loopback.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::error::BenchError;

/// Serves a router on a free port until the guard is dropped; open connections are dropped with it, as the run is over.
/// `no_port` says for what no port was free.
pub async fn serve_on_loopback(router: Router, no_port: &'static str) -> Result<(SocketAddr, DropGuard), BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(BenchError::from_io(no_port))?;
    let address = listener.local_addr().map_err(BenchError::from_io(no_port))?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = axum::serve(listener, router) => {}
            () = stopped.cancelled() => {}
        }
    });
    Ok((address, stop.drop_guard()))
}
