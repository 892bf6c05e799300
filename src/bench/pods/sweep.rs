//! The death of an edge: how long the others take to tell that its members are gone, and whether Redis serves meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::crowd::{measured, open};
use super::super::error::BenchError;
use super::super::http::find;
use super::super::load::Place;
use super::super::machine::{Watch, as_f64, prefer};
use super::super::sequence::Tally;
use super::super::server::Server;
use super::super::socket::Socket;
use super::redis::{Longest, Redis};

/// Members of a channel that die: one more watches, and Pusher lets in a hundred.
const TOGETHER: usize = 99;

/// How long what follows of the last who came may take.
const SAFE: Duration = Duration::from_secs(2);

/// Longest until the last was told of, from the death: a lease and the rest of who sweeps come before.
const ALL: Duration = Duration::from_mins(1);

/// How long to look for what comes again.
const AGAIN: Duration = Duration::from_secs(1);

/// What it gave.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// From the death to the first removal that somebody heard of, in seconds.
    pub dead_s: f64,
    /// From the first to the last, in seconds.
    pub took_s: f64,
    /// Memory of Redis for one member, in KiB.
    pub member_kib: f64,
    /// The longest that one command held up the others from the death to the end.
    pub longest: Longest,
    /// The share of the host's CPU that was taken meanwhile, by whomever.
    pub busy: f64,
    /// Removals, as one watcher in each channel heard them.
    pub tally: Tally,
}

/// Kills the first of these edges, with so many members on it.
pub async fn kill(
    mut servers: Vec<Server>,
    redis: &mut Redis,
    members: usize,
    watch: &mut Watch,
) -> Result<Swept, BenchError> {
    let channel = |number: usize| format!("presence-bench-sweep-{number}");
    let channels = members.div_ceil(TOGETHER);
    let dying = servers.remove(0);
    let places: Vec<Place> =
        (0..channels).map(|number| Place { channel: channel(number), user: Some("watcher".to_owned()) }).collect();
    let mut watchers = Watchers::default();
    for (number, socket) in open(&servers, &places).await?.into_iter().enumerate() {
        let expected = (number..members).step_by(channels).count() as u64;
        watchers.add(socket, expected);
    }
    sleep(SAFE).await;
    let before = redis.memory().await?;
    let member = |number: usize| Place { channel: channel(number % channels), user: Some(format!("user-{number}")) };
    let places: Vec<Place> = (0..members).map(member).collect();
    // Nobody reads from them: all that they are told of fits into what the system keeps for them.
    let sockets = open(std::slice::from_ref(&dying), &places).await?;
    sleep(SAFE).await;
    let held = redis.memory().await?.saturating_sub(before);
    // Its commands are timed on the clock: the edges that sweep are not to push it off its core meanwhile, as they do not
    // where Redis has a machine of its own.
    prefer(redis.pid());
    redis.note_slow().await?;
    let died = Instant::now();
    drop(dying);
    let late = died + ALL;
    let told = async {
        while watchers.seen.load(Ordering::Relaxed) < members as u64 && Instant::now() < late {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(AGAIN).await;
        Ok(())
    };
    let mut window = watch.fresh();
    measured(&servers, &mut window, told).await?;
    watch.merge(&window);
    let longest = redis.longest().await?;
    drop(sockets);
    let Heard { first, last, tally } = watchers.end().await;
    let (first, last) = (first.unwrap_or(late), last.unwrap_or(late));
    Ok(Swept {
        dead_s: (first - died).as_secs_f64(),
        took_s: (last - first).as_secs_f64(),
        member_kib: as_f64(held) / as_f64(members.max(1) as u64) / 1024.0,
        longest,
        busy: window.busy(),
        tally,
    })
}

/// What watchers heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    first: Option<Instant>,
    last: Option<Instant>,
    tally: Tally,
}

/// Those who hear of removals, one in each channel.
#[derive(Default)]
struct Watchers {
    tasks: JoinSet<Heard>,
    stop: CancellationToken,
    seen: Arc<AtomicU64>,
}

impl Watchers {
    fn add(&mut self, socket: Socket, expected: u64) {
        self.tasks.spawn(listen(socket, expected, self.seen.clone(), self.stop.clone()));
    }

    async fn end(mut self) -> Heard {
        self.stop.cancel();
        let mut all = Heard::default();
        while let Some(heard) = self.tasks.join_next().await {
            let heard = heard.unwrap_or_default();
            all.first = [all.first, heard.first].into_iter().flatten().min();
            all.last = all.last.max(heard.last);
            all.tally += heard.tally;
        }
        all
    }
}

async fn listen(mut socket: Socket, expected: u64, seen: Arc<AtomicU64>, stop: CancellationToken) -> Heard {
    let (mut heard, mut users) = (Heard::default(), HashMap::<Vec<u8>, u64>::new());
    loop {
        let reading = socket.read(|text| {
            let Some(user) = removed(text) else { return };
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
    heard.tally = tally(&users, expected);
    heard
}

/// Who was removed, if a frame says so.
fn removed(text: &[u8]) -> Option<Vec<u8>> {
    let rest = &text[find(text, b"member_removed")?..];
    let user = &rest[find(rest, b"user-")?..];
    Some(user.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').copied().collect())
}

fn tally(users: &HashMap<Vec<u8>, u64>, expected: u64) -> Tally {
    let (delivered, distinct) = (users.values().sum::<u64>(), users.len() as u64);
    Tally { delivered, missed: expected.saturating_sub(distinct), repeated: delivered - distinct }
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
            let user = removed(frame("member_removed", user).as_bytes()).expect("removed");
            *users.entry(user).or_default() += 1;
        }
        assert_eq!(users[&b"user-12"[..]], 1);
        assert_eq!(removed(frame("member_added", "user-1").as_bytes()), None);
        assert_eq!(tally(&users, 4), Tally { delivered: 3, missed: 2, repeated: 1 });
        assert_eq!(tally(&HashMap::new(), 2), Tally { delivered: 0, missed: 2, repeated: 0 });
    }
}
