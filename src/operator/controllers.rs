//! The operator's process: opens its listeners, waits for the lease, runs the controllers, releases the lease.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Client;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::{WatchStreamExt, reflector};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cluster_probers::ClusterProbers;
use super::context::{ControllerContext, SharedContext, object_key};
use super::controller_loop::drive_controller;
use super::health::{OperatorHealth, serve_admin};
use super::live_objects::LiveObjects;
use super::metrics::{ControllerName, OperatorMetrics};
use super::moves::{ZoneReader, run_moves, run_publisher, run_target_watch};
use super::operator_error::OperatorError;
use super::receiver::ReceiverRoute;
use super::registry_histories::RegistryHistories;
use super::rendered_clusters::RenderedClusters;
use super::secret_reader::SecretReader;
use super::unreadable_objects::{UnreadableObjects, UnreadableReport};
use super::watches::ControllerQueues;
use super::{
    app_status, apps_controller, cluster_watch, gate_controller, receiver, start_checks, stream_controller,
    unreadable_reports, watches, workload_controller,
};
use crate::api::RealtimeCluster;
use crate::desired::{KnownInjectors, PlatformPolicy, ServerImage, receiver_address};
use crate::kinesis::KinesisConnections;
use crate::kubernetes::call_metrics::ApiCallMetrics;
use crate::kubernetes::client::{KubernetesClients, build_clients};
use crate::kubernetes::lease::{LEASE_SILENCE_MAX, LeaderElector, LeaseLost, may_list_all_leases, watch_leases};
use crate::kubernetes::scope::{WatchRange, WatchScope};
use crate::kubernetes::watch::build_api;
use crate::prober::{JourneyBudget, RECEIVER_SILENCE_MAX, WebhookReceiver};
use crate::process::heartbeat::{Heartbeats, TaskFault};

/// Lease that elects the leading replica.
pub const LEADER_LEASE_NAME: &str = "realtime-operator";

/// Reconciles that one controller runs at once, each on its own cluster.
const CONCURRENT_RECONCILES_MAX: u16 = 8;

/// Bounds the end of aborted tasks, and of the release of the lease after a failure.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Clusters that wait between their watch and the queues of the controllers.
const CLUSTER_BUFFER_LEN: usize = 1024;

/// Settings of the operator's process, from its arguments.
#[derive(Clone, Debug)]
pub struct OperatorSettings {
    /// Reference of the operator's own image; read from its pod without one.
    pub image: Option<String>,
    /// Namespace of the operator itself.
    pub namespace: String,
    /// Namespaces whose clusters this operator reconciles.
    pub scope: WatchScope,
    /// The images, endpoints, regions and roles that clusters may name.
    pub policy: PlatformPolicy,
    /// The injectors whose additions to pods are accepted.
    pub known_injectors: KnownInjectors,
    /// Name of the operator's pod: its identity in the Lease.
    pub pod: String,
    /// Address of the operator's pod, under which dispatchers reach its webhook receiver.
    pub address: IpAddr,
    /// Listening address of the webhook receiver.
    pub receiver: SocketAddr,
    /// Listening address of the admin endpoints.
    pub admin: SocketAddr,
    /// Journeys that all clusters together start per second, at most.
    pub journeys_per_second: u32,
    /// Age from which on a proof of a former leader does not count.
    pub inherited_evidence_max: Duration,
    /// Authoritative servers that moves ask about their hosts, instead of those that the NS records of a zone name.
    pub zone_servers: Vec<SocketAddr>,
}

/// Silence of the first listing of every namespace after which the process restarts: the log names the kind that cannot be
/// listed.
const FIRST_LISTING_TIMEOUT: Duration = Duration::from_mins(5);

