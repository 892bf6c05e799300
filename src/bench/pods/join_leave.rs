//! Subscriptions to channels of a single client each: CPU of Redis per join and leave, and memory per occupied channel.

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

/// Bounds the sockets that subscribe concurrently, each to one channel after another.
const WALKERS_MAX: usize = 60;

/// Delay after the last join, in which edges acknowledge its events to Redis.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_secs(2);

/// Delay after the last leave: an edge removes empty channels every 3 s.
const FORGET_CHANNELS_DELAY: Duration = Duration::from_secs(4);

/// Cost of joins and leaves in Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct OccupancyMeasurement {
    /// CPU of Redis for one join, in microseconds.
    pub enter_us: f64,
    /// CPU of Redis for one leave, in microseconds.
    pub leave_us: f64,
    /// Memory of Redis for one occupied channel, in KiB.
    pub held_kib: f64,
    /// Memory of Redis for one channel after it was left, in KiB.
    pub left_kib: f64,
    /// Channels that are occupied although every client left.
    pub still_occupied: u64,
}

/// Measures joins and leaves of this many channels with one connection each, over all edges.
pub async fn measure_join_leave(
    servers: &[ServerProcess],
    redis: &mut RedisProcess,
    (channels, presence): (usize, bool),
    watch: &mut HostUsage,
) -> Result<OccupancyMeasurement, BenchError> {
    let subscription = |number: usize| {
        let (kind, user) = if presence { ("presence", Some(format!("user-{number}"))) } else { ("private", None) };
        ChannelSubscription { channel: format!("{kind}-bench-own-{number}"), user }
    };
    let step = to_step_error(servers);
    let mut walkers = Vec::new();
    for number in 0..WALKERS_MAX.min(channels) {
        let target = servers[number % servers.len()].target;
        let subscriptions: Vec<ChannelSubscription> =
            (number..channels).step_by(WALKERS_MAX).map(subscription).collect();
        walkers.push(ChannelWalker::open(target, subscriptions).await.map_err(&step)?);
    }
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let (cpu_start, memory_start) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let joins = async {
        let walked = stream::iter(walkers).map(ChannelWalker::subscribe_all).buffer_unordered(WALKERS_MAX);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measure_servers(servers, watch, joins).await?;
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let (cpu_full, memory_full) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let leaves = async {
        let walked = stream::iter(walkers).map(ChannelWalker::unsubscribe_all).buffer_unordered(WALKERS_MAX);
        walked.try_collect::<Vec<_>>().await.map_err(&step)
    };
    let (walkers, _) = measure_servers(servers, watch, leaves).await?;
    sleep(FORGET_CHANNELS_DELAY).await;
    let (cpu_end, memory_end) = (redis.read_cpu_us().await?, redis.read_used_memory().await?);
    let mut still_occupied = 0;
    for server in servers {
        still_occupied = still_occupied.max(count_occupied_channels(server.target).await.map_err(&step)?);
    }
    drop(walkers);
    let each = as_f64(channels.max(1) as u64);
    let kib = |to: u64| (as_f64(to) - as_f64(memory_start)) / each / 1024.0;
    Ok(OccupancyMeasurement {
        enter_us: (cpu_full - cpu_start) / each,
        leave_us: (cpu_end - cpu_full) / each,
        held_kib: kib(memory_full),
        left_kib: kib(memory_end),
        still_occupied: still_occupied as u64,
    })
}

fn to_step_error(servers: &[ServerProcess]) -> impl Fn(std::io::Error) -> BenchError + '_ {
    |error| to_server_error(servers, "joining and leaving channels")(error)
}

/// A socket that walks over channels of its own.
struct ChannelWalker {
    socket: ClientSocket,
    id: String,
    subscriptions: Vec<ChannelSubscription>,
}

impl ChannelWalker {
    async fn open(target: Target, subscriptions: Vec<ChannelSubscription>) -> std::io::Result<Self> {
        let (socket, id) = connect_socket(target).await?;
        Ok(Self { socket, id, subscriptions })
    }

    async fn subscribe_all(mut self) -> std::io::Result<Self> {
        for subscription in &self.subscriptions {
            subscribe_channel(&mut self.socket, &self.id, subscription).await?;
        }
        Ok(self)
    }

    async fn unsubscribe_all(mut self) -> std::io::Result<Self> {
        unsubscribe_channels(&mut self.socket, &self.subscriptions).await?;
        Ok(self)
    }
}
