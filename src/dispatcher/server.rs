//! The process: starts the parts, serves the admin listener, stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use prometheus_client::registry::Registry as MetricsRegistry;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::allowed_endpoints;
use super::apps::{self, RegistryReceiver};
use super::byte_budget::ByteBudget;
use super::dead_letter::writer::start_writer;
use super::endpoint::pool::EndpointPool;
use super::metrics::{DispatcherMetrics, ErrorSource};
use super::own_checkpoints::OwnCheckpoints;
use super::retry::RetryPolicy;
use super::sender::WebhookSender;
use super::shard_discovery::discover_shards;
use super::shard_supervisor::ShardSupervisor;
use super::worker_resources::WorkerResources;
use super::{DispatcherDependencies, StartError};
use crate::config::{ServerConfig, name};
use crate::kinesis::KinesisErrorClass;
use crate::process::admin::{self, AdminEndpoints};
use crate::process::clock::{MonotonicClock, now_ms};
use crate::process::{build, readiness_annotation};
use crate::protocol::admin::{EffectiveReport, FlowReport, hash_configuration};
use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::signature::salted_digest;

/// Bounds the start's check for the stream; after it, discovery goes on in the background.
const STREAM_CHECK_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Bounds the stop of the admin listener, because a client may keep its connection open.
const ADMIN_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running dispatcher, which stops when dropped.
pub struct RunningDispatcher {
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// The process's id, a ULID, new at each start.
    pub process: String,
    /// The reason for which the dispatcher ended by itself, in one line for a person; `None` while it runs and after a
    /// requested end.
    pub failure: watch::Receiver<Option<String>>,
    work: JoinHandle<()>,
    _stop: DropGuard,
}

impl RunningDispatcher {
    /// Waits until the dispatcher has stopped, by its token or by its own failure: `failure` then has the reason.
    pub async fn wait_until_stopped(self) {
        if let Err(error) = self.work.await {
            tracing::error!(%error, "dispatcher task panicked");
        }
    }
}

