//! Random histories of three processes on a real store: whatever happens, the recorded events, put into their order,
//! end in the true membership.
//!
//! Random are: joins and leaves, when each process records its events or drops their receipts, which process is killed,
//! when the store is unavailable, and whether it then has lost its data. Time is not random: leases expire and settling
//! ends when the history says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::interfaces::{ClientLike, LuaInterface, SortedSetsInterface};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::super::{ChannelKey, DecidedTransition, JoinLimits, Membership, MemoryBus, RemoteTransitions, Transition};
use super::acknowledge;
use super::keys::KeySpace;
use super::lease::LeaseKeeper;
use super::members::MembershipCore;
use super::outbox::ReceiptEnd;
use super::reconcile::reconcile_once;
use super::{BusTiming, client};
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::EventKind;
use crate::protocol::{ChannelName, SocketId};

/// Histories in a run of the tests; the variable `HISTORIES` overrides it.
const HISTORY_COUNT: u64 = 600;
/// Random steps of one history.
const STEP_COUNT: usize = 40;
/// Histories that run concurrently, each in a database of its own.
const WORKER_COUNT: u64 = 4;

/// Nothing expires by itself, so that the history alone decides when leases and settling end.
const TIMING: BusTiming = BusTiming {
    lease_ttl: Duration::from_hours(1),
    renew_interval: Duration::from_hours(1),
    settling_period: Duration::from_hours(1),
    sweep_grace: Duration::ZERO,
};

struct RedisServer {
    child: Child,
    port: u16,
    _files: tempfile::TempDir,
}

