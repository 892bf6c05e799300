//! The command line: reads arguments, calls a room, prints, and answers with an exit code.
//!
//! In: arguments and files. Out: text for people or JSON for programs on standard output, errors on standard error.
//! This room must not know how anything is done.

mod admin_connection;
#[cfg(feature = "bench")]
mod bench;
mod check;
mod cluster_api;
mod cost;
mod diff;
mod files;
mod fleet;
pub mod iam;
mod ledger;
mod live_snapshots;
mod migrate;
mod operator;
mod output;
mod print;
mod prove;
#[cfg(feature = "rehearsal")]
mod rehearse;
mod render;
mod replay;
mod serve;
mod snapshot;
mod status;
mod tail;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::dispatcher::metrics::DispatcherSeries;
use crate::edge::metrics::EdgeMetrics;
use crate::operator::OperatorMetrics;
use crate::process::metrics::MetricRow;
use crate::process::metrics_page::render_metrics_page;

/// The exit code for input that cannot be used.
const BAD_INPUT_EXIT_CODE: u8 = 2;

/// Realtime clusters that are Ready only when a client's event has arrived as a signed webhook.
#[derive(Parser)]
#[command(name = "realtime", version, about, long_about = None, max_term_width = 100)]
#[command(after_help = "Begin with:  realtime rehearse examples/eu.yaml\n\
                        Break it:    realtime rehearse examples/eu.yaml --edit sockjs:REALTIME_WEBHOOKS=off")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster in this process and see whether it would become Ready
    #[cfg(feature = "rehearsal")]
    Rehearse(rehearse::Arguments),
    /// Print the objects that a manifest becomes, with every server's variables
    Render(render::Arguments),
    /// Print the CustomResourceDefinitions, to apply before the operator
    Crd(print::CrdArguments),
    /// Print the table of variables that servers read, as Markdown
    Variables,
    /// Print what an edge takes from clients and answers beyond that, as Markdown
    Limits,
    /// Print the table of metrics that every process exports, as Markdown
    #[command(hide = true)]
    Metrics,
    /// Print the injectors whose additions to pods are accepted, as a file to extend for `realtime operator`
    KnownInjectors,
    /// Print the reasons of conditions, as Markdown
    Reasons,
    #[cfg(feature = "bench")]
    Bench(bench::Arguments),
    Operator(operator::Arguments),
    Check(check::Arguments),
    Cost(cost::Arguments),
    Diff(diff::Arguments),
    Iam(iam::Arguments),
    Status(status::Arguments),
    Tail(tail::Arguments),
    Fleet(fleet::Arguments),
    Snapshot(snapshot::Arguments),
    Migrate(migrate::Arguments),
    Prove(prove::Arguments),
    Replay(replay::Arguments),
    /// Run an edge server; its configuration is its environment (see `realtime variables`)
    Edge,
    /// Run a webhook dispatcher; its configuration is its environment (see `realtime variables`)
    Dispatcher,
}

/// Lists the metrics of every process: edge, dispatcher and operator.
#[must_use]
pub fn metric_rows() -> Vec<MetricRow> {
    [EdgeMetrics::metric_rows(), DispatcherSeries::metric_rows(), OperatorMetrics::metric_rows()].concat()
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let command = parse_server_command(std::env::args_os()).unwrap_or_else(|| Arguments::parse().command);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("realtime: this machine gives no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run_command(command));
    // A task that is stuck must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ExitCode::from(code)
}

/// Parses the command line of a server, which has no options, without the tree of all commands: what that tree touches
/// would stay in the memory of an idle server, about 1 MiB.
fn parse_server_command(words: impl Iterator<Item = OsString>) -> Option<Command> {
    let mut words = words.skip(1);
    let (Some(name), None) = (words.next(), words.next()) else { return None };
    match name.to_str()? {
        "edge" => Some(Command::Edge),
        "dispatcher" => Some(Command::Dispatcher),
        _ => None,
    }
}

/// Runs a command to its end, and returns its exit code. Each is boxed: a server needs no room for the largest of them.
async fn run_command(command: Command) -> u8 {
    match command {
        #[cfg(feature = "rehearsal")]
        Command::Rehearse(arguments) => Box::pin(rehearse::run(arguments)).await,
        Command::Render(arguments) => render::run(&arguments),
        Command::Crd(arguments) => print::print_crds(&arguments),
        Command::Variables => print::print_text(&crate::config::render_variables_page()),
        Command::Limits => print::print_text(&crate::edge::server::limits_page::render_limits_page()),
        Command::Metrics => print::print_text(&render_metrics_page(&metric_rows())),
        Command::KnownInjectors => print::print_text(crate::desired::SHIPPED_INJECTORS),
        Command::Reasons => print::print_text(&crate::api::conditions::reasons_page()),
        #[cfg(feature = "bench")]
        Command::Bench(arguments) => Box::pin(bench::run(arguments)).await,
        Command::Operator(arguments) => Box::pin(operator::run(arguments)).await,
        Command::Check(arguments) => Box::pin(check::run(arguments)).await,
        Command::Cost(arguments) => cost::run(&arguments),
        Command::Diff(arguments) => Box::pin(diff::run(arguments)).await,
        Command::Iam(arguments) => iam::run(&arguments),
        Command::Status(arguments) => Box::pin(status::run(arguments)).await,
        Command::Tail(arguments) => Box::pin(tail::run(arguments)).await,
        Command::Fleet(arguments) => Box::pin(fleet::run(arguments)).await,
        Command::Snapshot(arguments) => Box::pin(snapshot::run(arguments)).await,
        Command::Migrate(arguments) => migrate::run(arguments),
        Command::Prove(arguments) => Box::pin(prove::run(arguments)).await,
        Command::Replay(arguments) => Box::pin(replay::run(arguments)).await,
        Command::Edge => Box::pin(serve::serve_edge()).await,
        Command::Dispatcher => Box::pin(serve::serve_dispatcher()).await,
    }
}

/// Reports errors of the input, a line each, and returns the exit code for them.
fn report_bad_input(errors: &[String]) -> u8 {
    for error in errors {
        eprintln!("realtime: {error}");
    }
    BAD_INPUT_EXIT_CODE
}

/// Parses a time such as `60s` or `2m`; a number without a unit is in seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no time: write 60s or 2m"))?;
    match unit {
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("`{text}` has an unknown unit: write 60s or 2m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_without_the_tree_of_commands_and_everything_else_is_left_to_it() {
        let parse = |words: &[&str]| parse_server_command(words.iter().map(OsString::from));
        assert!(matches!(parse(&["realtime", "edge"]), Some(Command::Edge)));
        assert!(matches!(parse(&["realtime", "dispatcher"]), Some(Command::Dispatcher)));
        for words in [&["realtime"][..], &["realtime", "operator"], &["realtime", "edge", "--help"], &["edge"]] {
            assert!(parse(words).is_none(), "{words:?}");
        }
        for words in [["realtime", "edge"], ["realtime", "dispatcher"]] {
            let parsed = Arguments::try_parse_from(words).map(|arguments| arguments.command).ok();
            assert_eq!(
                parsed.as_ref().map(std::mem::discriminant),
                parse(&words).as_ref().map(std::mem::discriminant),
                "{words:?}"
            );
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        for bad in ["", "s", "1h", "-1s", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
