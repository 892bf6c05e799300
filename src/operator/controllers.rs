//! The process: listens, waits to lead, runs the controllers, ends.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, ListParams, PartialObjectMeta};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::context::{ControllerContext, RECONCILE_TIMEOUT, ReconcileError, SharedContext, cluster_key};
use super::gate_controller::ClusterProbers;
use super::{apps_controller, gate_controller, metrics, receiver, stream_controller, workload_controller};
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::kubernetes::client::{ConnectError, build_clients};
use crate::kubernetes::lease::{LeaderElector, Leadership, LeaseLost};
use crate::prober::WebhookReceiver;
use crate::process::admin;

/// The Lease of the one that leads.
const LEADER_LEASE_NAME: &str = "realtime-operator";

/// Turns of one controller at once.
const CONCURRENT_RECONCILES_MAX: u16 = 8;

/// How soon a turn is taken again whose object changed meanwhile.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// News of probers that wait for a turn.
const REQUEUE_BUFFER_LEN: usize = 1024;

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct OperatorSettings {
    /// Its own namespace.
    pub namespace: String,
    /// Its pod's name.
    pub pod: String,
    /// Its pod's address, under which dispatchers reach it.
    pub address: IpAddr,
    /// Where webhooks arrive.
    pub receiver: SocketAddr,
    /// Where the admin listener is.
    pub admin: SocketAddr,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A port is taken.
    #[error("{what} cannot listen on {address}: {error}. Free the port or choose another")]
    Listen {
        /// What for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// The API server does not let us do what is needed at the start.
    #[error("{what}: {error}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// The answer.
        error: Box<kube::Error>,
    },
    /// The kinds are not known to the API server.
    #[error("the API server does not know RealtimeCluster: apply the CRDs first (`realtime crd | kubectl apply -f -`)")]
    NoCrds,
    /// Another leads.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
}

/// Runs until the token ends it.
///
/// # Errors
/// It cannot start, or it lost the lease: then the process must end, and start again as a candidate.
pub async fn run(settings: OperatorSettings, shutdown: CancellationToken) -> Result<(), OperatorError> {
    let clients = build_clients().await?;
    let receiver_listener = bind_listener("the webhook receiver", settings.receiver).await?;
    let admin_listener = bind_listener("the admin listener", settings.admin).await?;
    let receiver = WebhookReceiver::start(receiver_listener, shutdown.clone())
        .map_err(|error| OperatorError::Listen { what: "the webhook receiver", address: settings.receiver, error })?;
    let mut elector = LeaderElector::new(clients.call.clone(), &settings.namespace, LEADER_LEASE_NAME, &settings.pod);
    let leadership = elector.leadership();
    let started = Arc::new(AtomicBool::new(false));
    tokio::spawn(serve_admin(admin_listener, started.clone(), leadership.clone(), shutdown.clone()));
    let kubernetes = read_kubernetes_uid(&clients.call).await?;
    ensure_crds(&clients.call).await?;
    started.store(true, Ordering::Relaxed);

    tracing::info!(pod = settings.pod, "waiting to lead");
    if !elector.wait_until_leading(&shutdown).await {
        return Ok(());
    }
    tracing::info!(pod = settings.pod, "this operator leads");
    let start = |what| move |error| OperatorError::Start { what, error: Box::new(error) };
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
        failures: Mutex::new(HashMap::new()),
    });
    let work = shutdown.child_token();
    let controllers = tokio::spawn(run_controllers(context, clients.watch, work.clone()));
    // The Lease is given back only once nothing is written any more.
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
        tracing::warn!("turns were still running and are cut");
    }
    holding.cancel();
    match keeping.await {
        Ok(Err(lost)) => Err(lost.into()),
        _ => Ok(()),
    }
}

async fn bind_listener(what: &'static str, address: SocketAddr) -> Result<TcpListener, OperatorError> {
    TcpListener::bind(address).await.map_err(|error| OperatorError::Listen { what, address, error })
}

/// Names this Kubernetes for the tags of streams.
async fn read_kubernetes_uid(client: &Client) -> Result<String, OperatorError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get("kube-system").await.map_err(|error| OperatorError::Start {
        what: "reading the namespace kube-system, whose UID names this Kubernetes",
        error: Box::new(error),
    })?;
    Ok(found.uid().unwrap_or_default())
}

/// Watches of an unknown kind would fail for ever, with a message that helps nobody.
async fn ensure_crds(client: &Client) -> Result<(), OperatorError> {
    let clusters: Api<RealtimeCluster> = Api::all(client.clone());
    match clusters.list(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Err(OperatorError::NoCrds),
        Err(error) => Err(OperatorError::Start { what: "listing RealtimeClusters", error: Box::new(error) }),
    }
}

