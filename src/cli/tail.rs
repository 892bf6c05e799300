//! `realtime tail`: the connection log of the edges of a cluster, live.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use url::form_urlencoded;

use super::BAD_INPUT_EXIT_CODE;
use super::admin_connection::{AdminTarget, list_targets, read_admin_token};
use super::cluster_api::build_namespaced_api;
use super::print::print_part;
use crate::config::ServerKind;
use crate::kubernetes::client::build_clients;
use crate::protocol::Secret;
use crate::protocol::connection_log::{ConnectionLogEntry, describe_entry};

/// The exit code when no edge could be followed.
const NOT_FOLLOWED_EXIT_CODE: u8 = 1;

/// How often the pods are listed, so that those of a rollout are followed too.
const POD_LIST_INTERVAL: Duration = Duration::from_secs(5);

/// Longest silence of an edge, which sends a sign of life every 5 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest line that an edge may send, in bytes.
const LINE_MAX_BYTES: usize = 64 << 10;

/// Lines that wait to be printed.
const QUEUED_LINES_MAX: usize = 1_024;

/// Follow what clients do at the edges of a cluster, live: connects, refusals with reasons, subscriptions and closes
///
/// Every running edge pod is followed through a port-forward of the API server, also those that start later. The command
/// needs the rights to list pods, to create pods/portforward, and to get the Secret NAME-admin, which holds the token. An
/// edge writes entries only while somebody reads, drops those that come too fast for a reader, and says how many.
///
/// Clients whose key no app has belong to no app: they appear without --app only.
///
/// Exit codes: 0 stopped by Ctrl-C, by --for, or by the end of the reader of its output; 1 no edge could be followed;
/// 2 the arguments cannot be used.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    realtime tail eu -n channels --app 1001\n  \
    realtime tail eu -n channels --for 60s -o json | jq -c 'select(.event == \"refused\")'\n  \
    kubectl exec -n channels deploy/eu-websocket -- realtime tail --address localhost:9090")]
pub struct Arguments {
    /// Name of the RealtimeCluster
    #[arg(value_name = "NAME", required_unless_present = "address", conflicts_with = "address")]
    name: Option<String>,
    /// The namespace; absent means that of the kubeconfig
    #[arg(short, long)]
    namespace: Option<String>,
    /// Follow the admin listener of one process instead, such as localhost:9090; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// File with the admin token for --address; absent means the variable `REALTIME_ADMIN_TOKEN`, which a pod has
    #[arg(long, value_name = "FILE", requires = "address")]
    token_file: Option<PathBuf>,
    /// Show one app only, by its id
    #[arg(long, value_name = "ID")]
    app: Option<String>,
    /// Stop after this time, such as 60s or 2m
    #[arg(long = "for", value_name = "TIME", value_parser = super::parse_duration)]
    duration: Option<Duration>,
    /// Lines for people, or one JSON object per line with the pod's name
    #[arg(short, long, value_enum, default_value_t = LineFormat::Text)]
    output: LineFormat,
}

/// The form of a line.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LineFormat {
    Text,
    Json,
}

/// The processes to follow.
enum Source {
    Addresses(Vec<String>),
    Cluster { api: Box<Api<Pod>>, name: String },
}

/// Runs `realtime tail` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    let found = find_source(&arguments).await;
    let (source, token) = match found {
        Ok(found) => found,
        Err(line) => {
            eprintln!("realtime: {line}");
            return BAD_INPUT_EXIT_CODE;
        }
    };
    follow_edges(&source, &token, &arguments).await
}

async fn find_source(arguments: &Arguments) -> Result<(Source, Secret), String> {
    let Some(name) = &arguments.name else {
        let token = match &arguments.token_file {
            Some(file) => std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?,
            None => std::env::var("REALTIME_ADMIN_TOKEN")
                .map_err(|_| "--address needs the admin token: give --token-file or REALTIME_ADMIN_TOKEN".to_owned())?,
        };
        return Ok((Source::Addresses(arguments.address.clone()), Secret::new(token.trim())));
    };
    let clients = build_clients(Arc::default()).await.map_err(|error| error.to_string())?;
    let token = read_admin_token(&clients.call, arguments.namespace.as_deref(), name).await?;
    // The connection of a port-forward is open for as long as that of a watch.
    let api = Box::new(build_namespaced_api(&clients.watch, arguments.namespace.as_deref()));
    Ok((Source::Cluster { api, name: name.clone() }, token))
}

async fn follow_edges(source: &Source, token: &Secret, arguments: &Arguments) -> u8 {
    let path = tail_path(arguments.app.as_deref());
    let (lines, mut queue) = mpsc::channel(QUEUED_LINES_MAX);
    let (mut followers, mut followed, mut ever_followed) = (JoinSet::new(), BTreeSet::new(), false);
    let mut list_pods = interval(POD_LIST_INTERVAL);
    list_pods.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = arguments.duration.map(|duration| Instant::now() + duration);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let over: OptionFuture<_> = end.map(sleep_until).into();
        tokio::select! {
            _ = &mut interrupted => return 0,
            Some(()) = over => return if ever_followed { 0 } else { report_no_edge() },
            _ = list_pods.tick() => {
                let targets = match list_source(source).await {
                    Ok(targets) => targets,
                    Err(line) => {
                        eprintln!("realtime: {line}");
                        if followers.is_empty() {
                            return NOT_FOLLOWED_EXIT_CODE;
                        }
                        continue;
                    }
                };
                for target in targets {
                    if followed.insert(target.name().to_owned()) {
                        followers.spawn(follow_target(target, path.clone(), token.clone(), lines.clone()));
                    }
                }
                if followers.is_empty() {
                    return report_no_edge();
                }
            }
            Some(line) = queue.recv() => {
                ever_followed = true;
                let (name, entry) = match line {
                    FollowerLine::Began(name) => { eprintln!("realtime: following {name}"); continue }
                    FollowerLine::Entry(name, entry) => (name, entry),
                };
                if print_part(&render_line(arguments.output, &name, &entry)).is_err() {
                    return 0;
                }
            }
            Some(ended) = followers.join_next(), if !followers.is_empty() => {
                let Ok((name, reason)) = ended else { continue };
                eprintln!("realtime: {name}: {reason}");
                followed.remove(&name);
                if matches!(source, Source::Addresses(_)) && followers.is_empty() {
                    return if ever_followed { 0 } else { NOT_FOLLOWED_EXIT_CODE };
                }
            }
        }
    }
}

