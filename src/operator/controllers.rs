//! The operator's process: opens its listeners, waits for the lease, runs the controllers, releases the lease.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::context::{ControllerContext, RECONCILE_TIMEOUT, ReconcileError, SharedContext, cluster_key};
use super::gate_controller::ClusterProbers;
use super::live_objects::LiveObjects;
use super::metrics::OperatorMetrics;
use super::registry_histories::RegistryHistories;
use super::rendered_clusters::RenderedClusters;
use super::secret_reader::SecretReader;
use super::watches::{ControllerQueues, TriggeredController};
use super::{apps_controller, gate_controller, receiver, stream_controller, watches, workload_controller};
use crate::api::{RealtimeCluster, Reason};
use crate::kinesis::KinesisConnections;
use crate::kubernetes::client::{ConnectError, build_clients};
use crate::kubernetes::lease::{LeaderElector, Leadership, LeaseLost};
use crate::prober::WebhookReceiver;
use crate::process::admin;

/// Lease that elects the leading replica.
const LEADER_LEASE_NAME: &str = "realtime-operator";

/// Reconciles that one controller runs at once, each on its own cluster.
const CONCURRENT_RECONCILES_MAX: u16 = 8;

/// Delay before a reconcile is repeated whose object changed since it was read.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Clusters that wait between their watch and the queues of the controllers.
const CLUSTER_BUFFER_LEN: usize = 1024;

/// Settings of the operator's process, from its arguments.
#[derive(Clone, Debug)]
pub struct OperatorSettings {
    /// Namespace of the operator itself.
    pub namespace: String,
    /// Name of the operator's pod: its identity in the Lease.
    pub pod: String,
    /// Address of the operator's pod, under which dispatchers reach its webhook receiver.
    pub address: IpAddr,
    /// Listening address of the webhook receiver.
    pub receiver: SocketAddr,
    /// Listening address of the admin endpoints.
    pub admin: SocketAddr,
}

/// An error that ends the operator's process.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The API server cannot be reached or is not configured.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A listener's port cannot be bound.
    #[error("{listener} cannot listen on {address}: {error}. Free the port or choose another")]
    Listen {
        /// The listener, as the subject of the message.
        listener: &'static str,
        /// The address that was asked for.
        address: SocketAddr,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// The API server refuses a call that the start needs.
    #[error("{operation}: {error}")]
    Start {
        /// The call that failed.
        operation: &'static str,
        /// The API server's error.
        error: Box<kube::Error>,
    },
    /// The CRDs are not installed.
    #[error("the API server does not know RealtimeCluster: apply the CRDs first (`realtime crd | kubectl apply -f -`)")]
    NoCrds,
    /// Another replica took the lease.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
}

