//! Recovery from the crash of an edge: the time until the other edges have published the removal of its members, and
//! the longest time for which one command blocks Redis meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::error::BenchError;
use super::super::http::find_bytes;
use super::super::load::ChannelSubscription;
use super::super::machine::{HostUsage, as_f64, prefer_process};
use super::super::sequence::DeliveryTally;
use super::super::server::ServerProcess;
use super::super::socket::ClientSocket;
use super::super::sockets::{measure_servers, open_sockets};
use super::redis::{RedisProcess, SlowestCommand};

/// Members of a channel at the killed edge: Pusher admits a hundred, and one more watches.
const DYING_MEMBERS_PER_CHANNEL: usize = 99;

/// Delay after the last join, in which edges acknowledge its events to Redis.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_secs(2);

/// Bounds the time from the kill to the last removal: the lease expires first, and the sweeper's grace period passes.
const REMOVALS_TIMEOUT: Duration = Duration::from_mins(1);

/// Delay after the last removal, in which repeated ones are counted.
const REPEATED_REMOVALS_DELAY: Duration = Duration::from_secs(1);

/// Measurements of one crash.
#[derive(Clone, Debug, Default)]
pub struct SweepMeasurement {
    /// Time from the kill to the first removal that a watcher received, in seconds.
    pub dead_s: f64,
    /// Time from the first to the last removal, in seconds.
    pub took_s: f64,
    /// Memory of Redis for one member, in KiB.
    pub member_kib: f64,
    /// The command that blocked Redis longest from the kill to the end.
    pub slowest_command: SlowestCommand,
    /// Share of the host's CPU that was busy meanwhile, with our own processes.
    pub busy: f64,
    /// Removals that the watchers received, one watcher in each channel.
    pub tally: DeliveryTally,
}

/// Kills the first of these edges, with this many members on it.
pub async fn measure_crash_recovery(
    mut servers: Vec<ServerProcess>,
    redis: &mut RedisProcess,
    members: usize,
    watch: &mut HostUsage,
) -> Result<SweepMeasurement, BenchError> {
    let channel = |number: usize| format!("presence-bench-sweep-{number}");
    let channels = members.div_ceil(DYING_MEMBERS_PER_CHANNEL);
    let dying = servers.remove(0);
    let subscriptions: Vec<ChannelSubscription> = (0..channels)
        .map(|number| ChannelSubscription { channel: channel(number), user: Some("watcher".to_owned()) })
        .collect();
    let mut watchers = RemovalWatchers::default();
    for (number, socket) in open_sockets(&servers, &subscriptions).await?.into_iter().enumerate() {
        let expected = (number..members).step_by(channels).count() as u64;
        watchers.watch_socket(socket, expected);
    }
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let before = redis.read_used_memory().await?;
    let member = |number: usize| ChannelSubscription {
        channel: channel(number % channels),
        user: Some(format!("user-{number}")),
    };
    let subscriptions: Vec<ChannelSubscription> = (0..members).map(member).collect();
    // These sockets are not read: all their frames fit into the system's buffers.
    let sockets = open_sockets(std::slice::from_ref(&dying), &subscriptions).await?;
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let memory = redis.read_used_memory().await?.saturating_sub(before);
    // Redis times its commands on the clock: the edges that sweep must not preempt it meanwhile, as they do not where
    // Redis has a machine of its own.
    prefer_process(redis.pid());
    redis.start_slow_log().await?;
    let died = Instant::now();
    drop(dying);
    let deadline = died + REMOVALS_TIMEOUT;
    let removals = async {
        while watchers.removals.load(Ordering::Relaxed) < members as u64 && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(REPEATED_REMOVALS_DELAY).await;
        Ok(())
    };
    let mut window = watch.new_window();
    measure_servers(&servers, &mut window, removals).await?;
    watch.merge(&window);
    let longest = redis.take_slowest_command().await?;
    drop(sockets);
    let ObservedRemovals { first, last, tally } = watchers.stop_and_merge().await;
    let (first, last) = (first.unwrap_or(deadline), last.unwrap_or(deadline));
    Ok(SweepMeasurement {
        dead_s: (first - died).as_secs_f64(),
        took_s: (last - first).as_secs_f64(),
        member_kib: as_f64(memory) / as_f64(members.max(1) as u64) / 1024.0,
        slowest_command: longest,
        busy: window.busy_share(),
        tally,
    })
}

