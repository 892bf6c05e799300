//! `realtime prove`: requests a proof of a cluster at once, and shows the hops as they pass.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use ulid::Ulid;

use super::cluster_api::{build_cluster_api, describe_error};
use super::output::{OutputFormat, print_value};
use super::print;
use crate::api::cluster::{ProofState, ProofTransport, RequestedProofStatus};
use crate::api::conditions::condition;
use crate::api::{PROVE_NOW_ANNOTATION, RealtimeCluster};
use crate::kubernetes::client::build_clients;

/// The exit code of a proof in which a journey failed.
const FAILED_EXIT_CODE: u8 = 1;

/// The exit code when nothing could be requested.
const UNUSABLE_EXIT_CODE: u8 = 2;

/// The exit code without a result in time.
const TIMED_OUT_EXIT_CODE: u8 = 3;

/// Time without progress after which the state of the cluster is shown again.
const REMARK_INTERVAL: Duration = Duration::from_secs(5);

/// Prove a cluster now: one journey by each transport through each pod and each Service, and see the hops as they pass
///
/// A journey is a client of the operator's own app: it connects, subscribes, publishes, and waits until the event has
/// arrived as a signed webhook. Journeys run all the time; this command starts a round at once, after the referenced Secrets
/// were read again, and waits for it. It writes a new value into the annotation realtime-operator.dev/prove-now, so it
/// needs the right to patch the cluster; the result stays in status.gate.requestedProof.
///
/// Exit codes: 0 every journey passed, 1 a journey failed or a pod is missing, 2 nothing could be requested (no such
/// cluster, no permission, no API server), 3 no result within --timeout: is an operator running?
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    realtime prove eu -n channels\n  \
    realtime prove eu -n channels --timeout 2m -o json | jq .state")]
pub struct Arguments {
    /// Name of the RealtimeCluster
    #[arg(value_name = "NAME")]
    name: String,
    /// The namespace; absent means that of the kubeconfig
    #[arg(short, long)]
    namespace: Option<String>,
    /// Give up when there is no result after this time, such as 60s or 2m
    #[arg(long, default_value = "120s", value_parser = super::parse_duration)]
    timeout: Duration,
    /// Text, or the result as one object; progress then goes to standard error
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `realtime prove` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    match request_proof(&arguments).await {
        Ok(code) => code,
        Err(line) => {
            eprintln!("realtime: {line}");
            UNUSABLE_EXIT_CODE
        }
    }
}

async fn request_proof(arguments: &Arguments) -> Result<u8, String> {
    let clients = build_clients(Arc::default()).await.map_err(|error| error.to_string())?;
    let namespace = arguments.namespace.as_deref();
    let token = Ulid::new().to_string();
    let patch = json!({ "metadata": { "annotations": { PROVE_NOW_ANNOTATION: token } } });
    let parameters = PatchParams { field_manager: Some("realtime-prove".to_owned()), ..PatchParams::default() };
    let api = build_cluster_api(&clients.call, namespace);
    let patched = api.patch(&arguments.name, &parameters, &Patch::Merge(patch)).await;
    let cluster = patched.map_err(|error| match error {
        kube::Error::Api(status) if status.is_not_found() => {
            format!("{}: check name and namespace, and that the CRDs are installed", status.message)
        }
        error => describe_error(&error),
    })?;
    let mut screen = ProofScreen::new(arguments, &cluster);
    screen.show(&format!("{}: requested a proof of every transport through every pod", screen.name));
    let config = watcher::Config::default().fields(&format!("metadata.name={}", arguments.name));
    let api = build_cluster_api(&clients.watch, namespace);
    let mut changes = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
    let deadline = Instant::now() + arguments.timeout;
    let mut remarks = tokio::time::interval_at(Instant::now() + REMARK_INTERVAL, REMARK_INTERVAL);
    remarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut latest = cluster;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return Ok(screen.report_timeout(&latest, arguments.timeout)),
            _ = remarks.tick() => screen.show(&format!("  waiting: {}", describe_ready(&latest))),
            change = changes.next() => match change {
                Some(Ok(cluster)) => latest = cluster,
                Some(Err(error)) => {
                    eprintln!("realtime: the watch was interrupted and is opened again: {error}");
                    continue;
                }
                None => return Err("the watch of the cluster has ended".to_owned()),
            },
        }
        let Some(proof) = find_proof(&latest).filter(|proof| proof.token == token) else { continue };
        if screen.show_progress(proof) {
            remarks.reset();
        }
        if proof.state != ProofState::Running {
            return Ok(screen.report_result(&latest, proof));
        }
    }
}

fn find_proof(cluster: &RealtimeCluster) -> Option<&RequestedProofStatus> {
    cluster.status.as_ref()?.gate.as_ref()?.requested_proof.as_ref()
}

