//! Starts a whole cluster as tasks, and ends it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::error::RehearsalError;
use super::kubelet_double::{self, RenderedPod};
use super::overrides::{ManifestOverride, overridden_registry, override_variables};
use super::webhook_receiver::{self, DeliveredWebhook};
use super::{kinesis_double, page};
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::bus::{Bus, MemoryBus};
use crate::config::{ServerConfig, ServerKind, name};
use crate::desired::{self, ClusterInputs, ManifestProblem, SecretTexts, ServerRole, ValidCluster, ValidStream};
use crate::dispatcher::{self, EgressOverrides, MemoryLeases};
use crate::edge;
use crate::kinesis::{KinesisClient, StreamSettings};
use crate::prober::{self, DispatcherPod, EdgePod, ProbePlan, Prober, ProberReports, WebhookReceiver};
use crate::process::heartbeat::Heartbeats;
use crate::protocol::registry::AppRegistry;
use crate::protocol::{AppId, Transport, signature};

/// Host of the operator's receiver in a rendered cluster; nothing resolves it here.
const RECEIVER_HOST: &str = "realtime-operator-receiver.realtime-system.svc:8090";

/// Timeout for all parts of a rehearsal to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// The input of a rehearsal.
pub struct RehearsalOptions {
    /// The cluster to rehearse.
    pub cluster: RealtimeCluster,
    /// The apps of the cluster.
    pub apps: Vec<RealtimeApp>,
    /// The texts of the Secrets of its namespace that the files hold.
    pub secrets: SecretTexts,
    /// Manual changes to apply on top of the rendered objects.
    pub edits: Vec<ManifestOverride>,
    /// The port of the page; `None` for no page, 0 for a free one.
    pub page_port: Option<u16>,
    /// Doubles between one server and Kinesis, for tests of what no real part does on request.
    pub interposers: BTreeMap<ServerKind, KinesisInterposer>,
}

/// Starts a double in front of Kinesis, whose address it is given, and answers with its own.
pub type KinesisInterposer = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<SocketAddr>> + Send + Sync>;

/// A server that did not start, as its container's last line would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRefusal {
    /// The server that did not start.
    pub server: ServerKind,
    /// The pod of the server.
    pub pod: String,
    /// The last line of its output.
    pub line: String,
}

/// An address to try the cluster at, with an app's credentials.
#[derive(Clone, Debug)]
pub struct ServingAddresses {
    /// The address of the demo page.
    pub page: Option<SocketAddr>,
    /// The first websocket pod.
    pub websocket: Option<SocketAddr>,
    /// The first sockjs pod.
    pub sockjs: Option<SocketAddr>,
    /// Every app but the journeys': id, key, secret.
    pub apps: Vec<(AppId, String, String)>,
}

/// A rehearsal whose parts run as tasks.
pub struct RunningRehearsal {
    /// The address to try the cluster at.
    pub serving: ServingAddresses,
    /// Servers that did not start.
    pub refusals: Vec<StartRefusal>,
    /// Generated values for Secrets that the files do not contain.
    pub stand_ins: Vec<String>,
    /// The transports that the manifest asks for.
    pub transports: Vec<Transport>,
    /// The journeys; `None` when a server refused to start.
    pub prober: Option<Prober>,
    /// Webhooks to endpoints outside, as they arrive.
    pub delivered: broadcast::Sender<DeliveredWebhook>,
    /// Shows a verdict on the page.
    pub shown: watch::Sender<Option<serde_json::Value>>,
    tasks: BackgroundTasks,
}

