//! Builds the clients of the API server.

use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
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
    /// The kubeconfig cannot be read, or lacks what a context names.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
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
    limit_calls(&mut config);
    config.read_timeout = Some(WATCH_SILENCE_TIMEOUT);
    let meter = CallMeterLayer(metrics);
    let watch = ClientBuilder::try_from(config.clone())?.with_layer(&meter).build();
    limit_call_time(&mut config);
    let call = ClientBuilder::try_from(config)?.with_layer(&meter).build();
    Ok(KubernetesClients { watch, call })
}

/// Reads the kubeconfig that `KUBECONFIG` names, or that of the home directory.
///
/// # Errors
/// There is none, or it is malformed.
pub fn read_kubeconfig() -> Result<Kubeconfig, ConnectError> {
    Ok(Kubeconfig::read()?)
}

/// Builds a client for calls to the API server of one context, without a call to it. A context may run a program for its
/// credentials, for which this waits on its thread.
///
/// # Errors
/// The kubeconfig lacks what the context names, or its credentials cannot be had.
pub async fn build_context_client(kubeconfig: Kubeconfig, context: &str) -> Result<Client, ConnectError> {
    crate::process::install_tls();
    let found = kubeconfig.contexts.iter().find(|known| known.name == context);
    let cluster = found.and_then(|known| known.context.as_ref()).map(|known| known.cluster.as_str());
    let named = kubeconfig.clusters.iter().find(|known| Some(known.name.as_str()) == cluster);
    let has_proxy = named.and_then(|known| known.cluster.as_ref()).is_some_and(|known| known.proxy_url.is_some());
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    if !has_proxy {
        // A proxy of the environment is for other addresses.
        config.proxy_url = None;
    }
    limit_calls(&mut config);
    limit_call_time(&mut config);
    Ok(Client::try_from(config)?)
}

fn limit_calls(config: &mut Config) {
    config.connect_timeout = Some(Duration::from_secs(5));
    // kube would send a refused write again for minutes, behind the back of the caller, who may have lost the lease.
    config.default_retry = false;
    config.reset_reader_on_write = true;
}

fn limit_call_time(config: &mut Config) {
    config.read_timeout = Some(CALL_TIMEOUT);
    config.write_timeout = Some(CALL_TIMEOUT);
}