/// Starts a dispatcher. Returns soon also when the stream is missing or unavailable: `/flow` shows it.
///
/// # Errors
/// The registry cannot be read, or the stream is denied.
pub async fn start(
    values: ServerConfig,
    dependencies: DispatcherDependencies,
) -> Result<RunningDispatcher, StartError> {
    crate::process::install_tls();
    let DispatcherDependencies { admin: listener, apps_dir, kinesis, leases, egress: network, shutdown } = dependencies;
    let address = listener.local_addr().map_err(StartError::Admin)?;
    let stop = shutdown.child_token();
    let guard = stop.clone().drop_guard();
    let metrics = Arc::new(DispatcherMetrics::default());
    let apps = apps::follow_registry(&apps_dir, Arc::clone(&metrics), stop.clone()).await?;
    match timeout(STREAM_CHECK_TIMEOUT, kinesis.describe_stream()).await {
        Ok(Err(error)) if error.class == KinesisErrorClass::Denied => return Err(StartError::Denied(error)),
        Ok(Err(error)) => metrics.set_error(ErrorSource::Discovery, error.to_string()),
        Ok(Ok(_)) | Err(_) => {}
    }
    let policy =
        EgressPolicy::new(values.list_items(name::ALLOWED_NETWORKS), values.list_items(name::ALLOWED_ENDPOINTS));
    let policy = Arc::new(policy);
    allowed_endpoints::follow_endpoints(&apps_dir, Arc::clone(&policy), stop.clone()).await;
    let sender = WebhookSender::new(policy, network, apps.clone(), Arc::clone(&metrics)).map_err(StartError::Client)?;
    let retry_policy = RetryPolicy {
        window_ms: values.number(name::RETRY_WINDOW_SECONDS) * 1_000,
        max_backoff_ms: values.number(name::MAX_BACKOFF_SECONDS) * 1_000,
    };
    let process = ulid::Ulid::new().to_string();
    let cluster = values.text(name::CLUSTER_UID).to_owned();
    let build = build::read_build_id().await;
    let variables = values.redacted_variables(|secret| salted_digest(values.text(name::ADMIN_TOKEN), secret));
    let configuration = hash_configuration(build, &variables);
    let admitted = readiness_annotation::watch_admission(&values, &configuration, stop.clone());
    let effective = EffectiveReport {
        process: process.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        configuration,
        time_ms: 0,
        variables,
        apps: std::collections::BTreeMap::new(),
    };
    let pool = EndpointPool::new(sender, retry_policy);
    let counted = (Arc::clone(&metrics), Arc::clone(&pool));
    let admin = build_admin(effective, &values, apps.clone(), counted, admitted.clone());
    let admin_stop = CancellationToken::new();
    let serving = tokio::spawn(admin::serve(listener, admin, admin_stop.clone()));

    let relist = Arc::new(Notify::new());
    let (sent, listings) = watch::channel(Arc::default());
    let discovery = discover_shards(kinesis.clone(), Arc::clone(&metrics), sent, Arc::clone(&relist), stop.clone());
    let dead_letter_stream = values.get(name::DEAD_LETTER_STREAM).filter(|stream| !stream.is_empty());
    let dead_letters = dead_letter_stream
        .map(|stream| start_writer(kinesis.of_stream(stream.into()), cluster.clone(), Arc::clone(&metrics)));
    let resources = WorkerResources {
        client: kinesis,
        start_ms: Some(values.number(name::STREAM_START_MS)).filter(|ms| *ms > 0),
        leases,
        own_checkpoints: OwnCheckpoints::default(),
        pool,
        apps,
        metrics,
        cluster,
        dead_letters,
        unknown_app_bytes: Arc::new(AtomicUsize::new(0)),
        listings,
        budget: ByteBudget::default(),
        held_shards: AtomicUsize::new(0),
        clock: MonotonicClock::start(),
    };
    let shards = ShardSupervisor::new(Arc::new(resources), process.clone(), relist, admitted).run(stop.clone());
    let (fail, failure) = watch::channel(None);
    let work = tokio::spawn(async move {
        let discovery = async {
            if let Some(line) = discovery.await {
                tracing::error!(line, "dispatcher failed: stopping");
                fail.send_replace(Some(line));
                stop.cancel();
            }
        };
        tokio::join!(discovery, shards);
        admin_stop.cancel();
        // A connection that a client keeps open must not delay the end of the process.
        let aborting = serving.abort_handle();
        if timeout(ADMIN_STOP_TIMEOUT, serving).await.is_err() {
            aborting.abort();
        }
    });
    tracing::info!(%process, %address, "dispatcher started");
    Ok(RunningDispatcher { admin: address, process, failure, work, _stop: guard })
}

/// The answers of the admin listener.
fn build_admin(
    effective: EffectiveReport,
    values: &ServerConfig,
    apps: RegistryReceiver,
    (metrics, pool): (Arc<DispatcherMetrics>, Arc<EndpointPool>),
    admitted: watch::Receiver<bool>,
) -> AdminEndpoints {
    let token = values.text(name::ADMIN_TOKEN).to_owned();
    let stream = values.text(name::STREAM_NAME).to_owned();
    let mut registry = MetricsRegistry::default();
    metrics.register(&mut registry);
    let (flow_process, salt, started_ms) = (effective.process.clone(), token.clone(), now_ms());
    let endpoints = {
        let (process, apps, metrics) = (effective.process.clone(), apps.clone(), Arc::clone(&metrics));
        move || to_json(&metrics.endpoints.report(&process, &Arc::clone(&apps.borrow())))
    };
    let effective = move || {
        to_json(&EffectiveReport { time_ms: now_ms(), apps: apps.borrow().app_digests(&salt), ..effective.clone() })
    };
    let flow = move || {
        to_json(&FlowReport {
            process: flow_process.clone(),
            started_ms,
            dispatcher: Some(metrics.flow_report(&stream, pool.unfinished_deliveries())),
            ..FlowReport::default()
        })
    };
    // Readiness does not depend on Kinesis: its outage would make every dispatcher unready at once.
    let ready = Box::new(move || {
        let admitted = *admitted.borrow();
        admitted
            .then_some(())
            .ok_or_else(|| "not admitted yet: a webhook through this pod must arrive first".to_owned())
    });
    AdminEndpoints {
        live: Box::new(|| Ok(())),
        token,
        ready,
        effective: Box::new(effective),
        flow: Box::new(flow),
        endpoints: Some(Box::new(endpoints)),
        drain: None,
        tail: None,
        metrics: registry,
    }
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
