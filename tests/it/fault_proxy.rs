//! A switch of faults between the Kinesis of the tests and a server under test.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Largest request or answer that is held: `PutRecords` takes 5 MiB, in base64.
const BODY_BYTES_MAX: usize = 16 << 20;

/// How calls fail; each fault concerns `PutRecords` alone unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// Every call is refused with status 500.
    ServiceFailure,
    /// Every second record of a call is refused as throttled; the others are stored.
    RefusedEntries,
    /// The call is carried out, and its answer replaced by status 500.
    LostReply,
    /// Every call for the stream of this name is refused with status 500.
    UnavailableStream(&'static str),
    /// Every record is acknowledged, and none is stored.
    SwallowedRecords,
}

/// The switch of the faults.
#[derive(Clone, Default)]
pub struct FaultSwitch(Arc<Mutex<Option<CallFault>>>);

impl FaultSwitch {
    pub fn set(&self, fault: Option<CallFault>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn fault(&self) -> Option<CallFault> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets calls fail as the switch says; for `axum::middleware::from_fn_with_state`.
pub async fn apply_fault(State(switch): State<FaultSwitch>, request: Request, next: Next) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_put = target.ends_with(".PutRecords");
    match switch.fault() {
        Some(CallFault::ServiceFailure) => refuse_call(),
        Some(CallFault::LostReply) if is_put => {
            next.run(request).await;
            refuse_call()
        }
        Some(CallFault::SwallowedRecords) if is_put => swallow_entries(request).await,
        Some(CallFault::RefusedEntries) if is_put => refuse_entries(request, next).await,
        Some(CallFault::UnavailableStream(stream)) if is_put => refuse_stream(stream, request, next).await,
        _ => next.run(request).await,
    }
}

fn refuse_call() -> Response {
    let body = json!({ "__type": "InternalFailure", "message": "switched" }).to_string();
    (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}

async fn refuse_stream(stream: &str, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.expect("a body");
    let call: Value = serde_json::from_slice(&bytes).expect("json");
    if call["StreamName"] == stream {
        return refuse_call();
    }
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

async fn swallow_entries(request: Request) -> Response {
    let bytes = to_bytes(request.into_body(), BODY_BYTES_MAX).await.expect("a body");
    let call: Value = serde_json::from_slice(&bytes).expect("json");
    let count = call["Records"].as_array().expect("records").len();
    let stored = json!({ "SequenceNumber": "0", "ShardId": "shardId-000000000000" });
    let answer = json!({ "FailedRecordCount": 0, "Records": vec![stored; count] });
    ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer.to_string()).into_response()
}

async fn refuse_entries(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.expect("a body");
    let mut call: Value = serde_json::from_slice(&bytes).expect("json");
    let entries = call["Records"].as_array().expect("records").clone();
    let stored: Vec<Value> = entries.iter().step_by(2).cloned().collect();
    call["Records"] = Value::Array(stored);
    remove_length(&mut parts.headers);
    let answer = next.run(Request::from_parts(parts, Body::from(call.to_string()))).await;
    let (mut parts, body) = answer.into_parts();
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.expect("a body");
    let mut answer: Value = serde_json::from_slice(&bytes).expect("json");
    let mut stored = answer["Records"].as_array().expect("records").clone().into_iter();
    let refused = json!({ "ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "switched" });
    let results = (0..entries.len())
        .map(|n| if n % 2 == 0 { stored.next().expect("a result") } else { refused.clone() })
        .collect::<Vec<_>>();
    answer["FailedRecordCount"] = json!(entries.len() / 2);
    answer["Records"] = Value::Array(results);
    remove_length(&mut parts.headers);
    Response::from_parts(parts, Body::from(answer.to_string()))
}

fn remove_length(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
}
