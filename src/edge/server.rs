//! Start and stop of an edge.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use super::apps::Apps;
use super::channels::Channels;
use super::counts::Counts;
use super::drain::{self, Drain, Draining};
use super::fallback::Fallback;
use super::listener::{self, Bound, Patience};
use super::metrics::Metrics;
use super::peer::{self, Door, Here, Peers, session_host};
use super::recorder::Recorder;
use super::router::{Guard, Served, peer_router, router};
use super::sessions::Sessions;
use super::shared::Shared;
use super::sockjs;
use super::stream_check::{self, Found};
use super::unasked;
use super::user;
use crate::bus::{Bus, Message};
use crate::contract::{Values, name};
use crate::kinesis::{self, KinesisError};
use crate::protocol::admin::{Effective, Flow, configuration};
use crate::protocol::record::Origin;
use crate::protocol::registry::RegistryError;
use crate::protocol::relay::Refusal;
use crate::protocol::{self, Transport, signature};
use crate::runtime::admin::{self, Admin};
use crate::runtime::{admission, build, clock};

/// How long HTTP sessions that were told nothing yet may take to ask.
const ASK: Duration = Duration::from_secs(2);

/// How long open requests may take once the listener is closed.
const REQUESTS: Duration = Duration::from_secs(2);

/// How long what waits may take into the stream.
const FLUSH: Duration = Duration::from_secs(10);

/// What an edge is given.
pub struct Dependencies {
    /// For clients and the HTTP API.
    pub public: TcpListener,
    /// For kubelet, Prometheus and whoever has the token.
    pub admin: TcpListener,
    /// For other edges, on the port that is the same for all; `None` where sessions are not looked for elsewhere.
    pub peer: Option<TcpListener>,
    /// The directory of the app registry.
    pub apps_dir: PathBuf,
    /// The stream; there exactly when `REALTIME_WEBHOOKS` is `kinesis`.
    pub kinesis: Option<kinesis::Client>,
    /// The other edges.
    pub bus: Arc<dyn Bus>,
    /// Ends the edge.
    pub shutdown: CancellationToken,
}

/// Why an edge does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No file of the registry can be read.
    #[error("the app registry in {} cannot be read: {error}; mount the registry there", directory.display())]
    AppsUnreadable {
        /// Where it was looked for.
        directory: PathBuf,
        /// What the system said.
        error: String,
    },
    /// A file of the registry is broken.
    #[error("{0}; render the registry again with an operator of this release")]
    AppsBroken(#[from] RegistryError),
    /// The identity may not use the stream.
    #[error("{0}; allow kinesis:DescribeStreamSummary and kinesis:PutRecords to this identity")]
    StreamDenied(KinesisError),
    /// The configuration and what was handed in say different things.
    #[error("REALTIME_WEBHOOKS is `{webhooks}`, but the edge was given {given} stream; make the two agree")]
    StreamMismatch {
        /// The variable.
        webhooks: String,
        /// `a` or `no`.
        given: &'static str,
    },
    /// Another part of this process reads the bus already.
    #[error("the bus of this process is read by another edge; give each edge an end of its own")]
    BusTaken,
    /// A listener has no address.
    #[error("the listener has no address: {0}; bind it before starting the edge")]
    Listener(#[from] io::Error),
    /// Other edges cannot be told where this one is.
    #[error("REALTIME_POD_IP is `{0}`, which is no address: other edges could not reach the sessions of this one")]
    NoAddress(String),
    /// A transport that this release does not serve.
    #[error("{0}")]
    Transport(String),
}

/// Why an edge ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The stream did not appear.
    #[error("{0}; the stream was missing for two minutes: create it, or correct REALTIME_STREAM_NAME and AWS_REGION")]
    StreamMissing(KinesisError),
    /// A listener failed.
    #[error("a listener failed: {0}; the process must start again")]
    Listener(String),
}

/// An edge that serves.
pub struct Running {
    /// Where clients are served.
    pub public: SocketAddr,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// The process's id, new at each start.
    pub process: String,
    life: JoinHandle<Result<(), StopError>>,
}

impl Running {
    /// Resolves when the edge has ended: its clients were told, what waited was written or counted.
    ///
    /// # Errors
    /// It ended although nobody asked it to.
    pub async fn stopped(self) -> Result<(), StopError> {
        self.life.await.unwrap_or_else(|error| Err(StopError::Listener(error.to_string())))
    }
}

