//! `realtime edge` and `realtime dispatcher`: servers as a pod runs them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusScope, MemoryBus, RedisAddress, RedisBus};
use crate::config::{CONFIG_EXIT_CODE, ServerConfig, ServerKind, name};
use crate::dispatcher::{self, EgressOverrides, KubernetesLeases, MemoryLeases, ShardLeases};
use crate::edge;
use crate::kinesis::{AwsCredentials, KinesisClient, StreamSettings};
use crate::kubernetes::client::build_clients;
use crate::process::{self, signal, telemetry};

/// The file from which kubelet reads a container's termination message.
const TERMINATION_LOG_PATH: &str = "/dev/termination-log";

/// Runs an edge until a signal ends it.
pub async fn serve_edge() -> u8 {
    report_exit(run_edge().await)
}

/// Runs a dispatcher until a signal ends it.
pub async fn serve_dispatcher() -> u8 {
    report_exit(run_dispatcher().await)
}

fn report_exit(result: Result<(), String>) -> u8 {
    let Err(line) = result else { return 0 };
    eprintln!("realtime: {line}");
    if std::path::Path::new(TERMINATION_LOG_PATH).exists() {
        // Without it kubelet shows the exit code alone, which is less and not wrong.
        let _ = std::fs::write(TERMINATION_LOG_PATH, &line);
    }
    CONFIG_EXIT_CODE
}

async fn run_edge() -> Result<(), String> {
    let (values, shutdown) = begin_server(&ServerKind::EDGES, "edge")?;
    // The bus serves longer than the edge takes clients in: while they are sent away, others must not think it dead.
    let ended = CancellationToken::new();
    let _ends = ended.clone().drop_guard();
    let bus: Arc<dyn Bus> = if values.text(name::BUS) == "redis" {
        // Its own name on the bus: a container that starts again in its pod is another.
        let process = ulid::Ulid::new().to_string();
        let authorities = values.get(name::REDIS_CA).filter(|text| !text.is_empty());
        let address = RedisAddress { url: values.text(name::REDIS_URL), authorities };
        let scope = BusScope { cluster: values.text(name::CLUSTER_UID), group: values.text(name::BUS_GROUP) };
        let bus = RedisBus::connect(address, scope, &process, ended).await;
        Arc::new(bus.map_err(|error| error.to_string())?)
    } else {
        Arc::new(MemoryBus::new())
    };
    let kinesis = match values.text(name::WEBHOOKS) {
        "kinesis" => Some(KinesisClient::connect(&kinesis_settings(&values)).await),
        _ => None,
    };
    // A single process has nobody to hand a request to.
    let peer = match values.text(name::BUS) {
        "redis" if values.server().serves_as(ServerKind::Sockjs) => {
            Some(bind_listener(&values, name::PEER_ADDRESS).await?)
        }
        _ => None,
    };
    let dependencies = edge::EdgeDependencies {
        public: bind_listener(&values, name::PUBLIC_ADDRESS).await?,
        admin: bind_listener(&values, name::ADMIN_ADDRESS).await?,
        peer,
        apps_dir: PathBuf::from(values.text(name::APPS_PATH)),
        kinesis,
        bus,
        shutdown,
    };
    let running = edge::start(values, dependencies).await.map_err(|error| error.to_string())?;
    running.wait_stopped().await.map_err(|error| error.to_string())
}

async fn run_dispatcher() -> Result<(), String> {
    let (values, shutdown) = begin_server(&[ServerKind::Dispatcher], "dispatcher")?;
    let kinesis = KinesisClient::connect(&kinesis_settings(&values)).await;
    let leases: Arc<dyn ShardLeases> = if values.text(name::LEASES) == "memory" {
        Arc::new(MemoryLeases::default())
    } else {
        let clients = build_clients(Arc::default()).await.map_err(|error| format!("{}: {error}", name::LEASES))?;
        let cluster = values.text(name::CLUSTER);
        let namespace = cluster.split_once('/').map_or("default", |(namespace, _)| namespace);
        Arc::new(KubernetesLeases::new(clients, namespace, kinesis.clone()))
    };
    let dependencies = dispatcher::DispatcherDependencies {
        admin: bind_listener(&values, name::ADMIN_ADDRESS).await?,
        apps_dir: PathBuf::from(values.text(name::APPS_PATH)),
        kinesis,
        leases,
        egress: EgressOverrides::default(),
        shutdown,
    };
    let running = dispatcher::start(values, dependencies).await.map_err(|error| error.to_string())?;
    let failure = running.failure.clone();
    running.wait_until_stopped().await;
    let ended_by_itself = failure.borrow().clone();
    ended_by_itself.map_or(Ok(()), Err)
}

/// Checks the environment first: a server that refuses must do so before it listens.
fn begin_server(servers: &[ServerKind], command: &str) -> Result<(ServerConfig, CancellationToken), String> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let values = ServerConfig::parse(std::env::vars_os().map(|(name, value)| (text(name), text(value))))
        .map_err(|error| error.to_string())?;
    if !servers.contains(&values.server()) {
        return Err(format!("{} is `{}`, which `realtime {command}` does not run", name::SERVER, values.server()));
    }
    telemetry::start(values.text(name::LOG));
    process::install_tls();
    let shutdown = signal::shutdown_token().map_err(|error| format!("signals cannot be listened to: {error}"))?;
    Ok((values, shutdown))
}

async fn bind_listener(values: &ServerConfig, variable: &str) -> Result<TcpListener, String> {
    let address = values.address(variable).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    process::listener::bind(address)
        .await
        .map_err(|error| format!("{variable} is {address}, which cannot be listened on: {error}. Free it or change it"))
}

fn kinesis_settings(values: &ServerConfig) -> StreamSettings {
    let credentials = match (values.get("AWS_ACCESS_KEY_ID"), values.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            AwsCredentials::Static { access_key_id: id.to_owned(), secret_access_key: secret.to_owned() }
        }
        _ => AwsCredentials::Chain,
    };
    StreamSettings {
        stream: values.text(name::STREAM_NAME).into(),
        region: values.text(name::AWS_REGION).to_owned(),
        endpoint: values.get(name::AWS_ENDPOINT_URL_KINESIS).map(str::to_owned),
        credentials,
    }
}
