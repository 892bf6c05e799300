//! The admin listener of the operator: `/livez` by the heartbeats, `/readyz` by the start and the rivals, and the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::metrics::OperatorMetrics;
use crate::kubernetes::lease::Leadership;
use crate::kubernetes::scope::RivalLease;
use crate::process::admin;
use crate::process::heartbeat::Heartbeats;

/// State of the process that the admin listener reports.
pub struct OperatorHealth {
    /// Whether the start is complete.
    pub started: Arc<AtomicBool>,
    /// The tasks on which the process depends.
    pub heartbeats: Heartbeats,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// The operator to which this one yields.
    pub rival: watch::Receiver<Option<RivalLease>>,
}

impl OperatorHealth {
    fn check_readiness(&self) -> Result<(), String> {
        match &*self.rival.borrow() {
            Some(rival) => Err(rival.to_string()),
            None if self.started.load(Ordering::Relaxed) => Ok(()),
            None => Err("not started yet".to_owned()),
        }
    }
}

/// Serves the admin listener until `shutdown` is cancelled.
pub async fn serve_admin(
    listener: TcpListener,
    health: OperatorHealth,
    metrics: Arc<OperatorMetrics>,
    shutdown: CancellationToken,
) {
    let (heartbeats, leadership) = (health.heartbeats.clone(), health.leadership.clone());
    let _heartbeat = heartbeats.register("admin listener", None, &shutdown);
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let answers = admin::AdminEndpoints {
        // Without a token only the health endpoints answer.
        token: String::new(),
        live: Box::new(move || heartbeats.check().map_err(|fault| fault.to_string())),
        ready: Box::new(move || health.check_readiness()),
        effective: Box::new(|| serde_json::Value::Null),
        flow: Box::new(move || serde_json::json!({ "leads": leadership.may_write() })),
        endpoints: None,
        drain: None,
        tail: None,
        metrics: registry,
    };
    if let Err(error) = admin::serve(listener, answers, shutdown).await {
        tracing::error!(%error, "admin listener ended");
    }
}
