//! One channel with many subscribers; one with a single one, without load; and the echo that nothing can be faster than.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::crowd::{self, Delivery, Listeners};
use super::error::BenchError;
use super::http::Connection;
use super::latency::{Latencies, Latency};
use super::load::{self, Clock, Place, Publishing, Target, enter, private, publish_now};
use super::machine::Watch;
use super::plan::Plan;
use super::server::{Kind, Server};

/// Round trips of one measurement without load.
const TRIPS: u64 = 300;

/// Time between two of them.
const BETWEEN: Duration = Duration::from_millis(2);

/// Bytes of an echo: about an event's frame.
const ECHO: usize = 256;

/// Longest for one trip.
const TRIP: Duration = Duration::from_secs(10);

/// Publishes to many subscribers of one channel.
pub async fn many(server: &Server, plan: &Plan, watch: &mut Watch) -> Result<Delivery, BenchError> {
    let servers = std::slice::from_ref(server);
    let places = vec![Place::private(0); plan.subscribers];
    crowd::warm(servers, &places).await?;
    let publishing = Publishing::new(vec![private(0)], plan.events_per_second, plan.publishing);
    let listeners = Listeners::enter(servers, &places, &publishing).await?;
    let heard = listeners.hear(servers, Some(publishing), watch).await?;
    let detail = || BenchError::Server {
        server: server.target.kind.name(),
        step: "the fan-out",
        detail: "nothing was published".to_owned(),
    };
    heard.ok_or_else(detail)
}

/// From a publish at the last of these servers to its arrival at a subscriber of the first, one after another.
pub async fn one(servers: &[Server]) -> Result<Latency, BenchError> {
    match servers {
        [] => Ok(Latencies::new().merge()),
        [first, ..] => {
            let last = servers.last().unwrap_or(first);
            trips(last.target, first.target).await.map_err(crowd::failed(servers, "single deliveries"))
        }
    }
}

async fn trips(from: Target, to: Target) -> io::Result<Latency> {
    let (clock, latencies) = (Clock::start(), Latencies::new());
    let place = Place::private(1);
    let mut socket = enter(to, &place).await?;
    let mut publisher = Connection::open(from.address).await?;
    for number in 0..TRIPS {
        // At the same time: the arrival may come before the publisher's answer.
        let publish = publish_now(&mut publisher, from.kind, &place.channel, number, clock);
        let arrival = async {
            let due = socket.wait(|text| load::event(text).map(|(_, due)| due)).await?;
            latencies.record(0, clock.since(due));
            Ok(())
        };
        timeout(TRIP, async { tokio::try_join!(publish, arrival) }).await??;
        sleep(BETWEEN).await;
    }
    socket.leave().await;
    Ok(latencies.merge())
}

/// There and back over loopback, through a process that does nothing else.
pub async fn echo(server: &Server) -> Result<Latency, BenchError> {
    round_trips(server.echo).await.map_err(|error| BenchError::Server {
        server: Kind::Bare.name(),
        step: "the echo",
        detail: error.to_string(),
    })
}

async fn round_trips(address: SocketAddr) -> io::Result<Latency> {
    let latencies = Latencies::new();
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sent, mut back) = ([b'x'; ECHO], [0; ECHO]);
    for _ in 0..TRIPS {
        let from = Instant::now();
        timeout(TRIP, async {
            stream.write_all(&sent).await?;
            stream.read_exact(&mut back).await
        })
        .await??;
        latencies.record(0, from.elapsed());
        sleep(BETWEEN).await;
    }
    Ok(latencies.merge())
}
