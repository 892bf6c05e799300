//! The death of an edge: how long the others take to tell that its members are gone, and whether Redis serves meanwhile.

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

/// Members of a channel that die: one more watches, and Pusher lets in a hundred.
const DYING_MEMBERS_PER_CHANNEL: usize = 99;

/// How long what follows of the last who came may take.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_secs(2);

/// Longest until the last was told of, from the death: a lease and the rest of who sweeps come before.
const REMOVALS_TIMEOUT: Duration = Duration::from_mins(1);

/// How long to look for what comes again.
const REPEATED_REMOVALS_DELAY: Duration = Duration::from_secs(1);

/// What it gave.
#[derive(Clone, Debug, Default)]
pub struct SweepMeasurement {
    /// From the death to the first removal that somebody heard of, in seconds.
    pub dead_s: f64,
    /// From the first to the last, in seconds.
    pub took_s: f64,
    /// Memory of Redis for one member, in KiB.
    pub member_kib: f64,
    /// The longest that one command held up the others from the death to the end.
    pub slowest_command: SlowestCommand,
    /// The share of the host's CPU that was taken meanwhile, by whomever.
    pub busy: f64,
    /// Removals, as one watcher in each channel heard them.
    pub tally: DeliveryTally,
}

/// Kills the first of these edges, with so many members on it.
pub async fn measure_crash_recovery(
    mut servers: Vec<ServerProcess>,
    redis: &mut RedisProcess,
    members: usize,
    watch: &mut HostUsage,
) -> Result<SweepMeasurement, BenchError> {
    let channel = |number: usize| format!("presence-bench-sweep-{number}");
    let channels = members.div_ceil(DYING_MEMBERS_PER_CHANNEL);
    let dying = servers.remove(0);
    let places: Vec<ChannelSubscription> = (0..channels)
        .map(|number| ChannelSubscription { channel: channel(number), user: Some("watcher".to_owned()) })
        .collect();
    let mut watchers = RemovalWatchers::default();
    for (number, socket) in open_sockets(&servers, &places).await?.into_iter().enumerate() {
        let expected = (number..members).step_by(channels).count() as u64;
        watchers.watch_socket(socket, expected);
    }
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let before = redis.read_used_memory().await?;
    let member = |number: usize| ChannelSubscription {
        channel: channel(number % channels),
        user: Some(format!("user-{number}")),
    };
    let places: Vec<ChannelSubscription> = (0..members).map(member).collect();
    // Nobody reads from them: all that they are told of fits into what the system keeps for them.
    let sockets = open_sockets(std::slice::from_ref(&dying), &places).await?;
    sleep(ACKNOWLEDGEMENT_DELAY).await;
    let held = redis.read_used_memory().await?.saturating_sub(before);
    // Its commands are timed on the clock: the edges that sweep are not to push it off its core meanwhile, as they do not
    // where Redis has a machine of its own.
    prefer_process(redis.pid());
    redis.start_slow_log().await?;
    let died = Instant::now();
    drop(dying);
    let late = died + REMOVALS_TIMEOUT;
    let told = async {
        while watchers.removals.load(Ordering::Relaxed) < members as u64 && Instant::now() < late {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(REPEATED_REMOVALS_DELAY).await;
        Ok(())
    };
    let mut window = watch.new_window();
    measure_servers(&servers, &mut window, told).await?;
    watch.merge(&window);
    let longest = redis.take_slowest_command().await?;
    drop(sockets);
    let ObservedRemovals { first, last, tally } = watchers.stop_and_merge().await;
    let (first, last) = (first.unwrap_or(late), last.unwrap_or(late));
    Ok(SweepMeasurement {
        dead_s: (first - died).as_secs_f64(),
        took_s: (last - first).as_secs_f64(),
        member_kib: as_f64(held) / as_f64(members.max(1) as u64) / 1024.0,
        slowest_command: longest,
        busy: window.busy_share(),
        tally,
    })
}

/// What watchers heard.
#[derive(Clone, Copy, Debug, Default)]
struct ObservedRemovals {
    first: Option<Instant>,
    last: Option<Instant>,
    tally: DeliveryTally,
}

/// Those who hear of removals, one in each channel.
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
        while let Some(heard) = self.tasks.join_next().await {
            let heard = heard.unwrap_or_default();
            all.first = [all.first, heard.first].into_iter().flatten().min();
            all.last = all.last.max(heard.last);
            all.tally += heard.tally;
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
    let (mut heard, mut users) = (ObservedRemovals::default(), HashMap::<Vec<u8>, u64>::new());
    loop {
        let reading = socket.read(|text| {
            let Some(user) = parse_removed_user(text) else { return };
            let now = Instant::now();
            heard.first.get_or_insert(now);
            heard.last = Some(now);
            *users.entry(user).or_default() += 1;
            seen.fetch_add(1, Ordering::Relaxed);
        });
        tokio::select! {
            () = stop.cancelled() => break,
            read = reading => if read.is_err() { break },
        }
    }
    heard.tally = tally_removals(&users, expected);
    heard
}

/// Who was removed, if a frame says so.
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
    fn who_was_removed_is_found_in_a_frame_and_counted_once() {
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