/// Runs the operator until `shutdown` is cancelled.
///
/// # Errors
/// The operator cannot start, or it lost the lease: then the process must exit, and restart as a candidate.
pub async fn run(settings: OperatorSettings, shutdown: CancellationToken) -> Result<(), OperatorError> {
    let api_calls = Arc::new(ApiCallMetrics::default());
    let clients = build_clients(api_calls.clone()).await?;
    let receiver_listener = bind_listener("the webhook receiver", settings.receiver).await?;
    let admin_listener = bind_listener("the admin listener", settings.admin).await?;
    let heartbeats = Heartbeats::default();
    let receiving = heartbeats.register("webhook receiver", Some(RECEIVER_SILENCE_MAX), &shutdown);
    let receiver = WebhookReceiver::start(receiver_listener, receiving, shutdown.clone()).map_err(|error| {
        OperatorError::Listen { listener: "the webhook receiver", address: settings.receiver, error }
    })?;
    let mut elector = build_elector(&clients, &settings, &heartbeats, &shutdown).await?;
    let leadership = elector.leadership();
    let started = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(OperatorMetrics { api_calls, ..OperatorMetrics::new(leadership.clone()) });
    let health = OperatorHealth {
        rival: elector.rival(),
        started: started.clone(),
        heartbeats: heartbeats.clone(),
        leadership: leadership.clone(),
    };
    tokio::spawn(serve_admin(admin_listener, health, metrics.clone(), shutdown.clone()));
    let kubernetes = start_checks::read_kubernetes_uid(&clients.call).await?;
    start_checks::ensure_crds(&clients.call, &settings.scope).await?;
    started.store(true, Ordering::Relaxed);

    tracing::info!(pod = settings.pod, "waiting for the leader lease");
    let leads = tokio::select! {
        leads = elector.wait_until_leading(&shutdown) => leads,
        fault = heartbeats.wait_for_fault() => return Err(report_fault(fault)),
    };
    if !leads {
        return Ok(());
    }
    tracing::info!(pod = settings.pod, "leading: starting the controllers");
    let work = shutdown.child_token();
    let route = ReceiverRoute {
        client: clients.call.clone(),
        namespace: settings.namespace.clone(),
        address: settings.address,
        port: settings.receiver.port(),
    };
    let written = route.apply_endpoint_slice().await;
    written.map_err(OperatorError::from_call("writing the receiver's EndpointSlice"))?;
    let keeping_route = heartbeats.register("receiver's EndpointSlice", Some(receiver::ROUTE_SILENCE_MAX), &work);
    tokio::spawn(route.keep(clients.watch.clone(), leadership.clone(), keeping_route, work.clone()));
    let own_image = match settings.image {
        Some(image) => Some(image),
        None => start_checks::read_own_image(&clients.call, &settings.namespace, &settings.pod).await?,
    };
    let reporter = Reporter { controller: "realtime-operator".to_owned(), instance: Some(settings.pod.clone()) };
    let zones = ZoneReader::new(settings.zone_servers, metrics.clone()).map_err(OperatorError::Resolver)?;
    let rights = leadership.clone();
    let (unreadable, reports) = UnreadableObjects::new();
    let context: SharedContext = Arc::new(ControllerContext {
        client: clients.call.clone(),
        recorder: Recorder::new(clients.call.clone(), reporter.clone()),
        reporter,
        may_write: Box::new(move || rights.may_write()),
        receiver,
        journeys: JourneyBudget::per_second(settings.journeys_per_second),
        inherited_evidence_max: settings.inherited_evidence_max,
        receiver_address: receiver_address(&settings.namespace, settings.receiver.port()),
        own_address: settings.address,
        kubernetes_uid: kubernetes,
        live: LiveObjects::default(),
        secrets: SecretReader::new(clients.call.clone()),
        rendered: RenderedClusters::default(),
        kinesis: KinesisConnections::new(metrics.kinesis_calls.clone()),
        registries: RegistryHistories::default(),
        unreadable,
        policy: match &own_image {
            Some(image) => settings.policy.with_own_image(image),
            None => settings.policy,
        },
        own_image: ServerImage::of_operator(own_image.as_deref()),
        known_injectors: settings.known_injectors,
        scope: settings.scope,
        metrics,
        heartbeats: heartbeats.clone(),
        stop: work.clone(),
        failures: Mutex::new(HashMap::new()),
    });
    lead(context, (clients.watch, zones), reports, elector, &shutdown).await
}

