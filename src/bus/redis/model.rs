//! Random histories of three processes on a real store: whatever happens, the events that they record, put into their
//! order, end in what is true.
//!
//! What is random: who comes and goes where, which process records what it decided and when, which is killed, and when
//! the store is away, whether it comes back with its memory or without. Time is not: leases end, and a store's memory
//! settles, when the history says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::interfaces::{ClientLike, HashesInterface, LuaInterface, SortedSetsInterface};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::super::{Bus, Decided, MemoryBus, Subject, Transition};
use super::core::Core;
use super::keeper::Keeper;
use super::names::Names;
use super::{Timing, store};
use crate::protocol::frame::Member;
use crate::protocol::record::EventKind;
use crate::protocol::{ChannelName, SocketId};

/// Histories in a run of the tests; `HISTORIES` says otherwise.
const HISTORIES: u64 = 600;
/// Things that happen in one.
const STEPS: usize = 40;
/// Histories at once, each in a database of its own.
const WORKERS: u64 = 4;

/// Nothing ends by itself.
const TIMING: Timing = Timing {
    lease: Duration::from_hours(1),
    renew: Duration::from_hours(1),
    settle: Duration::from_hours(1),
    rest: Duration::ZERO,
};

struct Redis {
    child: Child,
    port: u16,
    _files: tempfile::TempDir,
}

impl Redis {
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

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process, as far as the bus sees it.
struct Process {
    core: Arc<Core>,
    keeper: Keeper,
    decided: mpsc::Receiver<Decided>,
    /// Decided and not yet recorded.
    queue: Vec<(Subject, Transition)>,
    sockets: BTreeMap<(Subject, SocketId), Option<Member>>,
}

/// One history.
struct History {
    client: fred::clients::Client,
    random: StdRng,
    processes: Vec<Process>,
    names: u64,
    sockets: u64,
    /// Every event that was recorded.
    log: Vec<(Subject, Transition)>,
    seen: HashMap<String, (Subject, Transition)>,
    up: bool,
    /// What happened, for whoever reads of a failure.
    steps: Vec<String>,
}

impl History {
    async fn begin(client: fred::clients::Client, seed: u64) -> Self {
        forget(&client).await;
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
            history.born().await;
        }
        history.settle().await;
        history
    }

    async fn born(&mut self) {
        self.names += 1;
        let (told, decided) = mpsc::channel(4_096);
        let names = Names { cluster: "u".into(), clustered: false };
        let core = Arc::new(Core::new(self.client.clone(), names, format!("p{}", self.names), TIMING, told));
        let mut keeper = Keeper::new(core.clone());
        keeper.renew().await.expect("a lease");
        self.processes.push(Process { core, keeper, decided, queue: vec![], sockets: BTreeMap::new() });
        self.settle().await;
    }

    /// As if the store's memory had been young for long enough.
    async fn settle(&mut self) {
        for process in &mut self.processes {
            process.keeper.once().await.expect("told");
        }
        for process in &mut self.processes {
            process.core.state().settling = None;
            process.keeper.once().await.expect("told");
            process.collect();
        }
    }

    fn subject(&mut self) -> Subject {
        let names = ["room", "presence-a", "presence-b"];
        let name = names[self.random.random_range(0..names.len())];
        Subject { app: "1".into(), channel: ChannelName::parse(name).expect("a name") }
    }

    async fn step(&mut self) {
        let (subject, p) = (self.subject(), self.random.random_range(0..self.processes.len()));
        match self.random.random_range(0..100) {
            0..40 => self.come(p, subject).await,
            40..70 => self.go(p).await,
            70..82 => self.record(p).await,
            82..88 => self.kill(p).await,
            88..94 if self.up => self.away(),
            _ if !self.up => self.back().await,
            _ => {
                for process in &mut self.processes {
                    process.keeper.once().await.expect("told");
                    process.collect();
                }
            }
        }
    }

    async fn come(&mut self, p: usize, subject: Subject) {
        self.sockets += 1;
        let socket = SocketId::from_random(1, self.sockets);
        let presence = subject.channel.as_str().starts_with("presence");
        let user = ["ann", "bob", "eve"][self.random.random_range(0..3)];
        let member = presence.then(|| Member { user_id: user.into(), user_info: serde_json::Value::Null });
        let process = &mut self.processes[p];
        self.steps.push(format!("{p} {} {socket} {user}", subject.channel));
        let joined = process.core.enter(&subject, &socket, member.as_ref()).await;
        match joined {
            Ok(joined) => process.queue.extend(joined.transitions.into_iter().map(|t| (subject.clone(), t))),
            // A client of a presence channel is refused, and so leaves; another stays.
            Err(_) if presence => {
                let _ = process.core.leave(&subject, &socket, None).await;
                return;
            }
            Err(_) => {}
        }
        process.sockets.insert((subject, socket), member);
    }

