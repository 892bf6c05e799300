//! A real kinesis-local program, behind a proxy that lists every call and refuses those that a test names.

// A program that does not start ends its test where it stands; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use realtime_operator::kinesis::KinesisClient;
use serde_json::json;

use crate::fixtures::{connect_kinesis_as, serve_routes, wait_until_active};
use crate::resources::{LoggedProgram, command_bound_to_test, start_on_free_ports};
use crate::waiting::within;

/// The package, as `./test fast` installs it.
const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kinesis-local/node_modules/kinesis-local");

/// The emulator, killed with this value.
pub struct KinesisLocal {
    _program: LoggedProgram,
    /// Address of the proxy, or of a double in front of it.
    pub endpoint: String,
    /// Access key of its clients.
    access_key: &'static str,
    calls: CallLog,
}

/// The calls that passed the proxy, and those that it refuses.
#[derive(Clone, Default)]
struct CallLog(Arc<Mutex<CallState>>);

#[derive(Default)]
struct CallState {
    calls: Vec<String>,
    refused: Option<(&'static str, &'static str)>,
}

#[derive(Clone)]
struct Proxy {
    target: String,
    client: reqwest::Client,
    calls: CallLog,
}

impl CallLog {
    fn lock(&self) -> MutexGuard<'_, CallState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KinesisLocal {
    /// Starts the emulator with these settings of its own; each is a variable.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let main = Path::new(PACKAGE).join("main.js");
        assert!(main.exists(), "{} is missing: run ./test fast once, or npm ci in tests/kinesis-local", main.display());
        let (program, port) = start_on_free_ports(async |[plain, tls]: [u16; 2]| {
            let mut command = command_bound_to_test("node");
            command.arg(&main).env("KINESIS_MOCK_CERT_PATH", Path::new(PACKAGE).join("server.json"));
            command.env("KINESIS_MOCK_PLAIN_PORT", plain.to_string()).env("KINESIS_MOCK_TLS_PORT", tls.to_string());
            command.env("SHARD_LIMIT", "10000").envs(settings.iter().copied());
            let mut program = LoggedProgram::spawn("kinesis-local", &mut command);
            // It writes nothing when it listens.
            let listens = |_: &str| std::net::TcpStream::connect(("127.0.0.1", plain)).ok().map(drop);
            program.wait_until_ready(listens).await?;
            Ok((program, plain))
        })
        .await;
        realtime_operator::process::install_tls();
        let calls = CallLog::default();
        let target = format!("http://127.0.0.1:{port}");
        let proxy = Proxy { target, client: reqwest::Client::new(), calls: calls.clone() };
        let endpoint = serve_routes(Router::new().fallback(forward_call).with_state(proxy)).await;
        Self { _program: program, endpoint, access_key: "123456789012", calls }
    }

    /// The same emulator, whose clients reach it through `endpoint` with this access key.
    pub fn through(self, endpoint: String, access_key: &'static str) -> Self {
        Self { endpoint, access_key, ..self }
    }

    /// Refuses every call of this operation with this error code, until the next call of this function.
    pub fn refuse(&self, refused: Option<(&'static str, &'static str)>) {
        self.calls.lock().refused = refused;
    }

    /// The operations since the last call of this function, in order, refused ones too.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().calls)
    }

    /// A new client, as a process that starts has it.
    pub async fn client(&self, stream: &str) -> KinesisClient {
        connect_kinesis_as(self.access_key, &self.endpoint, stream).await
    }

    /// Waits until no change of a stream is in progress.
    pub async fn wait_until_active(&self, stream: &str) {
        wait_until_active(&self.client(stream).await).await;
    }
}

async fn forward_call(State(proxy): State<Proxy>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let refused = {
        let mut state = proxy.calls.lock();
        state.calls.push(operation.clone());
        state.refused.filter(|(refused, _)| *refused == operation)
    };
    let content_type = [(header::CONTENT_TYPE, "application/x-amz-json-1.1")];
    if let Some((_, code)) = refused {
        let answer = json!({ "__type": code, "message": "refused by the test" }).to_string();
        return (StatusCode::BAD_REQUEST, content_type, answer).into_response();
    }
    let answer = forward_request(&proxy.client, &proxy.target, &headers, body);
    let answer = within(crate::waiting::WAIT_TIMEOUT, "an answer of kinesis-local", answer).await;
    let (status, answer) = answer.expect("kinesis-local answers");
    (status, content_type, Body::from(answer)).into_response()
}

/// Forwards a signed call to Kinesis at `target`, and returns its status and body.
pub async fn forward_request(
    client: &reqwest::Client,
    target: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> reqwest::Result<(StatusCode, Bytes)> {
    let mut request = client.post(target).body(body);
    for name in ["x-amz-target", "authorization", "content-type", "x-amz-date"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await?;
    Ok((answer.status(), answer.bytes().await?))
}