/// Runs the controllers while this replica holds the lease, and releases it after the last write.
async fn lead(
    context: SharedContext,
    clients: (Client, ZoneReader),
    reports: mpsc::Receiver<UnreadableReport>,
    elector: LeaderElector,
    shutdown: &CancellationToken,
) -> Result<(), OperatorError> {
    let (work, heartbeats) = (context.stop.clone(), context.heartbeats.clone());
    let mut controllers = tokio::spawn(run_controllers(context, clients, reports, work.clone()));
    // Released only after the last write, so that two replicas never write at once.
    let holding = CancellationToken::new();
    let lease_heartbeat = heartbeats.register("lease keeper", Some(LEASE_SILENCE_MAX), &holding);
    let mut keeping = tokio::spawn(elector.hold_lease(lease_heartbeat, holding.clone()));
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        lost = &mut keeping => {
            work.cancel();
            controllers.abort();
            return match lost {
                Ok(Err(lost)) => Err(lost.into()),
                _ => Err(LeaseLost.into()),
            };
        }
        fault = heartbeats.wait_for_fault() => {
            let error = report_fault(fault);
            work.cancel();
            controllers.abort();
            // An aborted task writes nothing more once it has ended, unless it is the one that is stuck.
            let _ = tokio::time::timeout(ABORT_TIMEOUT, &mut controllers).await;
            holding.cancel();
            let _ = tokio::time::timeout(ABORT_TIMEOUT, keeping).await;
            return Err(error);
        }
    }
    if tokio::time::timeout(Duration::from_secs(10), controllers).await.is_err() {
        tracing::warn!("reconciles did not end within 10 s and are cancelled");
    }
    holding.cancel();
    match keeping.await {
        Ok(Err(lost)) => Err(lost.into()),
        _ => Ok(()),
    }
}

async fn bind_listener(listener: &'static str, address: SocketAddr) -> Result<TcpListener, OperatorError> {
    crate::process::listener::bind(address).await.map_err(|error| OperatorError::Listen { listener, address, error })
}

/// Builds the candidate for the Lease, and watches the Leases of other operators until `shutdown`. Without the permission to
/// list the Leases of all namespaces, which an operator of some namespaces may lack, it does not see the operators of others.
async fn build_elector(
    clients: &KubernetesClients,
    settings: &OperatorSettings,
    heartbeats: &Heartbeats,
    shutdown: &CancellationToken,
) -> Result<LeaderElector, OperatorError> {
    let may_list_all = match settings.scope {
        WatchScope::All => true,
        WatchScope::Listed(_) => may_list_all_leases(&clients.call)
            .await
            .map_err(OperatorError::from_call("asking for the permission to list Leases of all namespaces"))?,
    };
    if !may_list_all {
        tracing::warn!(scope = %settings.scope, "leases of other namespaces not readable: another operator of the same namespaces is not noticed");
    }
    let range = if may_list_all { WatchRange::All } else { WatchRange::Namespace(settings.namespace.clone()) };
    let (watched, watching) = watch_leases(build_api(&clients.watch, &range));
    let heartbeat = heartbeats.register("watch of Leases", None, shutdown);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
        let _heartbeat = heartbeat;
        watching.await;
    }));
    let operators = build_api(&clients.call, &range);
    let own = (settings.namespace.as_str(), LEADER_LEASE_NAME);
    Ok(LeaderElector::new(clients.call.clone(), (operators, watched), own, &settings.pod, settings.scope.clone()))
}

fn report_fault(fault: TaskFault) -> OperatorError {
    tracing::error!(%fault, "task failed: stopping the process");
    fault.into()
}

