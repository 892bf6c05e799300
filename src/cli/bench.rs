//! `realtime bench`: what a server costs on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::BAD_INPUT_EXIT_CODE;
use crate::bench::{self, BenchError, BenchReport, EdgePlan, PeerKind, PeerServer, PipelinePlan, PodsPlan};
use crate::process::{signal, telemetry};
use crate::rehearsal::cloud_of as kinesis_router_of;

/// The exit code when a target is missed.
const MISSED_EXIT_CODE: u8 = 1;

/// The exit code when the host was too busy for the figures to mean anything.
const VOID_EXIT_CODE: u8 = 2;

/// The exit code of a run that a signal ended.
const INTERRUPTED_EXIT_CODE: u8 = 130;

/// Bytes of records that the emulator of a benchmark keeps at most: far more than a full run writes.
const RETAINED_BYTES_MAX: u64 = 4 << 30;

/// Measure what a server costs on this machine
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Edge(EdgeArguments),
    Pipeline(PipelineArguments),
    Gate(GateArguments),
    /// A minimal server that an edge is compared with, as a process of its own
    #[command(hide = true)]
    Bare {
        /// Address of `/ws` and `/publish`.
        public: SocketAddr,
        /// Address of the byte echo.
        echo: SocketAddr,
    },
}

/// Measure an edge: memory of a socket, CPU of a delivery, latency, and that no event is lost.
///
/// Edges are started as processes of their own on loopback, with the memory bus and without webhooks, and driven over
/// WebSocket, the HTTP fallbacks and the signed HTTP API. Each figure is printed with its unit, its target and whether it
/// is met; it is the median of the rounds. With --peer another server, or another build of this program, takes its turn in
/// every round; without it, rows that compare with it are not measured. Use a release build. Exit codes: 0 every measured target is met, 1 one is
/// missed, 2 the run is void (others took more than 80 % of the host) or could not begin.
///
/// With --pods N it measures what a Redis between N edges costs: it starts `redis-server`, which must be in PATH, and
/// lets N edges over it take turns with a single edge without it. Figures are then deliveries per CPU second, latency
/// that the bus adds, subscriptions per second of Redis's CPU, memory of a channel in Redis, the time in which the
/// others announce the members of a killed edge as removed, and that no event is missed or repeated over all edges.
#[derive(clap::Args)]
#[command(after_help = "Begin with:   cargo run --release -- bench edge --quick\n\
                        Beside sockudo, installed for you:  benches/edge-against-sockudo\n\
                        Beside nginx with nchan, installed for you:  benches/edge-against-nchan\n\
                        Three edges over a Redis:           benches/pods (or with --quick --pods 3)")]
struct EdgeArguments {
    /// Smaller crowds and fewer rounds: under 3 minutes
    #[arg(long)]
    quick: bool,
    /// Edges that share a Redis, measured beside a single one: 2 or more, 3 as documented; under 6 minutes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=16))]
    pods: Option<u8>,
    /// Another server to measure in the same run: `sockudo=PATH`, `nchan=PATH` for an nginx with that module, or
    /// `realtime=PATH` for another build of this program
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_peer)]
    peer: Option<PeerServer>,
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Write the result as a page in Markdown too, unless the run is void
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Sockets in each crowd, instead of the plan's number
    #[arg(long, hide = true)]
    sockets: Option<usize>,
    /// Seconds for which each step publishes
    #[arg(long, hide = true)]
    seconds: Option<u64>,
    /// Number of rounds that are measured
    #[arg(long, hide = true)]
    rounds: Option<usize>,
    /// Seconds for which idle polls are watched
    #[arg(long, hide = true)]
    polling: Option<u64>,
}

