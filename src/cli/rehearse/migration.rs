//! `realtime rehearse migration`: a move between two clusters in this process.

use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::super::migrate::read_migration;
use super::super::snapshot::snapshot_manifest;
use super::super::{files, print, report_bad_input};
use super::{INTERRUPTED_EXIT_CODE, Output, REFUSED_EXIT_CODE, demo_app};
use crate::api::migration::TrackTransport;
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::config::ServerKind;
use crate::migration::track::ReviewReading;
use crate::migration::{ReviewOptions, find_session_obstacle, review_migration};
use crate::process::{signal, telemetry};
use crate::rehearsal::migration::{MigrationOptions, MigrationReport, PhaseRecord, rehearse_migration};
use crate::rehearsal::{ManifestOverride, RehearsalError};

/// Move clients between two clusters in this process, and see whether the move would end.
///
/// Both clusters, their journeys and the decisions are real; the zone, the tool that writes its record and the clients'
/// resolvers are doubles. Days become seconds: every bake takes 1.5 s, and the TTL is 0.7 s. Approvals count as given.
/// Exit codes: 0 every client was moved, 1 the move was refused, frozen or rolled back, 2 bad input.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    realtime rehearse migration examples/migration.yaml\n  \
    realtime rehearse migration examples/migration.yaml --edit target:sockjs:REALTIME_WEBHOOKS=off\n  \
    realtime rehearse migration FILE --edit target:sockjs:REALTIME_WEBHOOKS=off --from-weight 20")]
pub struct MigrationArguments {
    /// File with a RealtimeMigration, the RealtimeCluster that gets the clients, and its RealtimeApps
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// File with the RealtimeCluster that has the clients; absent means the manifest of the other
    #[arg(long, value_name = "FILE")]
    source: Option<PathBuf>,
    /// Change a rendered variable of one server of one cluster, as a manual edit would:
    /// `target:sockjs:REALTIME_WEBHOOKS=off`. SIDE is source or target
    #[arg(long = "edit", value_name = "SIDE:SERVER:NAME=VALUE")]
    edits: Vec<SideEdit>,
    /// Switch the edits on during the bake of this weight, or of the first above it; absent means from the start
    #[arg(long, value_name = "WEIGHT", requires = "edits")]
    from_weight: Option<u8>,
    /// Number of times that the deciding process is killed before a write and started again
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Text for people, or JSON: one object
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Give up after this time, such as 60s or 2m
    #[arg(long, default_value = "2m", value_parser = super::super::parse_duration)]
    timeout: Duration,
    /// Log filter, such as `info`; logs go to standard error
    #[arg(long, default_value = "error", value_name = "FILTER")]
    log: String,
}

/// An edit of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SideEdit {
    is_target: bool,
    edit: ManifestOverride,
}

impl FromStr for SideEdit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (side, edit) = text.split_once(':').unwrap_or((text, ""));
        let is_target = match side {
            "target" => true,
            "source" => false,
            _ => return Err(format!("`{side}` is no side: write source or target, then `:SERVER:NAME=VALUE`")),
        };
        let edit = edit.parse().map_err(|error: crate::rehearsal::OverrideError| error.to_string())?;
        Ok(Self { is_target, edit })
    }
}