/// Starts an edge.
///
/// # Errors
/// What it was given cannot work; each variant says what to do.
pub async fn start(values: Values, deps: Dependencies) -> Result<Running, StartError> {
    let process = Ulid::new().to_string();
    let transports = transports(&values)?;
    agree(&values, deps.kinesis.is_some())?;
    let (public, admin) = (deps.public.local_addr()?, deps.admin.local_addr()?);
    let (apps, files) = Apps::load(deps.apps_dir.clone()).await?;
    let messages = deps.bus.messages().ok_or(StartError::BusTaken)?;
    let decided = deps.bus.decided();
    let found = match &deps.kinesis {
        Some(client) => stream_check::first(client).await?,
        None => Found::Stream,
    };

    let metrics = Arc::new(Metrics::default());
    let (writers, flushed) = (TaskTracker::new(), CancellationToken::new());
    let origin = origin(&values, &process);
    let recorder =
        Recorder::start(deps.kinesis.clone(), deps.bus.clone(), &origin, metrics.clone(), &writers, &flushed);
    let shared = Arc::new(Shared {
        apps: apps.clone(),
        channels: Channels::new(),
        counts: Counts::default(),
        sessions: Sessions::new(metrics.clone()),
        bus: deps.bus,
        recorder,
        metrics,
        draining: Draining::default(),
        tasks: TaskTracker::new(),
        stays: TaskTracker::new(),
    });
    let fallback = Arc::new(Fallback::default());
    let stop = CancellationToken::new();
    let (failures, failed) = mpsc::channel(1);
    let drain = Drain::new(&values, shared.clone());

    let tasks = TaskTracker::new();
    let (sessions, metrics) = (shared.sessions.clone(), shared.metrics.clone());
    tasks.spawn(apps.follow(deps.apps_dir, files, sessions, metrics, stop.clone()));
    tasks.spawn(relay(shared.clone(), messages, stop.clone()));
    if let Some(decided) = decided {
        tasks.spawn(unasked::follow(shared.clone(), decided, stop.clone()));
    }
    if let (Found::Missing, Some(client)) = (found, deps.kinesis) {
        let failures = failures.clone();
        tasks.spawn(until(stop.clone(), async move {
            if let Err(error) = stream_check::appears(client).await {
                let _ = failures.send(error).await;
            }
        }));
    }
    // The contract has checked them.
    let trusted = values.list(name::TRUSTED_PROXIES).filter_map(|network| network.parse().ok()).collect();
    let served = Served {
        shared: shared.clone(),
        fallback: fallback.clone(),
        sockjs: Arc::default(),
        settings: Arc::new(sockjs::Settings::of(&values)),
        open: protocol::fallback::open(session_host(&values).as_deref()).into(),
        transports,
    };
    let listening = CancellationToken::new();
    let guard = match deps.peer {
        None => Guard::None,
        Some(listener) => {
            let here = Arc::new(Here { fallback: fallback.clone(), sockjs: served.sockjs.clone() });
            let settings = peer::Settings::of(&values, &process, shared.bus.clone(), listener.local_addr()?.port())?;
            let door = Door::new(process.clone(), settings.secrets.clone(), here.clone(), shared.metrics.clone());
            let routes = peer_router(&served, &door);
            let refused = shared.metrics.relay_refused(Refusal::Full.name());
            let bound = Some(Bound { most: peer::MAX_CONNECTIONS, refused });
            tasks.spawn(listener::serve(listener, routes, Patience::DEFAULT, bound, listening.clone()));
            let (peers, following) = Peers::start(settings, here, shared.metrics.clone(), stop.clone()).await;
            tasks.spawn(following);
            Guard::Pass(peers)
        }
    };
    let routes = router(&served, &guard, trusted);
    tasks.spawn(listener::serve(deps.public, routes, Patience::DEFAULT, None, listening.clone()));
    let answers = answers(&values, &process, &shared, &drain, &stop).await;
    tasks.spawn(serve_admin(deps.admin, answers, stop.clone(), failures));

    tracing::info!(%public, %admin, %process, transports = values.text(name::TRANSPORTS), "the edge serves");
    let life = Life { shared, fallback, drain, listening, flushed, writers, stop, tasks };
    let life = tokio::spawn(life.live(deps.shutdown, failed));
    Ok(Running { public, admin, process, life })
}

