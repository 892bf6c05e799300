//! Channels that clients come to and leave, each its own: what that costs Redis in CPU, and what it holds meanwhile.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use super::super::crowd::{failed, measured};
use super::super::error::BenchError;
use super::super::load::{Place, Target, connect, go_in, go_out, occupied};
use super::super::machine::{Watch, as_f64};
use super::super::server::Server;
use super::super::socket::Socket;
use super::redis::Redis;

/// Sockets that do it at one time, each one after another.
const WALKERS: usize = 60;

/// How long what follows of the last who came may take: what was decided is told to be safe.
const SAFE: Duration = Duration::from_secs(2);

/// How long what follows of the last who left may take: an edge forgets channels every 3 s.
const FORGOTTEN: Duration = Duration::from_secs(4);

/// What it cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occupied {
    /// CPU of Redis for one who came, in microseconds.
    pub enter_us: f64,
    /// CPU of Redis for one who left, in microseconds.
    pub leave_us: f64,
    /// Memory of Redis for one occupied channel, in KiB.
    pub held_kib: f64,
    /// Memory of Redis for one channel after it was left, in KiB.
    pub left_kib: f64,
    /// Channels that are occupied although everyone left.
    pub stayed: u64,
}

/// Fills so many channels with one connection each, at all edges, and empties them again.
pub async fn occupy(
    servers: &[Server],
    redis: &mut Redis,
    (channels, presence): (usize, bool),
    watch: &mut Watch,
) -> Result<Occupied, BenchError> {
    let place = |number: usize| {
        let (kind, user) = if presence { ("presence", Some(format!("user-{number}"))) } else { ("private", None) };
        Place { channel: format!("{kind}-bench-own-{number}"), user }
    };
    let step = failed_at(servers);
    let mut walkers = Vec::new();
    for number in 0..WALKERS.min(channels) {
        let target = servers[number % servers.len()].target;
        let places: Vec<Place> = (number..channels).step_by(WALKERS).map(place).collect();
        walkers.push(Walker::open(target, places).await.map_err(&step)?);
    }
    sleep(SAFE).await;
    let (cpu_start, memory_start) = (redis.cpu_us().await?, redis.memory().await?);
    let coming = async {
        let walked = stream::iter(walkers).map(Walker::go_in).buffer_unordered(WALKERS);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measured(servers, watch, coming).await?;
    sleep(SAFE).await;
    let (cpu_full, memory_full) = (redis.cpu_us().await?, redis.memory().await?);
    let leaving = async {
        let walked = stream::iter(walkers).map(Walker::go_out).buffer_unordered(WALKERS);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measured(servers, watch, leaving).await?;
    sleep(FORGOTTEN).await;
    let (cpu_end, memory_end) = (redis.cpu_us().await?, redis.memory().await?);
    let mut stayed = 0;
    for server in servers {
        stayed = stayed.max(occupied(server.target).await.map_err(&step)?);
    }
    drop(walkers);
    let each = as_f64(channels.max(1) as u64);
    let kib = |to: u64| (as_f64(to) - as_f64(memory_start)) / each / 1024.0;
    Ok(Occupied {
        enter_us: (cpu_full - cpu_start) / each,
        leave_us: (cpu_end - cpu_full) / each,
        held_kib: kib(memory_full),
        left_kib: kib(memory_end),
        stayed: stayed as u64,
    })
}

fn failed_at(servers: &[Server]) -> impl Fn(std::io::Error) -> BenchError + '_ {
    |error| failed(servers, "coming and going")(error)
}

/// A socket with the channels that are its own.
struct Walker {
    socket: Socket,
    id: String,
    places: Vec<Place>,
}

impl Walker {
    async fn open(target: Target, places: Vec<Place>) -> std::io::Result<Self> {
        let (socket, id) = connect(target).await?;
        Ok(Self { socket, id, places })
    }

    async fn go_in(mut self) -> std::io::Result<Self> {
        for place in &self.places {
            go_in(&mut self.socket, &self.id, place).await?;
        }
        Ok(self)
    }

    async fn go_out(mut self) -> std::io::Result<Self> {
        go_out(&mut self.socket, &self.places).await?;
        Ok(self)
    }
}