/// Measure the webhook pipeline: events per second, latency, memory, calls to Kinesis, and that no event is lost.
///
/// A recorder as an edge has it writes to a Kinesis in this process; a dispatcher in a process of its own reads it and posts to
/// a receiver, all on loopback. Bare loops of the same client of the SDK take their turn in every round. Then an edge
/// carries chat messages while its stream is down, slow or throttled. Each figure is printed with its unit, its target and
/// whether it is met; it is the median of the rounds. Use a release build. Exit codes: 0 every measured target is met, 1 one
/// is missed, 2 the run is void (others took more than 80 % of the host) or could not begin.
#[derive(clap::Args)]
#[command(after_help = "Begin with:   cargo run --release -- bench pipeline --quick\n\
                        Full, to docs/performance-pipeline.md:  benches/pipeline")]
struct PipelineArguments {
    /// Fewer events and rounds: under 90 seconds
    #[arg(long)]
    quick: bool,
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Write the result as a page in Markdown too, unless the run is void
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Events in each load, instead of the plan's numbers
    #[arg(long, hide = true)]
    events: Option<u64>,
    /// Number of rounds that are measured
    #[arg(long, hide = true)]
    rounds: Option<usize>,
}

/// Simulate the gate under random losses: how soon it opens, how long it stays open, how soon it closes.
///
/// Runs the real decision in simulated time, with the intervals of the prober, for each share of lost journeys and each
/// number of pods. The result is the same for the same number of hours. Use a release build: 1,000 hours take less than a
/// minute on two cores. Exit codes: 0 every target is met, 1 one is missed.
#[derive(clap::Args)]
struct GateArguments {
    /// Simulated hours of each row
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    hours: u64,
    /// Write the result as a page in Markdown too
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn parse_peer(text: &str) -> Result<PeerServer, String> {
    let (kind, path) = match text.split_once('=') {
        Some(("sockudo", path)) if !path.is_empty() => (PeerKind::Sockudo, path),
        Some(("nchan", path)) if !path.is_empty() => (PeerKind::Nchan, path),
        Some(("realtime", path)) if !path.is_empty() => (PeerKind::Realtime, path),
        _ => return Err("write sockudo=PATH, nchan=PATH or realtime=PATH, with the path of its program".to_owned()),
    };
    match (PathBuf::from_str(path), kind) {
        (Ok(program), _) if program.is_file() => Ok(PeerServer { kind, program }),
        (_, PeerKind::Sockudo) => Err(format!("{path} is no file: build sockudo with benches/edge-against-sockudo")),
        (_, PeerKind::Nchan) => Err(format!("{path} is no file: name the nginx of benches/edge-against-nchan")),
        (_, PeerKind::Realtime) => Err(format!("{path} is no file: name the `realtime` of another release build")),
    }
}

/// Runs `realtime bench` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    match arguments.what {
        BenchCommand::Edge(edge) => self::bench_edge(edge).await,
        BenchCommand::Pipeline(pipeline) => self::bench_pipeline(pipeline).await,
        BenchCommand::Gate(gate) => {
            tokio::task::spawn_blocking(move || bench_gate(&gate)).await.unwrap_or(BAD_INPUT_EXIT_CODE)
        }
        BenchCommand::Bare { public, echo } => match bench::serve_bare(public, echo).await {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("realtime: {error}");
                BAD_INPUT_EXIT_CODE
            }
        },
    }
}

fn bench_gate(arguments: &GateArguments) -> u8 {
    let rows = bench::simulate_gate(arguments.hours, &|step| eprintln!("{step}"));
    print!("{}", bench::render_gate_table(&rows));
    if let Some(path) = &arguments.write
        && let Err(error) = std::fs::write(path, bench::render_gate_page(&rows, arguments.hours))
    {
        eprintln!("realtime: {} cannot be written: {error}", path.display());
        return BAD_INPUT_EXIT_CODE;
    }
    let missed = bench::find_missed_rows(&rows);
    for row in &missed {
        eprintln!("missed: {row}");
    }
    if missed.is_empty() { 0 } else { MISSED_EXIT_CODE }
}

