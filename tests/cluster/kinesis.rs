//! The Kinesis of the cluster tests, as a process of its own: `kinesis ADDRESS:PORT CONTROL_ADDRESS:PORT`.
//!
//! On the first address it is Kinesis. On the second a test says how it fares:
//!
//! - `POST /away`: calls are taken and never answered, as when a network swallows them; `POST /back` ends it
//! - `POST /deny?action=PutRecords`: this action is refused, by default with `AccessDeniedException`; with
//!   `&error=ProvisionedThroughputExceededException` as throttled; `&stream=NAME` for one stream only;
//!   `POST /allow` ends all that
//! - `GET /calls`: how often each action was called, refused and swallowed ones too
//!
//! It writes one line when it listens, and ends with SIGTERM.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use realtime_operator::rehearsal::cloud;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Most bytes of a call: a PutRecords of 500 records of 1 MiB is refused by Kinesis long before.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// What is refused, and how.
#[derive(Clone, Deserialize)]
struct Denial {
    action: String,
    #[serde(default = "access_denied")]
    error: String,
    stream: Option<String>,
}

fn access_denied() -> String {
    "AccessDeniedException".to_owned()
}

#[derive(Default)]
struct Fare {
    away: bool,
    denials: Vec<Denial>,
    calls: BTreeMap<String, u64>,
}

#[derive(Clone, Default)]
struct Control(Arc<Mutex<Fare>>);

impl Control {
    fn fare(&self) -> MutexGuard<'_, Fare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let [address, control_address] = addresses.as_slice() else {
        return Err("usage: kinesis ADDRESS:PORT CONTROL_ADDRESS:PORT".into());
    };
    let control = Control::default();
    let listener = TcpListener::bind(address).await?;
    let control_listener = TcpListener::bind(control_address).await?;
    println!("kinesis on {}, control on {}", listener.local_addr()?, control_listener.local_addr()?);
    let kinesis = cloud().layer(from_fn_with_state(control.clone(), watched));
    tokio::try_join!(async { axum::serve(listener, kinesis).await }, async {
        axum::serve(control_listener, controls(control)).await
    },)?;
    Ok(())
}

fn controls(control: Control) -> Router {
    let away = |State(control): State<Control>| async move { control.fare().away = true };
    let back = |State(control): State<Control>| async move { control.fare().away = false };
    let deny = |State(control): State<Control>, Query(denial): Query<Denial>| async move {
        control.fare().denials.push(denial);
    };
    let allow = |State(control): State<Control>| async move { control.fare().denials.clear() };
    let calls = |State(control): State<Control>| async move { Json(control.fare().calls.clone()) };
    Router::new()
        .route("/away", post(away))
        .route("/back", post(back))
        .route("/deny", post(deny))
        .route("/allow", post(allow))
        .route("/calls", get(calls))
        .with_state(control)
}

/// Counts a call, then lets it through, refuses it or never answers.
async fn watched(State(control): State<Control>, request: Request, next: Next) -> Response {
    let action = action(&request);
    let (away, denials) = {
        let mut fare = control.fare();
        *fare.calls.entry(action.clone()).or_default() += 1;
        (fare.away, fare.denials.clone())
    };
    if away {
        // Whoever asked has to give up by a time limit of its own, even if Kinesis is back by then.
        std::future::pending::<()>().await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    if let Some(denial) = denials.iter().find(|denial| denial.action == action && denial.is_of(&body)) {
        return refused(denial);
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// `PutRecords` of `X-Amz-Target: Kinesis_20131202.PutRecords`.
fn action(request: &Request) -> String {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    target.and_then(|target| target.split('.').nth(1)).unwrap_or("unknown").to_owned()
}

impl Denial {
    /// Whether a call with this body is one of the stream that the denial is for.
    fn is_of(&self, body: &[u8]) -> bool {
        let Some(stream) = self.stream.as_deref() else { return true };
        let Ok(call) = serde_json::from_slice::<Value>(body) else { return false };
        let named = call["StreamName"].as_str() == Some(stream);
        named || call["StreamARN"].as_str().is_some_and(|arn| arn.ends_with(&format!("/{stream}")))
    }
}

fn refused(denial: &Denial) -> Response {
    let Denial { action, error, .. } = denial;
    let body = json!({ "__type": error, "message": format!("{action} is refused by the test") });
    let json = [(header::CONTENT_TYPE, "application/x-amz-json-1.1")];
    (StatusCode::BAD_REQUEST, json, body.to_string()).into_response()
}
