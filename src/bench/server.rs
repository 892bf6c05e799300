//! The servers under test: child processes on loopback, started for one measurement and killed after it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use super::error::BenchError;
use super::http::HttpConnection;
use super::machine;
use super::plan::PeerServer;
use super::target::{APP_ID, APP_KEY, APP_SECRET, ServerKind, Target};
use crate::config::name;
use crate::protocol::Transport;
use crate::protocol::registry::{App, AppRegistry};

/// Bounds the time until a started server is ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The module of nginx, beside the folder of the program.
const NCHAN_MODULE: &str = "lib/nginx/modules/ngx_nchan_module.so";

/// Bounds the output of a server in the error that it did not start, in characters from the end.
const OUTPUT_TAIL_LEN: usize = 2_000;

/// A running server, killed on drop.
pub struct ServerProcess {
    /// Kind and public address of the server.
    pub target: Target,
    /// Echo address of the baseline server.
    pub echo_address: SocketAddr,
    process: Child,
    _files: TempDir,
}

/// Bus that an edge shares with others.
#[derive(Clone, Copy, Debug)]
pub struct BusConnection<'a> {
    /// URL of the Redis.
    pub url: &'a str,
    /// UID in the keys of these edges, apart from other edges in the same Redis.
    pub cluster: &'a str,
}

/// Stream that a server writes or reads, with the apps that it serves.
#[derive(Clone, Copy)]
pub struct StreamConnection<'a> {
    /// URL of the Kinesis API.
    pub endpoint: &'a str,
    /// Name of the stream.
    pub stream: &'a str,
    /// Region of the stream.
    pub region: &'a str,
    /// Id and secret of the credential.
    pub credential: &'a str,
    /// UID of the cluster in the records.
    pub cluster: &'a str,
    /// Apps of the registry.
    pub apps: &'a [App],
}

/// The services that an edge is connected to; none by default.
#[derive(Clone, Copy, Default)]
struct Connections<'a> {
    bus: Option<BusConnection<'a>>,
    stream: Option<StreamConnection<'a>>,
}

impl ServerProcess {
    /// Starts a server, and waits until it is ready.
    pub async fn start(kind: ServerKind, peer: Option<&PeerServer>) -> Result<Self, BenchError> {
        Self::launch_and_wait(kind, peer.map(|peer| peer.program.as_path()), Connections::default()).await
    }

    /// Starts an edge or a dispatcher on a stream, and waits until it is ready.
    pub async fn start_on_stream(kind: ServerKind, stream: &StreamConnection<'_>) -> Result<Self, BenchError> {
        Self::launch_and_wait(kind, None, Connections { stream: Some(*stream), bus: None }).await
    }

    /// Starts an edge on a shared bus, and waits until it is ready.
    pub async fn start_on_bus(
        kind: ServerKind,
        program: Option<&Path>,
        bus: BusConnection<'_>,
    ) -> Result<Self, BenchError> {
        Self::launch_and_wait(kind, program, Connections { bus: Some(bus), stream: None }).await
    }

    async fn launch_and_wait(
        kind: ServerKind,
        peer_program: Option<&Path>,
        connections: Connections<'_>,
    ) -> Result<Self, BenchError> {
        let files = tempfile::tempdir().map_err(BenchError::from_io("no temporary directory can be made"))?;
        let [public, second] = [free_port()?, free_port()?];
        let (mut command, readiness) = match kind {
            ServerKind::Edge | ServerKind::Fallbacks => {
                let program = current_program()?;
                (build_edge_command(&program, kind, files.path(), [public, second], connections)?, (second, "/readyz"))
            }
            ServerKind::FormerEdge | ServerKind::FormerFallbacks => {
                let program = require_program(kind, peer_program)?;
                (build_edge_command(program, kind, files.path(), [public, second], connections)?, (second, "/readyz"))
            }
            ServerKind::Dispatcher => {
                let stream = connections.stream.ok_or_else(|| start_error(kind, "no stream was named".to_owned()))?;
                (build_dispatcher_command(files.path(), public, &stream)?, (public, "/readyz"))
            }
            ServerKind::Sockudo => {
                let program = require_program(kind, peer_program)?;
                (build_sockudo_command(program, files.path(), public)?, (public, "/up"))
            }
            ServerKind::Nchan => {
                let program = require_program(kind, peer_program)?;
                (build_nchan_command(program, files.path(), public)?, (public, "/up"))
            }
            ServerKind::Baseline => (build_baseline_command(public, second)?, (public, "/up")),
        };
        let output_path = files.path().join("output");
        let file = std::fs::File::create(&output_path)
            .map_err(BenchError::from_io("a server's output file cannot be created"))?;
        let copy = file.try_clone().map_err(BenchError::from_io("a server's output file cannot be created"))?;
        let process = command.stdin(Stdio::null()).stdout(copy).stderr(file).spawn();
        let process = process.map_err(|error| start_error(kind, error.to_string()))?;
        let target = Target { kind, address: public };
        let mut server = Self { target, echo_address: second, process, _files: files };
        server.wait_until_ready(readiness, &output_path).await?;
        Ok(server)
    }

