//! Starts a whole cluster as tasks, and ends it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::distr::{Alphanumeric, SampleString};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::{RehearsalError, StartRefusal};
use super::fault_control::{FaultControl, FaultSwitcher, RenderedCluster};
use super::faults::{Fault, FaultSwitches, Switch};
use super::overrides::{ManifestOverride, overridden_registry, override_variables};
use super::pods::{DispatcherEgress, EdgeAddresses, PodEnvironment, PodSet, UNREACHABLE_ADDRESS, bind_loopback};
use super::webhook_receiver::{self, DeliveredWebhook, ReceiverRoute};
use super::{kinesis_double, kubelet_double, page};
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::bus::MemoryBus;
use crate::config::ServerKind;
use crate::desired::{
    self, AppCredentials, ClusterInputs, ManifestProblem, SecretTexts, ServerImage, ServerRole, ValidCluster,
    ValidStream,
};
use crate::dispatcher::{EgressOverrides, MemoryLeases};
use crate::kinesis::KinesisClient;
use crate::prober::{self, JourneyBudget, JourneyMetrics, ProbePlan, Prober, ProberReports, WebhookReceiver};
use crate::process::heartbeat::Heartbeats;
use crate::protocol::{AppId, Transport};

/// Address of the operator's receiver in a rendered cluster; nothing resolves it here.
fn rendered_receiver() -> String {
    desired::receiver_address(desired::OPERATOR_NAMESPACE, desired::RECEIVER_PORT)
}

/// A name that never resolves.
const UNRESOLVED_HOST: &str = "receiver.invalid:8090";

/// Number of webhooks of which the last is lost, while the fault is on.
const LOST_WEBHOOK_INTERVAL: usize = 3;

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
    /// Double between everybody and Kinesis, the operator's own calls included; it may lead to another Kinesis, which may
    /// hold the streams already.
    pub account: Option<KinesisInterposer>,
    /// The bus and the credentials of another rehearsal of the same group; `None` for its own.
    pub group: Option<SharedGroup>,
}

/// The parts that rehearsals of one group of clusters share: clients of all hear each other, and know one set of keys.
#[derive(Clone)]
pub struct SharedGroup {
    bus: Arc<MemoryBus>,
    apps: BTreeMap<String, AppCredentials>,
}

impl SharedGroup {
    /// A new bus, and credentials for the apps.
    #[must_use]
    pub fn of_cluster(cluster: &RealtimeCluster, apps: &[RealtimeApp]) -> Self {
        let credentials = desired::generate_all_credentials(cluster, apps, |_| random_secret(20));
        Self { bus: Arc::new(MemoryBus::new()), apps: credentials.apps }
    }
}

