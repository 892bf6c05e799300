//! Sockets: what one costs to take in, what it holds while it is idle, what comes to it, and what stays when it goes.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::BenchError;
use super::latency::{LatencyHistogram, LatencyRecorder};
use super::load::{self, CONCURRENT_OPENS_MAX, ChannelSubscription, PublishSchedule, RunClock, open_subscribed_socket};
use super::machine::{HostUsage, as_f64, read_cpu_ticks, read_host_ticks, ticks_to_us};
use super::sequence::{DeliveryTally, ServerLanes};
use super::server::{ServerProcess, sum_cpu_ticks as ticks_of};
use super::socket::ClientSocket;
use super::target::Target;

/// Sockets that come and go before the first measurement, so that code and tables are there.
const WARM_UP_SOCKET_COUNT: usize = 100;

/// How long a server may come to rest.
const SERVER_IDLE_DELAY: Duration = Duration::from_secs(2);

/// How long those who came may settle before they are published to.
const PUBLISH_START_DELAY: Duration = Duration::from_millis(500);

/// How long memory may take to come back.
const MEMORY_RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Memory that is back to this share of the start is back.
pub const MEMORY_RELEASED_RATIO_MAX: f64 = 1.2;

/// How long the last events may take.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(10);

/// What publishing to subscribers gave.
#[derive(Clone, Debug)]
pub struct DeliveryMeasurement {
    /// What arrived, and what did not.
    pub tally: DeliveryTally,
    /// From when an event was due until it was read.
    pub latency: LatencyHistogram,
    /// The server's CPU for one delivery, its share of the publish in it, in microseconds.
    pub cpu_us: f64,
}

/// What a crowd gave.
#[derive(Clone, Debug)]
pub struct CrowdMeasurement {
    /// The server's CPU for one socket that was taken in, authenticated and subscribed, in microseconds.
    pub accept_us: f64,
    /// What one idle socket holds, in KiB.
    pub held_kib: f64,
    /// Memory after they left, to that at the start.
    pub released_ratio: Option<f64>,
    /// What was published to them.
    pub delivery: Option<DeliveryMeasurement>,
}

/// What to do with a crowd.
pub struct CrowdSpec {
    /// Who is where.
    pub subscriptions: Vec<ChannelSubscription>,
    /// What is published to them; needs sockets in their order over its channels.
    pub publishing: Option<PublishSchedule>,
    /// Whether to wait for memory to come back.
    pub measure_release: bool,
}

