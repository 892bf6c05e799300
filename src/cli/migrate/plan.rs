//! `realtime migrate plan`: everything that a move will do, before it starts.

use std::path::{Path, PathBuf};

use super::super::output::{OutputFormat, print_value};
use super::super::{print, report_bad_input};
use crate::api::RealtimeMigration;
use crate::desired::Manifests;
use crate::migration::{outline_move, render_outline};

/// Print what a move will do, before it starts: objects, weights, waits, conditions under which it goes back, and how long that
/// takes.
///
/// Ends with the change that takes every lookup from the target, to be made by hand if nobody else can.
///
/// Exit codes: 0 the plan is printed, 2 the file cannot be used.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  realtime migrate plan examples/migration.yaml")]
pub struct PlanArguments {
    /// File with one RealtimeMigration; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Text for people, or the plan as one object
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Prints the plan, and returns the exit code.
pub fn print_plan(arguments: &PlanArguments) -> u8 {
    let outline = match read_migration(&arguments.file) {
        Ok((migration, _)) => outline_move(&migration),
        Err(errors) => return report_bad_input(&errors),
    };
    match arguments.output {
        OutputFormat::Text => print::print_text(&render_outline(&outline)),
        format => print_value(format, &outline),
    }
}

/// Reads the one RealtimeMigration of a file, and what else the file has.
///
/// # Errors
/// Every mistake in the file, a line each.
pub fn read_migration(file: &Path) -> Result<(RealtimeMigration, Manifests), Vec<String>> {
    let name = file.display().to_string();
    let text = if name == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.map_err(|error| vec![format!("{name}: cannot be read: {error}")])?;
    let mut manifests = Manifests::default();
    manifests.add_file(&name, &text).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    if manifests.migrations.len() != 1 {
        let count = manifests.migrations.len();
        return Err(vec![format!("{name}: holds {count} RealtimeMigrations: pass a file with exactly one")]);
    }
    let (_, migration) = manifests.migrations.remove(0);
    Ok((migration, manifests))
}
