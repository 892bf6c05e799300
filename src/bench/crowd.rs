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
use super::latency::{Latencies, Latency};
use super::load::{self, Clock, OPENING, Place, Publishing, Target, enter};
use super::machine::{Watch, as_f64, host, ticks, us};
use super::sequence::{Lanes, Tally};
use super::server::{Server, ticks as ticks_of};
use super::socket::Socket;

/// Sockets that come and go before the first measurement, so that code and tables are there.
const WARM: usize = 100;

/// How long a server may come to rest.
const REST: Duration = Duration::from_secs(2);

/// How long those who came may settle before they are published to.
const SETTLE: Duration = Duration::from_millis(500);

/// How long memory may take to come back.
const BACK: Duration = Duration::from_secs(20);

/// Memory that is back to this share of the start is back.
pub const BACK_WITHIN: f64 = 1.2;

/// How long the last events may take.
const LAST: Duration = Duration::from_secs(10);

/// What publishing to subscribers gave.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What arrived, and what did not.
    pub tally: Tally,
    /// From when an event was due until it was read.
    pub latency: Latency,
    /// The server's CPU for one delivery, its share of the publish in it, in microseconds.
    pub cpu_us: f64,
}

/// What a crowd gave.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// The server's CPU for one socket that was taken in, authenticated and subscribed, in microseconds.
    pub accept_us: f64,
    /// What one idle socket holds, in KiB.
    pub held_kib: f64,
    /// Memory after they left, to that at the start.
    pub back: Option<f64>,
    /// What was published to them.
    pub delivery: Option<Delivery>,
}

/// What to do with a crowd.
pub struct Order {
    /// Who is where.
    pub places: Vec<Place>,
    /// What is published to them; needs sockets in their order over its channels.
    pub publishing: Option<Publishing>,
    /// Whether to wait for memory to come back.
    pub leave: bool,
}

