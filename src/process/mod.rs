//! What every process has: logs, metrics, the admin listener, the clock, a token that ends it.
//!
//! In: functions that say how a process is. Out: answers for kubelet, for Prometheus and for whoever has the token.
//! This room knows no business: what `/effective` and `/flow` say is handed in as JSON.

pub mod admin;
pub mod build;
pub mod clock;
pub mod files;
pub mod readiness_annotation;
pub mod signal;
pub mod telemetry;

/// Which pair of TLS algorithms the process uses: ring, for every client. Called once at the start of a process; a
/// second call changes nothing.
pub fn install_tls() {
    // The error says that one is installed already, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