impl RedisServer {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let files = tempfile::tempdir().expect("a directory");
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(files.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed: apt-get install redis-server");
        Self { child, port, _files: files }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process, as far as the bus sees it.
struct Process {
    core: Arc<MembershipCore>,
    keeper: LeaseKeeper,
    decided: mpsc::Receiver<RemoteTransitions>,
    receipt_ends: mpsc::UnboundedReceiver<ReceiptEnd>,
    /// Acknowledged events that the store has not confirmed.
    acknowledged: Vec<ReceiptEnd>,
    /// Events that are not yet recorded.
    queue: Vec<(ChannelKey, DecidedTransition)>,
    sockets: BTreeMap<(ChannelKey, SocketId), Option<PresenceMember>>,
}

struct History {
    client: fred::clients::Client,
    random: StdRng,
    processes: Vec<Process>,
    names: u64,
    sockets: u64,
    /// Recorded events, in the order of recording.
    log: Vec<(ChannelKey, Transition)>,
    seen: HashMap<String, (ChannelKey, Transition)>,
    up: bool,
    /// The steps so far, for the message of a failure.
    steps: Vec<String>,
}

impl History {
    async fn begin_history(client: fred::clients::Client, seed: u64) -> Self {
        flush_store(&client).await;
        let random = StdRng::seed_from_u64(seed);
        let mut history = Self {
            client,
            random,
            processes: vec![],
            names: 0,
            sockets: 0,
            log: vec![],
            seen: HashMap::new(),
            up: true,
            steps: vec![],
        };
        for _ in 0..3 {
            history.start_process().await;
        }
        history.settle_store().await;
        history
    }

    async fn start_process(&mut self) {
        self.names += 1;
        let (decided_sender, decided) = mpsc::channel(4_096);
        let names = KeySpace::new("u", false);
        let process = format!("p{}", self.names);
        let (core, receipt_ends) = MembershipCore::new(self.client.clone(), names, process, TIMING, decided_sender);
        let core = Arc::new(core);
        // It never connects: nothing in a history needs a reconnection.
        let subscriber = fred::types::Builder::default_centralized().build_subscriber_client().expect("a client");
        let mut keeper = LeaseKeeper::new(core.clone(), subscriber);
        keeper.renew_lease().await.expect("a lease");
        self.processes.push(Process {
            core,
            keeper,
            decided,
            receipt_ends,
            acknowledged: vec![],
            queue: vec![],
            sockets: BTreeMap::new(),
        });
        self.settle_store().await;
    }

    /// Ends settling as if its time had passed.
    async fn settle_store(&mut self) {
        for process in &mut self.processes {
            reconcile_once(&process.core).await.expect("reconciled");
        }
        for process in &mut self.processes {
            process.core.state().settling = None;
            reconcile_once(&process.core).await.expect("reconciled");
            process.collect_transitions();
        }
    }

    fn random_channel(&mut self) -> ChannelKey {
        let names = ["room", "presence-a", "presence-b"];
        let name = names[self.random.random_range(0..names.len())];
        ChannelKey { app: "1".into(), channel: ChannelName::parse(name).expect("a name") }
    }

    async fn run_step(&mut self) {
        let (subject, p) = (self.random_channel(), self.random.random_range(0..self.processes.len()));
        match self.random.random_range(0..100) {
            0..40 => self.join_random_user(p, subject).await,
            40..70 => self.leave_random_channel(p).await,
            70..80 => self.record_some(p).await,
            80..82 => self.return_some(p).await,
            82..88 => self.kill_process(p).await,
            88..94 if self.up => self.disconnect_store(),
            _ if !self.up => self.reconnect_store().await,
            _ => {
                for process in &mut self.processes {
                    reconcile_once(&process.core).await.expect("reconciled");
                    process.collect_transitions();
                }
            }
        }
    }

    async fn join_random_user(&mut self, p: usize, subject: ChannelKey) {
        self.sockets += 1;
        let socket = SocketId::from_random(1, self.sockets);
        let presence = subject.channel.as_str().starts_with("presence");
        let user = ["ann", "bob", "eve"][self.random.random_range(0..3)];
        let member = presence.then(|| PresenceMember { user_id: user.into(), user_info: serde_json::Value::Null });
        let process = &mut self.processes[p];
        self.steps.push(format!("{p} {} {socket} {user}", subject.channel));
        let joined = process.core.join_channel(&subject, &socket, member.as_ref(), JoinLimits::default()).await;
        match joined {
            Ok(joined) => process.queue.extend(joined.transitions.into_iter().map(|t| (subject.clone(), t))),
            // The edge refuses a presence subscription that fails, so the client leaves; other subscriptions stay.
            Err(_) if presence => {
                let _ = process.core.leave_channel(&subject, &socket, None).await;
                return;
            }
            Err(_) => {}
        }
        process.sockets.insert((subject, socket), member);
    }

    async fn leave_random_channel(&mut self, p: usize) {
        let process = &mut self.processes[p];
        if process.sockets.is_empty() {
            return;
        }
        let at = self.random.random_range(0..process.sockets.len());
        let (subject, socket) = process.sockets.keys().nth(at).cloned().expect("a socket");
        process.sockets.remove(&(subject.clone(), socket.clone()));
        self.steps.push(format!("{p} {} {socket} leaves", subject.channel));
        if let Ok(transitions) = process.core.leave_channel(&subject, &socket, None).await {
            process.queue.extend(transitions.into_iter().map(|t| (subject.clone(), t)));
        }
    }

    /// Records some of the waiting events, and acknowledges them while the store is available.
    async fn record_some(&mut self, p: usize) {
        let count = self.random.random_range(0..=self.processes[p].queue.len());
        let safe: Vec<_> = self.processes[p].queue.drain(..count).collect();
        for (subject, DecidedTransition { transition, receipt }) in safe {
            receipt.acknowledge();
            self.log_transition(subject, transition);
        }
        self.processes[p].apply_receipt_ends(self.up).await;
    }

    /// Drops some of the waiting events without an acknowledgement.
    async fn return_some(&mut self, p: usize) {
        let count = self.random.random_range(0..=self.processes[p].queue.len());
        self.steps.push(format!("{p} returns {count}"));
        self.processes[p].queue.drain(..count).for_each(drop);
        self.processes[p].apply_receipt_ends(self.up).await;
    }

    fn log_transition(&mut self, subject: ChannelKey, transition: Transition) {
        let known = self.seen.entry(transition.id.clone()).or_insert_with(|| (subject.clone(), transition.clone()));
        assert_eq!(*known, (subject.clone(), transition.clone()), "one id for two events");
        self.log.push((subject, transition));
    }

    /// Kills a process, starts another, and lets the others sweep the dead one, now or later. No process dies while the
    /// store is unavailable: events that only the dead process and a lost store had cannot be recovered.
    async fn kill_process(&mut self, p: usize) {
        if !self.up {
            return;
        }
        let dead = self.processes.remove(p);
        self.steps.push(format!("{p} dies with {}", dead.queue.len()));
        let name = dead.core.state().process.clone();
        let leases = dead.core.names.leases_key();
        self.client.zadd::<(), _, _>(leases, None, None, false, false, (1.0, name.as_str())).await.expect("expired");
        self.start_process().await;
        if self.random.random_bool(0.5) {
            self.sweep_all().await;
        }
    }

    async fn sweep_all(&mut self) {
        for process in &mut self.processes {
            process.keeper.renew_lease().await.expect("a lease");
            process.core.state().settling = None;
            reconcile_once(&process.core).await.expect("swept");
            process.collect_transitions();
        }
    }

    fn disconnect_store(&mut self) {
        self.up = false;
        self.steps.push("store unavailable".to_owned());
        for process in &mut self.processes {
            process.core.set_available(false);
            process.core.state().available_since = None;
        }
    }

    async fn reconnect_store(&mut self) {
        self.up = true;
        let loses_data = self.random.random_bool(0.5);
        self.steps.push(format!("store available, data lost: {loses_data}"));
        if loses_data {
            // First sweep the dead processes, of which only the store has the connections.
            for process in &mut self.processes {
                process.core.set_available(true);
            }
            self.sweep_all().await;
            self.disconnect_store();
            self.up = true;
            flush_store(&self.client).await;
        }
        for process in &mut self.processes {
            process.keeper.renew_lease().await.expect("a lease");
            // Joins of presence channels need not wait for reports here.
            if let Some(settling) = &mut process.core.state().settling {
                settling.all_reported_at = Instant::now();
            }
        }
        // Some clients join and leave while settling.
        if loses_data {
            for _ in 0..self.random.random_range(0..4) {
                let (subject, p) = (self.random_channel(), self.random.random_range(0..self.processes.len()));
                if self.random.random_bool(0.5) {
                    self.join_random_user(p, subject).await;
                } else {
                    self.leave_random_channel(p).await;
                }
            }
        }
        self.settle_store().await;
    }

    async fn compare_with_truth(mut self) -> Result<(), String> {
        if !self.up {
            self.reconnect_store().await;
        }
        self.sweep_all().await;
        self.sweep_all().await;
        for p in 0..self.processes.len() {
            let queue: Vec<_> = self.processes[p].queue.drain(..).collect();
            for (subject, DecidedTransition { transition, receipt }) in queue {
                receipt.acknowledge();
                self.log_transition(subject, transition);
            }
            self.processes[p].apply_receipt_ends(true).await;
        }
        let kept: Vec<usize> = self.processes.iter().map(|p| p.core.state().local.outbox_len()).collect();
        if kept.iter().any(|kept| *kept > 0) {
            return Err(format!("acknowledged events are still kept: {kept:?}\n{}", self.steps.join("\n")));
        }
        let mut truth: BTreeMap<ChannelKey, BTreeSet<Option<String>>> = BTreeMap::new();
        for process in &self.processes {
            for ((subject, _), member) in &process.sockets {
                let users = truth.entry(subject.clone()).or_default();
                users.insert(None);
                users.extend(member.as_ref().map(|member| Some(member.user_id.clone())));
            }
        }
        let published = replay_log(&self.log);
        if published == truth {
            return Ok(());
        }
        let line = |(subject, t): &(ChannelKey, Transition)| {
            format!("{} {:?} {}:{}", subject.channel, t.kind, t.order.epoch, t.order.seq)
        };
        let log: Vec<String> = self.log.iter().map(line).collect();
        Err(format!("published {published:?}\ntrue {truth:?}\n{}\n{}", log.join("\n"), self.steps.join("\n")))
    }
}

impl Process {
    /// Does the work of [`acknowledge::run_acknowledgements`], whose acknowledgements wait for the store.
    async fn apply_receipt_ends(&mut self, up: bool) {
        let ends: Vec<_> = std::iter::from_fn(|| self.receipt_ends.try_recv().ok()).collect();
        self.acknowledged.extend(acknowledge::keep_acknowledged(&self.core, ends));
        if up {
            let acknowledged = std::mem::take(&mut self.acknowledged);
            acknowledge::confirm_batch(&self.core, &acknowledged).await.expect("acknowledged");
        }
    }

    fn collect_transitions(&mut self) {
        while let Ok(decided) = self.decided.try_recv() {
            self.queue.extend(decided.transitions.into_iter().map(|t| (decided.subject.clone(), t)));
        }
    }
}

/// Empties the database of one worker, as a store that loses its data.
async fn flush_store(client: &fred::clients::Client) {
    let nothing = Vec::<String>::new();
    let flush = client.eval::<String, _, _, _>("return redis.call('FLUSHDB')", nothing.clone(), nothing);
    flush.await.expect("an empty store");
}

/// Membership as a receiver sees it that puts the events into their order: per channel, `None` for occupied, and its
/// users.
fn replay_log(log: &[(ChannelKey, Transition)]) -> BTreeMap<ChannelKey, BTreeSet<Option<String>>> {
    let mut ordered: Vec<_> = log.iter().collect();
    ordered.sort_by(|(one, first), (other, second)| (one, first.order).cmp(&(other, second.order)));
    let mut channels: BTreeMap<ChannelKey, BTreeSet<Option<String>>> = BTreeMap::new();
    for (subject, transition) in ordered {
        let channel = channels.entry(subject.clone()).or_default();
        match &transition.kind {
            EventKind::ChannelOccupied => channel.insert(None),
            EventKind::ChannelVacated => channel.remove(&None),
            EventKind::MemberAdded { user_id } => channel.insert(Some(user_id.clone())),
            EventKind::MemberRemoved { user_id } => channel.remove(&Some(user_id.clone())),
            other => unreachable!("the bus does not decide {other:?}"),
        };
    }
    channels.retain(|_, channel| !channel.is_empty());
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_events_of_every_history_end_in_the_true_membership() {
    let redis = RedisServer::start();
    let wanted = std::env::var("HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(HISTORY_COUNT);
    let worker = async |number: u64| {
        let url = format!("redis://127.0.0.1:{}/{number}", redis.port);
        let client =
            client::client_builder((&url).into(), 16).and_then(|builder| builder.build().map_err(client::to_bus_error));
        let client = client.expect("a client");
        client.init().await.expect("a connection");
        for seed in (number..wanted).step_by(usize::try_from(WORKER_COUNT).expect("small")) {
            let mut history = History::begin_history(client.clone(), seed).await;
            for _ in 0..STEP_COUNT {
                Box::pin(history.run_step()).await;
            }
            let ended = Box::pin(history.compare_with_truth()).await;
            assert!(ended.is_ok(), "history {seed}: {}", ended.unwrap_err());
        }
    };
    futures::future::join_all((0..WORKER_COUNT).map(worker)).await;
}

#[tokio::test]
async fn the_events_of_every_history_in_memory_end_in_the_true_membership() {
    for seed in 0..10_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let first = MemoryBus::new();
        let ends = [first.for_another_process(), first.for_another_process(), first];
        let (mut log, mut sockets) = (Vec::new(), Vec::<(usize, ChannelKey, SocketId, Option<String>)>::new());
        for n in 0..STEP_COUNT as u64 {
            let name = ["room", "presence-a"][random.random_range(0..2)];
            let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse(name).expect("a name") };
            if random.random_bool(0.6) {
                let (end, socket) = (random.random_range(0..ends.len()), SocketId::from_random(1, n));
                let user = ["ann", "bob"][random.random_range(0..2)];
                let member = (name != "room")
                    .then(|| PresenceMember { user_id: user.into(), user_info: serde_json::Value::Null });
                let joined = ends[end].join_channel(&subject, &socket, member.as_ref()).await.expect("joined");
                log.extend(joined.transitions.acknowledge_all().into_iter().map(|t| (subject.clone(), t)));
                sockets.push((end, subject, socket, member.map(|member| member.user_id)));
            } else if !sockets.is_empty() {
                let (end, subject, socket, _) = sockets.swap_remove(random.random_range(0..sockets.len()));
                let left = ends[end].leave_channel(&subject, &socket, None).await.expect("left");
                log.extend(left.acknowledge_all().into_iter().map(|t| (subject.clone(), t)));
            }
        }
        let mut truth: BTreeMap<ChannelKey, BTreeSet<Option<String>>> = BTreeMap::new();
        for (_, subject, _, user) in sockets {
            let users = truth.entry(subject).or_default();
            users.insert(None);
            users.extend(user.map(Some));
        }
        assert_eq!(replay_log(&log), truth, "history {seed}");
    }
}
