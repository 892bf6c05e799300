//! The pods of a rehearsal: each runs as tasks, and restarts with another configuration while a fault asks for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::{RehearsalError, StartRefusal};
use super::faults::{Fault, FaultSwitches, Switch};
use super::kinesis_double;
use super::kubelet_double::{self, RenderedPod};
use crate::bus::{Bus, MemoryBus, RedisBus};
use crate::config::{ServerConfig, ServerKind, name};
use crate::desired::{self, ValidCluster};
use crate::dispatcher::{self, DispatcherDependencies, EgressOverrides, MemoryLeases};
use crate::edge::{self, EdgeDependencies};
use crate::kinesis::{KinesisClient, StreamSettings};
use crate::prober::{DispatcherPod, EdgePod};
use crate::protocol::registry::AppRegistry;
use crate::protocol::signature;

/// An address where no server listens: the discard port of this machine.
pub(super) const UNREACHABLE_ADDRESS: &str = "127.0.0.1:9";

/// Longest wait for the end of a pod that restarts; its clients are drained meanwhile.
const POD_STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Addresses of the first edges; `None` for a transport that the cluster has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeAddresses {
    /// An edge that serves WebSocket.
    pub websocket: Option<SocketAddr>,
    /// An edge that serves the HTTP fallbacks.
    pub sockjs: Option<SocketAddr>,
}

impl EdgeAddresses {
    /// Finds the first edge for WebSocket and the first for the HTTP fallbacks.
    pub(super) fn of_edges(edges: &[EdgePod]) -> Self {
        let first = |server: ServerKind| {
            let carries = |pod: &&EdgePod| pod.transports.iter().any(|transport| transport.server_kind() == server);
            edges.iter().find(carries).map(|pod| pod.public)
        };
        Self { websocket: first(ServerKind::Websocket), sockjs: first(ServerKind::Sockjs) }
    }
}

/// The network of a dispatcher, by its number.
pub(super) type DispatcherEgress = Box<dyn Fn(usize) -> EgressOverrides + Send + Sync>;

/// The surroundings of all pods.
pub(super) struct PodEnvironment {
    pub cluster: ValidCluster,
    /// The root of the pods' files.
    pub files: PathBuf,
    pub cloud: SocketAddr,
    /// Doubles between a server and the cloud.
    pub doubles: BTreeMap<ServerKind, SocketAddr>,
    pub egress: DispatcherEgress,
    pub faults: FaultSwitches,
    pub bus: MemoryBus,
    /// The bus of another cluster.
    pub foreign_bus: MemoryBus,
    pub leases: MemoryLeases,
    pub shutdown: CancellationToken,
}

/// A pod, whether or not its process runs.
struct Pod {
    server: ServerKind,
    /// Number of the pod among those of its server.
    number: usize,
    rendered: RenderedPod,
    /// The variables as rendered without edits, secrets as salted digests.
    wanted: BTreeMap<String, String>,
    stop: CancellationToken,
    process: PodProcess,
    /// The address of its clients' listener, kept over restarts.
    public: Option<SocketAddr>,
}

/// The process of a pod.
enum PodProcess {
    None,
    Edge { running: edge::RunningEdge, plan: EdgePod },
    Dispatcher { running: dispatcher::RunningDispatcher, plan: DispatcherPod },
}

/// All pods of a rehearsal.
pub(super) struct PodSet {
    environment: PodEnvironment,
    pods: Vec<Pod>,
    /// The port on which edges listen for each other, once the first has one.
    peer_port: u16,
}

impl PodSet {
    /// Creates a set without pods in these surroundings.
    pub fn new(environment: PodEnvironment) -> Self {
        Self { environment, pods: vec![], peer_port: 0 }
    }

    pub fn environment(&self) -> &PodEnvironment {
        &self.environment
    }

    /// Writes the mounted registry of a server.
    pub fn mount_registry(&self, server: ServerKind, registry: &AppRegistry) -> std::io::Result<()> {
        let root = self.environment.files.join(server.name());
        let endpoint = &self.environment.cluster.receiver;
        kubelet_double::mount_registry(&root, desired::render::APPS_PATH, registry, endpoint)
    }

