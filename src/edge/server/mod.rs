//! Start and stop of an edge.

pub(crate) mod admin;
pub(crate) mod drain;
pub mod limits_page;
pub(crate) mod load;
pub(crate) mod shutdown;
pub(crate) mod stream_check;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use crate::bus::Bus;
use crate::config::{ServerConfig, name};
use crate::edge::apps::RegistryWatcher;
use crate::edge::apps::client_address::TrustedProxies;
use crate::edge::error::{StartError, StopError};
use crate::edge::http::listener;
use crate::edge::http::listener::{AddressLimit, ConnectionLimit, ListenerSettings, ListenerTimeouts, RequestScreen};
use crate::edge::http::proxy_protocol::{ProxyProtocol, ProxyProtocolMode};
use crate::edge::http::router::{build_public_router, build_relay_router};
use crate::edge::http::session_routes::{RelayFront, RelayGuard, RouteState};
use crate::edge::hub::bus_events;
use crate::edge::hub::core::Hub;
use crate::edge::hub::fan_out;
use crate::edge::hub::pending_counts::PendingCounts;
use crate::edge::hub::subscribers::ChannelSubscribers;
use crate::edge::intake::app_rates::AppRates;
use crate::edge::intake::byte_budget::InputBudget;
use crate::edge::intake::capacity::ProcessCapacity;
use crate::edge::metrics::{EdgeMetrics, RefusalReason};
use crate::edge::recorder::limits::QueueLimits;
use crate::edge::recorder::{Recorder, RecorderTasks};
use crate::edge::relay;
use crate::edge::relay::{RelayServer, SessionRelay};
use crate::edge::server::admin::{build_admin_handlers, serve_admin};
use crate::edge::server::drain::EdgeDrain;
use crate::edge::server::shutdown::EdgeLifecycle;
use crate::edge::server::stream_check::StreamCheck;
use crate::edge::session::opener::SessionOpener;
use crate::edge::session::registry::SessionRegistry;
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::session_ownership::{HttpSessions, LocalSessions, session_host};
use crate::edge::transport::sockjs;
use crate::edge::transport::xhr::session::XhrSessions;
use crate::kinesis;
use crate::process::address_counts::AddressCounts;
use crate::process::memory_limit::read_memory_limit;
use crate::protocol::record::RecordOrigin;
use crate::protocol::relay::RelayRefusal;
use crate::protocol::{self, Transport};

/// The listeners, clients and tokens that an edge is started with.
pub struct EdgeDependencies {
    /// For clients and the HTTP API.
    pub public: TcpListener,
    /// For kubelet, Prometheus and holders of the admin token.
    pub admin: TcpListener,
    /// For other edges, on the port that is the same for all; `None` where sessions are not looked for elsewhere.
    pub peer: Option<TcpListener>,
    /// The directory of the app registry.
    pub apps_dir: PathBuf,
    /// The stream; there exactly when `REALTIME_WEBHOOKS` is `kinesis`.
    pub kinesis: Option<kinesis::KinesisClient>,
    /// The bus to the other edges.
    pub bus: Arc<dyn Bus>,
    /// Cancelled to shut the edge down.
    pub shutdown: CancellationToken,
}

/// An edge that serves.
pub struct RunningEdge {
    /// The address for clients.
    pub public: SocketAddr,
    /// The address of the admin listener.
    pub admin: SocketAddr,
    /// The process's id, new at each start.
    pub process: String,
    life: JoinHandle<Result<(), StopError>>,
}

impl RunningEdge {
    /// Resolves when the edge has ended: its clients were closed, queued events were written or counted.
    ///
    /// # Errors
    /// It ended although nobody asked it to.
    pub async fn wait_stopped(self) -> Result<(), StopError> {
        self.life.await.unwrap_or_else(|error| Err(StopError::Listener(error.to_string())))
    }
}