/// Measures while something is done: the CPU of the servers together, and the host.
pub async fn measure_servers<T>(
    servers: &[ServerProcess],
    watch: &mut HostUsage,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<(T, u64), BenchError> {
    let helpers = watch.helper_ticks()?;
    let own = |helpers: u64| Ok::<_, BenchError>(read_cpu_ticks(std::process::id())? + ticks_of(servers)? + helpers);
    let (before, host_before, own_before) = (ticks_of(servers)?, read_host_ticks()?, own(helpers)?);
    let done = work.await?;
    let took = ticks_of(servers)?.saturating_sub(before);
    let helpers = watch.helper_ticks()?;
    watch.add_window(host_before, read_host_ticks()?, own(helpers)?.saturating_sub(own_before));
    Ok((done, took))
}

/// For `map_err`: what a server, or one of several, did not do.
pub fn to_server_error(servers: &[ServerProcess], step: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    let server = servers.first().map_or("no server", |server| server.target.kind.name());
    move |error| BenchError::Server { server, step, detail: error.to_string() }
}

/// Where their clients go.
pub fn targets_of(servers: &[ServerProcess]) -> Vec<Target> {
    servers.iter().map(|server| server.target).collect()
}

/// Opens sockets, some at a time, at the servers in turn.
pub async fn open_sockets(
    servers: &[ServerProcess],
    places: &[ChannelSubscription],
) -> Result<Vec<ClientSocket>, BenchError> {
    let turns = targets_of(servers).into_iter().cycle();
    let opened = stream::iter(places.iter().zip(turns))
        .map(|(place, target)| open_subscribed_socket(target, place))
        .buffered(CONCURRENT_OPENS_MAX);
    opened.try_collect().await.map_err(to_server_error(servers, "opening sockets"))
}

/// Makes servers have met everything once.
pub async fn warm_up(servers: &[ServerProcess], places: &[ChannelSubscription]) -> Result<(), BenchError> {
    let sockets = open_sockets(servers, &places[..places.len().min(WARM_UP_SOCKET_COUNT * servers.len())]).await?;
    if let Some(place) = places.first() {
        let publishing = PublishSchedule::new(vec![place.channel.clone()], 100, Duration::from_secs(1));
        let targets = targets_of(servers);
        let warmed = publishing.run(&targets, RunClock::start());
        warmed.await.map_err(to_server_error(servers, "publishing"))?;
    }
    stream::iter(sockets).for_each_concurrent(CONCURRENT_OPENS_MAX, ClientSocket::close_gracefully).await;
    sleep(SERVER_IDLE_DELAY).await;
    Ok(())
}

/// Runs one crowd against a server.
pub async fn run(
    server: &ServerProcess,
    order: CrowdSpec,
    watch: &mut HostUsage,
) -> Result<CrowdMeasurement, BenchError> {
    let CrowdSpec { subscriptions: places, publishing, measure_release: leave } = order;
    let servers = std::slice::from_ref(server);
    warm_up(servers, &places).await?;
    let start = server.rss_kib()?;
    let (sockets, took) = measure_servers(servers, watch, open_sockets(servers, &places)).await?;
    let count = as_f64(sockets.len().max(1) as u64);
    // Also those to whom nothing is published hear of each other; whoever does not read would be cut.
    let listeners = CrowdListeners::start(sockets, publishing.as_ref(), servers.len());
    sleep(SERVER_IDLE_DELAY).await;
    let held = server.rss_kib()?.saturating_sub(start);
    let delivery = listeners.publish_and_close(servers, publishing, watch).await?;
    let back = if leave { Some(measure_released_memory(server, start).await?) } else { None };
    Ok(CrowdMeasurement {
        accept_us: ticks_to_us(took) / count,
        held_kib: as_f64(held) / count,
        released_ratio: back,
        delivery,
    })
}

/// Memory after everyone left, to that at the start, as soon as it is back or when it had its time.
async fn measure_released_memory(server: &ServerProcess, start: u64) -> Result<f64, BenchError> {
    let late = Instant::now() + MEMORY_RELEASE_TIMEOUT;
    loop {
        let share = as_f64(server.rss_kib()?) / as_f64(start.max(1));
        if share <= MEMORY_RELEASED_RATIO_MAX || Instant::now() > late {
            return Ok(share);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Sockets that are read from.
pub struct CrowdListeners {
    tasks: JoinSet<DeliveryTally>,
    stop: CancellationToken,
    latencies: Arc<LatencyRecorder>,
    clock: RunClock,
    arrived: Arc<AtomicU64>,
}

impl CrowdListeners {
    /// Opens sockets at the servers in turn, and reads from them.
    pub async fn open_and_listen(
        servers: &[ServerProcess],
        places: &[ChannelSubscription],
        publishing: &PublishSchedule,
    ) -> Result<Self, BenchError> {
        let listeners = Self::start(open_sockets(servers, places).await?, Some(publishing), servers.len());
        sleep(PUBLISH_START_DELAY).await;
        Ok(listeners)
    }

    /// One task for each; `publishing` says how many events each is to get, that are published at so many servers.
    pub fn start(sockets: Vec<ClientSocket>, publishing: Option<&PublishSchedule>, servers: usize) -> Self {
        let (tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let (latencies, clock) = (Arc::new(LatencyRecorder::new()), RunClock::start());
        let mut listeners = Self { tasks, stop, latencies, clock, arrived: Arc::default() };
        let expected = publishing.map_or(0, PublishSchedule::events_per_channel);
        for (number, socket) in sockets.into_iter().enumerate() {
            let (stop, latencies) = (listeners.stop.clone(), listeners.latencies.clone());
            let seen = listeners.arrived.clone();
            let notes = (ServerLanes::for_servers(servers), latencies, clock, seen);
            listeners.tasks.spawn(read_events(socket, number, expected, notes, stop));
        }
        listeners
    }

    /// Publishes, if there is something to, and waits until everything has arrived or had its time. Then everyone says
    /// goodbye.
    pub async fn publish_and_close(
        self,
        servers: &[ServerProcess],
        publishing: Option<PublishSchedule>,
        watch: &mut HostUsage,
    ) -> Result<Option<DeliveryMeasurement>, BenchError> {
        let took = match publishing {
            Some(publishing) => Some(self.publish_and_wait(servers, publishing, watch).await?),
            None => None,
        };
        let delivery = self.close_and_tally(took.unwrap_or_default()).await;
        Ok(took.map(|_| delivery))
    }

    /// Publishes, and waits until everything has arrived or had its time. Returns the servers' CPU for it, in clock
    /// ticks.
    pub async fn publish_and_wait(
        &self,
        servers: &[ServerProcess],
        publishing: PublishSchedule,
        watch: &mut HostUsage,
    ) -> Result<u64, BenchError> {
        let expected = publishing.events_per_channel() * self.tasks.len() as u64;
        let targets = targets_of(servers);
        let work = async {
            publishing.run(&targets, self.clock).await.map_err(to_server_error(servers, "publishing"))?;
            let late = Instant::now() + LAST_EVENTS_TIMEOUT;
            while self.arrived.load(Ordering::Relaxed) < expected && Instant::now() < late {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        Ok(measure_servers(servers, watch, work).await?.1)
    }

    /// Everyone says goodbye, and tells what was heard of what the servers published in so many ticks of CPU.
    pub async fn close_and_tally(mut self, took: u64) -> DeliveryMeasurement {
        self.stop.cancel();
        let mut tally = DeliveryTally::default();
        while let Some(seen) = self.tasks.join_next().await {
            tally += seen.unwrap_or_default();
        }
        let delivered = as_f64(tally.delivered.max(1));
        DeliveryMeasurement { tally, latency: self.latencies.merge_shards(), cpu_us: ticks_to_us(took) / delivered }
    }
}

type ListenerSinks = (ServerLanes, Arc<LatencyRecorder>, RunClock, Arc<AtomicU64>);

async fn read_events(
    mut socket: ClientSocket,
    number: usize,
    expected: u64,
    (mut lanes, latencies, clock, seen): ListenerSinks,
    stop: CancellationToken,
) -> DeliveryTally {
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let reading = socket.read(|text| {
            if let Some((event, due)) = load::parse_event(text) {
                latencies.record(number, clock.elapsed_since(due));
                lanes.add_arrival(event);
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        tokio::select! {
            biased;
            read = reading => {
                if read.is_err() {
                    // A socket that the server cut: what it did not get is missing.
                    break;
                }
            }
            () = &mut stopped => {
                socket.close_gracefully().await;
                break;
            }
        }
    }
    lanes.into_tally(expected)
}
