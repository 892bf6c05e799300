//! The answers of an edge on its admin listener.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::config::{ServerConfig, name};
use crate::edge::connection_log::{ConnectionLog, READERS_MAX};
use crate::edge::error::StopError;
use crate::edge::http::health::HealthChecks;
use crate::edge::hub::core::Hub;
use crate::edge::server::drain::{self, EdgeDrain};
use crate::process::admin::{self, AdminEndpoints, FollowLogFn, HealthCheckFn, TailRefusal};
use crate::process::{build, clock, readiness_annotation};
use crate::protocol::admin::{EffectiveReport, FlowReport, hash_configuration};
use crate::protocol::{AppId, Transport, signature};

/// Longest silence of `/tail`: a reader behind a port-forward sees that the edge is still there.
const TAIL_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// Builds the handlers of `/readyz`, `/effective`, `/flow`, the drain and the metrics, and the checks of load balancers.
pub(crate) async fn build_admin_handlers(
    values: &ServerConfig,
    process: &str,
    shared: &Arc<Hub>,
    drain: &Arc<EdgeDrain>,
    stop: &CancellationToken,
) -> (AdminEndpoints, Arc<HealthChecks>) {
    let mut metrics = Registry::default();
    shared.metrics.register(&mut metrics);
    let token = values.text(name::ADMIN_TOKEN).to_owned();
    let variables = values.redacted_variables(|secret| signature::salted_digest(&token, secret));
    let configuration = hash_configuration(build::read_build_id().await, &variables);
    let admitted = readiness_annotation::watch_admission(values, &configuration, stop.clone());
    let effective = {
        let (shared, process, salt) = (shared.clone(), process.to_owned(), token.clone());
        move || {
            encode_json(&EffectiveReport {
                process: process.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                configuration: configuration.clone(),
                time_ms: clock::now_ms(),
                variables: variables.clone(),
                apps: shared.apps.current().app_digests(&salt),
            })
        }
    };
    let flow = {
        let (shared, process, started_ms) = (shared.clone(), process.to_owned(), clock::now_ms());
        let drain = drain.clone();
        let admitted = admitted.clone();
        let transports: Vec<Transport> =
            values.list_items(name::TRANSPORTS).filter_map(|text| text.parse().ok()).collect();
        move || {
            encode_json(&FlowReport {
                process: process.clone(),
                started_ms,
                sessions: drain.session_flow(&transports),
                sessions_max: Some(if *admitted.borrow() { drain.sessions_max() } else { 0 }),
                recorder: Some(shared.recorder.flow_report()),
                dispatcher: None,
            })
        }
    };
    let check_ready = build_check(drain.clone(), admitted.clone(), EdgeDrain::is_serving);
    let checks = HealthChecks {
        is_serving: build_check(drain.clone(), admitted.clone(), EdgeDrain::is_keeping_sessions),
        is_ready: build_check(drain.clone(), admitted, EdgeDrain::is_serving),
    };
    let drain = drain::build_drain_handlers(drain.clone());
    let endpoints = AdminEndpoints {
        live: Box::new(|| Ok(())),
        token,
        ready: check_ready,
        effective: Box::new(effective),
        flow: Box::new(flow),
        endpoints: None,
        drain: Some(drain),
        tail: Some(build_log_handler(shared.log.clone(), stop.clone())),
        metrics,
    };
    (endpoints, Arc::new(checks))
}

/// Builds the handler of `/tail`. Its lines end with the process, and come at least every [`TAIL_HEARTBEAT_INTERVAL`].
fn build_log_handler(log: Arc<ConnectionLog>, stop: CancellationToken) -> Box<FollowLogFn> {
    Box::new(move |query| {
        let mut app = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "app" => app = Some(AppId::from(&*value)),
                other => return Err(TailRefusal::Query(format!("`{other}` is no parameter"))),
            }
        }
        let reader = log.add_reader(app).ok_or(TailRefusal::Full(READERS_MAX))?;
        let stop = stop.clone();
        Ok(futures::stream::unfold((reader, stop), async |(mut reader, stop)| {
            let line = tokio::select! {
                () = stop.cancelled() => return None,
                entry = reader.next() => encode_json(&entry?).to_string() + "\n",
                () = tokio::time::sleep(TAIL_HEARTBEAT_INTERVAL) => "\n".to_owned(),
            };
            Some((line, (reader, stop)))
        })
        .boxed())
    })
}

/// A check of the admission, and of the drain's stage.
fn build_check(drain: Arc<EdgeDrain>, admitted: watch::Receiver<bool>, holds: fn(&EdgeDrain) -> bool) -> HealthCheckFn {
    Box::new(move || match (holds(&drain), *admitted.borrow()) {
        (false, _) => Err("going away".to_owned()),
        (_, false) => Err("not admitted yet: a client's event through this pod must arrive first".to_owned()),
        (true, true) => Ok(()),
    })
}

fn encode_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// Serves the admin listener, and reports its failure.
pub(crate) async fn serve_admin(
    listener: TcpListener,
    answers: AdminEndpoints,
    stop: CancellationToken,
    failures: mpsc::Sender<StopError>,
) {
    if let Err(error) = admin::serve(listener, answers, stop).await {
        let _ = failures.send(StopError::Listener(error.to_string())).await;
    }
}