/// Starts a double in front of Kinesis, whose address it is given, and answers with its own.
pub type KinesisInterposer = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<SocketAddr>> + Send + Sync>;

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
    /// Counts of the journeys.
    pub journeys: Arc<JourneyMetrics>,
    /// The control that switches faults on and off.
    pub faults: FaultControl,
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
    pods: JoinHandle<()>,
    outside: Vec<JoinHandle<()>>,
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
        let [probing, serving, end_cloud] = std::array::from_fn(|_| CancellationToken::new());
        let switches = FaultSwitches::default();
        let files = tempfile::tempdir()?;
        let (cloud, served) = serve_cloud(&cluster, switches.clone(), options.account.as_ref(), &end_cloud).await?;
        let mut outside = vec![served];
        let stream = create_stream(&cluster.stream, cloud).await?;
        let heartbeats = Heartbeats::default();
        let receiving = heartbeats.register("webhook receiver", None, &end_cloud);
        let receiver = WebhookReceiver::start(bind_loopback().await?, receiving, end_cloud.clone())?;
        let outside_listener = bind_loopback().await?;
        let outside_address = outside_listener.local_addr()?;
        let (delivered, task) = webhook_receiver::serve(outside_listener, cluster.registry.clone(), end_cloud.clone())?;
        outside.push(task);

        let environment = PodEnvironment {
            cluster: cluster.clone(),
            files: files.path().to_owned(),
            cloud,
            doubles: start_interposers(&options.interposers, cloud).await?,
            egress: build_egress(receiver.address(), outside_address, switches.clone()),
            faults: switches.clone(),
            bus: options.group.as_ref().map_or_else(MemoryBus::new, |group| group.bus.for_another_process()),
            foreign_bus: MemoryBus::new(),
            leases: MemoryLeases::default(),
            shutdown: serving.clone(),
        };
        let (pods, rendered, refusals) = Box::pin(start_pods(environment, &options.edits, &secrets)).await?;
        let addresses = watch::Sender::new(EdgeAddresses::of_edges(&pods.edges()));
        let serving_addresses = *addresses.borrow();
        let journeys = Arc::<JourneyMetrics>::default();
        let reports = ProberReports {
            heartbeat: heartbeats.register("prober", None, &probing),
            metrics: journeys.clone(),
            budget: JourneyBudget::default().share(),
        };
        let plan = ProbePlan {
            edges: pods.edges(),
            dispatchers: pods.dispatchers(),
            stream: Some(stream),
            ..ProbePlan::of_cluster(&cluster)
        };
        let prober = refusals.is_empty().then(|| prober::start(plan, receiver, reports, probing.clone()));
        let prober = prober.transpose().map_err(|error| RehearsalError::Http(error.to_string()))?;
        let switching = FaultSwitcher {
            pods,
            rendered,
            edits: options.edits.into(),
            switches,
            plan: prober.as_ref().map(|prober| prober.plan.clone()),
            addresses: addresses.clone(),
            app_changes: 0,
        };
        let (faults, pods) = switching.start(serving.clone());
        let shown = watch::Sender::new(None);
        let page = match page_listener {
            Some(listener) => {
                let address = listener.local_addr()?;
                let sources = page::PageSources {
                    demo: page::DemoSettings::of_cluster(&cluster),
                    addresses: addresses.subscribe(),
                    verdict: shown.subscribe(),
                    hops: prober.as_ref().map(|prober| prober.hops.resubscribe()),
                    delivered: delivered.clone(),
                    faults: faults.clone(),
                };
                outside.push(page::serve(listener, sources, end_cloud.clone()));
                Some(address)
            }
            None => None,
        };
        Ok(Self {
            serving: ServingAddresses {
                page,
                websocket: serving_addresses.websocket,
                sockjs: serving_addresses.sockjs,
                apps: customer_credentials(&cluster),
            },
            refusals,
            stand_ins,
            transports: served_transports(&cluster),
            prober,
            journeys,
            faults,
            delivered,
            shown,
            tasks: BackgroundTasks {
                prober_shutdown: probing,
                serving,
                cloud: end_cloud,
                pods,
                outside,
                _files: files,
            },
        })
    }

    /// Ends everything in order: the journeys, the edges, the dispatchers once they have sent what the edges flushed,
    /// the stream.
    pub async fn stop(self) {
        let BackgroundTasks { prober_shutdown, serving, cloud, pods, outside, _files: files } = self.tasks;
        let orderly = async {
            prober_shutdown.cancel();
            if let Some(prober) = self.prober {
                prober.wait_until_stopped().await;
            }
            serving.cancel();
            if let Err(error) = pods.await {
                tracing::error!(%error, "pods task failed");
            }
            cloud.cancel();
            futures::future::join_all(outside).await;
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, orderly).await.is_err() {
            tracing::warn!(timeout = ?SHUTDOWN_TIMEOUT, "shutdown timed out");
        }
        drop(files);
    }
}

/// Starts every pod of the rendered Deployments, as the edits leave them.
async fn start_pods(
    environment: PodEnvironment,
    edits: &[ManifestOverride],
    secrets: &SecretTexts,
) -> Result<(PodSet, RenderedCluster, Vec<StartRefusal>), RehearsalError> {
    (0..edits.len()).for_each(|place| environment.faults.set(Switch::Edit(place), true));
    let rendered = desired::render_objects(&environment.cluster)?;
    let mut desired = rendered.clone();
    override_variables(&mut desired, edits)?;
    let secrets = kubelet_double::collect_secret_texts(&desired, secrets);
    let (mut pods, mut refusals) = (PodSet::new(environment), Vec::new());
    for ((server, deployment), (_, template)) in desired.deployments.iter().zip(&rendered.deployments) {
        let registry = overridden_registry(&pods.environment().cluster, *server, edits)?;
        pods.mount_registry(*server, &registry)?;
        let wanted = kubelet_double::rendered_pods(template, &secrets)?;
        for (pod, wanted) in kubelet_double::rendered_pods(deployment, &secrets)?.into_iter().zip(wanted) {
            refusals.extend(pods.add_pod(*server, pod, &wanted).await?.err());
        }
    }
    Ok((pods, RenderedCluster { objects: rendered, secrets }, refusals))
}

