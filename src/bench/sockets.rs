//! Crowds of sockets: CPU to accept one, memory of an idle one, deliveries to it, and memory after it left.

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

/// Sockets that are opened and closed before the first measurement, so that code and tables are loaded.
const WARM_UP_SOCKET_COUNT: usize = 100;

/// Delay before memory is read, so that a server has finished the work of opening or closing sockets.
const SERVER_IDLE_DELAY: Duration = Duration::from_secs(2);

/// Delay between the last subscription and the first publish.
const PUBLISH_START_DELAY: Duration = Duration::from_millis(500);

/// Bounds the wait for memory to be released.
const MEMORY_RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Bounds the ratio of memory to that at the start for it to count as released.
pub const MEMORY_RELEASED_RATIO_MAX: f64 = 1.2;

/// Bounds the wait for the last events after their publish.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Measurements of a publishing.
#[derive(Clone, Debug)]
pub struct DeliveryMeasurement {
    /// Delivered, missed and repeated events.
    pub tally: DeliveryTally,
    /// Latency from the time when an event was due until it was read.
    pub latency: LatencyHistogram,
    /// CPU of the servers for one delivery, with its share of the publish, in microseconds.
    pub cpu_us: f64,
}

/// Measurements of one crowd.
#[derive(Clone, Debug)]
pub struct CrowdMeasurement {
    /// CPU of the server to accept, authenticate and subscribe one socket, in microseconds.
    pub accept_us: f64,
    /// Memory of one idle socket, in KiB.
    pub held_kib: f64,
    /// Ratio of the memory after the crowd left to that at the start.
    pub released_ratio: Option<f64>,
    /// Deliveries to the crowd, if there was a publishing.
    pub delivery: Option<DeliveryMeasurement>,
}

/// Subscriptions of a crowd, and the measurements to take.
pub struct CrowdSpec {
    /// Subscription of each socket.
    pub subscriptions: Vec<ChannelSubscription>,
    /// Publishes to the crowd; sockets must be spread evenly over its channels.
    pub publishing: Option<PublishSchedule>,
    /// Whether to measure the memory after the crowd left.
    pub measure_release: bool,
}