    async fn wait_until_ready(
        &mut self,
        (address, path): (SocketAddr, &str),
        output_path: &Path,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(mut connection) = HttpConnection::open(address).await
                && let Ok((200, _)) = connection.fetch_response("GET", path, b"").await
            {
                return Ok(());
            }
            let ended = self.process.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                let mut text = String::new();
                let _ = std::fs::File::open(output_path).and_then(|mut file| file.read_to_string(&mut text));
                let tail: String = text.chars().skip(text.chars().count().saturating_sub(OUTPUT_TAIL_LEN)).collect();
                let how = ended.map_or_else(|| format!("no answer in {START_TIMEOUT:?}"), |status| status.to_string());
                return Err(start_error(self.target.kind, format!("{how}; its output ends: {}", tail.trim())));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// CPU time of the server so far, in clock ticks.
    pub fn cpu_ticks(&self) -> Result<u64, BenchError> {
        machine::read_cpu_ticks(self.pid())
    }

    /// Resident memory of the server, in KiB.
    pub fn rss_kib(&self) -> Result<u64, BenchError> {
        machine::read_rss_kib(self.pid())
    }
}

/// Sums the CPU time of several servers, in clock ticks.
pub fn sum_cpu_ticks(servers: &[ServerProcess]) -> Result<u64, BenchError> {
    servers.iter().map(ServerProcess::cpu_ticks).sum()
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_error(kind: ServerKind, detail: String) -> BenchError {
    BenchError::Start { server: kind.name(), detail }
}

/// Finds an address with a port that was free a moment ago.
pub fn free_port() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BenchError::from_io("no free port"))?;
    listener.local_addr().map_err(BenchError::from_io("no free port"))
}

fn require_program(kind: ServerKind, program: Option<&Path>) -> Result<&Path, BenchError> {
    program.ok_or_else(|| start_error(kind, "no program was named".to_owned()))
}

fn current_program() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::from_io("this program cannot be found"))
}

/// Builds the app that every server under test has.
pub fn build_app(kind: ServerKind) -> Result<App, BenchError> {
    serde_json::from_value(serde_json::json!({
        "id": APP_ID,
        "credentials": [{ "key": APP_KEY, "secret": APP_SECRET, "state": "Active" }],
        "enabled": true,
        "clientEvents": true,
        "limits": { "clientEventsPerSecond": 10 },
        "webhooks": [],
    }))
    .map_err(|error| start_error(kind, error.to_string()))
}

/// Writes the files of an app registry.
pub fn write_apps(directory: &Path, apps: &[App]) -> Result<(), BenchError> {
    let registry = AppRegistry::new(apps.iter().cloned()).to_files();
    let failed = |error: String| BenchError::Start { server: "a server with apps", detail: error };
    for (name, text) in registry.map_err(|error| failed(error.to_string()))? {
        std::fs::write(directory.join(name), text)
            .map_err(BenchError::from_io("the app registry cannot be written"))?;
    }
    Ok(())
}