/// Runs the operator until `shutdown` is cancelled.
///
/// # Errors
/// The operator cannot start, or it lost the lease: then the process must exit, and restart as a candidate.
pub async fn run(settings: OperatorSettings, shutdown: CancellationToken) -> Result<(), OperatorError> {
    let clients = build_clients().await?;
    let receiver_listener = bind_listener("the webhook receiver", settings.receiver).await?;
    let admin_listener = bind_listener("the admin listener", settings.admin).await?;
    let receiver = WebhookReceiver::start(receiver_listener, shutdown.clone()).map_err(|error| {
        OperatorError::Listen { listener: "the webhook receiver", address: settings.receiver, error }
    })?;
    let mut elector = LeaderElector::new(clients.call.clone(), &settings.namespace, LEADER_LEASE_NAME, &settings.pod);
    let leadership = elector.leadership();
    let started = Arc::new(AtomicBool::new(false));
    tokio::spawn(serve_admin(admin_listener, started.clone(), leadership.clone(), shutdown.clone()));
    let kubernetes = read_kubernetes_uid(&clients.call).await?;
    ensure_crds(&clients.call).await?;
    started.store(true, Ordering::Relaxed);

    tracing::info!(pod = settings.pod, "waiting for the leader lease");
    if !elector.wait_until_leading(&shutdown).await {
        return Ok(());
    }
    tracing::info!(pod = settings.pod, "leading: starting the controllers");
    let start = |operation| move |error| OperatorError::Start { operation, error: Box::new(error) };
    receiver::apply_endpoint_slice(&clients.call, &settings.namespace, settings.address, settings.receiver.port())
        .await
        .map_err(start("writing the receiver's EndpointSlice"))?;
    let reporter = Reporter { controller: "realtime-operator".to_owned(), instance: Some(settings.pod.clone()) };
    let rights = leadership.clone();
    let context: SharedContext = Arc::new(ControllerContext {
        client: clients.call.clone(),
        recorder: Recorder::new(clients.call.clone(), reporter),
        may_write: Box::new(move || rights.may_write()),
        receiver,
        receiver_address: format!(
            "{}.{}.svc:{}",
            receiver::RECEIVER_SERVICE,
            settings.namespace,
            settings.receiver.port()
        ),
        kubernetes_uid: kubernetes,
        live: LiveObjects::default(),
        secrets: SecretReader::new(clients.call.clone()),
        rendered: RenderedClusters::default(),
        kinesis: KinesisConnections::default(),
        registries: RegistryHistories::default(),
        failures: Mutex::new(HashMap::new()),
    });
    let work = shutdown.child_token();
    let controllers = tokio::spawn(run_controllers(context, clients.watch, work.clone()));
    // Released only after the last write, so that two replicas never write at once.
    let holding = CancellationToken::new();
    let mut keeping = tokio::spawn(elector.hold_lease(holding.clone()));
    tokio::select! {
        () = shutdown.cancelled() => {}
        lost = &mut keeping => {
            work.cancel();
            controllers.abort();
            return match lost {
                Ok(Err(lost)) => Err(lost.into()),
                _ => Err(LeaseLost.into()),
            };
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
    TcpListener::bind(address).await.map_err(|error| OperatorError::Listen { listener, address, error })
}

/// Reads the UID that identifies this Kubernetes cluster in the tags of streams.
async fn read_kubernetes_uid(client: &Client) -> Result<String, OperatorError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get("kube-system").await.map_err(|error| OperatorError::Start {
        operation: "reading the namespace kube-system, whose UID identifies this Kubernetes cluster",
        error: Box::new(error),
    })?;
    Ok(found.uid().unwrap_or_default())
}

/// Fails early when the CRDs are missing: watches of an unknown kind would fail for ever, with a message that names no
/// remedy.
async fn ensure_crds(client: &Client) -> Result<(), OperatorError> {
    let clusters: Api<RealtimeCluster> = Api::all(client.clone());
    match clusters.list(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Err(OperatorError::NoCrds),
        Err(error) => Err(OperatorError::Start { operation: "listing RealtimeClusters", error: Box::new(error) }),
    }
}

async fn serve_admin(
    listener: TcpListener,
    started: Arc<AtomicBool>,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    let mut metrics = Registry::default();
    OperatorMetrics::new(leadership.clone()).register(&mut metrics);
    let answers = admin::AdminEndpoints {
        // Without a token only the health endpoints answer.
        token: String::new(),
        ready: Box::new(move || {
            started.load(Ordering::Relaxed).then_some(()).ok_or_else(|| "not started yet".to_owned())
        }),
        effective: Box::new(|| serde_json::Value::Null),
        flow: Box::new(move || serde_json::json!({ "leads": leadership.may_write() })),
        drain: None,
        metrics,
    };
    if let Err(error) = admin::serve(listener, answers, shutdown).await {
        tracing::error!(%error, "admin listener ended");
    }
}

/// Runs the watches and the four controllers until `shutdown` is cancelled.
async fn run_controllers(context: SharedContext, watch: Client, shutdown: CancellationToken) {
    let (store, writer) = reflector::store_shared::<RealtimeCluster>(CLUSTER_BUFFER_LEN);
    let make = |controller: TriggeredController| {
        let changed = writer.subscribe().map(|clusters| filter_changed(clusters, controller));
        Controller::for_shared_stream(futures::stream::iter(changed).flatten(), store.clone())
            .with_config(Config::default().concurrency(CONCURRENT_RECONCILES_MAX).debounce(Duration::from_millis(50)))
            .graceful_shutdown_on(shutdown.clone().cancelled_owned())
    };
    let (queues, receivers) = ControllerQueues::new();
    let stream = make(TriggeredController::Stream);
    let workload = make(TriggeredController::Workload).reconcile_on(stream_from_receiver(receivers.workload));
    let apps = make(TriggeredController::Apps).reconcile_on(stream_from_receiver(receivers.apps));
    let gate = make(TriggeredController::Gate).reconcile_on(stream_from_receiver(receivers.gate));
    let clusters = watcher(Api::<RealtimeCluster>::all(watch.clone()), watcher::Config::default())
        .default_backoff()
        .modify(|cluster| cluster.managed_fields_mut().clear())
        .reflect_shared(writer)
        .for_each(|event| async move {
            if let Err(error) = event {
                tracing::warn!(kind = "RealtimeCluster", %error, "watch failed: it is opened again after a back-off");
            }
        });
    let probers = ClusterProbers::new(queues.gate.clone(), shutdown.clone());
    let watching = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = futures::future::join(clusters, watches::run_watches(&watch, &context.live, &store, &queues)) => {}
        }
    };
    let sweeping = async {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(5)) => probers.stop_for_removed_clusters(&context, &store),
            }
        }
    };
    let controlling = async {
        // A missing object says nothing before its kind is listed.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.live.wait_until_listed() => {}
        }
        let gating = {
            let probers = probers.clone();
            drive_controller("gate", gate, context.clone(), move |context, cluster| {
                let probers = probers.clone();
                async move { gate_controller::reconcile(&context, &probers, &cluster).await }
            })
        };
        tokio::join!(
            drive_controller("stream", stream, context.clone(), |context, cluster| async move {
                stream_controller::reconcile(&context, &cluster).await
            }),
            drive_controller("workload", workload, context.clone(), |context, cluster| async move {
                workload_controller::reconcile(&context, &cluster).await
            }),
            drive_controller("apps", apps, context.clone(), |context, cluster| async move {
                apps_controller::reconcile(&context, &cluster).await
            }),
            gating,
        );
    };
    tokio::join!(watching, sweeping, controlling);
}