/// What is needed to end an edge in order.
struct Life {
    shared: Arc<Shared>,
    fallback: Arc<Fallback>,
    drain: Arc<Drain>,
    listening: CancellationToken,
    flushed: CancellationToken,
    writers: TaskTracker,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Life {
    async fn live(self, shutdown: CancellationToken, mut failed: mpsc::Receiver<StopError>) -> Result<(), StopError> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(error) = failed.recv() => {
                tracing::error!(%error, "the edge ends");
                Err(error)
            }
        };
        self.end().await;
        ended
    }

    /// Clients first: once they have left, nothing new is recorded. Then what waits for the stream, while requests are
    /// still answered, because a fallback client between two requests hears of the end with its next one.
    async fn end(self) {
        self.drain.done().await;
        self.shared.tasks.close();
        tokio::join!(self.answer_last_requests(), self.flush(), self.let_users_go());
        self.shared.bus.resign().await;
        self.tasks.close();
        self.stop.cancel();
        if timeout(REQUESTS, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests were still open and are cut");
        }
        tracing::info!("the edge has ended");
    }

    async fn answer_last_requests(&self) {
        if timeout(ASK, self.shared.tasks.wait()).await.is_err() {
            tracing::info!(sessions = self.fallback.count(), "some clients did not hear the goodbye out");
        }
        self.listening.cancel();
    }

    /// Users who did not come back elsewhere are told of as offline.
    async fn let_users_go(&self) {
        self.shared.stays.close();
        if timeout(user::STAY + REQUESTS, self.shared.stays.wait()).await.is_err() {
            tracing::warn!(
                users = self.shared.stays.len(),
                "some users stay online until the bus forgets this process"
            );
        }
    }

    async fn flush(&self) {
        self.writers.close();
        self.flushed.cancel();
        if timeout(FLUSH, self.writers.wait()).await.is_err() {
            let events = self.shared.recorder.give_up();
            tracing::error!(events, "the stream did not take what waited in time; these events are lost");
        }
    }
}

fn transports(values: &Values) -> Result<Vec<Transport>, StartError> {
    values.list(name::TRANSPORTS).map(|text| text.parse().map_err(StartError::Transport)).collect()
}

/// A stream that is configured and not there, or the other way round, would be events lost in silence.
fn agree(values: &Values, given: bool) -> Result<(), StartError> {
    let webhooks = values.text(name::WEBHOOKS);
    if (webhooks == "kinesis") == given {
        return Ok(());
    }
    Err(StartError::StreamMismatch { webhooks: webhooks.to_owned(), given: if given { "a" } else { "no" } })
}

fn origin(values: &Values, process: &str) -> Origin {
    Origin {
        cluster: values.text(name::CLUSTER_UID).to_owned(),
        server: values.server().name().to_owned(),
        pod: values.text(name::POD).to_owned(),
        process: process.to_owned(),
    }
}

async fn answers(
    values: &Values,
    process: &str,
    shared: &Arc<Shared>,
    drain: &Arc<Drain>,
    stop: &CancellationToken,
) -> Admin {
    let mut metrics = Registry::default();
    shared.metrics.register(&mut metrics);
    let token = values.text(name::ADMIN_TOKEN).to_owned();
    let variables = values.effective(|secret| signature::salted_digest(&token, secret));
    let configuration = configuration(build::read_id().await, &variables);
    let admitted = admission::of(values, &configuration, stop.clone());
    let effective = {
        let (shared, process, salt) = (shared.clone(), process.to_owned(), token.clone());
        move || {
            json_of(&Effective {
                process: process.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                configuration: configuration.clone(),
                time_ms: clock::now_ms(),
                variables: variables.clone(),
                apps: shared.apps.current().digests(&salt),
            })
        }
    };
    let flow = {
        let (shared, process) = (shared.clone(), process.to_owned());
        move || json_of(&Flow { process: process.clone(), recorder: Some(shared.recorder.flow()), dispatcher: None })
    };
    let serving = drain.clone();
    let ready = move || match (serving.serves(), *admitted.borrow()) {
        (false, _) => Err("going away".to_owned()),
        (_, false) => Err("not admitted yet: a client's event through this pod must arrive first".to_owned()),
        (true, true) => Ok(()),
    };
    let drain = drain::answers(drain.clone());
    Admin {
        token,
        ready: Box::new(ready),
        effective: Box::new(effective),
        flow: Box::new(flow),
        drain: Some(drain),
        metrics,
    }
}

fn json_of(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// Gives the frames of other processes to the subscribers of this one.
async fn relay(shared: Arc<Shared>, mut messages: mpsc::Receiver<Message>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(message) = messages.recv() => shared.channels.deliver(&message),
            _ = tick.tick() => shared.observe(),
        }
    }
}

async fn serve_admin(
    listener: TcpListener,
    answers: Admin,
    stop: CancellationToken,
    failures: mpsc::Sender<StopError>,
) {
    if let Err(error) = admin::serve(listener, answers, stop).await {
        let _ = failures.send(StopError::Listener(error.to_string())).await;
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! { () = stop.cancelled() => {}, () = work => {} }
}
