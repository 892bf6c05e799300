//! Parts that every process has: logs, metrics, the admin listener, the clock, and the shutdown token.
//!
//! In: functions that report the state of a process. Out: answers for kubelet, for Prometheus and for clients that have
//! the token. This room must not know the content of `/effective` and `/flow`, which it receives as JSON.

pub mod address_counts;
pub mod admin;
pub mod app_series;
pub mod bounded_listener;
pub mod build;
pub mod clock;
pub mod files;
pub mod heartbeat;
pub mod listener;
pub mod locks;
pub mod memory_limit;
pub mod metric_labels;
pub mod metrics;
pub mod metrics_page;
pub mod name_resolver;
pub mod readiness_annotation;
pub mod signal;
pub mod telemetry;

/// Installs ring as the TLS provider of every client. Called once at the start of a process; a second call changes
/// nothing.
pub fn install_tls() {
    // The error says that a provider is installed already, which is the wanted state.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
