//! Builds the clients of the API server.

use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};

use super::call_metrics::{ApiCallMetrics, CallMeterLayer};
use super::watch::WATCH_SILENCE_TIMEOUT;

/// Bounds reading and writing of one call, so that a connection without answers fails soon.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Two clients, because their timeouts differ: a watch stays open for minutes, a call must not.
#[derive(Clone)]
pub struct KubernetesClients {
    /// Client for watches, which stay open for minutes.
    pub watch: Client,
    /// Client for calls, each bounded by 10 s.
    pub call: Client,
}

/// An error of configuring the clients.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a service account nor a kubeconfig exists.
    #[error("no API server is configured: {0}. Run in a pod with a service account, or set KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration exists but is invalid.
    #[error("the configuration of the API server is invalid: {0}. Check the service account or the kubeconfig")]
    Client(#[from] kube::Error),
}

/// Builds clients from the pod's service account, or from the kubeconfig, without a call to the API server. Their calls are
/// counted in `metrics`.
///
/// # Errors
/// No configuration exists, or it is invalid.
pub async fn build_clients(metrics: Arc<ApiCallMetrics>) -> Result<KubernetesClients, ConnectError> {
    crate::process::install_tls();
    let mut config = Config::infer().await?;
    // The API server is in the same network as its clients.
    config.proxy_url = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    // kube would send a refused write again for minutes, behind the back of the caller, who may have lost the lease.
    config.default_retry = false;
    config.reset_reader_on_write = true;
    config.read_timeout = Some(WATCH_SILENCE_TIMEOUT);
    let meter = CallMeterLayer(metrics);
    let watch = ClientBuilder::try_from(config.clone())?.with_layer(&meter).build();
    config.read_timeout = Some(CALL_TIMEOUT);
    config.write_timeout = Some(CALL_TIMEOUT);
    let call = ClientBuilder::try_from(config)?.with_layer(&meter).build();
    Ok(KubernetesClients { watch, call })
}