/// Removals that watchers received.
#[derive(Clone, Copy, Debug, Default)]
struct ObservedRemovals {
    first: Option<Instant>,
    last: Option<Instant>,
    tally: DeliveryTally,
}

/// Watchers of removals, one in each channel.
#[derive(Default)]
struct RemovalWatchers {
    tasks: JoinSet<ObservedRemovals>,
    stop: CancellationToken,
    removals: Arc<AtomicU64>,
}

impl RemovalWatchers {
    fn watch_socket(&mut self, socket: ClientSocket, expected: u64) {
        self.tasks.spawn(watch_removals(socket, expected, self.removals.clone(), self.stop.clone()));
    }

    async fn stop_and_merge(mut self) -> ObservedRemovals {
        self.stop.cancel();
        let mut all = ObservedRemovals::default();
        while let Some(observed) = self.tasks.join_next().await {
            let observed = observed.unwrap_or_default();
            all.first = [all.first, observed.first].into_iter().flatten().min();
            all.last = all.last.max(observed.last);
            all.tally += observed.tally;
        }
        all
    }
}

async fn watch_removals(
    mut socket: ClientSocket,
    expected: u64,
    seen: Arc<AtomicU64>,
    stop: CancellationToken,
) -> ObservedRemovals {
    let (mut observed, mut users) = (ObservedRemovals::default(), HashMap::<Vec<u8>, u64>::new());
    loop {
        let reading = socket.read(|text| {
            let Some(user) = parse_removed_user(text) else { return };
            let now = Instant::now();
            observed.first.get_or_insert(now);
            observed.last = Some(now);
            *users.entry(user).or_default() += 1;
            seen.fetch_add(1, Ordering::Relaxed);
        });
        tokio::select! {
            () = stop.cancelled() => break,
            read = reading => if read.is_err() { break },
        }
    }
    observed.tally = tally_removals(&users, expected);
    observed
}

/// Parses the removed user; `None` for other frames.
fn parse_removed_user(text: &[u8]) -> Option<Vec<u8>> {
    let rest = &text[find_bytes(text, b"member_removed")?..];
    let user = &rest[find_bytes(rest, b"user-")?..];
    Some(user.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').copied().collect())
}

fn tally_removals(users: &HashMap<Vec<u8>, u64>, expected: u64) -> DeliveryTally {
    let (delivered, distinct) = (users.values().sum::<u64>(), users.len() as u64);
    DeliveryTally { delivered, missed: expected.saturating_sub(distinct), repeated: delivered - distinct }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_user_is_parsed_and_repeated_removals_are_counted() {
        let frame = |event: &str, user: &str| {
            format!(r#"{{"event":"pusher_internal:{event}","data":"{{\"user_id\":\"{user}\"}}","channel":"c"}}"#)
        };
        let mut users = HashMap::new();
        for user in ["user-1", "user-12", "user-1"] {
            let user = parse_removed_user(frame("member_removed", user).as_bytes()).expect("removed");
            *users.entry(user).or_default() += 1;
        }
        assert_eq!(users[&b"user-12"[..]], 1);
        assert_eq!(parse_removed_user(frame("member_added", "user-1").as_bytes()), None);
        assert_eq!(tally_removals(&users, 4), DeliveryTally { delivered: 3, missed: 2, repeated: 1 });
        assert_eq!(tally_removals(&HashMap::new(), 2), DeliveryTally { delivered: 0, missed: 2, repeated: 0 });
    }
}