/// Measures while something is done: the CPU of the servers together, and the host.
pub async fn measured<T>(
    servers: &[Server],
    watch: &mut Watch,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<(T, u64), BenchError> {
    let helpers = watch.helpers()?;
    let own = |helpers: u64| Ok::<_, BenchError>(ticks(std::process::id())? + ticks_of(servers)? + helpers);
    let (before, host_before, own_before) = (ticks_of(servers)?, host()?, own(helpers)?);
    let done = work.await?;
    let took = ticks_of(servers)?.saturating_sub(before);
    let helpers = watch.helpers()?;
    watch.add(host_before, host()?, own(helpers)?.saturating_sub(own_before));
    Ok((done, took))
}

/// For `map_err`: what a server, or one of several, did not do.
pub fn failed(servers: &[Server], step: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    let server = servers.first().map_or("no server", |server| server.target.kind.name());
    move |error| BenchError::Server { server, step, detail: error.to_string() }
}

/// Where their clients go.
pub fn targets(servers: &[Server]) -> Vec<Target> {
    servers.iter().map(|server| server.target).collect()
}

/// Opens sockets, some at a time, at the servers in turn.
pub async fn open(servers: &[Server], places: &[Place]) -> Result<Vec<Socket>, BenchError> {
    let turns = targets(servers).into_iter().cycle();
    let opened = stream::iter(places.iter().zip(turns)).map(|(place, target)| enter(target, place)).buffered(OPENING);
    opened.try_collect().await.map_err(failed(servers, "opening sockets"))
}

/// Makes servers have met everything once.
pub async fn warm(servers: &[Server], places: &[Place]) -> Result<(), BenchError> {
    let sockets = open(servers, &places[..places.len().min(WARM * servers.len())]).await?;
    if let Some(place) = places.first() {
        let publishing = Publishing::new(vec![place.channel.clone()], 100, Duration::from_secs(1));
        let targets = targets(servers);
        let warmed = publishing.run(&targets, Clock::start());
        warmed.await.map_err(failed(servers, "publishing"))?;
    }
    stream::iter(sockets).for_each_concurrent(OPENING, Socket::leave).await;
    sleep(REST).await;
    Ok(())
}

/// Runs one crowd against a server.
pub async fn run(server: &Server, order: Order, watch: &mut Watch) -> Result<Crowd, BenchError> {
    let Order { places, publishing, leave } = order;
    let servers = std::slice::from_ref(server);
    warm(servers, &places).await?;
    let start = server.rss_kib()?;
    let (sockets, took) = measured(servers, watch, open(servers, &places)).await?;
    let count = as_f64(sockets.len().max(1) as u64);
    // Also those to whom nothing is published hear of each other; whoever does not read would be cut.
    let listeners = Listeners::start(sockets, publishing.as_ref(), servers.len());
    sleep(REST).await;
    let held = server.rss_kib()?.saturating_sub(start);
    let delivery = listeners.hear(servers, publishing, watch).await?;
    let back = if leave { Some(back(server, start).await?) } else { None };
    Ok(Crowd { accept_us: us(took) / count, held_kib: as_f64(held) / count, back, delivery })
}

/// Memory after everyone left, to that at the start, as soon as it is back or when it had its time.
async fn back(server: &Server, start: u64) -> Result<f64, BenchError> {
    let late = Instant::now() + BACK;
    loop {
        let share = as_f64(server.rss_kib()?) / as_f64(start.max(1));
        if share <= BACK_WITHIN || Instant::now() > late {
            return Ok(share);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Sockets that are read from.
pub struct Listeners {
    tasks: JoinSet<Tally>,
    stop: CancellationToken,
    latencies: Arc<Latencies>,
    clock: Clock,
    seen: Arc<AtomicU64>,
}

impl Listeners {
    /// Opens sockets at the servers in turn, and reads from them.
    pub async fn enter(servers: &[Server], places: &[Place], publishing: &Publishing) -> Result<Self, BenchError> {
        let listeners = Self::start(open(servers, places).await?, Some(publishing), servers.len());
        sleep(SETTLE).await;
        Ok(listeners)
    }

    /// One task for each; `publishing` says how many events each is to get, that are published at so many servers.
    pub fn start(sockets: Vec<Socket>, publishing: Option<&Publishing>, servers: usize) -> Self {
        let (tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let (latencies, clock) = (Arc::new(Latencies::new()), Clock::start());
        let mut listeners = Self { tasks, stop, latencies, clock, seen: Arc::default() };
        let expected = publishing.map_or(0, Publishing::per_channel);
        for (number, socket) in sockets.into_iter().enumerate() {
            let (stop, latencies) = (listeners.stop.clone(), listeners.latencies.clone());
            let seen = listeners.seen.clone();
            let notes = (Lanes::of(servers), latencies, clock, seen);
            listeners.tasks.spawn(listen(socket, number, expected, notes, stop));
        }
        listeners
    }

    /// Publishes, if there is something to, and waits until everything has arrived or had its time. Then everyone says
    /// goodbye.
    pub async fn hear(
        self,
        servers: &[Server],
        publishing: Option<Publishing>,
        watch: &mut Watch,
    ) -> Result<Option<Delivery>, BenchError> {
        let took = match publishing {
            Some(publishing) => Some(self.publish(servers, publishing, watch).await?),
            None => None,
        };
        let delivery = self.end(took.unwrap_or_default()).await;
        Ok(took.map(|_| delivery))
    }

    /// Publishes, and waits until everything has arrived or had its time. Returns the servers' CPU for it, in clock
    /// ticks.
    pub async fn publish(
        &self,
        servers: &[Server],
        publishing: Publishing,
        watch: &mut Watch,
    ) -> Result<u64, BenchError> {
        let expected = publishing.per_channel() * self.tasks.len() as u64;
        let targets = targets(servers);
        let work = async {
            publishing.run(&targets, self.clock).await.map_err(failed(servers, "publishing"))?;
            let late = Instant::now() + LAST;
            while self.seen.load(Ordering::Relaxed) < expected && Instant::now() < late {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        Ok(measured(servers, watch, work).await?.1)
    }

    /// Everyone says goodbye, and tells what was heard of what the servers published in so many ticks of CPU.
    pub async fn end(mut self, took: u64) -> Delivery {
        self.stop.cancel();
        let mut tally = Tally::default();
        while let Some(seen) = self.tasks.join_next().await {
            tally += seen.unwrap_or_default();
        }
        let delivered = as_f64(tally.delivered.max(1));
        Delivery { tally, latency: self.latencies.merge(), cpu_us: us(took) / delivered }
    }
}

type Notes = (Lanes, Arc<Latencies>, Clock, Arc<AtomicU64>);

async fn listen(
    mut socket: Socket,
    number: usize,
    expected: u64,
    (mut lanes, latencies, clock, seen): Notes,
    stop: CancellationToken,
) -> Tally {
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let reading = socket.read(|text| {
            if let Some((event, due)) = load::event(text) {
                latencies.record(number, clock.since(due));
                lanes.take(event);
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
                socket.leave().await;
                break;
            }
        }
    }
    lanes.end(expected)
}