struct BackgroundTasks {
    prober_shutdown: CancellationToken,
    serving: CancellationToken,
    cloud: CancellationToken,
    edges: Vec<edge::RunningEdge>,
    dispatchers: Vec<dispatcher::RunningDispatcher>,
    outside: Vec<tokio::task::JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl RunningRehearsal {
    /// Starts everything. The verdict comes later, through [`Rehearsal::prober`].
    ///
    /// # Errors
    /// The manifests, an edit or this machine do not allow it; a server that refuses to start is no error but a
    /// refusal, because that is what the cluster would show.
    pub async fn start(options: RehearsalOptions) -> Result<Self, RehearsalError> {
        // On the heap, because a whole cluster is large.
        Box::pin(Self::start_parts(options)).await
    }

    async fn start_parts(options: RehearsalOptions) -> Result<Self, RehearsalError> {
        crate::process::install_tls();
        let page_listener = bind_page(options.page_port).await?;
        let (secrets, stand_ins) = stand_in_secrets(&options);
        let cluster = validate(&options, &secrets)?;
        let mut desired = desired::render_objects(&cluster)?;
        let rendered = desired.clone();
        override_variables(&mut desired, &options.edits)?;
        let secrets = kubelet_double::collect_secret_texts(&desired, &secrets);

        let [probing, serving, end_cloud] = std::array::from_fn(|_| CancellationToken::new());
        let files = tempfile::tempdir()?;
        let cloud_listener = bind_loopback().await?;
        let cloud_address = cloud_listener.local_addr()?;
        let mut outside = vec![kinesis_double::serve(cloud_listener, end_cloud.clone())];
        let stream = create_stream(&cluster.stream, cloud_address).await?;
        let doubles = start_interposers(&options.interposers, cloud_address).await?;
        let heartbeats = Heartbeats::default();
        let receiving = heartbeats.register("webhook receiver", None, &end_cloud);
        let receiver = WebhookReceiver::start(bind_loopback().await?, receiving, end_cloud.clone())?;
        let outside_listener = bind_loopback().await?;
        let outside_address = outside_listener.local_addr()?;
        let (delivered, task) = webhook_receiver::serve(outside_listener, cluster.registry.clone(), end_cloud.clone());
        outside.push(task);

        let mut surroundings = PodLauncher {
            cluster: &cluster,
            options: &options,
            files: files.path(),
            cloud: cloud_address,
            doubles,
            egress: egress_overrides(receiver.address(), outside_address),
            bus: MemoryBus::new(),
            leases: MemoryLeases::default(),
            shutdown: serving.clone(),
            peer_port: 0,
            edges: vec![],
            dispatchers: vec![],
            edge_pods: vec![],
            dispatcher_pods: vec![],
            refusals: vec![],
        };
        for ((server, deployment), (_, template)) in desired.deployments.iter().zip(&rendered.deployments) {
            surroundings.write_mounts(*server)?;
            let wanted = kubelet_double::rendered_pods(template, &secrets)?;
            for (pod, wanted) in kubelet_double::rendered_pods(deployment, &secrets)?.into_iter().zip(wanted) {
                surroundings.start(*server, pod, &wanted).await?;
            }
        }
        let PodLauncher { edges, dispatchers, edge_pods, dispatcher_pods, refusals, .. } = surroundings;

        let addresses = first_edges(&edge_pods);
        let (shown, verdict) = watch::channel(None);
        let apps = customer_credentials(&cluster);
        let page_address = match page_listener {
            Some(listener) => {
                let address = listener.local_addr()?;
                let demo = page::DemoSettings::of_cluster(&cluster, addresses);
                outside.push(page::serve(listener, demo, verdict, delivered.clone(), end_cloud.clone()));
                Some(address)
            }
            None => None,
        };
        let transports = served_transports(&cluster);
        let prober = refusals.is_empty().then(|| {
            let plan = ProbePlan {
                edges: edge_pods,
                dispatchers: dispatcher_pods,
                stream: Some(stream),
                ..ProbePlan::of_cluster(&cluster)
            };
            let reports =
                ProberReports { heartbeat: heartbeats.register("prober", None, &probing), metrics: Arc::default() };
            prober::start(plan, receiver, reports, probing.clone())
        });
        let prober = prober.transpose().map_err(|error| RehearsalError::Http(error.to_string()))?;
        Ok(Self {
            serving: ServingAddresses {
                page: page_address,
                websocket: addresses.websocket,
                sockjs: addresses.sockjs,
                apps,
            },
            refusals,
            stand_ins,
            transports,
            prober,
            delivered,
            shown,
            tasks: BackgroundTasks {
                prober_shutdown: probing,
                serving,
                cloud: end_cloud,
                edges,
                dispatchers,
                outside,
                _files: files,
            },
        })
    }

    /// Ends everything in order: the journeys, the edges, the dispatchers once they have sent what the edges flushed,
    /// the stream.
    pub async fn stop(self) {
        let BackgroundTasks { prober_shutdown: probing, serving, cloud, edges, dispatchers, outside, _files: files } =
            self.tasks;
        let orderly = async {
            probing.cancel();
            if let Some(prober) = self.prober {
                prober.wait_until_stopped().await;
            }
            serving.cancel();
            futures::future::join_all(edges.into_iter().map(edge::RunningEdge::wait_stopped)).await;
            futures::future::join_all(dispatchers.into_iter().map(dispatcher::RunningDispatcher::wait_until_stopped))
                .await;
            cloud.cancel();
            futures::future::join_all(outside).await;
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, orderly).await.is_err() {
            tracing::warn!(timeout = ?SHUTDOWN_TIMEOUT, "shutdown timed out");
        }
        drop(files);
    }
}

/// The environment of the pods, and the pods that run so far.
struct PodLauncher<'a> {
    cluster: &'a ValidCluster,
    options: &'a RehearsalOptions,
    files: &'a Path,
    cloud: SocketAddr,
    doubles: BTreeMap<ServerKind, SocketAddr>,
    egress: EgressOverrides,
    bus: MemoryBus,
    leases: MemoryLeases,
    shutdown: CancellationToken,
    /// The port on which edges listen for each other, once the first has one.
    peer_port: u16,
    edges: Vec<edge::RunningEdge>,
    dispatchers: Vec<dispatcher::RunningDispatcher>,
    edge_pods: Vec<EdgePod>,
    dispatcher_pods: Vec<DispatcherPod>,
    refusals: Vec<StartRefusal>,
}

