//! Starts a whole cluster as tasks, and ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::customer::{self, Delivered};
use super::edit::{Edit, EditError, edit_variables, edited_registry};
use super::kubelet::{self, Pod, Secrets};
use super::{cloud, page};
use crate::api::cluster::WebhooksMode;
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::bus::{Bus, MemoryBus};
use crate::contract::{Server, Values, name};
use crate::desired::{self, Cluster, Inputs, MissingReference, Problem};
use crate::dispatcher::{self, MemoryLeases, Network};
use crate::edge;
use crate::gate;
use crate::kinesis::{Client, KinesisError, Settings};
use crate::probe::{self, DispatcherPod, EdgePod, Plan, ProbeApp, Prober, Proof, Receiver};
use crate::protocol::registry::Registry;
use crate::protocol::{AppId, Transport, signature};

/// Where the operator's receiver is in a rendered cluster; nothing resolves it here.
const RECEIVER: &str = "realtime-operator-receiver.realtime-system.svc:8090";

/// How long the parts of a rehearsal may take to end.
const END: Duration = Duration::from_secs(15);

/// What to rehearse.
pub struct Options {
    /// The cluster.
    pub cluster: RealtimeCluster,
    /// Its apps.
    pub apps: Vec<RealtimeApp>,
    /// The texts of the Secrets of its namespace that the files hold.
    pub secrets: Secrets,
    /// What a hand changed.
    pub edits: Vec<Edit>,
    /// The port of the page; `None` for no page, 0 for a free one.
    pub page_port: Option<u16>,
    /// Doubles between one server and Kinesis, for tests of what no real part does on request.
    pub between: BTreeMap<Server, Between>,
}

/// Starts a double in front of Kinesis, whose address it is given, and answers with its own.
pub type Between = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<SocketAddr>> + Send + Sync>;

