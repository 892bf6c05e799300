//! Requests to the admin listener of a pod, through the API server's port-forward, or of an address.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Secret as SecretObject};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cluster_api::{build_namespaced_api, describe_error};
use crate::config::ServerKind;
use crate::desired::render::{ADMIN_PORT, ADMIN_SECRET_KEY, COMPONENT_LABEL, admin_secret_name, pod_labels};
use crate::protocol::Secret;

/// Longest that a connection and the head of an answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is an error, in bytes, of which the first line is shown.
const ERROR_MAX_BYTES: usize = 4_096;

/// One process with an admin listener.
#[derive(Clone)]
pub enum AdminTarget {
    /// A host and port that this machine reaches.
    Address(String),
    /// A pod, reached by a port-forward.
    Pod {
        /// The API of the pod's namespace.
        api: Box<Api<Pod>>,
        /// The name of the pod.
        name: String,
    },
}

impl AdminTarget {
    /// The name of the process in the output.
    pub fn name(&self) -> &str {
        match self {
            Self::Address(address) => address,
            Self::Pod { name, .. } => name,
        }
    }

    /// Sends a GET with the token, and returns the body once the head of a success has arrived.
    ///
    /// # Errors
    /// One line: no connection, no answer in 10 s, or the error of the process.
    pub async fn get(&self, path_and_query: &str, token: &Secret) -> Result<Body, String> {
        let answer = timeout(CONNECT_TIMEOUT, self.request(path_and_query, token)).await;
        answer.map_err(|_| format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()))?
    }

    async fn request(&self, path_and_query: &str, token: &Secret) -> Result<Body, String> {
        match self {
            Self::Address(address) => {
                let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                send_request(socket, path_and_query, token).await
            }
            Self::Pod { api, name } => {
                let port = u16::try_from(ADMIN_PORT).unwrap_or_default();
                let mut forwarder = api
                    .portforward(name, &[port])
                    .await
                    .map_err(|error| format!("no port-forward: {}", describe_error(&error)))?;
                let socket = forwarder.take_stream(port).ok_or("the port-forward has no stream")?;
                send_request(socket, path_and_query, token).await
            }
        }
    }
}

async fn send_request<S>(socket: S, path_and_query: &str, token: &Secret) -> Result<Body, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake::<_, Body>(TokioIo::new(socket)).await.map_err(|error| error.to_string())?;
    // Ends with the body, or with the sender.
    tokio::spawn(connection);
    let request = Request::get(path_and_query)
        .header(header::HOST, "admin")
        .header(header::AUTHORIZATION, format!("Bearer {}", token.expose()))
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (status, body) = (answer.status(), Body::new(answer.into_body()));
    if status.is_success() {
        return Ok(body);
    }
    let (mut text, mut body) = (Vec::new(), body.into_data_stream());
    while let Some(Ok(part)) = body.next().await
        && text.len() < ERROR_MAX_BYTES
    {
        text.extend_from_slice(&part);
    }
    let text = String::from_utf8_lossy(&text);
    Err(format!("{status}: {}", text.lines().next().unwrap_or_default()))
}

/// The running pods of these servers of a cluster, as targets.
///
/// # Errors
/// One line: the API server did not list them.
pub async fn list_targets(api: &Api<Pod>, cluster: &str, servers: &[ServerKind]) -> Result<Vec<AdminTarget>, String> {
    let names: Vec<&str> = servers.iter().map(|server| server.name()).collect();
    let labels = format!("{},{COMPONENT_LABEL} in ({})", pod_labels(cluster), names.join(","));
    let listed = timeout(CONNECT_TIMEOUT, api.list(&ListParams::default().labels(&labels))).await;
    let listed = listed.map_err(|_| "the API server did not answer in time".to_owned())?;
    let listed = listed.map_err(|error| format!("the pods cannot be listed: {}", describe_error(&error)))?;
    let is_running = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    let names = listed.items.into_iter().filter(is_running).filter_map(|pod| pod.metadata.name);
    Ok(names.map(|name| AdminTarget::Pod { api: Box::new(api.clone()), name }).collect())
}

/// Reads the admin token of a cluster from its Secret.
///
/// # Errors
/// One line: the Secret cannot be read or has no token.
pub async fn read_admin_token(client: &Client, namespace: Option<&str>, cluster: &str) -> Result<Secret, String> {
    let api: Api<SecretObject> = build_namespaced_api(client, namespace);
    let name = admin_secret_name(cluster);
    let secret = api.get(&name).await.map_err(|error| {
        format!("the admin token cannot be read from the Secret {name}: {}", describe_error(&error))
    })?;
    let token = secret.data.unwrap_or_default().remove(ADMIN_SECRET_KEY).map(|token| token.0);
    let token = token.and_then(|token| String::from_utf8(token).ok());
    token.map(Secret::new).ok_or_else(|| format!("the Secret {name} has no `{ADMIN_SECRET_KEY}`"))
}