/// Writes an app registry into a new directory beside the other files of a server.
fn create_registry(files: &Path, apps: &[App]) -> Result<PathBuf, BenchError> {
    let directory = files.join("apps");
    std::fs::create_dir(&directory).map_err(BenchError::from_io("the app registry cannot be written"))?;
    write_apps(&directory, apps)?;
    Ok(directory)
}

/// The variables by which a server reaches its stream.
fn stream_variables(stream: &StreamConnection<'_>) -> [(&'static str, String); 7] {
    [
        (name::STREAM_NAME, stream.stream.to_owned()),
        (name::CLUSTER_UID, stream.cluster.to_owned()),
        (name::AWS_IDENTITY, "StaticKeys".to_owned()),
        (name::AWS_REGION, stream.region.to_owned()),
        (name::AWS_ENDPOINT_URL_KINESIS, stream.endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", stream.credential.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", stream.credential.to_owned()),
    ]
}

/// Builds the command of a dispatcher as a pod runs it, with leases in memory and webhooks to this machine.
fn build_dispatcher_command(
    files: &Path,
    admin: SocketAddr,
    stream: &StreamConnection<'_>,
) -> Result<Command, BenchError> {
    let apps = create_registry(files, stream.apps)?;
    let mut variables: BTreeMap<&str, String> = [
        (name::SERVER, "dispatcher".to_owned()),
        (name::ADMIN_ADDRESS, admin.to_string()),
        (name::APPS_PATH, apps.display().to_string()),
        (name::CLUSTER, "bench/dispatcher".to_owned()),
        (name::POD, "bench".to_owned()),
        (name::ADMIN_TOKEN, "bench".to_owned()),
        (name::ADMISSION, "none".to_owned()),
        (name::LEASES, "memory".to_owned()),
        (name::ALLOWED_NETWORKS, "127.0.0.0/8".to_owned()),
        (name::LOG, "warn".to_owned()),
    ]
    .into();
    variables.extend(stream_variables(stream));
    let mut command = Command::new(current_program()?);
    command.arg("dispatcher").env_clear().envs(variables);
    Ok(command)
}

/// Builds the command of an edge as a pod runs it; with the memory bus and no stream where none is given.
fn build_edge_command(
    program: &Path,
    kind: ServerKind,
    files: &Path,
    [public, admin]: [SocketAddr; 2],
    Connections { bus, stream }: Connections<'_>,
) -> Result<Command, BenchError> {
    let apps = match &stream {
        Some(stream) => create_registry(files, stream.apps)?,
        None => create_registry(files, &[build_app(kind)?])?,
    };
    let (server, transports) = match kind {
        ServerKind::Fallbacks | ServerKind::FormerFallbacks => {
            ("sockjs", [Transport::XhrStreaming, Transport::XhrPolling].map(Transport::name).join(","))
        }
        _ => ("websocket", Transport::Websocket.name().to_owned()),
    };
    let mut variables: BTreeMap<&str, String> = [
        (name::SERVER, server.to_owned()),
        (name::TRANSPORTS, transports),
        (name::PUBLIC_ADDRESS, public.to_string()),
        (name::ADMIN_ADDRESS, admin.to_string()),
        (name::APPS_PATH, apps.display().to_string()),
        (name::CLUSTER, "bench/edge".to_owned()),
        (name::CLUSTER_UID, "bench".to_owned()),
        (name::POD, "bench".to_owned()),
        (name::ADMIN_TOKEN, "bench".to_owned()),
        (name::ADMISSION, "none".to_owned()),
        (name::WEBHOOKS, "off".to_owned()),
        (name::BUS, "memory".to_owned()),
        (name::LOG, "warn".to_owned()),
        (name::AWS_IDENTITY, "NodeRole".to_owned()),
        (name::AWS_REGION, "none".to_owned()),
    ]
    .into();
    if let Some(stream) = &stream {
        variables.insert(name::WEBHOOKS, "kinesis".to_owned());
        variables.extend(stream_variables(stream));
    }
    if let Some(bus) = bus {
        variables.extend([
            (name::BUS, "redis".to_owned()),
            (name::REDIS_URL, bus.url.to_owned()),
            (name::CLUSTER_UID, bus.cluster.to_owned()),
        ]);
    }
    let mut command = Command::new(program);
    command.arg("edge").env_clear().envs(variables);
    Ok(command)
}