fn report_no_edge() -> u8 {
    eprintln!("realtime: no edge pod of this cluster runs: see `realtime status`");
    NOT_FOLLOWED_EXIT_CODE
}

fn tail_path(app: Option<&str>) -> String {
    let query = app.map(|app| form_urlencoded::Serializer::new(String::new()).append_pair("app", app).finish());
    query.map_or_else(|| "/tail".to_owned(), |query| format!("/tail?{query}"))
}

async fn list_source(source: &Source) -> Result<Vec<AdminTarget>, String> {
    match source {
        Source::Addresses(addresses) => Ok(addresses.iter().cloned().map(AdminTarget::Address).collect()),
        Source::Cluster { api, name } => list_targets(api, name, &ServerKind::EDGES).await,
    }
}

/// A report of the follower of one edge.
enum FollowerLine {
    Began(String),
    Entry(String, ConnectionLogEntry),
}

/// Follows one edge until it ends, and returns its name and the reason.
async fn follow_target(
    target: AdminTarget,
    path: String,
    token: Secret,
    lines: mpsc::Sender<FollowerLine>,
) -> (String, String) {
    let name = target.name().to_owned();
    let mut body = match target.get(&path, &token).await {
        Ok(body) => body.into_data_stream(),
        Err(reason) => return (name, reason),
    };
    if lines.send(FollowerLine::Began(name.clone())).await.is_err() {
        return (name, "stopped".to_owned());
    }
    let mut splitter = LineSplitter::default();
    loop {
        let part = match timeout(SILENCE_TIMEOUT, body.next()).await {
            Ok(Some(Ok(part))) => part,
            Ok(Some(Err(error))) => return (name, format!("the connection broke: {error}")),
            Ok(None) => return (name, "the edge ended".to_owned()),
            Err(_) => return (name, format!("silent for {} s", SILENCE_TIMEOUT.as_secs())),
        };
        let Some(complete) = splitter.push(&part) else {
            return (name, format!("a line of more than {LINE_MAX_BYTES} bytes"));
        };
        for line in complete {
            // An entry of a later release that this one cannot read is passed over.
            let Ok(entry) = serde_json::from_str(&line) else { continue };
            if lines.send(FollowerLine::Entry(name.clone(), entry)).await.is_err() {
                return (name, "stopped".to_owned());
            }
        }
    }
}

/// Splits a body into lines; empty ones are dropped.
#[derive(Default)]
struct LineSplitter {
    rest: Vec<u8>,
}

impl LineSplitter {
    /// Adds a part and returns the lines that it completes; `None` when the unfinished one is too long.
    fn push(&mut self, part: &[u8]) -> Option<Vec<String>> {
        self.rest.extend_from_slice(part);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if !line.is_empty() {
                lines.push(line);
            }
        }
        (self.rest.len() <= LINE_MAX_BYTES).then_some(lines)
    }
}

fn render_line(format: LineFormat, name: &str, entry: &ConnectionLogEntry) -> String {
    match format {
        LineFormat::Text => {
            let at = i64::try_from(entry.time_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
            let at = at.map(|at| at.strftime("%H:%M:%S%.3fZ").to_string()).unwrap_or_default();
            format!("{at} {name} {}\n", describe_entry(entry))
        }
        LineFormat::Json => {
            let mut value = serde_json::to_value(entry).unwrap_or_default();
            if let Value::Object(fields) = &mut value {
                fields.insert("pod".to_owned(), name.into());
            }
            format!("{value}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::connection_log::ConnectionEvent;

    #[test]
    fn parts_become_lines_and_a_long_line_is_refused() {
        let mut splitter = LineSplitter::default();
        assert_eq!(splitter.push(b"{\"a\":1}\n\n{\"b\""), Some(vec!["{\"a\":1}".to_owned()]));
        assert_eq!(splitter.push(b":2}\n"), Some(vec!["{\"b\":2}".to_owned()]));
        assert_eq!(splitter.push(&vec![b'x'; LINE_MAX_BYTES]), Some(vec![]));
        assert_eq!(splitter.push(b"x"), None);
    }

    #[test]
    fn a_line_has_the_pod_and_the_time() {
        let event = ConnectionEvent::Subscribed { channel: "private-a".to_owned() };
        let entry = ConnectionLogEntry {
            time_ms: 1_700_000_000_123,
            app: Some("1001".into()),
            socket: Some("1.2".into()),
            transport: None,
            event,
        };
        let text = render_line(LineFormat::Text, "eu-websocket-1", &entry);
        assert_eq!(text, "22:13:20.123Z eu-websocket-1 app 1001 1.2 subscribed to private-a\n");
        let json: Value = serde_json::from_str(&render_line(LineFormat::Json, "pod", &entry)).expect("json");
        assert_eq!((json["pod"].as_str(), json["event"].as_str()), (Some("pod"), Some("subscribed")));
        assert_eq!(tail_path(Some("a&b")), "/tail?app=a%26b");
    }
}
