//! `realtime fleet`: the clusters and moves of many Kubernetes clusters, a row each.

mod columns;
mod moves;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use kube::config::Kubeconfig;
use tokio::runtime::Handle;

use self::moves::MoveRow;
use self::rows::{FleetReport, FleetRow, UnreadSource, WhereCondition, render_table};
use super::live_snapshots::{read_moves, read_snapshots};
use super::output::{OutputFormat, print_value};
use super::{BAD_INPUT_EXIT_CODE, print, report_bad_input};
use crate::api::RealtimeMigration;
use crate::kubernetes::client::{build_context_client, read_kubeconfig};
use crate::migration::ClusterSnapshot;
use crate::process::clock::now_ms;

/// The exit code while a cluster that is shown is not Ready.
const NOT_READY_EXIT_CODE: u8 = 1;

/// Contexts that are read at a time: each takes a few connections, and may run a program for its credentials.
const CONCURRENT_CONTEXTS_MAX: usize = 16;

/// Clusters and moves of one source.
struct SourceReading {
    clusters: Vec<ClusterSnapshot>,
    moves: Result<Vec<RealtimeMigration>, String>,
}

/// Show the clusters of many Kubernetes clusters, a row each: Ready or why not, the broken hop by transport, and what runs; and
/// the moves between them.
///
/// Reads every context of the kubeconfig, those of `--context`, or files of `realtime snapshot`. A context that does not answer
/// is a row with its error, and delays no other.
///
/// Exit codes: 0 every cluster shown is Ready, 1 one is not, 2 a context or a file could not be read, so that a cluster may be
/// missing.
#[derive(clap::Args)]
#[command(after_help = "Which clusters send no webhooks for SockJS clients?\n  \
    realtime fleet --where REALTIME_WEBHOOKS=off\n\
    What is broken, and at which hop?\n  \
    realtime fleet --failing -o json | jq -r '.clusters[] | \"\\(.context) \\(.cluster) \\(.reason)\"'")]
pub struct Arguments {
    /// Files of `realtime snapshot`, shown beside the contexts of `--context`, or alone
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A context of the kubeconfig; can be repeated. Absent means all of them, or none if there are files
    #[arg(long = "context", value_name = "CONTEXT")]
    contexts: Vec<String>,
    /// The namespace in each context; absent means all, which needs the right to list in all
    #[arg(short, long)]
    namespace: Option<String>,
    /// Show clusters that are not Ready, and moves that stopped or went back, only
    #[arg(long)]
    failing: bool,
    /// Show clusters of which a server runs with this value only, and no moves; can be repeated, and all must hold. Defaults count
    #[arg(long = "where", value_name = "VARIABLE=VALUE")]
    conditions: Vec<String>,
    /// Longest time for one context, such as 15s or 2m
    #[arg(long, default_value = "15s", value_parser = super::parse_duration)]
    timeout: Duration,
    /// Text, or one object with all rows
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `realtime fleet` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    let conditions: Result<Vec<WhereCondition>, String> =
        arguments.conditions.iter().map(|text| text.parse()).collect();
    let conditions = match conditions {
        Ok(conditions) => conditions,
        Err(error) => return report_bad_input(&[error]),
    };
    let mut sources: Vec<(String, Result<SourceReading, String>)> = Vec::new();
    if arguments.files.is_empty() || !arguments.contexts.is_empty() {
        match read_kubeconfig() {
            Ok(kubeconfig) => sources.extend(read_contexts(kubeconfig, &arguments).await),
            Err(error) => return report_bad_input(&[error.to_string()]),
        }
    }
    for file in &arguments.files {
        let name = file.display().to_string();
        let reading = |snapshot| SourceReading { clusters: vec![snapshot], moves: Ok(vec![]) };
        sources.push((name, read_file(file).map(reading)));
    }
    if sources.is_empty() {
        return report_bad_input(&["the kubeconfig has no context: pass another one by KUBECONFIG".to_owned()]);
    }
    let report = build_report(sources, &conditions, arguments.failing);
    let printed = match arguments.output {
        OutputFormat::Text => print::print_text(&render_table(&report, &conditions)),
        format => print_value(format, &report),
    };
    if !report.unread.is_empty() {
        return BAD_INPUT_EXIT_CODE;
    }
    let all_ready = report.clusters.iter().all(FleetRow::is_ready);
    if printed == 0 && !all_ready { NOT_READY_EXIT_CODE } else { printed }
}

fn build_report(
    sources: Vec<(String, Result<SourceReading, String>)>,
    conditions: &[WhereCondition],
    failing: bool,
) -> FleetReport {
    let mut report = FleetReport { sources: sources.len(), ..FleetReport::default() };
    let now = now_ms();
    for (context, found) in sources {
        match found {
            Ok(SourceReading { clusters, moves }) => {
                report.total += clusters.len();
                let rows = clusters.iter().filter_map(|snapshot| FleetRow::of(&context, snapshot, conditions, now));
                report.clusters.extend(rows.filter(|row| !failing || !row.is_ready()));
                match moves {
                    _ if !conditions.is_empty() => {}
                    Ok(moves) => {
                        let rows = moves.iter().flat_map(|found| MoveRow::of_move(&context, found));
                        report.moves.extend(rows.filter(|row| !failing || row.is_stopped));
                    }
                    Err(error) => report.unread_moves.push(UnreadSource { context, error }),
                }
            }
            Err(error) => report.unread.push(UnreadSource { context, error }),
        }
    }
    report
}

fn read_file(file: &PathBuf) -> Result<ClusterSnapshot, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
    ClusterSnapshot::parse(&text)?.ok_or_else(|| "is no snapshot: write one with `realtime snapshot`".to_owned())
}

/// Reads the contexts, several at a time, in their order.
async fn read_contexts(kubeconfig: Kubeconfig, arguments: &Arguments) -> Vec<(String, Result<SourceReading, String>)> {
    let names = if arguments.contexts.is_empty() {
        kubeconfig.contexts.iter().map(|context| context.name.clone()).collect()
    } else {
        arguments.contexts.clone()
    };
    let read = |name: String| {
        let (kubeconfig, namespace, limit) = (kubeconfig.clone(), arguments.namespace.clone(), arguments.timeout);
        async move {
            let found = read_context(kubeconfig, name.clone(), namespace, limit).await;
            (name, found)
        }
    };
    futures::stream::iter(names).map(read).buffered(CONCURRENT_CONTEXTS_MAX).collect().await
}

async fn read_context(
    kubeconfig: Kubeconfig,
    context: String,
    namespace: Option<String>,
    limit: Duration,
) -> Result<SourceReading, String> {
    let runtime = Handle::current();
    // A program for credentials blocks its thread, which must not be one of the runtime's own.
    let reading = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let client = build_context_client(kubeconfig, &context).await.map_err(|error| error.to_string())?;
            let (clusters, moves) =
                tokio::join!(read_snapshots(&client, namespace.as_deref()), read_moves(&client, namespace.as_deref()));
            Ok(SourceReading { clusters: clusters?, moves })
        })
    });
    match tokio::time::timeout(limit, reading).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", limit.as_secs())),
    }
}