/// Serves Kinesis at a free port, behind the double of the account if there is one.
async fn serve_cloud(
    cluster: &ValidCluster,
    faults: FaultSwitches,
    account: Option<&KinesisInterposer>,
    end: &CancellationToken,
) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = bind_loopback().await?;
    let address = listener.local_addr()?;
    let journeys_app = Some(cluster.probe.id.clone());
    let address = match account {
        Some(account) => account(address).await?,
        None => address,
    };
    Ok((address, kinesis_double::serve(listener, faults, journeys_app, end.clone())))
}

/// Creates the cluster's streams in the double of Kinesis, and returns the client of the one that edges write.
async fn create_stream(stream: &ValidStream, cloud: SocketAddr) -> Result<KinesisClient, RehearsalError> {
    let settings = kinesis_double::client_settings(cloud, "operator", &stream.region, &stream.name);
    let client = KinesisClient::connect(&settings).await;
    kinesis_double::create_stream(&client, stream.capacity.initial_shards()).await?;
    if let (Some(name), Some(dead_letter)) = (stream.dead_letter_name(), &stream.dead_letter) {
        kinesis_double::create_stream(&client.of_stream(name), dead_letter.shards).await?;
    }
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

/// The network of each dispatcher, by its number.
fn build_egress(receiver: SocketAddr, outside: SocketAddr, faults: FaultSwitches) -> DispatcherEgress {
    Box::new(move |number| egress_overrides(receiver, outside, faults.clone(), number))
}

/// The network of the dispatcher of this number, with the faults on the way to the operator's receiver.
fn egress_overrides(
    receiver: SocketAddr,
    outside: SocketAddr,
    faults: FaultSwitches,
    number: usize,
) -> EgressOverrides {
    let rendered = rendered_receiver();
    let sent = AtomicUsize::new(0);
    let reroute = move |url: &url::Url| {
        let is_mute = number == 0 && faults.is_on(Fault::MuteDispatcher);
        let address = if faults.is_on(Fault::ReceiverUnresolved) {
            UNRESOLVED_HOST.to_owned()
        } else if is_mute || faults.is_on(Fault::ReceiverUnreachable) {
            UNREACHABLE_ADDRESS.to_owned()
        } else {
            receiver.to_string()
        };
        let routed = webhook_receiver::route_url(url, ReceiverRoute { host: &rendered, address: &address }, outside)?;
        let to_receiver = routed.query().is_none();
        let is_third = || (sent.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(LOST_WEBHOOK_INTERVAL);
        if to_receiver && faults.is_on(Fault::LostWebhooks) && is_third() {
            return webhook_receiver::dropped_url(outside);
        }
        Some(routed)
    };
    EgressOverrides { reroute: Some(Arc::new(reroute)), ..EgressOverrides::default() }
}

/// The Secrets of the files, and a stand-in for each that a manifest names and no file holds.
fn stand_in_secrets(options: &RehearsalOptions) -> (SecretTexts, Vec<String>) {
    let mut secrets = options.secrets.clone();
    let mut told = Vec::new();
    desired::add_stand_ins(&options.cluster, &options.apps, &mut secrets, |reference| {
        told.push(format!("Secret {}, key {} ({})", reference.name, reference.key, reference.purpose));
        random_secret(20)
    });
    (secrets, told)
}

fn validate(options: &RehearsalOptions, secrets: &SecretTexts) -> Result<ValidCluster, RehearsalError> {
    let (cluster, apps) = (&options.cluster, &options.apps);
    let mut credentials = desired::generate_all_credentials(cluster, apps, |_| random_secret(20));
    if let Some(group) = &options.group {
        credentials.apps.clone_from(&group.apps);
    }
    let inputs = ClusterInputs {
        cluster,
        apps,
        secrets,
        credentials: &credentials,
        receiver: &rendered_receiver(),
        own_networks: &[],
        own_image: &ServerImage::of_operator(None),
        recorded_image: None,
        stream: None,
    };
    let mut cluster = desired::validate(&inputs).map_err(RehearsalError::Invalid)?;
    // There is no load balancer that must learn of an end.
    for server in &mut cluster.servers {
        if let ServerRole::Edge(settings) = &mut server.role {
            settings.drain.hold = Duration::ZERO;
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
