//! Channels that clients come to and leave, each its own: what that costs Redis in CPU, and what it holds meanwhile.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use super::super::error::BenchError;
use super::super::load::{
    ChannelSubscription, connect_socket, count_occupied_channels, subscribe_channel, unsubscribe_channels,
};
use super::super::machine::{HostUsage, as_f64};
use super::super::server::ServerProcess;
use super::super::socket::ClientSocket;
use super::super::sockets::{measure_servers, to_server_error};
use super::super::target::Target;
use super::redis::RedisProcess;

/// Sockets that do it at one time, each one after another.
const WALKERS_MAX: usize = 60;

/// How long what follows of the last who came may take: what was decided is told to be safe.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_secs(2);

/// How long what follows of the last who left may take: an edge forgets channels every 3 s.
const FORGET_CHANNELS_DELAY: Duration = Duration::from_secs(4);

/// What it cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct OccupancyMeasurement {
    /// CPU of Redis for one who came, in microseconds.
    pub enter_us: f64,
    /// CPU of Redis for one who left, in microseconds.
    pub leave_us: f64,
    /// Memory of Redis for one occupied channel, in KiB.
    pub held_kib: f64,
    /// Memory of Redis for one channel after it was left, in KiB.
    pub left_kib: f64,
    /// Channels that are occupied although everyone left.
    pub still_occupied: u64,
}

/// Fills so many channels with one connection each, at all edges, and empties them again.
pub async fn measure_join_leave(
    servers: &[ServerProcess],
    redis: &mut RedisProcess,
    (channels, presence): (usize, bool),
    watch: &mut HostUsage,
) -> Result<OccupancyMeasurement, BenchError> {
    let place = |number: usize| {
        let (kind, user) = if presence { ("presence", Some(format!("user-{number}"))) } else { ("private", None) };
        ChannelSubscription { channel: format!("{kind}-bench-own-{number}"), user }
    };
    let step = to_step_error(servers);
    let mut walkers = Vec::new();
    for number in 0..WALKERS_MAX.min(channels) {
        let target = servers[number % servers.len()].target;
        let places: Vec<ChannelSubscription> = (number..channels).step_by(WALKERS_MAX).map(place).collect();
        walkers.push(ChannelWalker::open(target, places).await.map_err(&step)?);
    }
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let (cpu_start, memory_start) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let coming = async {
        let walked = stream::iter(walkers).map(ChannelWalker::subscribe_all).buffer_unordered(WALKERS_MAX);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measure_servers(servers, watch, coming).await?;
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let (cpu_full, memory_full) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let leaving = async {
        let walked = stream::iter(walkers).map(ChannelWalker::unsubscribe_all).buffer_unordered(WALKERS_MAX);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measure_servers(servers, watch, leaving).await?;
    sleep(FORGET_CHANNELS_DELAY).await;
    let (cpu_end, memory_end) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let mut stayed = 0;
    for server in servers {
        stayed = stayed.max(count_occupied_channels(server.target).await.map_err(&step)?);
    }
    drop(walkers);
    let each = as_f64(channels.max(1) as u64);
    let kib = |to: u64| (as_f64(to) - as_f64(memory_start)) / each / 1024.0;
    Ok(OccupancyMeasurement {
        enter_us: (cpu_full - cpu_start) / each,
        leave_us: (cpu_end - cpu_full) / each,
        held_kib: kib(memory_full),
        left_kib: kib(memory_end),
        still_occupied: stayed as u64,
    })
}

fn to_step_error(servers: &[ServerProcess]) -> impl Fn(std::io::Error) -> BenchError + '_ {
    |error| to_server_error(servers, "coming and going")(error)
}

/// A socket with the channels that are its own.
struct ChannelWalker {
    socket: ClientSocket,
    id: String,
    subscriptions: Vec<ChannelSubscription>,
}

impl ChannelWalker {
    async fn open(target: Target, places: Vec<ChannelSubscription>) -> std::io::Result<Self> {
        let (socket, id) = connect_socket(target).await?;
        Ok(Self { socket, id, subscriptions: places })
    }

    async fn subscribe_all(mut self) -> std::io::Result<Self> {
        for place in &self.subscriptions {
            subscribe_channel(&mut self.socket, &self.id, place).await?;
        }
        Ok(self)
    }

    async fn unsubscribe_all(mut self) -> std::io::Result<Self> {
        unsubscribe_channels(&mut self.socket, &self.subscriptions).await?;
        Ok(self)
    }
}