async fn serve_admin(
    listener: TcpListener,
    started: Arc<AtomicBool>,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    let metrics = metrics::build_registry(leadership.clone());
    let answers = admin::AdminEndpoints {
        // Without a token nobody asks for more than health.
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
        tracing::error!(%error, "the admin listener ended");
    }
}

/// Runs the four controllers until the token ends them.
async fn run_controllers(context: SharedContext, watch: Client, shutdown: CancellationToken) {
    let clusters = || Api::<RealtimeCluster>::all(watch.clone());
    let ours = || watcher::Config::default().labels("app.kubernetes.io/managed-by=realtime-operator");
    let any = watcher::Config::default;
    let make = || {
        Controller::new(clusters(), any())
            .with_config(Config::default().concurrency(CONCURRENT_RECONCILES_MAX).debounce(Duration::from_millis(50)))
            .graceful_shutdown_on(shutdown.clone().cancelled_owned())
    };
    let stream = make();
    let workload = make().owns(Api::<Deployment>::all(watch.clone()), ours());
    let apps = make();
    let served = apps.store();
    let apps = apps
        .watches(Api::<RealtimeApp>::all(watch.clone()), any(), move |app| {
            let namespace = app.namespace();
            let of = served.state();
            let of: Vec<_> = of
                .iter()
                .filter(|cluster| cluster.namespace() == namespace)
                .map(|c| ObjectRef::from_obj(&**c))
                .collect();
            of
        })
        .watches(Api::<PartialObjectMeta<Secret>>::all(watch.clone()), ours(), |secret| cluster_by_owner(&secret))
        .watches(Api::<PartialObjectMeta<Pod>>::all(watch.clone()), ours(), |pod| cluster_by_label(&pod));
    let (news, arriving) = mpsc::channel(REQUEUE_BUFFER_LEN);
    let probers = ClusterProbers::new(news, shutdown.clone());
    let gate = make();
    let store = gate.store();
    let gate = gate
        .watches(Api::<Pod>::all(watch.clone()), ours(), |pod| cluster_by_label(&pod))
        .reconcile_on(stream_from_receiver(arriving));
    let sweeping = {
        let (context, probers, shutdown) = (context.clone(), probers.clone(), shutdown.clone());
        async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(5)) => probers.stop_for_removed_clusters(&context, &store),
                }
            }
        }
    };
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
        sweeping,
    );
}

fn stream_from_receiver<T: Send + 'static>(mut receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// The cluster that a pod belongs to, by its labels.
fn cluster_by_label<K: ResourceExt>(object: &K) -> Option<ObjectRef<RealtimeCluster>> {
    let name = object.labels().get("app.kubernetes.io/instance")?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// The cluster that owns an object.
fn cluster_by_owner<K: ResourceExt>(object: &K) -> Option<ObjectRef<RealtimeCluster>> {
    let owner = object.owner_references().iter().find(|owner| owner.kind == "RealtimeCluster")?;
    Some(ObjectRef::new(&owner.name).within(&object.namespace()?))
}

/// One turn that failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FailedReconcile(ReconcileError);

/// Runs one controller: a turn has a time, a failure a back-off.
async fn drive_controller<F, R>(
    name: &'static str,
    controller: Controller<RealtimeCluster>,
    context: SharedContext,
    turn: F,
) where
    F: Fn(SharedContext, Arc<RealtimeCluster>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let turn = Arc::new(turn);
    let reconcile = move |cluster: Arc<RealtimeCluster>, context: SharedContext| {
        let turn = turn.clone();
        async move {
            let work = tokio::time::timeout(RECONCILE_TIMEOUT, turn(context.clone(), cluster.clone()));
            let result = work.await.unwrap_or_else(|_| {
                Err(ReconcileError::transient(
                    Reason::ApplyFailed,
                    format!("no end of the turn after {} s", RECONCILE_TIMEOUT.as_secs()),
                ))
            });
            match result {
                Ok(action) => {
                    context.reset_failures(name, &cluster);
                    Ok(action)
                }
                Err(stop) if stop.is_conflict => Ok(Action::requeue(CONFLICT_RETRY_DELAY)),
                Err(stop) => {
                    tracing::info!(controller = name, cluster = cluster_key(&cluster), %stop, "the turn ended early");
                    Err(FailedReconcile(stop))
                }
            }
        }
    };
    let policy = move |cluster: Arc<RealtimeCluster>, failed: &FailedReconcile, context: SharedContext| {
        Action::requeue(context.count_failure(name, &cluster, &failed.0))
    };
    controller
        .run(reconcile, policy, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(controller = name, %error, "a turn ended with an error");
            }
        })
        .await;
}