/// Passes on the clusters in which a part that this controller acts on has changed.
fn filter_changed(
    clusters: impl Stream<Item = Arc<RealtimeCluster>> + Send + 'static,
    controller: TriggeredController,
) -> impl Stream<Item = Arc<RealtimeCluster>> + Send + 'static {
    let mut known: HashMap<String, u64> = HashMap::new();
    clusters.filter(move |cluster| {
        let key = cluster_key(cluster);
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

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FailedReconcile(ReconcileError);

/// Runs one controller: bounds each reconcile by [`RECONCILE_TIMEOUT`] and backs off after a failure.
async fn drive_controller<F, R>(
    name: &'static str,
    controller: Controller<RealtimeCluster>,
    context: SharedContext,
    reconcile: F,
) where
    F: Fn(SharedContext, Arc<RealtimeCluster>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let reconcile = Arc::new(reconcile);
    let bounded_reconcile = move |cluster: Arc<RealtimeCluster>, context: SharedContext| {
        let reconcile = reconcile.clone();
        async move {
            let work = tokio::time::timeout(RECONCILE_TIMEOUT, reconcile(context.clone(), cluster.clone()));
            let result = work.await.unwrap_or_else(|_| {
                Err(ReconcileError::transient(
                    Reason::ApplyFailed,
                    format!("the reconcile did not end within {} s; it is retried", RECONCILE_TIMEOUT.as_secs()),
                ))
            });
            match result {
                Ok(action) => {
                    context.reset_failures(name, &cluster);
                    Ok(action)
                }
                Err(error) if error.is_conflict => Ok(Action::requeue(CONFLICT_RETRY_DELAY)),
                Err(error) => {
                    tracing::info!(controller = name, cluster = cluster_key(&cluster), %error, "reconcile failed");
                    Err(FailedReconcile(error))
                }
            }
        }
    };
    let policy = move |cluster: Arc<RealtimeCluster>, failed: &FailedReconcile, context: SharedContext| {
        Action::requeue(context.count_failure(name, &cluster, &failed.0))
    };
    controller
        .run(bounded_reconcile, policy, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(controller = name, %error, "controller reported an error");
            }
        })
        .await;
}