    /// Starts a pod; the inner error is a server that refuses to start.
    pub async fn add_pod(
        &mut self,
        server: ServerKind,
        rendered: RenderedPod,
        wanted: &RenderedPod,
    ) -> Result<Result<(), StartRefusal>, RehearsalError> {
        let token = self.environment.cluster.admin_token.expose();
        let digest = |secret: &str| signature::salted_digest(token, secret);
        // The rendered configuration is one that starts: the contract's own test holds that.
        let mut variables = wanted.environment.clone();
        self.inject_identity(server, &mut variables);
        let wanted = ServerConfig::parse(variables).map(|values| values.redacted_variables(digest));
        let (wanted, error) = wanted.map_or_else(|error| (BTreeMap::new(), Some(error)), |wanted| (wanted, None));
        let stop = self.environment.shutdown.child_token();
        let number = self.pods.iter().filter(|pod| pod.server == server).count();
        let mut pod = Pod { server, number, rendered, wanted, stop, process: PodProcess::None, public: None };
        let started = match error {
            Some(error) => Err(error.to_string()),
            None => self.run(&mut pod).await?,
        };
        let refusal = started.map_err(|line| StartRefusal { server, pod: pod.rendered.name.clone(), line });
        self.pods.push(pod);
        Ok(refusal)
    }

    /// Replaces the rendered variables of a server's pods, for their next start.
    pub fn replace_rendered(&mut self, server: ServerKind, rendered: Vec<RenderedPod>) {
        let pods = self.pods.iter_mut().filter(|pod| pod.server == server);
        pods.zip(rendered).for_each(|(pod, rendered)| pod.rendered = rendered);
    }

    /// Restarts the pods that do the work of a server, one after the other, with the faults that are on. Without such a
    /// server, the pods of the other edge restart.
    pub async fn restart(&mut self, server: ServerKind) -> Result<Result<(), StartRefusal>, RehearsalError> {
        let target = self.server_for(server);
        for index in 0..self.pods.len() {
            if self.pods[index].server != target {
                continue;
            }
            let mut pod = self.pods.remove(index);
            pod.end_process().await;
            pod.stop = self.environment.shutdown.child_token();
            let started = self.run(&mut pod).await;
            let (server, name) = (pod.server, pod.rendered.name.clone());
            self.pods.insert(index, pod);
            if let Err(line) = started? {
                return Ok(Err(StartRefusal { server, pod: name, line }));
            }
        }
        Ok(Ok(()))
    }

    /// The server whose pods a fault of `server` concerns; the other edge when the cluster has no such server.
    fn server_for(&self, server: ServerKind) -> ServerKind {
        let mut kinds = self.environment.cluster.servers.iter().map(|found| found.kind);
        let edge = |found: &ServerKind| server != ServerKind::Dispatcher && *found != ServerKind::Dispatcher;
        kinds.clone().find(|found| found.serves_as(server)).or_else(|| kinds.find(edge)).unwrap_or(server)
    }

    /// The edges that run, as the journeys' plan has them.
    pub fn edges(&self) -> Vec<EdgePod> {
        let plans = self.pods.iter().filter_map(|pod| match &pod.process {
            PodProcess::Edge { plan, .. } => Some(plan.clone()),
            _ => None,
        });
        plans.collect()
    }

    /// The dispatchers that run, as the journeys' plan has them.
    pub fn dispatchers(&self) -> Vec<DispatcherPod> {
        let plans = self.pods.iter().filter_map(|pod| match &pod.process {
            PodProcess::Dispatcher { plan, .. } => Some(plan.clone()),
            _ => None,
        });
        plans.collect()
    }

    /// Waits until every pod has ended, edges first: dispatchers send what the edges flushed.
    pub async fn wait_stopped(self) {
        self.environment.shutdown.cancel();
        let (dispatchers, edges): (Vec<Pod>, Vec<Pod>) =
            self.pods.into_iter().partition(|pod| pod.server == ServerKind::Dispatcher);
        for pods in [edges, dispatchers] {
            futures::future::join_all(pods.into_iter().map(|pod| pod.process.wait_stopped())).await;
        }
    }