/// Ready in one line.
fn describe_ready(cluster: &RealtimeCluster) -> String {
    match cluster.status.as_ref().and_then(|status| status.find_condition(condition::READY)) {
        Some(ready) => format!("Ready is {} ({}): {}", ready.status, ready.reason, ready.message),
        None => "no operator has looked at the cluster yet: is one running?".to_owned(),
    }
}

/// The lines that a person sees.
struct ProofScreen {
    name: String,
    format: OutputFormat,
    shown: Vec<ProofTransport>,
}

impl ProofScreen {
    fn new(arguments: &Arguments, cluster: &RealtimeCluster) -> Self {
        let name = format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any());
        Self { name, format: arguments.output, shown: vec![] }
    }

    fn show(&self, line: &str) {
        if self.format == OutputFormat::Text {
            print::print_text(&format!("{line}\n"));
        } else {
            eprintln!("{line}");
        }
    }

    /// Shows the transports that have changed, and returns whether one has.
    fn show_progress(&mut self, proof: &RequestedProofStatus) -> bool {
        let lines = list_changes(&self.shown, &proof.transports);
        for line in &lines {
            self.show(line);
        }
        self.shown.clone_from(&proof.transports);
        !lines.is_empty()
    }

    fn report_result(&self, cluster: &RealtimeCluster, proof: &RequestedProofStatus) -> u8 {
        let passed = proof.state == ProofState::Passed;
        let word = if passed { "proven" } else { "NOT proven" };
        self.show(&format!("{}: {word}: {}", self.name, proof.message));
        self.show(&format!("  {}", describe_ready(cluster)));
        let printed = self.print_object(proof);
        if passed { printed } else { FAILED_EXIT_CODE }
    }

    fn report_timeout(&self, cluster: &RealtimeCluster, timeout: Duration) -> u8 {
        let remedy = "check that the operator runs and that the cluster can be proven";
        self.show(&format!("{}: no result in {} s: {remedy}", self.name, timeout.as_secs()));
        self.show(&format!("  {}", describe_ready(cluster)));
        if let Some(proof) = find_proof(cluster) {
            self.print_object(proof);
        }
        TIMED_OUT_EXIT_CODE
    }

    fn print_object(&self, proof: &RequestedProofStatus) -> u8 {
        if self.format == OutputFormat::Text { 0 } else { print_value(self.format, proof) }
    }
}

/// The lines of the transports that differ from those shown before.
fn list_changes(shown: &[ProofTransport], now: &[ProofTransport]) -> Vec<String> {
    let has_news = |transport: &&ProofTransport| !transport.hops.is_empty() || !transport.hop.is_empty();
    now.iter().filter(has_news).filter(|transport| !shown.contains(transport)).map(format_transport).collect()
}

/// One transport with its hops. Writing to a text cannot fail.
fn format_transport(transport: &ProofTransport) -> String {
    let mut line = format!("  {:<21} {:<5}", transport.name, transport.routes);
    for hop in &transport.hops {
        let _ = write!(line, "  ✓ {} {} ms", hop.name, hop.milliseconds);
    }
    if !transport.hop.is_empty() {
        let _ = write!(line, "  ✗ {}", transport.hop);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cluster::HopTime;
    use crate::api::fixture::applied_cluster;

    fn transport(name: &str, routes: &str, hop: &str, hops: &[(&str, u64)]) -> ProofTransport {
        let time =
            |(name, milliseconds): &(&str, u64)| HopTime { name: (*name).to_owned(), milliseconds: *milliseconds };
        let hops = hops.iter().map(time).collect();
        ProofTransport { name: name.to_owned(), routes: routes.to_owned(), hop: hop.to_owned(), hops }
    }

    #[test]
    fn a_transport_is_shown_once_per_change_with_the_hops_that_it_passed() {
        let waiting = transport("websocket", "0/2", "", &[]);
        let half = transport("websocket", "1/2", "", &[("connect", 2), ("handshake", 3)]);
        let broken = transport("sockjs_xhr", "0/2", "record", &[("connect", 1)]);
        assert_eq!(list_changes(&[], std::slice::from_ref(&waiting)), [""; 0], "nothing has passed yet");
        let now = [half.clone(), broken];
        assert_eq!(
            list_changes(&[waiting], &now),
            [
                "  websocket             1/2    ✓ connect 2 ms  ✓ handshake 3 ms",
                "  sockjs_xhr            0/2    ✓ connect 1 ms  ✗ record",
            ]
        );
        assert_eq!(list_changes(&now, std::slice::from_ref(&half)), [""; 0]);
    }

    #[test]
    fn a_cluster_without_a_status_asks_for_an_operator() {
        assert!(describe_ready(&applied_cluster("")).contains("is one running?"));
    }
}