/// Builds the command of sockudo in one process, without features that the measurement does not need: no rate limits, no
/// metrics, no log.
fn build_sockudo_command(program: &Path, files: &Path, public: SocketAddr) -> Result<Command, BenchError> {
    let path = files.join("sockudo.toml");
    std::fs::write(&path, sockudo_toml(public))
        .map_err(BenchError::from_io("sockudo's configuration cannot be written"))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(path).env_clear().env("RUST_LOG", "error").current_dir(files);
    Ok(command)
}

fn sockudo_toml(public: SocketAddr) -> String {
    let mut text = format!("host = \"{}\"\nport = {}\nmode = \"production\"\n", public.ip(), public.port());
    for (table, lines) in [
        ("adapter", &["driver = \"local\""][..]),
        ("cache", &["driver = \"memory\""]),
        ("queue", &["driver = \"memory\""]),
        ("rate_limiter", &["enabled = false"]),
        ("metrics", &["enabled = false"]),
        ("app_manager", &["driver = \"memory\""]),
    ] {
        let _ = writeln!(text, "\n[{table}]\n{}", lines.join("\n"));
    }
    let _ = write!(
        text,
        "\n[[app_manager.array.apps]]\nid = \"{APP_ID}\"\nkey = \"{APP_KEY}\"\nsecret = \"{APP_SECRET}\"\nenabled = true\n\
         \n[app_manager.array.apps.policy.limits]\nmax_connections = 100000\nmax_client_events_per_second = 10\n\
         max_presence_members_per_channel = 100\n\
         \n[app_manager.array.apps.policy.features]\nenable_client_messages = true\n"
    );
    text
}

/// Builds the command of an nginx with nchan in one process, as it answers fastest: no log, no buffer of messages.
fn build_nchan_command(program: &Path, files: &Path, public: SocketAddr) -> Result<Command, BenchError> {
    // Debian's folders: `sbin/nginx` and `lib/nginx/modules`.
    let module = program.parent().and_then(Path::parent).map(|root| root.join(NCHAN_MODULE));
    let module = module.filter(|module| module.is_file());
    let module = module
        .ok_or_else(|| start_error(ServerKind::Nchan, format!("no {NCHAN_MODULE} beside the program's folder")))?;
    let path = files.join("nginx.conf");
    std::fs::write(&path, nchan_configuration(&module, files, public))
        .map_err(BenchError::from_io("nginx's configuration cannot be written"))?;
    let mut command = Command::new(program);
    command.arg("-p").arg(files).arg("-c").arg(path).arg("-e").arg("stderr").env_clear();
    Ok(command)
}

fn nchan_configuration(module: &Path, files: &Path, public: SocketAddr) -> String {
    let (module, files) = (module.display(), files.display());
    let mut text = format!(
        "load_module {module};\ndaemon off;\nmaster_process off;\nworker_processes 1;\nworker_rlimit_nofile 65536;\n\
         pid {files}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections 32768; }}\nhttp {{\n\
         access_log off;\ntcp_nodelay on;\nkeepalive_timeout 1h;\nkeepalive_requests 100000000;\n"
    );
    for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "{name}_temp_path {files}/{name};");
    }
    let _ = write!(
        text,
        "server {{\nlisten {public} backlog=4096;\nlocation = /up {{ return 200; }}\n\
         location ~ ^/sub/(.+)$ {{ nchan_subscriber websocket; nchan_channel_id $1; nchan_store_messages off; }}\n\
         location ~ ^/pub/(.+)$ {{ nchan_publisher http; nchan_channel_id $1; nchan_store_messages off; }}\n}}\n}}\n"
    );
    text
}

/// Builds the command of the baseline: a hidden subcommand of this program.
fn build_baseline_command(public: SocketAddr, echo: SocketAddr) -> Result<Command, BenchError> {
    let mut command = Command::new(current_program()?);
    command.args(["bench", "bare", &public.to_string(), &echo.to_string()]).env_clear();
    Ok(command)
}