/// Why a rehearsal does not start.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The manifests cannot be built.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// An edit cannot be made.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A pod template names what is not there.
    #[error(transparent)]
    Missing(#[from] MissingReference),
    /// The page's port is taken.
    #[error("port {port} is taken: choose another with --port, or --port 0 for a free one ({error})")]
    Port {
        /// The port.
        port: u16,
        /// What the system says.
        error: std::io::Error,
    },
    /// The stream cannot be created.
    #[error("the in-process stream cannot be created: {0}")]
    Stream(#[from] KinesisError),
    /// Files or sockets of this machine.
    #[error("this machine refuses: {0}")]
    Io(#[from] std::io::Error),
    /// The journeys have no HTTP client.
    #[error("no HTTP client can be made: {0}")]
    Http(String),
    /// The objects cannot be built.
    #[error("the objects cannot be built: {0}")]
    Json(#[from] serde_json::Error),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A server that did not start, as its container's last line would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The server.
    pub server: Server,
    /// The pod.
    pub pod: String,
    /// The line.
    pub line: String,
}

/// Where to try the cluster, and as whom.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The page.
    pub page: Option<SocketAddr>,
    /// The first websocket pod.
    pub websocket: Option<SocketAddr>,
    /// The first sockjs pod.
    pub sockjs: Option<SocketAddr>,
    /// Every app but the journeys': id, key, secret.
    pub apps: Vec<(AppId, String, String)>,
}

/// A running rehearsal.
pub struct Rehearsal {
    /// Where to try it.
    pub serving: Serving,
    /// Servers that did not start.
    pub refusals: Vec<Refusal>,
    /// What stands in for a Secret that the files do not hold.
    pub stand_ins: Vec<String>,
    /// The transports that the manifest asks for.
    pub transports: Vec<Transport>,
    /// The journeys; `None` when a server refused to start.
    pub prober: Option<Prober>,
    /// Webhooks to endpoints outside, as they arrive.
    pub delivered: broadcast::Sender<Delivered>,
    /// Shows a verdict on the page.
    pub shown: watch::Sender<Option<serde_json::Value>>,
    tasks: Tasks,
}

struct Tasks {
    probing: CancellationToken,
    serving: CancellationToken,
    cloud: CancellationToken,
    edges: Vec<edge::Running>,
    dispatchers: Vec<dispatcher::Running>,
    outside: Vec<tokio::task::JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl Rehearsal {
    /// Starts everything. The verdict comes later, through [`Rehearsal::prober`].
    ///
    /// # Errors
    /// The manifests, an edit or this machine do not allow it; a server that refuses to start is no error but a
    /// refusal, because that is what the cluster would show.
    pub async fn start(options: Options) -> Result<Self, RehearsalError> {
        // On the heap, because a whole cluster is large.
        Box::pin(Self::start_parts(options)).await
    }

    async fn start_parts(options: Options) -> Result<Self, RehearsalError> {
        crate::runtime::install_tls();
        let page_listener = match options.page_port {
            Some(port) => {
                let bound = TcpListener::bind(("127.0.0.1", port)).await;
                Some(bound.map_err(|error| RehearsalError::Port { port, error })?)
            }
            None => None,
        };
        let (secrets, stand_ins) = stand_ins(&options);
        let cluster = validate(&options, &secrets)?;
        let mut desired = desired::build(&cluster)?;
        let rendered = desired.clone();
        edit_variables(&mut desired, &options.edits)?;
        let secrets = kubelet::secrets(&desired, &secrets);

        let (probing, serving, end_cloud) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let files = tempfile::tempdir()?;
        let cloud_listener = loopback().await?;
        let cloud_address = cloud_listener.local_addr()?;
        let mut outside = vec![cloud::serve(cloud_listener, end_cloud.clone())];
        let region = cluster.spec.aws.region.clone();
        let stream = Client::connect(&cloud::settings(cloud_address, &region, &cluster.stream)).await;
        cloud::create_stream(&stream, cluster.shards).await?;

        let mut doubles = BTreeMap::new();
        for (server, between) in &options.between {
            doubles.insert(*server, between(cloud_address).await?);
        }
        let receiver = Receiver::start(loopback().await?, end_cloud.clone())?;
        let outside_listener = loopback().await?;
        let outside_address = outside_listener.local_addr()?;
        let (delivered, task) = customer::serve(outside_listener, cluster.registry.clone(), end_cloud.clone());
        outside.push(task);

        let mut surroundings = Surroundings {
            cluster: &cluster,
            options: &options,
            files: files.path(),
            cloud: cloud_address,
            doubles,
            network: network(receiver.address(), outside_address),
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
            surroundings.mount(*server)?;
            let wanted = kubelet::pods(template, &secrets)?;
            for (pod, wanted) in kubelet::pods(deployment, &secrets)?.into_iter().zip(wanted) {
                surroundings.start(*server, pod, &wanted).await?;
            }
        }
        let Surroundings { edges, dispatchers, edge_pods, dispatcher_pods, refusals, .. } = surroundings;

        let first = |server: Server| {
            let carries = |pod: &&EdgePod| pod.transports.iter().any(|transport| transport.server() == server);
            edge_pods.iter().find(carries).map(|pod| pod.public)
        };
        let addresses = (first(Server::Websocket), first(Server::Sockjs));
        let (shown, verdict) = watch::channel(None);
        let apps = customers(&cluster);
        let page_address = match page_listener {
            Some(listener) => {
                let address = listener.local_addr()?;
                let demo = page::Demo::of(&cluster, addresses);
                outside.push(page::serve(listener, demo, verdict, delivered.clone(), end_cloud.clone()));
                Some(address)
            }
            None => None,
        };
        let transports: Vec<Transport> =
            Transport::ALL.into_iter().filter(|transport| cluster.serves(*transport)).collect();
        let prober = refusals.is_empty().then(|| {
            let mut plan = plan(&cluster, dispatcher_pods, stream);
            plan.transports = transports.iter().copied().collect();
            plan.edges = edge_pods;
            probe::start(plan, receiver, probing.clone())
        });
        let prober = prober.transpose().map_err(|error| RehearsalError::Http(error.to_string()))?;
        Ok(Self {
            serving: Serving { page: page_address, websocket: addresses.0, sockjs: addresses.1, apps },
            refusals,
            stand_ins,
            transports,
            prober,
            delivered,
            shown,
            tasks: Tasks { probing, serving, cloud: end_cloud, edges, dispatchers, outside, _files: files },
        })
    }

    /// Ends everything in order: the journeys, the edges, the dispatchers once they have sent what the edges flushed,
    /// the stream.
    pub async fn stop(self) {
        let Tasks { probing, serving, cloud, edges, dispatchers, outside, _files: files } = self.tasks;
        let orderly = async {
            probing.cancel();
            if let Some(prober) = self.prober {
                prober.stopped().await;
            }
            serving.cancel();
            futures::future::join_all(edges.into_iter().map(edge::Running::stopped)).await;
            futures::future::join_all(dispatchers.into_iter().map(dispatcher::Running::stopped)).await;
            cloud.cancel();
            futures::future::join_all(outside).await;
        };
        if tokio::time::timeout(END, orderly).await.is_err() {
            tracing::warn!("not everything ended within {} s", END.as_secs());
        }
        drop(files);
    }
}

/// What surrounds the pods, and the pods that run so far.
struct Surroundings<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    files: &'a Path,
    cloud: SocketAddr,
    doubles: BTreeMap<Server, SocketAddr>,
    network: Network,
    bus: MemoryBus,
    leases: MemoryLeases,
    shutdown: CancellationToken,
    /// The port on which edges listen for each other, once the first has one.
    peer_port: u16,
    edges: Vec<edge::Running>,
    dispatchers: Vec<dispatcher::Running>,
    edge_pods: Vec<EdgePod>,
    dispatcher_pods: Vec<DispatcherPod>,
    refusals: Vec<Refusal>,
}

impl Surroundings<'_> {
    fn mount(&self, server: Server) -> Result<(), RehearsalError> {
        let registry: Registry = edited_registry(self.cluster, server, &self.options.edits)?;
        Ok(kubelet::mount_registry(&self.files.join(server.name()), desired::build::APPS_PATH, &registry)?)
    }

    async fn start(&mut self, server: Server, pod: Pod, rendered: &Pod) -> Result<(), RehearsalError> {
        let token = self.cluster.admin_token.expose();
        let digest = |secret: &str| signature::salted_digest(token, secret);
        // What was rendered is a configuration that starts: the contract's own test holds that.
        let wanted = Values::parse(rendered.environment.clone()).map(|values| values.effective(digest));
        let started = match (Values::parse(pod.environment), wanted) {
            (Ok(values), Ok(wanted)) => self.run(server, (&pod.name, pod.address), values, wanted).await?,
            (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        };
        if let Err(line) = started {
            self.refusals.push(Refusal { server, pod: pod.name, line });
        }
        Ok(())
    }

    /// Runs one pod. The inner error is the line by which the server refuses to start.
    async fn run(
        &mut self,
        server: Server,
        (pod, address): (&str, IpAddr),
        values: Values,
        wanted: BTreeMap<String, String>,
    ) -> Result<Result<(), String>, RehearsalError> {
        let apps_dir = kubelet::inside(&self.files.join(server.name()), values.text(name::APPS_PATH));
        let kinesis = Client::connect(&self.kinesis(server, &values)).await;
        let admin = loopback().await?;
        if server == Server::Dispatcher {
            let dependencies = dispatcher::Dependencies {
                admin,
                apps_dir,
                kinesis,
                leases: Arc::new(self.leases.clone()),
                network: self.network.clone(),
                shutdown: self.shutdown.clone(),
            };
            return Ok(match dispatcher::start(values, dependencies).await {
                Ok(running) => {
                    let admin = running.admin;
                    self.dispatcher_pods.push(DispatcherPod {
                        pod: pod.to_owned(),
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
        let transports = values.list(name::TRANSPORTS).filter_map(|transport| transport.parse().ok()).collect();
        let bus: Arc<dyn Bus> = Arc::new(self.bus.another());
        let kinesis = (values.text(name::WEBHOOKS) == "kinesis").then_some(kinesis);
        let dependencies = edge::Dependencies {
            public: loopback().await?,
            admin,
            peer: self.peer(server, address).await,
            apps_dir,
            kinesis,
            bus,
            shutdown: self.shutdown.clone(),
        };
        Ok(match edge::start(values, dependencies).await {
            Ok(running) => {
                let (public, admin) = (running.public, running.admin);
                self.edge_pods.push(EdgePod { pod: pod.to_owned(), public, admin, transports, wanted, admitted: true });
                self.edges.push(running);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        })
    }

    /// Where edges hand requests to each other: on one port, each at its own address. Without such addresses, nowhere.
    async fn peer(&mut self, server: Server, address: IpAddr) -> Option<TcpListener> {
        if !server.serves_as(Server::Sockjs) {
            return None;
        }
        let bound = TcpListener::bind((address, self.peer_port)).await;
        let listener = bound.inspect_err(|error| tracing::warn!(%address, %error, "others cannot ask an edge")).ok()?;
        self.peer_port = listener.local_addr().ok()?.port();
        Some(listener)
    }

    /// Where a server finds Kinesis: what its variables say, in a world whose cloud is this process.
    fn kinesis(&self, server: Server, values: &Values) -> Settings {
        let address = self.doubles.get(&server).copied().unwrap_or(self.cloud);
        let mut settings =
            cloud::settings(address, values.text(name::AWS_REGION), &values.text(name::STREAM_NAME).into());
        let endpoint = values.get(name::AWS_ENDPOINT_URL_KINESIS);
        if endpoint.is_some() && endpoint != self.cluster.spec.aws.endpoint_url.as_deref() {
            // A wrong address leads nowhere: the discard port of this machine, where nobody listens.
            settings.endpoint = Some("http://127.0.0.1:9".to_owned());
        }
        settings
    }
}

async fn loopback() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

fn network(receiver: SocketAddr, outside: SocketAddr) -> Network {
    Network { reroute: Some(Arc::new(move |url| customer::route(url, (RECEIVER, receiver), outside))) }
}

/// The Secrets of the files, and a stand-in for each that a manifest names and no file holds.
fn stand_ins(options: &Options) -> (Secrets, Vec<String>) {
    let mut secrets = options.secrets.clone();
    let mut told = Vec::new();
    for reference in desired::references(&options.cluster, &options.apps) {
        let texts = secrets.entry(reference.name.clone()).or_default();
        let line = format!("Secret {}, key {} ({})", reference.name, reference.key, reference.purpose);
        texts.entry(reference.key).or_insert_with(|| {
            told.push(line);
            random(20)
        });
    }
    (secrets, told)
}

fn validate(options: &Options, secrets: &Secrets) -> Result<Cluster, RehearsalError> {
    let made = std::cell::RefCell::new(BTreeMap::<String, String>::new());
    let generate = |purpose: &str| made.borrow_mut().entry(purpose.to_owned()).or_insert_with(|| random(20)).clone();
    let inputs = Inputs {
        cluster: &options.cluster,
        apps: &options.apps,
        secrets,
        generate: &generate,
        receiver: RECEIVER,
        version: env!("CARGO_PKG_VERSION"),
        stream: None,
    };
    let mut cluster = desired::validate(&inputs).map_err(RehearsalError::Invalid)?;
    // There is no load balancer that must learn of an end.
    for edge in [&mut cluster.spec.websocket, &mut cluster.spec.sockjs] {
        edge.drain.hold_seconds = 0;
    }
    let refused: Vec<Problem> = cluster.refused.iter().flat_map(|refused| refused.problems.clone()).collect();
    if refused.is_empty() { Ok(cluster) } else { Err(RehearsalError::Invalid(refused)) }
}

fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length).to_lowercase()
}

fn customers(cluster: &Cluster) -> Vec<(AppId, String, String)> {
    let apps = cluster.registry.apps().filter(|app| app.id != cluster.probe.id);
    apps.filter_map(|app| {
        let credential = app.signing()?;
        Some((app.id.clone(), credential.key.to_string(), credential.secret.expose().to_owned()))
    })
    .collect()
}

fn plan(cluster: &Cluster, dispatchers: Vec<DispatcherPod>, stream: Client) -> Plan {
    let gate = &cluster.spec.gate;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Plan {
        fingerprint: String::new(),
        proof: Proof::Never,
        max_backoff: seconds(cluster.spec.webhooks.dispatcher.max_backoff_seconds),
        transports: BTreeSet::new(),
        webhooks: cluster.spec.webhooks.mode == WebhooksMode::Kinesis,
        edges: vec![],
        paths: vec![],
        dispatchers,
        app: ProbeApp {
            id: cluster.probe.id.clone(),
            key: cluster.probe.key.clone(),
            secret: cluster.probe.secret.clone(),
        },
        app_digests: cluster.registry.digests(cluster.admin_token.expose()),
        former_apps: None,
        admin_token: cluster.admin_token.clone(),
        stream: Some(stream),
        policy: gate::Policy {
            interval: seconds(gate.interval_seconds),
            timeout: seconds(gate.timeout_seconds),
            open_after: gate.open_after as usize,
            close_after: gate.close_after as usize,
            ..gate::Policy::default()
        },
    }
}
