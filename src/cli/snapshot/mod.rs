//! `realtime snapshot`: what a cluster, a manifest, or Deployments of other servers run, in a file without secrets.

mod live;
mod manifest;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use kube::Client;

pub use self::manifest::snapshot_manifest;
use super::output::{OutputFormat, print_value};
use super::report_bad_input;
use crate::config::ServerKind;
use crate::kubernetes::client::{build_clients, build_context_client, read_kubeconfig};
use crate::migration::{ClusterSnapshot, SecretDigester};

/// Print what a cluster runs: every variable, image, stream, proof and app, with secrets as digests under a key.
///
/// Reads a RealtimeCluster of a Kubernetes cluster, or manifests, or Deployments of other servers. Snapshots with one key can
/// be compared by `realtime migrate review`, and shown by `realtime fleet`.
///
/// Exit codes: 0 the snapshot is printed, 2 something could not be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    openssl rand -hex 32 >review.key\n  \
    realtime snapshot eu -n channels --context new --key review.key >target.yaml\n  \
    realtime snapshot --from-deployment sockjs=pusher-sockjs -n channels --context old --key review.key >source.yaml\n  \
    realtime snapshot -f cluster.yaml -f apps.yaml --key review.key")]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["name", "files", "deployments"])))]
pub struct Arguments {
    /// Name of a RealtimeCluster
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// File with a RealtimeCluster, its RealtimeApps and Secrets; can be repeated
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A Deployment of other servers, by the server that does its work here (websocket, sockjs, edge or dispatcher); can
    /// be repeated
    #[arg(long = "from-deployment", value_name = "SERVER=NAME[/CONTAINER]")]
    deployments: Vec<ForeignDeployment>,
    /// The namespace; absent means that of the kubeconfig
    #[arg(short, long, conflicts_with = "files")]
    namespace: Option<String>,
    /// The context of the kubeconfig; absent means the current one
    #[arg(long, conflicts_with = "files")]
    context: Option<String>,
    /// File with the key of the digests, of 16 bytes or more: the same for all snapshots that are compared
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The form of the snapshot
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Yaml)]
    output: OutputFormat,
}

/// A Deployment of other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDeployment {
    /// The server that does its work here.
    pub server: ServerKind,
    /// Name of the Deployment.
    pub name: String,
    /// Name of the container; `None` for the first.
    pub container: Option<String>,
}

impl FromStr for ForeignDeployment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (server, rest) = text.split_once('=').ok_or("write SERVER=NAME, such as sockjs=pusher-sockjs")?;
        let (name, container) = rest.split_once('/').map_or((rest, None), |(name, found)| (name, Some(found)));
        if name.is_empty() || container.is_some_and(str::is_empty) {
            return Err(
                "the Deployment or its container has no name: write SERVER=NAME or SERVER=NAME/CONTAINER".to_owned()
            );
        }
        Ok(Self { server: server.parse()?, name: name.to_owned(), container: container.map(str::to_owned) })
    }
}

/// Runs `realtime snapshot` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    match take_snapshot(&arguments).await {
        Ok(snapshot) => print_value(arguments.output, &snapshot),
        Err(errors) => report_bad_input(&errors),
    }
}

async fn take_snapshot(arguments: &Arguments) -> Result<ClusterSnapshot, Vec<String>> {
    let digester = read_key(&arguments.key).map_err(|error| vec![error])?;
    if !arguments.files.is_empty() {
        return snapshot_manifest(&arguments.files, Some(&digester));
    }
    let client = build_client(arguments.context.as_deref()).await.map_err(|error| vec![error])?;
    let reader = live::LiveReader::new(client, arguments.namespace.as_deref(), digester);
    let snapshot = match &arguments.name {
        Some(name) => reader.snapshot_cluster(name).await,
        None => reader.snapshot_foreign(&arguments.deployments).await,
    };
    snapshot.map_err(|error| vec![error])
}

/// Reads the key of digests from a file.
///
/// # Errors
/// The file cannot be read, or the key is too short.
pub fn read_key(file: &Path) -> Result<SecretDigester, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: cannot be read: {error}"))?;
    SecretDigester::new(&text).map_err(|error| format!("{name}: {error}"))
}

async fn build_client(context: Option<&str>) -> Result<Client, String> {
    let Some(context) = context else {
        let clients = build_clients(std::sync::Arc::default()).await.map_err(|error| error.to_string())?;
        return Ok(clients.call);
    };
    let kubeconfig = read_kubeconfig().map_err(|error| error.to_string())?;
    build_context_client(kubeconfig, context).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_deployment_has_a_server_and_perhaps_a_container() {
        let parse = |text: &str| text.parse::<ForeignDeployment>();
        let found = parse("sockjs=legacy/server").expect("a Deployment");
        assert_eq!((found.server, found.name.as_str()), (ServerKind::Sockjs, "legacy"));
        assert_eq!(found.container.as_deref(), Some("server"));
        assert_eq!(parse("edge=all").expect("a Deployment").container, None);
        for bad in ["legacy", "=a", "sockjs=", "sockjs=a/", "http=a"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