    async fn go(&mut self, p: usize) {
        let process = &mut self.processes[p];
        if process.sockets.is_empty() {
            return;
        }
        let at = self.random.random_range(0..process.sockets.len());
        let (subject, socket) = process.sockets.keys().nth(at).cloned().expect("a socket");
        process.sockets.remove(&(subject.clone(), socket.clone()));
        self.steps.push(format!("{p} {} {socket} goes", subject.channel));
        if let Ok(transitions) = process.core.leave(&subject, &socket, None).await {
            process.queue.extend(transitions.into_iter().map(|t| (subject.clone(), t)));
        }
    }

    /// The stream takes some of what waits, and the bus hears so if it can.
    async fn record(&mut self, p: usize) {
        let count = self.random.random_range(0..=self.processes[p].queue.len());
        let safe: Vec<_> = self.processes[p].queue.drain(..count).collect();
        for (subject, transition) in safe {
            if self.up {
                let core = &self.processes[p].core;
                let field = format!("{}:{}", transition.order.epoch, transition.order.seq);
                core.client.hdel::<(), _, _>(core.names.key(&subject, "outbox"), field).await.expect("heard");
                core.state().held.recorded(&subject, &[transition.order]);
            }
            self.note(subject, transition);
        }
    }

    fn note(&mut self, subject: Subject, transition: Transition) {
        let known = self.seen.entry(transition.id.clone()).or_insert_with(|| (subject.clone(), transition.clone()));
        assert_eq!(*known, (subject.clone(), transition.clone()), "one id for two events");
        self.log.push((subject, transition));
    }

    /// A process dies; another takes its place, and the others sweep after it, now or later. While the store is away
    /// nobody dies: what only the dead knew, and the store forgets, nobody can tell.
    async fn kill(&mut self, p: usize) {
        if !self.up {
            return;
        }
        let dead = self.processes.remove(p);
        self.steps.push(format!("{p} dies with {}", dead.queue.len()));
        let name = dead.core.state().process.clone();
        let leases = dead.core.names.leases();
        self.client.zadd::<(), _, _>(leases, None, None, false, false, (1.0, name.as_str())).await.expect("ended");
        self.born().await;
        if self.random.random_bool(0.5) {
            self.sweep().await;
        }
    }

    async fn sweep(&mut self) {
        for process in &mut self.processes {
            process.keeper.renew().await.expect("a lease");
            process.core.state().settling = None;
            process.keeper.once().await.expect("swept");
            process.collect();
        }
    }

    fn away(&mut self) {
        self.up = false;
        self.steps.push("away".to_owned());
        for process in &mut self.processes {
            process.core.set_up(false);
            process.core.state().steady = None;
        }
    }

    async fn back(&mut self) {
        self.up = true;
        let forgets = self.random.random_bool(0.5);
        self.steps.push(format!("back, without its memory: {forgets}"));
        if forgets {
            // Of the dead, the store alone knows.
            for process in &mut self.processes {
                process.core.set_up(true);
            }
            self.sweep().await;
            self.away();
            self.up = true;
            forget(&self.client).await;
        }
        for process in &mut self.processes {
            process.keeper.renew().await.expect("a lease");
            // Nobody waits for the others here.
            if let Some(settling) = &mut process.core.state().settling {
                settling.told = Instant::now();
            }
        }
        // Some go on while the store's memory is young.
        if forgets {
            for _ in 0..self.random.random_range(0..4) {
                let (subject, p) = (self.subject(), self.random.random_range(0..self.processes.len()));
                if self.random.random_bool(0.5) { self.come(p, subject).await } else { self.go(p).await }
            }
        }
        self.settle().await;
    }

    async fn end(mut self) -> Result<(), String> {
        if !self.up {
            self.back().await;
        }
        self.sweep().await;
        self.sweep().await;
        for p in 0..self.processes.len() {
            let queue: Vec<_> = self.processes[p].queue.drain(..).collect();
            for (subject, transition) in queue {
                self.note(subject, transition);
            }
        }
        let mut truth: BTreeMap<Subject, BTreeSet<Option<String>>> = BTreeMap::new();
        for process in &self.processes {
            for ((subject, _), member) in &process.sockets {
                let users = truth.entry(subject.clone()).or_default();
                users.insert(None);
                users.extend(member.as_ref().map(|member| Some(member.user_id.clone())));
            }
        }
        let told = replay(&self.log);
        if told == truth {
            return Ok(());
        }
        let line = |(subject, t): &(Subject, Transition)| {
            format!("{} {:?} {}:{}", subject.channel, t.kind, t.order.epoch, t.order.seq)
        };
        let log: Vec<String> = self.log.iter().map(line).collect();
        Err(format!("told {told:?}\ntrue {truth:?}\n{}\n{}", log.join("\n"), self.steps.join("\n")))
    }
}

