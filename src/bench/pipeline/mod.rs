//! The webhook pipeline: recorder → stream → dispatcher → receiver, beside bare loops of the same client of the SDK.
//!
//! In: the size of the run, and a Kinesis to serve. Out: figures as of any other run. The dispatcher is a process of its
//! own; recorder, stream and receiver are in this one, which also counts what was recorded and what arrived. The bare loops
//! take their turn within each round.

mod bare_loops;
mod chat;
mod feeder;
mod figures;
mod loopback;
mod memory;
mod receiver;
mod stream_double;
mod workload;

use std::time::{Duration, Instant};

use axum::Router;
use tempfile::TempDir;
use tokio::time::sleep;

use self::feeder::{Feeder, Pace, RecordBatching};
use self::figures::{PipelineRound, Throughput, compute_pipeline_figures};
use self::receiver::Receiver;
use self::stream_double::{CREDENTIAL, REGION, STREAM, StreamDouble};
use self::workload::{CLUSTER, Workload, build_apps, build_entries};
use super::error::BenchError;
use super::http::HttpConnection;
use super::load::RunClock;
use super::machine::{self, HostUsage, as_f64};
use super::plan::PipelinePlan;
use super::report::{BenchReport, RunSize, begin_report};
use super::server::{ServerProcess, StreamConnection, write_apps};
use super::sockets::measure_servers;
use super::target::ServerKind;
use crate::protocol::registry::App;

/// Bounds the wait until a dispatcher holds every shard.
const SHARDS_TIMEOUT: Duration = Duration::from_secs(20);

/// Delay before memory is read, so that a process has finished the work of its start.
const IDLE_DELAY: Duration = Duration::from_secs(2);

/// Interval at which the memory of a busy dispatcher is sampled.
const MEMORY_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the plan, and reports each step to `progress`. `new_kinesis` serves the API of a Kinesis without streams.
///
/// # Errors
/// A limit of the system is too low, or a part fails a step that a figure depends on.
pub async fn run(
    plan: &PipelinePlan,
    new_kinesis: fn() -> Router,
    progress: &(dyn Fn(String) + Sync),
) -> Result<BenchReport, BenchError> {
    let began = Instant::now();
    crate::process::install_tls();
    machine::allow_files(plan.open_files_needed())?;
    let mut report = begin_report(RunSize::Pipeline(plan.clone()), None).await;
    let (mut rounds, mut all) = (Vec::with_capacity(plan.rounds), HostUsage::default());
    for number in 0..plan.rounds {
        let report_step = |step: &str| progress(format!("round {} of {}: {step}", number + 1, plan.rounds));
        rounds.push(run_round(plan, new_kinesis, &mut all, &report_step).await?);
    }
    progress(format!("{} events beside an endpoint that refuses, then {} users", plan.refused_events, plan.users));
    let mut bed = TestBed::start(plan, new_kinesis, RecordBatching::Default).await?;
    let memory = memory::measure_memory(&mut bed, plan).await?;
    drop(bed);
    progress("chat messages while the stream is down, slow or throttled".to_owned());
    let double = StreamDouble::start(new_kinesis(), plan.shards).await?;
    let app = chat_app()?;
    let server = ServerProcess::start_on_stream(ServerKind::Edge, &stream_connection(&double, &[app])).await?;
    let chat = chat::measure_chat(&server, &double, plan, &mut all).await?;
    report.figures = compute_pipeline_figures(&rounds, &memory, &chat);
    report.finish_run(&all, began);
    Ok(report)
}

