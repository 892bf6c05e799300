//! `realtime migrate`: what a move of traffic between two clusters would change, and how it is begun.

mod init;
mod plan;
mod prepare;

use std::path::{Path, PathBuf};

#[cfg(feature = "rehearsal")]
pub use self::plan::read_migration;
use super::output::{OutputFormat, print_value};
use super::snapshot::{read_key, snapshot_manifest};
use super::{print, report_bad_input};
use crate::config::{ServerKind, suggest_name};
use crate::migration::{
    ClusterSnapshot, FindingCode, MigrationReview, ReviewOptions, SecretDigester, render_markdown, review_migration,
};
use crate::process::clock::now_ms;

/// The exit code while a finding blocks the move.
const BLOCKED_EXIT_CODE: u8 = 1;

/// Compare two clusters before traffic moves from one to the other, and plan the move.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: MigrateCommand,
}

#[derive(clap::Subcommand)]
enum MigrateCommand {
    Init(init::InitArguments),
    Review(ReviewArguments),
    Plan(plan::PlanArguments),
    Prepare(prepare::PrepareArguments),
}

/// Compare what two clusters run: variables that are missing, extra, changed or off, apps, webhooks and the proof.
///
/// Prints Markdown for a pull request, with a hash for its approval: the hash changes with every compared value.
///
/// Exit codes: 0 nothing blocks the move, 1 something does, 2 a file cannot be used.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  realtime migrate review source.yaml target.yaml --server sockjs >review.md")]
struct ReviewArguments {
    /// Snapshot or manifest of the cluster that has the traffic
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Snapshot or manifest of the cluster that gets it
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Server whose traffic moves: websocket, sockjs, edge or dispatcher; can be repeated. Absent means all of the source
    #[arg(long = "server", value_name = "SERVER")]
    servers: Vec<ServerKind>,
    /// Finding that does not block, by its code, or by CODE:WHERE for one of them; can be repeated
    #[arg(long = "accept", value_name = "CODE[:WHERE]", value_parser = parse_accepted)]
    accepted: Vec<String>,
    /// File with the key of the snapshots: their seals are checked with it, and secrets and apps of manifests compared
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Markdown, or the review as one object
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `realtime migrate` and returns its exit code.
pub fn run(arguments: Arguments) -> u8 {
    match arguments.command {
        MigrateCommand::Init(arguments) => init::print_key_secret(&arguments),
        MigrateCommand::Review(arguments) => match review_files(&arguments) {
            Ok(review) => print_review(arguments.output, &review),
            Err(errors) => report_bad_input(&errors),
        },
        MigrateCommand::Plan(arguments) => plan::print_plan(&arguments),
        MigrateCommand::Prepare(arguments) => prepare::print_preparation(&arguments),
    }
}

fn review_files(arguments: &ReviewArguments) -> Result<MigrationReview, Vec<String>> {
    let digester = arguments.key.as_deref().map(read_key).transpose().map_err(|error| vec![error])?;
    let source = read_snapshot(&arguments.source, digester.as_ref())?;
    let target = read_snapshot(&arguments.target, digester.as_ref())?;
    if let (Some(one), Some(other)) = (&source.seal, &target.seal)
        && !one.uid.is_empty()
        && one.uid == other.uid
    {
        return Err(vec![format!("both snapshots are of the cluster with the UID {}: take one of each", one.uid)]);
    }
    let options = ReviewOptions { servers: arguments.servers.clone(), accepted: arguments.accepted.clone() };
    Ok(review_migration(&source, &target, &options))
}

fn print_review(format: OutputFormat, review: &MigrationReview) -> u8 {
    let printed = match format {
        OutputFormat::Text => print::print_text(&render_markdown(review)),
        format => print_value(format, review),
    };
    if printed == 0 && review.blocked { BLOCKED_EXIT_CODE } else { printed }
}

/// Reads a snapshot, or takes that of a manifest.
fn read_snapshot(file: &Path, digester: Option<&SecretDigester>) -> Result<ClusterSnapshot, Vec<String>> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| vec![format!("{name}: cannot be read: {error}")])?;
    let document = ClusterSnapshot::read_document(&text);
    match ClusterSnapshot::from_document(&document) {
        Ok(Some(snapshot)) => {
            // A snapshot by hand has no seal, and is compared as it is.
            let sealed = digester.filter(|_| snapshot.seal.is_some());
            let checked = sealed.map_or(Ok(()), |digester| snapshot.check_seal(document, digester, now_ms()));
            checked.map_err(|fault| vec![format!("{name}: {fault}")])?;
            Ok(snapshot)
        }
        Ok(None) => snapshot_manifest(&[file.to_owned()], digester),
        Err(error) => Err(vec![format!("{name}: {error}")]),
    }
}

fn parse_accepted(text: &str) -> Result<String, String> {
    let word = text.split(':').next().unwrap_or_default();
    let codes: Vec<String> = FindingCode::ALL.iter().map(ToString::to_string).collect();
    if codes.iter().any(|code| code == word) {
        return Ok(text.to_owned());
    }
    let near = suggest_name(word, codes.iter().map(String::as_str)).map(|code| format!(", did you mean {code}?"));
    Err(format!("`{word}` is no code of a finding{}", near.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_finding_is_one_that_exists() {
        for text in ["FanoutSplit", "SwitchedOff:sockjs/MAX"] {
            assert_eq!(parse_accepted(text), Ok(text.to_owned()));
        }
        assert!(parse_accepted("FanoutSplitt").is_err_and(|error| error.contains("did you mean FanoutSplit?")));
    }
}