    /// Runs the process of a pod. The inner error is the line by which the server refuses to start.
    async fn run(&mut self, pod: &mut Pod) -> Result<Result<(), String>, RehearsalError> {
        let mut variables = pod.rendered.environment.clone();
        let active = self.environment.faults.active();
        let faults = active.iter().filter_map(|switch| match switch {
            Switch::Fault(fault) => Some(*fault),
            Switch::Edit(_) => None,
        });
        let concerns = |fault: &Fault| fault.restarts().is_some_and(|server| self.server_for(server) == pod.server);
        for (name, value) in faults.filter(concerns).filter_map(Fault::variable) {
            variables.insert(name.to_owned(), value.to_owned());
        }
        self.inject_identity(pod.server, &mut variables);
        match ServerConfig::parse(variables) {
            Ok(values) if pod.server == ServerKind::Dispatcher => self.run_dispatcher(pod, values).await,
            Ok(values) => self.run_edge(pod, values).await,
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Does the part of EKS, which leaves variables alone that the pod has.
    fn inject_identity(&self, server: ServerKind, variables: &mut BTreeMap<String, String>) {
        for (name, value) in desired::list_injected_variables(&self.environment.cluster.stream.identity, server) {
            variables.entry(name).or_insert(value);
        }
    }

    async fn run_dispatcher(
        &mut self,
        pod: &mut Pod,
        values: ServerConfig,
    ) -> Result<Result<(), String>, RehearsalError> {
        // Dispatchers are distinguished by the address that posts a webhook.
        let own = TcpListener::bind((pod.rendered.address, 0)).await.ok();
        let source = own.as_ref().map(|_| pod.rendered.address);
        let admin = match own {
            Some(listener) => listener,
            None => bind_loopback().await?,
        };
        let environment = &self.environment;
        let dependencies = DispatcherDependencies {
            admin,
            apps_dir: environment.apps_directory(pod.server, &values),
            kinesis: KinesisClient::connect(&environment.kinesis_settings(pod, &values)).await,
            leases: Arc::new(environment.leases.clone()),
            egress: EgressOverrides { source, ..(environment.egress)(pod.number) },
            shutdown: pod.stop.clone(),
        };
        Ok(match dispatcher::start(values, dependencies).await {
            Ok(running) => {
                let plan = DispatcherPod {
                    pod: pod.rendered.name.clone(),
                    admin: running.admin,
                    wanted: pod.wanted.clone(),
                    admitted: true,
                    leaving: false,
                };
                pod.process = PodProcess::Dispatcher { running, plan };
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        })
    }

    async fn run_edge(&mut self, pod: &mut Pod, values: ServerConfig) -> Result<Result<(), String>, RehearsalError> {
        let transports = values.list_items(name::TRANSPORTS).filter_map(|transport| transport.parse().ok()).collect();
        let peer = self.peer_listener(pod.server, pod.rendered.address).await;
        let environment = &self.environment;
        let concerned = self.server_for(ServerKind::Sockjs) == pod.server;
        let bus = match environment.connect_bus(concerned, pod.stop.clone()).await {
            Ok(bus) => bus,
            Err(line) => return Ok(Err(line)),
        };
        let kinesis = match values.text(name::WEBHOOKS) {
            "kinesis" => Some(KinesisClient::connect(&environment.kinesis_settings(pod, &values)).await),
            _ => None,
        };
        let dependencies = EdgeDependencies {
            public: bind_again(pod.public).await?,
            admin: bind_loopback().await?,
            peer,
            apps_dir: environment.apps_directory(pod.server, &values),
            kinesis,
            bus,
            shutdown: pod.stop.clone(),
        };
        Ok(match edge::start(values, dependencies).await {
            Ok(running) => {
                pod.public = Some(running.public);
                let plan = EdgePod {
                    pod: pod.rendered.name.clone(),
                    public: running.public,
                    admin: running.admin,
                    transports,
                    wanted: pod.wanted.clone(),
                    admitted: true,
                };
                pod.process = PodProcess::Edge { running, plan };
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        })
    }

    /// Binds the relay listener of an edge: one port, a loopback address per edge. `None` without such addresses.
    async fn peer_listener(&mut self, server: ServerKind, address: IpAddr) -> Option<TcpListener> {
        if !server.serves_as(ServerKind::Sockjs) {
            return None;
        }
        let bound = TcpListener::bind((address, self.peer_port)).await;
        let listener = bound.inspect_err(|error| tracing::warn!(%address, %error, "relay listener not bound")).ok()?;
        self.peer_port = listener.local_addr().ok()?.port();
        Some(listener)
    }
}

impl PodEnvironment {
    fn apps_directory(&self, server: ServerKind, values: &ServerConfig) -> PathBuf {
        kubelet_double::map_container_path(&self.files.join(server.name()), values.text(name::APPS_PATH))
    }

    /// Connects an edge to its bus; `concerned` edges to the one that a fault gives them. The error is the line of a
    /// server that refuses to start.
    async fn connect_bus(&self, concerned: bool, stop: CancellationToken) -> Result<Arc<dyn Bus>, String> {
        if concerned && self.faults.is_on(Fault::BusUnreachable) {
            let (url, process) = (format!("redis://{UNREACHABLE_ADDRESS}"), ulid::Ulid::new().to_string());
            let bus = RedisBus::connect(&url, self.cluster.uid.as_str(), &process, stop).await;
            return bus.map(|bus| Arc::new(bus) as Arc<dyn Bus>).map_err(|error| error.to_string());
        }
        let foreign = concerned && self.faults.is_on(Fault::ForeignBus);
        let bus = if foreign { &self.foreign_bus } else { &self.bus };
        Ok(Arc::new(bus.for_another_process()))
    }

    /// Builds a server's Kinesis settings from its variables, against the in-process stream.
    fn kinesis_settings(&self, pod: &Pod, values: &ServerConfig) -> StreamSettings {
        let address = self.doubles.get(&pod.server).copied().unwrap_or(self.cloud);
        let (region, stream) = (values.text(name::AWS_REGION), values.text(name::STREAM_NAME).into());
        let mut settings = kinesis_double::client_settings(
            address,
            &kinesis_double::pod_identity(pod.server, pod.number),
            region,
            &stream,
        );
        let endpoint = values.get(name::AWS_ENDPOINT_URL_KINESIS);
        if endpoint.is_some() && endpoint != self.cluster.stream.endpoint_url.as_deref() {
            // A wrong address leads nowhere.
            settings.endpoint = Some(format!("http://{UNREACHABLE_ADDRESS}"));
        }
        settings
    }
}

impl Pod {
    /// Ends the process, and waits for its end.
    async fn end_process(&mut self) {
        self.stop.cancel();
        let process = std::mem::replace(&mut self.process, PodProcess::None);
        if tokio::time::timeout(POD_STOP_TIMEOUT, process.wait_stopped()).await.is_err() {
            tracing::warn!(pod = self.rendered.name, timeout = ?POD_STOP_TIMEOUT, "pod stop timed out");
        }
    }
}

impl PodProcess {
    async fn wait_stopped(self) {
        match self {
            Self::None => {}
            Self::Edge { running, .. } => {
                if let Err(error) = running.wait_stopped().await {
                    tracing::warn!(%error, "edge had failed");
                }
            }
            Self::Dispatcher { running, .. } => running.wait_until_stopped().await,
        }
    }
}

/// Binds a free port of this machine.
pub(super) async fn bind_loopback() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

/// Binds the former address of a pod, so that its clients find it again; a free port when it is taken.
async fn bind_again(former: Option<SocketAddr>) -> std::io::Result<TcpListener> {
    if let Some(address) = former
        && let Ok(listener) = TcpListener::bind(address).await
    {
        return Ok(listener);
    }
    bind_loopback().await
}
