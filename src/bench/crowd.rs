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
use super::load::{self, Clock, OPENING, Place, Publishing, enter};
use super::machine::{Watch, as_f64, host, ticks, us};
use super::sequence::{Sequence, Tally};
use super::server::Server;
use super::socket::Socket;

/// Sockets that come and go before the first measurement, so that code and tables are there.
const WARM: usize = 100;

/// How long a server may come to rest.
const REST: Duration = Duration::from_secs(2);

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

/// Measures while something is done: the server's CPU, and the host.
pub async fn measured<T>(
    server: &Server,
    watch: &mut Watch,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<(T, u64), BenchError> {
    let own = || Ok::<_, BenchError>(ticks(std::process::id())? + server.ticks()?);
    let (before, host_before, own_before) = (server.ticks()?, host()?, own()?);
    let done = work.await?;
    let took = server.ticks()? - before;
    watch.add(host_before, host()?, own()? - own_before);
    Ok((done, took))
}

fn failed(server: &Server, step: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    let server = server.target.kind.name();
    move |error| BenchError::Server { server, step, detail: error.to_string() }
}

/// Opens sockets, some at a time.
pub async fn open(server: &Server, places: &[Place]) -> Result<Vec<Socket>, BenchError> {
    let target = server.target;
    let opened = stream::iter(places).map(|place| enter(target, place)).buffered(OPENING);
    opened.try_collect().await.map_err(failed(server, "opening sockets"))
}

/// Makes a server have met everything once.
pub async fn warm(server: &Server, places: &[Place]) -> Result<(), BenchError> {
    let sockets = open(server, &places[..places.len().min(WARM)]).await?;
    if let Some(place) = places.first() {
        let publishing = Publishing::new(vec![place.channel.clone()], 100, Duration::from_secs(1));
        let warmed = publishing.run(server.target, Clock::start());
        warmed.await.map_err(failed(server, "publishing"))?;
    }
    stream::iter(sockets).for_each_concurrent(OPENING, Socket::leave).await;
    sleep(REST).await;
    Ok(())
}

/// Runs one crowd against a server.
pub async fn run(server: &Server, order: Order, watch: &mut Watch) -> Result<Crowd, BenchError> {
    let Order { places, publishing, leave } = order;
    warm(server, &places).await?;
    let start = server.rss_kib()?;
    let (sockets, took) = measured(server, watch, open(server, &places)).await?;
    let count = as_f64(sockets.len().max(1) as u64);
    // Also those to whom nothing is published hear of each other; whoever does not read would be cut.
    let listeners = Listeners::start(sockets, publishing.as_ref());
    sleep(REST).await;
    let held = server.rss_kib()?.saturating_sub(start);
    let delivery = listeners.hear(server, publishing, watch).await?;
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
    /// One task for each; `publishing` says how many events each is to get.
    pub fn start(sockets: Vec<Socket>, publishing: Option<&Publishing>) -> Self {
        let (tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let (latencies, clock) = (Arc::new(Latencies::new()), Clock::start());
        let mut listeners = Self { tasks, stop, latencies, clock, seen: Arc::default() };
        let expected = publishing.map_or(0, Publishing::per_channel);
        for (number, socket) in sockets.into_iter().enumerate() {
            let (stop, latencies) = (listeners.stop.clone(), listeners.latencies.clone());
            let seen = listeners.seen.clone();
            listeners.tasks.spawn(listen(socket, number, expected, (latencies, clock, seen), stop));
        }
        listeners
    }

    /// Publishes, if there is something to, and waits until everything has arrived or had its time. Then everyone says
    /// goodbye.
    pub async fn hear(
        mut self,
        server: &Server,
        publishing: Option<Publishing>,
        watch: &mut Watch,
    ) -> Result<Option<Delivery>, BenchError> {
        let mut took = None;
        if let Some(publishing) = publishing {
            let expected = publishing.per_channel() * self.tasks.len() as u64;
            let work = async {
                publishing.run(server.target, self.clock).await.map_err(failed(server, "publishing"))?;
                let late = Instant::now() + LAST;
                while self.seen.load(Ordering::Relaxed) < expected && Instant::now() < late {
                    sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            };
            took = Some(measured(server, watch, work).await?.1);
        }
        self.stop.cancel();
        let mut tally = Tally::default();
        while let Some(seen) = self.tasks.join_next().await {
            tally += seen.unwrap_or_default();
        }
        let delivered = as_f64(tally.delivered.max(1));
        Ok(took.map(|took| Delivery { tally, latency: self.latencies.merge(), cpu_us: us(took) / delivered }))
    }
}

type Notes = (Arc<Latencies>, Clock, Arc<AtomicU64>);

async fn listen(
    mut socket: Socket,
    number: usize,
    expected: u64,
    (latencies, clock, seen): Notes,
    stop: CancellationToken,
) -> Tally {
    let mut sequence = Sequence::default();
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let reading = socket.read(|text| {
            if let Some((event, due)) = load::event(text) {
                latencies.record(number, clock.since(due));
                sequence.take(event);
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
    sequence.end(expected)
}