/// Runs the watches, the four controllers and the moves until `shutdown` is cancelled.
async fn run_controllers(
    context: SharedContext,
    (watch, zones): (Client, ZoneReader),
    reports: mpsc::Receiver<UnreadableReport>,
    shutdown: CancellationToken,
) {
    let (store, writer) = reflector::store_shared::<RealtimeCluster>(CLUSTER_BUFFER_LEN);
    let make = |controller: ControllerName| {
        let changed = writer.subscribe().map(|clusters| filter_changed(clusters, controller));
        Controller::for_shared_stream(futures::stream::iter(changed).flatten(), store.clone())
            .with_config(Config::default().concurrency(CONCURRENT_RECONCILES_MAX).debounce(Duration::from_millis(50)))
            .graceful_shutdown_on(shutdown.clone().cancelled_owned())
    };
    let (queues, receivers) = ControllerQueues::new();
    let stream = make(ControllerName::Stream);
    let workload = make(ControllerName::Workload).reconcile_on(stream_from_receiver(receivers.workload));
    let apps = make(ControllerName::Apps).reconcile_on(stream_from_receiver(receivers.apps));
    let gate = make(ControllerName::Gate).reconcile_on(stream_from_receiver(receivers.gate));
    let clusters =
        cluster_watch::watch_clusters(&watch, &context, &store).reflect_shared(writer).for_each(|event| async move {
            if let Err(error) = event {
                tracing::warn!(kind = "RealtimeCluster", %error, "watch failed: it is opened again after a back-off");
            }
        });
    let ranges = context.scope.ranges();
    let objects = ranges.iter().map(|range| watches::run_watches(&watch, range, &context, &store, &queues));
    let probers = ClusterProbers::new(queues.gate.clone(), shutdown.clone());
    let watching = async {
        let _heartbeat = context.heartbeats.register("watches", None, &shutdown);
        let all = futures::future::join(clusters, futures::future::join_all(objects));
        Box::pin(shutdown.run_until_cancelled(all)).await;
    };
    let sweeping = async {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(5)) => probers.stop_for_removed_clusters(&context, &store),
            }
            report_queues(&context.metrics, &queues);
        }
    };
    let controlling = async {
        let listed = shutdown.child_token();
        let listing = context.heartbeats.register("first listing", Some(FIRST_LISTING_TIMEOUT), &listed);
        // A namespace that cannot be listed delays no other.
        let listings = ranges.iter().map(|range| Box::pin(context.live.clusters.wait_until_listed(range)));
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = futures::future::select_all(listings) => {}
        }
        listed.cancel();
        drop(listing);
        let gating = {
            let probers = probers.clone();
            drive_controller(ControllerName::Gate, gate, context.clone(), move |context, cluster| {
                let probers = probers.clone();
                async move { Box::pin(gate_controller::reconcile(&context, &probers, &cluster)).await }
            })
        };
        let reporting_unselected = shutdown.run_until_cancelled(app_status::report_unselected_apps(&context, &store));
        let registering = {
            let (probers, store) = (probers.clone(), store.clone());
            drive_controller(ControllerName::Apps, apps, context.clone(), move |context, cluster| {
                let (probers, store) = (probers.clone(), store.clone());
                async move { apps_controller::reconcile(&context, &probers, &store, &cluster).await }
            })
        };
        tokio::join!(
            drive_controller(ControllerName::Stream, stream, context.clone(), |context, cluster| async move {
                stream_controller::reconcile(&context, &cluster).await
            }),
            drive_controller(ControllerName::Workload, workload, context.clone(), |context, cluster| async move {
                workload_controller::reconcile(&context, &cluster).await
            }),
            registering,
            gating,
            reporting_unselected,
            Box::pin(run_moves(context.clone(), store.clone(), probers.clone(), zones)),
            Box::pin(run_publisher(context.clone(), store.clone(), probers.clone())),
            Box::pin(run_target_watch(context.clone(), store.clone())),
        );
    };
    let reporting = shutdown.run_until_cancelled(unreadable_reports::run_reports(&context, reports));
    tokio::join!(watching, sweeping, controlling, reporting);
}

/// Sets the gauges of the requests that wait in the controllers' queues.
fn report_queues(metrics: &OperatorMetrics, queues: &ControllerQueues) {
    let queues = [
        (ControllerName::Workload, &queues.workload),
        (ControllerName::Apps, &queues.apps),
        (ControllerName::Gate, &queues.gate),
    ];
    for (controller, queue) in queues {
        let waiting = queue.max_capacity() - queue.capacity();
        let gauge = metrics.series.queued_reconciles.with_label(controller);
        gauge.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

/// Passes on the clusters in which a part that this controller acts on has changed.
fn filter_changed(
    clusters: impl Stream<Item = Arc<RealtimeCluster>> + Send + 'static,
    controller: ControllerName,
) -> impl Stream<Item = Arc<RealtimeCluster>> + Send + 'static {
    let mut known: HashMap<String, u64> = HashMap::new();
    clusters.filter(move |cluster| {
        let key = object_key(&**cluster);
        // A cluster that is being deleted passes each time, so that its entry can go.
        let changed = if cluster.metadata.deletion_timestamp.is_some() {
            known.remove(&key);
            true
        } else {
            let digest = controller.digest_inputs(cluster);
            known.insert(key, digest) != Some(digest)
        };
        futures::future::ready(changed)
    })
}

fn stream_from_receiver<T: Send + 'static>(mut receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}