async fn bench_pipeline(arguments: PipelineArguments) -> u8 {
    let mut plan = if arguments.quick { PipelinePlan::quick_run() } else { PipelinePlan::full_run() };
    if let Some(events) = arguments.events {
        plan = plan.with_events_max(events);
    }
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds).max(1);
    let progress = |step| eprintln!("{step}");
    let measured = Box::pin(bench::run_pipeline(&plan, || kinesis_router_of(RETAINED_BYTES_MAX), &progress));
    run_and_print(measured, arguments.output, arguments.write.as_deref()).await
}

async fn bench_edge(arguments: EdgeArguments) -> u8 {
    let progress = |what: String| eprintln!("{what}");
    let foreign = arguments.peer.as_ref().is_some_and(|peer| peer.kind != PeerKind::Realtime);
    if foreign && arguments.pods.is_some() {
        eprintln!("realtime: --pods measures our edges alone: leave out --peer, or compare with --peer realtime=PATH");
        return BAD_INPUT_EXIT_CODE;
    }
    let measured = async {
        match arguments.pods {
            Some(pods) => bench::run_pods(&build_pods_plan(&arguments, pods.into()), &progress).await,
            None => bench::run(&build_edge_plan(&arguments), &progress).await,
        }
    };
    run_and_print(measured, arguments.output, arguments.write.as_deref()).await
}

/// Runs a benchmark until its end or a signal, prints its report, and returns the exit code.
async fn run_and_print(
    measured: impl Future<Output = Result<BenchReport, BenchError>>,
    output: Output,
    write: Option<&Path>,
) -> u8 {
    telemetry::start("error");
    let Ok(shutdown) = signal::shutdown_token() else {
        eprintln!("realtime: signals cannot be listened to");
        return BAD_INPUT_EXIT_CODE;
    };
    if cfg!(debug_assertions) {
        eprintln!("realtime: this is no release build, so its figures mean little: use cargo run --release");
    }
    let report = tokio::select! {
        report = measured => report,
        () = shutdown.cancelled() => return INTERRUPTED_EXIT_CODE,
    };
    match report.and_then(|report| print_report(&report, output, write).map(|()| report)) {
        Ok(report) if report.void => VOID_EXIT_CODE,
        Ok(report) if report.has_missed_target() => MISSED_EXIT_CODE,
        Ok(_) => 0,
        Err(error) => {
            eprintln!("realtime: {error}");
            BAD_INPUT_EXIT_CODE
        }
    }
}

fn build_edge_plan(arguments: &EdgeArguments) -> EdgePlan {
    let mut plan = if arguments.quick { EdgePlan::quick_run() } else { EdgePlan::full_run() };
    if let Some(sockets) = arguments.sockets {
        plan = plan.with_crowds_max(sockets);
    }
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds).max(1);
    plan.publishing = arguments.seconds.map_or(plan.publishing, Duration::from_secs);
    plan.polling = arguments.polling.map_or(plan.polling, Duration::from_secs);
    plan.peer.clone_from(&arguments.peer);
    plan
}

fn build_pods_plan(arguments: &EdgeArguments, pods: usize) -> PodsPlan {
    let mut plan = if arguments.quick { PodsPlan::quick_run(pods) } else { PodsPlan::full_run(pods) };
    if let Some(sockets) = arguments.sockets {
        plan = plan.with_crowds_max(sockets);
    }
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds).max(1);
    plan.publishing = arguments.seconds.map_or(plan.publishing, Duration::from_secs);
    plan.former_program = arguments.peer.as_ref().map(|peer| peer.program.clone());
    plan
}

fn print_report(report: &BenchReport, output: Output, write: Option<&Path>) -> Result<(), BenchError> {
    if let (Some(path), false) = (write, report.void) {
        let what = format!("{} cannot be written", path.display());
        std::fs::write(path, bench::render_page(report)).map_err(|error| BenchError::Io { what, error })?;
    }
    match output {
        Output::Text => print!("{}", bench::render_text(report)),
        Output::Json => println!("{:#}", serde_json::to_value(report).unwrap_or_default()),
    }
    Ok(())
}