/// Starts an edge.
///
/// # Errors
/// The configuration or a dependency cannot work; each variant says what to do.
pub async fn start(values: ServerConfig, deps: EdgeDependencies) -> Result<RunningEdge, StartError> {
    let process = Ulid::new().to_string();
    let transports = parse_transports(&values)?;
    let idle_timeouts = IdleTimeouts::from_values(&values)?;
    check_stream_setting(&values, deps.kinesis.is_some())?;
    let (public, admin) = (deps.public.local_addr()?, deps.admin.local_addr()?);
    let (apps, files) = RegistryWatcher::load(deps.apps_dir.clone()).await?;
    let messages = deps.bus.take_incoming_frames().ok_or(StartError::BusTaken)?;
    let decided = deps.bus.take_remote_transitions();
    let found = match &deps.kinesis {
        Some(client) => stream_check::check_stream(client).await?,
        None => StreamCheck::Stream,
    };
    let metrics = Arc::new(EdgeMetrics::default());
    let (writers, flushed) = (TaskTracker::new(), CancellationToken::new());
    let origin = build_record_origin(&values, &process);
    let (failures, failed) = mpsc::channel(1);
    let (tracker, closing) = (writers.clone(), flushed.clone());
    let recorder_tasks = RecorderTasks { tracker, closing, failures: failures.clone() };
    let (stream, limits) = (deps.kinesis.clone(), QueueLimits::DEFAULT);
    let recorder = Recorder::start(stream, apps.clone(), &origin, metrics.clone(), limits, &recorder_tasks);
    let capacity = ProcessCapacity::from_values(&values, read_memory_limit());
    let sessions = SessionRegistry::new(capacity.sessions, idle_timeouts.activity, &origin.cluster, metrics.clone());
    let opener = Arc::new(SessionOpener::new(apps.clone(), sessions, metrics.clone()));
    let shared = Arc::new(Hub {
        apps: apps.clone(),
        subscribers: ChannelSubscribers::new(metrics.clone()),
        pending_counts: PendingCounts::new(opener.session_tasks.clone(), opener.draining.clone()),
        bus: deps.bus,
        recorder,
        api_rates: AppRates::default(),
        metrics,
        log: opener.sessions.log.clone(),
        offline_grace_tasks: TaskTracker::new(),
    });
    let (fallback, stop) = (Arc::new(XhrSessions::default()), CancellationToken::new());
    let drain = EdgeDrain::new(&values, shared.clone(), opener.clone());

    let tasks = TaskTracker::new();
    tasks.spawn(opener.sessions.clone().follow_apps(apps.subscribe(), values.number(name::METRICS_APPS), stop.clone()));
    tasks.spawn(apps.follow_files(deps.apps_dir, files, shared.metrics.clone(), stop.clone()));
    tasks.spawn(fan_out::deliver_bus_frames(shared.clone(), messages, stop.clone()));
    tasks.spawn(drain.share_load(&values, &process, capacity.sessions).run(stop.clone()));
    if let Some(decided) = decided {
        tasks.spawn(bus_events::apply_remote_transitions(shared.clone(), decided, stop.clone()));
    }
    if let (StreamCheck::Missing, Some(client)) = (found, deps.kinesis) {
        tasks.spawn(run_until_cancelled(stop.clone(), report_missing_stream(client, failures.clone())));
    }
    let screen = RequestScreen {
        trusted: parse_trusted_proxies(&values),
        input: InputBudget::new(shared.metrics.clone()),
        bodies_refused: shared.metrics.refusals.with_label(RefusalReason::InputBytes),
    };
    let served = RouteState {
        shared: Arc::new(TransportContext { opener: opener.clone(), hub: shared.clone() }),
        fallback: fallback.clone(),
        sockjs: Arc::default(),
        settings: Arc::new(sockjs::SockjsSettings::from_values(&values)),
        open: protocol::fallback::encode_open(session_host(&values).as_deref()).into(),
        transports,
    };
    let listening = CancellationToken::new();
    let guard = match deps.peer {
        None => RelayGuard::None,
        Some(listener) => {
            let here: Arc<dyn HttpSessions> =
                Arc::new(LocalSessions::new(vec![fallback.clone(), served.sockjs.clone()]));
            let settings = relay::RelaySettings::from_values(
                &values,
                &process,
                shared.bus.clone(),
                listener.local_addr()?.port(),
            )?;
            let door =
                RelayServer::new(process.clone(), settings.secrets.clone(), here.clone(), shared.metrics.clone());
            let routes = build_relay_router(&served, &door, &screen);
            let refused = shared.metrics.relay_refusals.with_label(RelayRefusal::Full);
            let limit = Some(ConnectionLimit { most: relay::RELAY_CONNECTIONS_MAX, refused });
            let bounded = ListenerSettings { limit, ..ListenerSettings::default() };
            tasks.spawn(listener::serve(listener, routes, bounded, listening.clone()));
            let (peers, following) = SessionRelay::start(settings, here, shared.metrics.clone(), stop.clone()).await;
            tasks.spawn(following);
            RelayGuard::Outbound(RelayFront { relay: peers, opener: opener.clone() })
        }
    };
    let (answers, checks) = build_admin_handlers(&values, &process, &shared, &drain, &stop).await;
    let routes = build_public_router(&served, &guard, &screen, &checks);
    let settings = ListenerSettings {
        draining: opener.draining.hold_token(),
        ..build_listener_settings(&values, &idle_timeouts, &screen, capacity, &shared.metrics)
    };
    tasks.spawn(listener::serve(deps.public, routes, settings, listening.clone()));
    tasks.spawn(serve_admin(deps.admin, answers, stop.clone(), failures));

    tracing::info!(%public, %admin, %process, transports = values.text(name::TRANSPORTS), connections = capacity.sessions, "the edge serves");
    let life = EdgeLifecycle { shared, opener, fallback, drain, guard, listening, flushed, writers, stop, tasks };
    let life = tokio::spawn(life.run_until_shutdown(deps.shutdown, failed));
    Ok(RunningEdge { public, admin, process, life })
}

