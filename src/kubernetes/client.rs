//! Clients of the API server.

use std::time::Duration;

use kube::{Client, Config};

/// Longest for one call that is answered at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Two clients: a watch stays open for minutes, a call must not.
#[derive(Clone)]
pub struct KubernetesClients {
    /// For watches.
    pub watch: Client,
    /// For calls.
    pub call: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod's files nor a kubeconfig.
    #[error("no API server is configured: {0}. Run in a pod with a service account, or set KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("the API server cannot be used: {0}")]
    Client(#[from] kube::Error),
}

/// Makes clients from the pod's service account, or from the kubeconfig. Nothing is asked yet.
///
/// # Errors
/// There is no configuration, or it cannot be used.
pub async fn build_clients() -> Result<KubernetesClients, ConnectError> {
    crate::process::install_tls();
    let mut config = Config::infer().await?;
    // The API server stands in the same network as its clients.
    config.proxy_url = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    let watch = Client::try_from(config.clone())?;
    config.read_timeout = Some(CALL_TIMEOUT);
    config.write_timeout = Some(CALL_TIMEOUT);
    Ok(KubernetesClients { watch, call: Client::try_from(config)? })
}