impl PodLauncher<'_> {
    fn write_mounts(&self, server: ServerKind) -> Result<(), RehearsalError> {
        let registry: AppRegistry = overridden_registry(self.cluster, server, &self.options.edits)?;
        let root = self.files.join(server.name());
        let path = desired::render::APPS_PATH;
        Ok(kubelet_double::mount_registry(&root, path, &registry, &self.cluster.receiver)?)
    }

    async fn start(
        &mut self,
        server: ServerKind,
        pod: RenderedPod,
        rendered: &RenderedPod,
    ) -> Result<(), RehearsalError> {
        let token = self.cluster.admin_token.expose();
        let digest = |secret: &str| signature::salted_digest(token, secret);
        // What was rendered is a configuration that starts: the contract's own test holds that.
        let wanted = ServerConfig::parse(rendered.environment.clone()).map(|values| values.redacted_variables(digest));
        let started = match (ServerConfig::parse(pod.environment.clone()), wanted) {
            (Ok(values), Ok(wanted)) => self.run(server, &pod, values, wanted).await?,
            (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        };
        if let Err(line) = started {
            self.refusals.push(StartRefusal { server, pod: pod.name, line });
        }
        Ok(())
    }

    /// Runs one pod. The inner error is the line by which the server refuses to start.
    async fn run(
        &mut self,
        server: ServerKind,
        pod: &RenderedPod,
        values: ServerConfig,
        wanted: BTreeMap<String, String>,
    ) -> Result<Result<(), String>, RehearsalError> {
        let apps_dir =
            kubelet_double::map_container_path(&self.files.join(server.name()), values.text(name::APPS_PATH));
        let kinesis = KinesisClient::connect(&self.kinesis_client(server, &values)).await;
        let admin = bind_loopback().await?;
        if server == ServerKind::Dispatcher {
            let dependencies = dispatcher::DispatcherDependencies {
                admin,
                apps_dir,
                kinesis,
                leases: Arc::new(self.leases.clone()),
                egress: self.egress.clone(),
                shutdown: self.shutdown.clone(),
            };
            return Ok(match dispatcher::start(values, dependencies).await {
                Ok(running) => {
                    let admin = running.admin;
                    self.dispatcher_pods.push(DispatcherPod {
                        pod: pod.name.clone(),
                        admin,
                        wanted,
                        admitted: true,
                        leaving: false,
                    });
                    self.dispatchers.push(running);
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            });
        }
        let transports = values.list_items(name::TRANSPORTS).filter_map(|transport| transport.parse().ok()).collect();
        let bus: Arc<dyn Bus> = Arc::new(self.bus.for_another_process());
        let kinesis = (values.text(name::WEBHOOKS) == "kinesis").then_some(kinesis);
        let dependencies = edge::EdgeDependencies {
            public: bind_loopback().await?,
            admin,
            peer: self.peer_listener(server, pod.address).await,
            apps_dir,
            kinesis,
            bus,
            shutdown: self.shutdown.clone(),
        };
        Ok(match edge::start(values, dependencies).await {
            Ok(running) => {
                let (public, admin) = (running.public, running.admin);
                self.edge_pods.push(EdgePod {
                    pod: pod.name.clone(),
                    public,
                    admin,
                    transports,
                    wanted,
                    admitted: true,
                });
                self.edges.push(running);
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

    /// Builds a server's Kinesis client from its variables, against the in-process stream.
    fn kinesis_client(&self, server: ServerKind, values: &ServerConfig) -> StreamSettings {
        let address = self.doubles.get(&server).copied().unwrap_or(self.cloud);
        let mut settings = kinesis_double::client_settings(
            address,
            values.text(name::AWS_REGION),
            &values.text(name::STREAM_NAME).into(),
        );
        let endpoint = values.get(name::AWS_ENDPOINT_URL_KINESIS);
        if endpoint.is_some() && endpoint != self.cluster.stream.endpoint_url.as_deref() {
            // A wrong address leads nowhere: the discard port of this machine, where nobody listens.
            settings.endpoint = Some("http://127.0.0.1:9".to_owned());
        }
        settings
    }
}

/// Creates the cluster's stream in the double of Kinesis.
async fn create_stream(stream: &ValidStream, cloud: SocketAddr) -> Result<KinesisClient, RehearsalError> {
    let settings = kinesis_double::client_settings(cloud, &stream.region, &stream.name);
    let client = KinesisClient::connect(&settings).await;
    kinesis_double::create_stream(&client, stream.capacity.initial_shards()).await?;
    Ok(client)
}

/// Starts the doubles in front of Kinesis, and returns their addresses.
async fn start_interposers(
    interposers: &BTreeMap<ServerKind, KinesisInterposer>,
    cloud: SocketAddr,
) -> std::io::Result<BTreeMap<ServerKind, SocketAddr>> {
    let mut doubles = BTreeMap::new();
    for (server, between) in interposers {
        doubles.insert(*server, between(cloud).await?);
    }
    Ok(doubles)
}

/// Finds the first edge for WebSocket and the first for the HTTP fallbacks.
fn first_edges(edges: &[EdgePod]) -> page::EdgeAddresses {
    let first = |server: ServerKind| {
        let carries = |pod: &&EdgePod| pod.transports.iter().any(|transport| transport.server_kind() == server);
        edges.iter().find(carries).map(|pod| pod.public)
    };
    page::EdgeAddresses { websocket: first(ServerKind::Websocket), sockjs: first(ServerKind::Sockjs) }
}

/// Returns the transports that the manifest asks for.
fn served_transports(cluster: &ValidCluster) -> Vec<Transport> {
    Transport::ALL.into_iter().filter(|transport| cluster.serves_transport(*transport)).collect()
}

/// Binds the page's port; `None` without a page.
async fn bind_page(port: Option<u16>) -> Result<Option<TcpListener>, RehearsalError> {
    let Some(port) = port else { return Ok(None) };
    let bound = TcpListener::bind(("127.0.0.1", port)).await;
    bound.map(Some).map_err(|error| RehearsalError::Port { port, error })
}

async fn bind_loopback() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

fn egress_overrides(receiver: SocketAddr, outside: SocketAddr) -> EgressOverrides {
    let receiver = webhook_receiver::ReceiverRoute { host: RECEIVER_HOST, address: receiver };
    EgressOverrides { reroute: Some(Arc::new(move |url| webhook_receiver::route_url(url, receiver, outside))) }
}

/// The Secrets of the files, and a stand-in for each that a manifest names and no file holds.
fn stand_in_secrets(options: &RehearsalOptions) -> (SecretTexts, Vec<String>) {
    let mut secrets = options.secrets.clone();
    let mut told = Vec::new();
    for reference in desired::collect_secret_references(&options.cluster, &options.apps) {
        let texts = secrets.entry(reference.name.clone()).or_default();
        let line = format!("Secret {}, key {} ({})", reference.name, reference.key, reference.purpose);
        texts.entry(reference.key).or_insert_with(|| {
            told.push(line);
            random_secret(20)
        });
    }
    (secrets, told)
}

fn validate(options: &RehearsalOptions, secrets: &SecretTexts) -> Result<ValidCluster, RehearsalError> {
    let (cluster, apps) = (&options.cluster, &options.apps);
    let credentials = desired::generate_credentials(cluster, apps, &BTreeMap::new(), |_| random_secret(20));
    let inputs = ClusterInputs {
        cluster,
        apps,
        secrets,
        credentials: &credentials,
        receiver: RECEIVER_HOST,
        version: env!("CARGO_PKG_VERSION"),
        stream: None,
    };
    let mut cluster = desired::validate(&inputs).map_err(RehearsalError::Invalid)?;
    // There is no load balancer that must learn of an end.
    for server in &mut cluster.servers {
        if let ServerRole::Edge(drain) = &mut server.role {
            drain.hold = Duration::ZERO;
        }
    }
    let refused: Vec<ManifestProblem> = cluster.refused.iter().flat_map(|refused| refused.problems.clone()).collect();
    if refused.is_empty() { Ok(cluster) } else { Err(RehearsalError::Invalid(refused)) }
}

fn random_secret(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length).to_lowercase()
}

fn customer_credentials(cluster: &ValidCluster) -> Vec<(AppId, String, String)> {
    let apps = cluster.registry.apps().filter(|app| app.id != cluster.probe.id);
    apps.filter_map(|app| {
        let credential = app.signing_credential()?;
        Some((app.id.clone(), credential.key.to_string(), credential.secret.expose().to_owned()))
    })
    .collect()
}
