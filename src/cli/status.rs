//! `realtime status`: how clusters stand, as a person reads it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};

use super::cluster_api::{build_cluster_api, describe_error};
use super::{ledger, print};
use crate::api::RealtimeCluster;
use crate::api::cluster::TransportState;
use crate::api::conditions::condition;
use crate::desired::ServerImage;
use crate::gate::Hop;
use crate::kubernetes::client::build_clients;
use crate::process::install_tls;

/// Show how clusters stand: Ready or why not, and how far a client's event comes by each transport.
///
/// Exit codes: 0 every cluster shown is Ready, 1 one is not, 2 none was found (0 with `--allow-none`) or the API server cannot
/// be asked. With `--flow`: 0 every hop of the ledger balances, 1 one does not, 2 a pod or a file cannot be read.
#[derive(clap::Args)]
pub struct Arguments {
    /// One cluster; absent means every one of the namespace
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// The namespace; absent means that of the kubeconfig
    #[arg(short, long)]
    namespace: Option<String>,
    /// Show the clusters of every namespace
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    all_namespaces: bool,
    /// Find no cluster without an error
    #[arg(long, conflicts_with = "name")]
    allow_none: bool,
    /// Print the ledger of the webhook pipeline instead: of the pods of the cluster NAME, reached by port-forwards, or from
    /// files with answers of their `/flow`
    #[arg(long, value_name = "FILE", num_args = 0.., conflicts_with_all = ["all_namespaces", "watch"])]
    flow: Option<Vec<std::path::PathBuf>>,
    /// Go on, and print a cluster again whenever its status changes
    #[arg(short, long)]
    watch: bool,
}

/// The hops as they are shown, in the order of the way.
const DISPLAYED_HOPS: [Hop; 11] = Hop::ALL;

/// Longest that the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs `realtime status` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    if let Some(files) = &arguments.flow {
        return print_ledger(&arguments, files).await;
    }
    install_tls();
    match show_status(&arguments).await {
        Ok(code) => code,
        Err(line) => {
            eprintln!("realtime: {line}");
            2
        }
    }
}

async fn print_ledger(arguments: &Arguments, files: &[std::path::PathBuf]) -> u8 {
    match (&arguments.name, files) {
        (Some(name), []) => ledger::print_live_ledger(name, arguments.namespace.as_deref()).await,
        (None, [_, ..]) => ledger::print_ledger(files),
        _ => {
            eprintln!(
                "realtime: give either a cluster, `realtime status NAME --flow`, or files, `realtime status --flow FILE…`"
            );
            super::BAD_INPUT_EXIT_CODE
        }
    }
}

async fn show_status(arguments: &Arguments) -> Result<u8, String> {
    let clients = build_clients(Arc::default()).await.map_err(|error| error.to_string())?;
    let api = select_api(&clients.call, arguments);
    let listed = tokio::time::timeout(REQUEST_TIMEOUT, list_clusters(&api, arguments.name.as_deref())).await;
    let clusters =
        listed.map_err(|_| format!("the API server did not answer in {} s", REQUEST_TIMEOUT.as_secs()))??;
    if clusters.is_empty() && arguments.allow_none && !arguments.watch {
        return Ok(print::print_text("no RealtimeCluster\n"));
    }
    if clusters.is_empty() && !arguments.watch {
        return Err("there is no RealtimeCluster here: try --all-namespaces, or `--namespace NAME`".to_owned());
    }
    let mut text = String::new();
    for cluster in &clusters {
        text.push_str(&cluster_page(cluster));
    }
    let code = print::print_text(&text);
    if !arguments.watch {
        let ready = clusters.iter().all(is_ready);
        return Ok(if code == 0 { u8::from(!ready) } else { code });
    }
    let mut shown: std::collections::BTreeMap<String, String> =
        clusters.iter().map(|cluster| (cluster.name_any(), cluster_page(cluster))).collect();
    let mut config = watcher::Config::default();
    if let Some(name) = &arguments.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let api = select_api(&clients.watch, arguments);
    let mut changes = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
    while let Some(change) = changes.next().await {
        let cluster = match change {
            Ok(cluster) => cluster,
            Err(error) => {
                eprintln!("realtime: the watch was interrupted: {error}");
                continue;
            }
        };
        let page = cluster_page(&cluster);
        let known = shown.insert(cluster.name_any(), page.clone());
        if known.as_ref() != Some(&page) && print::print_part(&page).is_err() {
            return Ok(0);
        }
    }
    Ok(0)
}

fn select_api(client: &Client, arguments: &Arguments) -> Api<RealtimeCluster> {
    if arguments.all_namespaces {
        return Api::all(client.clone());
    }
    build_cluster_api(client, arguments.namespace.as_deref())
}

async fn list_clusters(api: &Api<RealtimeCluster>, name: Option<&str>) -> Result<Vec<RealtimeCluster>, String> {
    if let Some(name) = name {
        return Ok(vec![api.get(name).await.map_err(|error| describe_error(&error))?]);
    }
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            Err("the API server does not know RealtimeCluster: apply the CRDs first".to_owned())
        }
        Err(error) => Err(describe_error(&error)),
    }
}

fn is_ready(cluster: &RealtimeCluster) -> bool {
    let ready = cluster.status.as_ref().and_then(|status| status.find_condition(condition::READY));
    ready.is_some_and(|ready| ready.status == "True")
}