/// Runs `work`, and measures the CPU of the servers together, in clock ticks, and the usage of the host.
pub async fn measure_servers<T>(
    servers: &[ServerProcess],
    watch: &mut HostUsage,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<(T, u64), BenchError> {
    let helpers = watch.helper_ticks()?;
    let own = |helpers: u64| Ok::<_, BenchError>(read_cpu_ticks(std::process::id())? + ticks_of(servers)? + helpers);
    let (before, host_before, own_before) = (ticks_of(servers)?, read_host_ticks()?, own(helpers)?);
    let result = work.await?;
    let took = ticks_of(servers)?.saturating_sub(before);
    let helpers = watch.helper_ticks()?;
    watch.add_window(host_before, read_host_ticks()?, own(helpers)?.saturating_sub(own_before));
    Ok((result, took))
}

/// Returns a closure for `map_err` that names the server, or the first of several, and the step that failed.
pub fn to_server_error(servers: &[ServerProcess], step: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    let server = servers.first().map_or("no server", |server| server.target.kind.name());
    move |error| BenchError::Server { server, step, detail: error.to_string() }
}

/// Kinds and public addresses of the servers.
pub fn targets_of(servers: &[ServerProcess]) -> Vec<Target> {
    servers.iter().map(|server| server.target).collect()
}

/// Opens sockets at the servers in turn, [`CONCURRENT_OPENS_MAX`] concurrently.
pub async fn open_sockets(
    servers: &[ServerProcess],
    subscriptions: &[ChannelSubscription],
) -> Result<Vec<ClientSocket>, BenchError> {
    let turns = targets_of(servers).into_iter().cycle();
    let opened = stream::iter(subscriptions.iter().zip(turns))
        .map(|(subscription, target)| open_subscribed_socket(target, subscription))
        .buffered(CONCURRENT_OPENS_MAX);
    opened.try_collect().await.map_err(to_server_error(servers, "opening sockets"))
}

/// Warms servers up with sockets and publishes, so that the measurement pays for no first use.
pub async fn warm_up(servers: &[ServerProcess], subscriptions: &[ChannelSubscription]) -> Result<(), BenchError> {
    let sockets =
        open_sockets(servers, &subscriptions[..subscriptions.len().min(WARM_UP_SOCKET_COUNT * servers.len())]).await?;
    if let Some(subscription) = subscriptions.first() {
        let publishing = PublishSchedule::new(vec![subscription.channel.clone()], 100, Duration::from_secs(1));
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
    spec: CrowdSpec,
    watch: &mut HostUsage,
) -> Result<CrowdMeasurement, BenchError> {
    let CrowdSpec { subscriptions, publishing, measure_release } = spec;
    let servers = std::slice::from_ref(server);
    warm_up(servers, &subscriptions).await?;
    let start = server.rss_kib()?;
    let (sockets, took) = measure_servers(servers, watch, open_sockets(servers, &subscriptions)).await?;
    let count = as_f64(sockets.len().max(1) as u64);
    // Members of presence channels get frames even without a publish; a server closes sockets that do not read.
    let listeners = CrowdListeners::start(sockets, publishing.as_ref(), servers.len());
    sleep(SERVER_IDLE_DELAY).await;
    let memory_kib = server.rss_kib()?.saturating_sub(start);
    let delivery = listeners.publish_and_close(servers, publishing, watch).await?;
    let released_ratio = if measure_release { Some(measure_released_memory(server, start).await?) } else { None };
    Ok(CrowdMeasurement {
        accept_us: ticks_to_us(took) / count,
        held_kib: as_f64(memory_kib) / count,
        released_ratio,
        delivery,
    })
}

/// Measures the ratio of memory to that at the start, once it is released or at the timeout.
async fn measure_released_memory(server: &ServerProcess, start: u64) -> Result<f64, BenchError> {
    let deadline = Instant::now() + MEMORY_RELEASE_TIMEOUT;
    loop {
        let share = as_f64(server.rss_kib()?) / as_f64(start.max(1));
        if share <= MEMORY_RELEASED_RATIO_MAX || Instant::now() > deadline {
            return Ok(share);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Sockets of a crowd, each read by a task.
pub struct CrowdListeners {
    tasks: JoinSet<DeliveryTally>,
    stop: CancellationToken,
    latencies: Arc<LatencyRecorder>,
    clock: RunClock,
    arrived: Arc<AtomicU64>,
}

impl CrowdListeners {
    /// Opens sockets at the servers in turn, and starts to read from them.
    pub async fn open_and_listen(
        servers: &[ServerProcess],
        subscriptions: &[ChannelSubscription],
        publishing: &PublishSchedule,
    ) -> Result<Self, BenchError> {
        let listeners = Self::start(open_sockets(servers, subscriptions).await?, Some(publishing), servers.len());
        sleep(PUBLISH_START_DELAY).await;
        Ok(listeners)
    }

    /// Starts one task for each socket; `publishing` gives the number of events that each expects, published at this
    /// many servers.
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

    /// Publishes, if there is a schedule, and waits until all events have arrived or the timeout has passed. Then closes
    /// the sockets.
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

    /// Publishes, and waits until all events have arrived or the timeout has passed. Returns the servers' CPU for it, in
    /// clock ticks.
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
            let deadline = Instant::now() + LAST_EVENTS_TIMEOUT;
            while self.arrived.load(Ordering::Relaxed) < expected && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        Ok(measure_servers(servers, watch, work).await?.1)
    }

    /// Closes the sockets, and merges their deliveries, for which the servers took this many clock ticks.
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
                    // The server closed the socket: the rest of its events count as missed.
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