async fn run_round(
    plan: &PipelinePlan,
    new_kinesis: fn() -> Router,
    all: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<PipelineRound, BenchError> {
    let mut round = PipelineRound::default();
    report_step(&format!("bare loops: {} records put, read and posted", plan.events));
    measure_bare_loops(plan, new_kinesis, all, &mut round).await?;
    report_step(&format!("{} events in batches, then {} per second", plan.events, plan.calm_per_second));
    let mut bed = TestBed::start(plan, new_kinesis, RecordBatching::Default).await?;
    round.idle_kib = bed.measure_idle(plan, &mut round.reads_per_shard_hour).await?;
    round.batched = bed.measure_throughput(plan.events, all).await?;
    bed.measure_calm(plan, all, &mut round).await?;
    round.tally = bed.tally();
    drop(bed);
    report_step(&format!("{} events, each in a record and a body of its own", plan.single_events));
    let mut bed = TestBed::start(plan, new_kinesis, RecordBatching::Single).await?;
    round.single = bed.measure_throughput(plan.single_events, all).await?;
    round.tally += bed.tally();
    Ok(round)
}

async fn measure_bare_loops(
    plan: &PipelinePlan,
    new_kinesis: fn() -> Router,
    all: &mut HostUsage,
    round: &mut PipelineRound,
) -> Result<(), BenchError> {
    let double = StreamDouble::start(new_kinesis(), plan.shards).await?;
    let receiver = Receiver::start(0, RunClock::start()).await?;
    let count = usize::try_from(plan.events).unwrap_or(usize::MAX);
    let entries = build_entries(count, plan.channels, plan.endpoints);
    let measured = measure_servers(&[], all, async {
        let puts = bare_loops::measure_puts(&double, entries).await?;
        Ok((puts, bare_loops::measure_reads(&double, receiver.address).await?))
    });
    ((round.bare_puts, round.bare_reads), _) = Box::pin(measured).await?;
    Ok(())
}

/// One stream with its recorder, dispatcher and receiver.
struct TestBed {
    feeder: Feeder,
    dispatcher: ServerProcess,
    receiver: Receiver,
    double: StreamDouble,
    clock: RunClock,
    _apps: TempDir,
}

impl TestBed {
    /// Starts all parts, and waits until the dispatcher holds every shard.
    async fn start(
        plan: &PipelinePlan,
        new_kinesis: fn() -> Router,
        batching: RecordBatching,
    ) -> Result<Self, BenchError> {
        let clock = RunClock::start();
        let double = StreamDouble::start(new_kinesis(), plan.shards).await?;
        let receiver = Receiver::start(plan.channels, clock).await?;
        let apps = build_apps(plan.endpoints, &receiver.url, batching == RecordBatching::Single)?;
        let directory = tempfile::tempdir().map_err(BenchError::from_io("no temporary directory can be made"))?;
        write_apps(directory.path(), &apps)?;
        let workload = Workload::new(plan.channels, plan.endpoints);
        let client = double.connect().await;
        let feeder = Feeder::start(client, directory.path().to_owned(), workload, batching, clock).await?;
        let dispatcher =
            ServerProcess::start_on_stream(ServerKind::Dispatcher, &stream_connection(&double, &apps)).await?;
        wait_for_shards(&dispatcher, plan.shards).await?;
        Ok(Self { feeder, dispatcher, receiver, double, clock, _apps: directory })
    }

    /// Measures the memory of the idle dispatcher, in KiB, and its reads.
    async fn measure_idle(&self, plan: &PipelinePlan, reads_per_shard_hour: &mut f64) -> Result<u64, BenchError> {
        sleep(IDLE_DELAY).await;
        let (before, began) = (self.double.calls(), Instant::now());
        sleep(IDLE_DELAY).await;
        let (reads, hours) = ((self.double.calls() - before).reads, began.elapsed().as_secs_f64() / 3_600.0);
        *reads_per_shard_hour = as_f64(reads) / as_f64(plan.shards as u64) / hours;
        self.dispatcher.rss_kib()
    }

    /// Records so many events as fast as the recorder writes, and measures until the last has arrived.
    async fn measure_throughput(&mut self, events: u64, all: &mut HostUsage) -> Result<Throughput, BenchError> {
        let (servers, receiver) = (std::slice::from_ref(&self.dispatcher), &self.receiver);
        let (calls, bodies, arrived) = (self.double.calls(), receiver.bodies(), receiver.events());
        let (emitted, from_us) = (self.feeder.emitted(), self.clock.now_us());
        let delivery = deliver_events(&mut self.feeder, receiver, events, Pace::AsFastAsWritten);
        let sampled = sample_memory(&self.dispatcher, delivery);
        let ((dropped, peak_kib), ticks) = measure_servers(servers, all, sampled).await?;
        let events = self.feeder.emitted() - emitted;
        let puts = (self.double.calls() - calls).puts;
        let seconds = as_f64(receiver.last_arrival_us().saturating_sub(from_us)) / 1e6;
        Ok(Throughput {
            events_per_second: as_f64(events) / seconds,
            dispatcher_us: machine::ticks_to_us(ticks) / as_f64(events),
            peak_kib,
            puts_per_thousand: as_f64(puts) * 1e3 / as_f64(events),
            events_per_body: as_f64(receiver.events() - arrived) / as_f64(receiver.bodies() - bodies),
            dropped,
        })
    }

    /// Records events at a steady rate, and measures their latency and their cost.
    async fn measure_calm(
        &mut self,
        plan: &PipelinePlan,
        all: &mut HostUsage,
        round: &mut PipelineRound,
    ) -> Result<(), BenchError> {
        let emitted = self.feeder.emitted();
        let _ = self.receiver.take_latency();
        self.double.count_records();
        let calls = self.double.calls();
        let servers = std::slice::from_ref(&self.dispatcher);
        let events = plan.calm.as_secs() * u64::from(plan.calm_per_second);
        let pace = Pace::PerSecond(plan.calm_per_second);
        measure_servers(servers, all, deliver_events(&mut self.feeder, &self.receiver, events, pace)).await?;
        let (calls, thousands) = (self.double.calls() - calls, as_f64(self.feeder.emitted() - emitted) / 1e3);
        round.latency = Some(self.receiver.take_latency());
        round.calm_puts = as_f64(calls.puts) / thousands;
        round.calm_records = as_f64(calls.records) / thousands;
        round.calm_units = as_f64(calls.payload_units) / thousands;
        Ok(())
    }

    fn tally(&self) -> super::sequence::DeliveryTally {
        self.receiver.tally(self.feeder.counts())
    }
}

/// Records so many events, and waits until they have arrived. Returns the number of those that the recorder dropped.
async fn deliver_events(feeder: &mut Feeder, receiver: &Receiver, events: u64, pace: Pace) -> Result<u64, BenchError> {
    let (arrived, emitted) = (receiver.events(), feeder.emitted());
    feeder.feed(events, pace).await?;
    let dropped = feeder.flush().await?;
    receiver.wait_for_events(arrived + feeder.emitted() - emitted).await;
    Ok(dropped)
}

/// Runs `work`, and returns the largest memory of the process meanwhile, in KiB.
async fn sample_memory<T>(
    process: &ServerProcess,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<(T, u64), BenchError> {
    tokio::pin!(work);
    let mut peak_kib = process.rss_kib()?;
    loop {
        tokio::select! {
            result = &mut work => return Ok((result?, peak_kib.max(process.rss_kib()?))),
            () = sleep(MEMORY_SAMPLE_INTERVAL) => peak_kib = peak_kib.max(process.rss_kib()?),
        }
    }
}

fn stream_connection<'a>(double: &'a StreamDouble, apps: &'a [App]) -> StreamConnection<'a> {
    StreamConnection {
        endpoint: &double.endpoint,
        stream: STREAM,
        region: REGION,
        credential: CREDENTIAL,
        cluster: CLUSTER,
        apps,
    }
}

/// The app of the chat messages: with a webhook, so that the edge records them.
fn chat_app() -> Result<App, BenchError> {
    let mut app = super::server::build_app(ServerKind::Edge)?;
    let webhooks = build_apps(1, "http://127.0.0.1:1", false)?.into_iter().flat_map(|app| app.webhooks);
    app.webhooks = webhooks.collect();
    Ok(app)
}

/// Waits until the metrics of a dispatcher say that it holds every shard.
async fn wait_for_shards(dispatcher: &ServerProcess, shards: usize) -> Result<(), BenchError> {
    let deadline = Instant::now() + SHARDS_TIMEOUT;
    let held = format!("realtime_dispatcher_shards {shards}");
    loop {
        let read = || BenchError::from_io("the metrics of the dispatcher cannot be read");
        let mut connection = HttpConnection::open(dispatcher.target.address).await.map_err(read())?;
        let (_, body) = connection.fetch_response("GET", "/metrics", b"").await.map_err(read())?;
        if String::from_utf8_lossy(&body).lines().any(|line| line == held) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let detail = format!("{shards} shards are not held after {SHARDS_TIMEOUT:?}");
            return Err(BenchError::Server { server: "dispatcher", step: "taking the shards", detail });
        }
        sleep(Duration::from_millis(50)).await;
    }
}