/// One cluster. Writing to a text cannot fail.
fn cluster_page(cluster: &RealtimeCluster) -> String {
    let mut page = String::new();
    let name = format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any());
    let Some(status) = cluster.status.as_ref().filter(|status| status.observed_generation >= 0) else {
        let _ = writeln!(page, "{name}: no operator has looked at it yet: is one running?\n");
        return page;
    };
    let ready = status.find_condition(condition::READY);
    let (word, reason, message) = match ready {
        Some(found) if found.status == "True" => ("Ready", found.reason.as_str(), found.message.as_str()),
        Some(found) if found.status == "False" => ("NOT READY", found.reason.as_str(), found.message.as_str()),
        Some(found) => ("not proven yet", found.reason.as_str(), found.message.as_str()),
        None => ("not proven yet", "", ""),
    };
    let _ = writeln!(page, "{name}: {word} ({reason})\n  {message}");
    if cluster.metadata.generation.is_some_and(|generation| generation != status.observed_generation) {
        let _ = writeln!(page, "  of an older version of the manifest: the newest was not looked at yet");
    }
    for transport in &status.transports {
        let broken = DISPLAYED_HOPS.iter().position(|hop| hop.name() == transport.hop);
        let hops: Vec<String> = DISPLAYED_HOPS
            .iter()
            .enumerate()
            .map(|(index, hop)| match (transport.state, broken) {
                _ if transport.not_applicable.iter().any(|found| found == hop.name()) => format!("– {hop} (n/a)"),
                (TransportState::Passing, _) => format!("✓ {hop}"),
                (TransportState::Failing, Some(broken)) if index < broken => format!("✓ {hop}"),
                (TransportState::Failing, Some(broken)) if index == broken => format!("✗ {hop}"),
                _ => format!("· {hop}"),
            })
            .collect();
        let state = format!("{:?}", transport.state);
        let _ = writeln!(page, "  {:<21} {:<8} {:<5} {}", transport.name, state, transport.pods, hops.join("  "));
    }
    if let Some(stream) = &status.stream {
        let _ = writeln!(page, "  stream {} {}", stream.name, stream.status);
        for step in &stream.pending_steps {
            let _ = writeln!(page, "  stream pending: {step}");
        }
    }
    if let Some(at) = status.gate.as_ref().and_then(|gate| gate.passed_at.as_ref()) {
        let _ = writeln!(page, "  last proven {at}");
    }
    if let Some(seconds) = status.gate.as_ref().and_then(|gate| gate.effective_interval_seconds) {
        let _ = writeln!(page, "  journeys every {seconds} s");
    }
    if let (Some(image), Some(version)) = (&status.image, &status.version)
        && let Some(image) = ServerImage::of_record(image, version)
    {
        let _ = writeln!(page, "  servers run {image}, release {}", image.release);
    }
    for found in status.conditions.iter().filter(|found| found.type_ != condition::READY) {
        let is_remark = [condition::STALLED, condition::SUSPENDED].contains(&found.type_.as_str());
        let good = found.status == "True" && !is_remark;
        if !good {
            let _ = writeln!(page, "  {} is {} ({}): {}", found.type_, found.status, found.reason, found.message);
        }
    }
    page.push('\n');
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn a_broken_hop_is_seen_on_its_transports_line() {
        let time = "lastTransitionTime: '2026-01-01T00:00:00Z'";
        let page = cluster_page(&applied_cluster(&format!(
            "status:
  observedGeneration: 1
  conditions:
  - {{ type: Ready, status: 'False', reason: ConfigurationDrift, message: why, {time} }}
  - {{ type: StreamReady, status: 'True', reason: StreamActive, message: fine, {time} }}
  - {{ type: Suspended, status: 'True', reason: Suspended, message: nothing is applied, {time} }}
  image: {{ repository: a/b, tag: '1' }}
  version: 0.1.0
  transports:
  - {{ name: websocket, server: websocket, state: Passing, pods: 1/1 }}
  - {{ name: xhr_streaming, server: sockjs, state: Passing, notApplicable: [fan-out], pods: 1/1 }}
  - {{ name: xhr_polling, server: sockjs, state: Failing, hop: record, pods: 0/1 }}
  stream: {{ name: s, status: ACTIVE, pendingSteps: [shards is 3 and the stream has 2] }}
"
        )));
        assert!(page.starts_with("channels/eu: NOT READY (ConfigurationDrift)\n  why\n"), "{page}");
        let line = |name: &str| page.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
        assert!(line("websocket").contains("✓ farewell"), "{page}");
        assert!(line("xhr_streaming").contains("✓ publish  – fan-out (n/a)  ✓ record"), "{page}");
        assert!(line("xhr_polling").contains("✓ fan-out  ✗ record  · dispatch"), "{page}");
        assert!(page.contains("  stream s ACTIVE\n  stream pending: shards is 3 and the stream has 2\n"), "{page}");
        assert!(page.contains("  servers run a/b:1, release 0.1.0\n"), "{page}");
        assert!(page.contains("  Suspended is True (Suspended): nothing is applied\n"), "{page}");
        assert!(!page.contains("StreamReady"), "what is well is not told: {page}");
    }

    #[test]
    fn an_object_that_nobody_looked_at_says_so() {
        assert!(cluster_page(&applied_cluster("")).contains("no operator has looked at it yet"));
        assert!(
            cluster_page(&applied_cluster("status: { observedGeneration: -1 }"))
                .contains("no operator has looked at it yet")
        );
    }
}