impl Process {
    fn collect(&mut self) {
        while let Ok(decided) = self.decided.try_recv() {
            self.queue.extend(decided.transitions.into_iter().map(|t| (decided.subject.clone(), t)));
        }
    }
}

/// The database of one worker loses its memory.
async fn forget(client: &fred::clients::Client) {
    let nothing = Vec::<String>::new();
    let flush = client.eval::<String, _, _, _>("return redis.call('FLUSHDB')", nothing.clone(), nothing);
    flush.await.expect("an empty store");
}

/// What a receiver believes that puts the events into their order: per channel, `None` for occupied, and its users.
fn replay(log: &[(Subject, Transition)]) -> BTreeMap<Subject, BTreeSet<Option<String>>> {
    let mut ordered: Vec<_> = log.iter().collect();
    ordered.sort_by(|(one, first), (other, second)| (one, first.order).cmp(&(other, second.order)));
    let mut told: BTreeMap<Subject, BTreeSet<Option<String>>> = BTreeMap::new();
    for (subject, transition) in ordered {
        let channel = told.entry(subject.clone()).or_default();
        match &transition.kind {
            EventKind::ChannelOccupied => channel.insert(None),
            EventKind::ChannelVacated => channel.remove(&None),
            EventKind::MemberAdded { user_id } => channel.insert(Some(user_id.clone())),
            EventKind::MemberRemoved { user_id } => channel.remove(&Some(user_id.clone())),
            other => unreachable!("the bus does not decide {other:?}"),
        };
    }
    told.retain(|_, channel| !channel.is_empty());
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_history_ends_in_what_is_true() {
    let redis = Redis::start();
    let wanted = std::env::var("HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(HISTORIES);
    let worker = async |number: u64| {
        let url = format!("redis://127.0.0.1:{}/{number}", redis.port);
        let client = store::builder((&url).into(), 16).and_then(|builder| builder.build().map_err(store::unavailable));
        let client = client.expect("a client");
        client.init().await.expect("a connection");
        for seed in (number..wanted).step_by(usize::try_from(WORKERS).expect("small")) {
            let mut history = History::begin(client.clone(), seed).await;
            for _ in 0..STEPS {
                history.step().await;
            }
            let ended = history.end().await;
            assert!(ended.is_ok(), "history {seed}: {}", ended.unwrap_err());
        }
    };
    futures::future::join_all((0..WORKERS).map(worker)).await;
}

#[tokio::test]
async fn every_history_in_memory_ends_in_what_is_true() {
    for seed in 0..10_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let first = MemoryBus::new();
        let ends = [first.another(), first.another(), first];
        let (mut log, mut sockets) = (Vec::new(), Vec::<(usize, Subject, SocketId, Option<String>)>::new());
        for n in 0..STEPS as u64 {
            let name = ["room", "presence-a"][random.random_range(0..2)];
            let subject = Subject { app: "1".into(), channel: ChannelName::parse(name).expect("a name") };
            if random.random_bool(0.6) {
                let (end, socket) = (random.random_range(0..ends.len()), SocketId::from_random(1, n));
                let user = ["ann", "bob"][random.random_range(0..2)];
                let member =
                    (name != "room").then(|| Member { user_id: user.into(), user_info: serde_json::Value::Null });
                let joined = ends[end].join(&subject, &socket, member.as_ref()).await.expect("joined");
                log.extend(joined.transitions.into_iter().map(|t| (subject.clone(), t)));
                sockets.push((end, subject, socket, member.map(|member| member.user_id)));
            } else if !sockets.is_empty() {
                let (end, subject, socket, _) = sockets.swap_remove(random.random_range(0..sockets.len()));
                let left = ends[end].leave(&subject, &socket, None).await.expect("left");
                log.extend(left.into_iter().map(|t| (subject.clone(), t)));
            }
        }
        let mut truth: BTreeMap<Subject, BTreeSet<Option<String>>> = BTreeMap::new();
        for (_, subject, _, user) in sockets {
            let users = truth.entry(subject).or_default();
            users.insert(None);
            users.extend(user.map(Some));
        }
        assert_eq!(replay(&log), truth, "history {seed}");
    }
}