/// Runs the command, and returns its exit code.
pub async fn run(arguments: MigrationArguments) -> u8 {
    telemetry::start(&arguments.log);
    let options = match read_options(&arguments) {
        Ok(options) => options,
        Err(errors) => return report_bad_input(&errors),
    };
    let Ok(shutdown) = signal::shutdown_token() else {
        eprintln!("realtime: signals cannot be listened to");
        return REFUSED_EXIT_CODE;
    };
    let is_text = arguments.output == Output::Text;
    if is_text {
        print_header(&options, &arguments);
    }
    let show = |record: &PhaseRecord| {
        if is_text {
            print::print_text(&format!("{}\n", describe_phase(record)));
        }
    };
    let outcome = tokio::select! {
        outcome = Box::pin(rehearse_migration(options, show)) => outcome,
        () = shutdown.cancelled() => return INTERRUPTED_EXIT_CODE,
    };
    match outcome {
        Ok(report) => {
            let text = if is_text { describe_report(&report) } else { to_json_line(&report) };
            print::print_text(&text);
            if report.completed { 0 } else { REFUSED_EXIT_CODE }
        }
        Err(RehearsalError::Invalid(problems)) => {
            report_bad_input(&problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        Err(RehearsalError::Edit(error)) => report_bad_input(&[error.to_string()]),
        Err(error) => {
            eprintln!("realtime: {error}");
            REFUSED_EXIT_CODE
        }
    }
}

/// Reads the files, and reviews both clusters as they would be rendered.
fn read_options(arguments: &MigrationArguments) -> Result<MigrationOptions, Vec<String>> {
    let (migration, _) = read_migration(&arguments.file)?;
    let target = files::read(std::slice::from_ref(&arguments.file))?;
    let name = target.cluster.metadata.name.as_deref().unwrap_or_default();
    let wanted = &migration.spec.cluster_ref.name;
    if name != wanted {
        return Err(vec![format!("spec.clusterRef.name is {wanted}, and the file holds the cluster {name}")]);
    }
    let source_file = arguments.source.as_ref().unwrap_or(&arguments.file);
    let source = match &arguments.source {
        Some(file) => files::read(std::slice::from_ref(file))?.cluster,
        None => target.cluster.clone(),
    };
    let (review, obstacle) = review_clusters(&migration, source_file, &arguments.file)?;
    let (for_target, for_source): (Vec<SideEdit>, Vec<SideEdit>) =
        arguments.edits.iter().cloned().partition(|edit| edit.is_target);
    let plain = |edits: Vec<SideEdit>| edits.into_iter().map(|edit| edit.edit).collect();
    let mut apps = target.apps;
    if apps.is_empty() {
        apps.extend(demo_app(&target.cluster));
    }
    Ok(MigrationOptions {
        migration,
        source: rename_namespace(source, &target.cluster),
        target: target.cluster,
        apps,
        secrets: target.secrets,
        review,
        obstacle,
        edits: [plain(for_source), plain(for_target)],
        edits_from: arguments.from_weight,
        kills: arguments.kills,
        timeout: arguments.timeout,
    })
}

/// The source in the namespace of the apps: in this process both clusters have the same ones.
fn rename_namespace(mut source: RealtimeCluster, target: &RealtimeCluster) -> RealtimeCluster {
    source.metadata.namespace.clone_from(&target.metadata.namespace);
    source
}

fn review_clusters(
    migration: &RealtimeMigration,
    source: &PathBuf,
    target: &PathBuf,
) -> Result<(ReviewReading, Option<String>), Vec<String>> {
    let source = snapshot_manifest(std::slice::from_ref(source), None)?;
    let target = snapshot_manifest(std::slice::from_ref(target), None)?;
    let servers = migration.spec.tracks.iter().map(|track| match track.transport {
        TrackTransport::Websocket => ServerKind::Websocket,
        TrackTransport::Sockjs => ServerKind::Sockjs,
    });
    let accepted = migration.spec.acknowledgements.split_fan_out.iter().map(|_| "FanoutSplit".to_owned()).collect();
    let review = review_migration(&source, &target, &ReviewOptions { servers: servers.collect(), accepted });
    let blocked = review.findings.iter().find(|finding| finding.blocks);
    let blocked = blocked.map(|finding| format!("{} ({}): {}", finding.code, finding.subject, finding.message));
    let obstacle = find_session_obstacle(&migration.spec, &source, &target);
    Ok((ReviewReading { hash: review.approval_hash, blocked }, obstacle))
}

fn print_header(options: &MigrationOptions, arguments: &MigrationArguments) {
    let name = options.migration.metadata.name.as_deref().unwrap_or_default();
    let mut text = format!("Rehearsing {name} between two clusters in this process; days become seconds.\n");
    if arguments.source.is_none() {
        text.push_str("  note: the source runs the target's manifest: pass another with --source\n");
    }
    for edit in &arguments.edits {
        let side = if edit.is_target { "target" } else { "source" };
        let from = arguments.from_weight.map_or_else(String::new, |weight| format!(" from weight {weight} on"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  edited at the {side}{from}: {}", edit.edit);
    }
    text.push('\n');
    print::print_text(&text);
}

fn describe_phase(record: &PhaseRecord) -> String {
    let weight = record.weight.map_or_else(|| "none".to_owned(), |weight| weight.to_string());
    format!(
        "{:>6.1} s  {:<16} {:<19} weight {weight:<4} sessions {}:{}  webhooks {}  {}",
        Duration::from_millis(record.at_ms).as_secs_f64(),
        record.phase.to_string(),
        record.reason.to_string(),
        record.source_sessions,
        record.target_sessions,
        record.webhooks,
        record.message,
    )
}

fn describe_report(report: &MigrationReport) -> String {
    let visits = &report.visits;
    let (reason, message, next_step) = report.status.tracks.first().map_or_else(Default::default, |track| {
        (track.reason.to_string(), track.message.as_str(), track.next_step.as_str())
    });
    let word = if report.completed { "Moved" } else { "Not moved" };
    let mut text = format!(
        "\n{word} after {:.1} s ({reason}): {message}\n  next: {next_step}\n\n  lookups    {} to the source, {} to the target\n  sessions   {} at the \
         source, {} at the target, {} refused\n  webhooks   {} of {} arrived, {} missing ({} of sessions at the target), {} \
         twice\n  kills      {} of the deciding process\n",
        Duration::from_millis(report.elapsed_ms).as_secs_f64(),
        visits.source_lookups,
        visits.target_lookups,
        visits.source_sessions,
        visits.target_sessions,
        visits.refused,
        visits.expected_webhooks - visits.missing_webhooks,
        visits.expected_webhooks,
        visits.missing_webhooks,
        visits.missing_at_target,
        visits.doubled_webhooks,
        report.kills,
    );
    if let (Some(brake), Some(lookups)) = (report.brake_ms, report.lookups_after_brake) {
        // As above.
        let _ = writeln!(
            text,
            "  brake      weight 0 was written {:.1} s after the edit; {lookups} lookups reached the target after that",
            Duration::from_millis(brake).as_secs_f64()
        );
    }
    text
}

fn to_json_line(report: &MigrationReport) -> String {
    format!("{}\n", serde_json::to_value(report).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_names_its_side() {
        let edit: SideEdit = "target:sockjs:REALTIME_WEBHOOKS=off".parse().expect("an edit");
        assert!(edit.is_target && edit.edit.server == ServerKind::Sockjs);
        assert!("source:sockjs:A=b".parse::<SideEdit>().is_ok_and(|edit| !edit.is_target));
        for bad in ["sockjs:A=b", "target", "target:sockjs", "both:sockjs:A=b"] {
            assert!(bad.parse::<SideEdit>().is_err(), "{bad}");
        }
    }
}