/// The times after which silent connections are pinged and closed.
struct IdleTimeouts {
    activity: Duration,
    keep_alive: Duration,
}

impl IdleTimeouts {
    fn from_values(values: &ServerConfig) -> Result<Self, StartError> {
        let activity = values.number(name::ACTIVITY_TIMEOUT_SECONDS);
        let keep_alive = values.number(name::KEEP_ALIVE_SECONDS);
        if keep_alive < 2 * activity {
            return Err(StartError::KeepAliveShort { keep_alive, activity });
        }
        Ok(Self { activity: Duration::from_secs(activity), keep_alive: Duration::from_secs(keep_alive) })
    }
}

/// The rules of the public listener that its variables decide.
fn build_listener_settings(
    values: &ServerConfig,
    idle_timeouts: &IdleTimeouts,
    screen: &RequestScreen,
    capacity: ProcessCapacity,
    metrics: &EdgeMetrics,
) -> ListenerSettings {
    let mode = ProxyProtocolMode::parse(values.text(name::PROXY_PROTOCOL));
    let refused = |reason| metrics.refusals.with_label(reason);
    let (counts, most) = (AddressCounts::default(), capacity.source_connections);
    ListenerSettings {
        timeouts: ListenerTimeouts { head: idle_timeouts.keep_alive, ..ListenerTimeouts::default() },
        limit: Some(ConnectionLimit { most: capacity.connections, refused: refused(RefusalReason::ListenerFull) }),
        address_limit: Some(AddressLimit { most, counts, refused: refused(RefusalReason::ListenerSource) }),
        input: Some(screen.input.clone()),
        proxy_protocol: ProxyProtocol { mode, trusted: screen.trusted.clone() },
        headers_refused: refused(RefusalReason::ProxyHeader),
        base_path: values.text(name::BASE_PATH).to_owned(),
        ..ListenerSettings::default()
    }
}

/// Waits for the stream, and reports that it did not appear.
async fn report_missing_stream(client: kinesis::KinesisClient, failures: mpsc::Sender<StopError>) {
    if let Err(error) = stream_check::wait_for_stream(client).await {
        let _ = failures.send(error).await;
    }
}

/// The networks that the variables name, which were checked with them.
fn parse_trusted_proxies(values: &ServerConfig) -> TrustedProxies {
    values.list_items(name::TRUSTED_PROXIES).filter_map(|network| network.parse().ok()).collect()
}

fn parse_transports(values: &ServerConfig) -> Result<Vec<Transport>, StartError> {
    values.list_items(name::TRANSPORTS).map(|text| text.parse().map_err(StartError::Transport)).collect()
}

/// A stream that is configured and not there, or the other way round, would be events lost in silence.
fn check_stream_setting(values: &ServerConfig, given: bool) -> Result<(), StartError> {
    let webhooks = values.text(name::WEBHOOKS);
    if (webhooks == "kinesis") == given {
        return Ok(());
    }
    Err(StartError::StreamMismatch { webhooks: webhooks.to_owned(), given: if given { "a" } else { "no" } })
}

fn build_record_origin(values: &ServerConfig, process: &str) -> RecordOrigin {
    RecordOrigin {
        cluster: values.text(name::CLUSTER_UID).to_owned(),
        server: values.server().name().to_owned(),
        pod: values.text(name::POD).to_owned(),
        process: process.to_owned(),
    }
}

async fn run_until_cancelled(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! { () = stop.cancelled() => {}, () = work => {} }
}
