//! Kinesis in this process, with a region apart from another as in the real one.
//!
//! A call is signed for a region, and the stores of two regions know nothing of each other: a server with the wrong
//! region finds no stream, as it would in the cloud. Each server has an identity of its own, by which faults of the
//! account, such as a denied call, concern some servers only.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use ferrokinesis::shard_iterator::decode_shard_iterator;
use ferrokinesis::store::StoreOptions;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::faults::{Fault, FaultSwitches};
use crate::config::ServerKind;
use crate::kinesis::{AwsCredentials, KinesisClient, KinesisError, KinesisErrorClass, LiveCapacity, StreamSettings};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::record::StreamRecord;
use crate::protocol::{AppId, StreamName};

/// A stream's creation takes this long here; in the cloud it is some seconds.
const STREAM_CREATE_DELAY_MS: u64 = 20;

/// Largest request that is read because a fault changes its effect: `PutRecords` takes 5 MiB, in base64.
const FAULTY_REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest answer of `PutRecords`: 500 records of a shard's id and a sequence number.
const PUT_ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The first shard of every stream.
const FIRST_SHARD: &str = "shardId-000000000000";

/// Largest `CreateStream`: a name and 50 tags of 384 characters.
const CREATE_REQUEST_BYTES_MAX: usize = 128 * 1024;

/// Bytes of records that a region of a rehearsal keeps at most; it refuses further ones.
const RETAINED_BYTES_MAX: u64 = 256 << 20;

/// Separates the server from the number in a pod's identity.
const POD_SEPARATOR: char = '.';

/// Content type of answers in JSON, as Kinesis has it.
const JSON_CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// The account: a store per region, and what is wrong with it.
#[derive(Clone)]
struct CloudAccount {
    stores: Arc<Mutex<HashMap<String, Router>>>,
    faults: FaultSwitches,
    /// The app of the journeys, whose records no fault of other apps concerns.
    journeys_app: Option<AppId>,
    /// Bytes of records that a region keeps at most.
    retained_bytes_max: u64,
}

/// Kinesis, to be served or put behind something that watches or breaks it.
pub fn kinesis_router() -> Router {
    build_router(FaultSwitches::default(), None, RETAINED_BYTES_MAX)
}

/// Kinesis without faults, of which each region keeps so many bytes of records at most.
pub fn kinesis_router_of(retained_bytes_max: u64) -> Router {
    build_router(FaultSwitches::default(), None, retained_bytes_max)
}

fn build_router(faults: FaultSwitches, journeys_app: Option<AppId>, retained_bytes_max: u64) -> Router {
    let account = CloudAccount { stores: Arc::default(), faults, journeys_app, retained_bytes_max };
    Router::new().fallback(route_by_region).with_state(account)
}

/// Serves Kinesis on `listener`, with the faults that are on, until the token ends it.
pub fn serve(
    listener: TcpListener,
    faults: FaultSwitches,
    journeys_app: Option<AppId>,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let router = build_router(faults, journeys_app, RETAINED_BYTES_MAX);
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "in-process Kinesis failed");
        }
    })
}

async fn route_by_region(State(account): State<CloudAccount>, request: Request) -> Response {
    let KinesisCall { region, server, by_first_pod, operation } = KinesisCall::read(request.headers());
    if let Some((code, message)) = find_refusal(&account.faults, &operation) {
        return refuse_call(code, message);
    }
    let writes_nothing = account.faults.is_on(Fault::OldImage) || (by_first_pod && account.faults.is_on(Fault::BadPod));
    let by_fallbacks = server.is_some_and(|server| server.serves_as(ServerKind::Sockjs));
    if by_fallbacks && operation == "PutRecords" && writes_nothing {
        return discard_records(request).await;
    }
    let by_dispatcher = server == Some(ServerKind::Dispatcher);
    let store = {
        let mut stores = lock_unpoisoned(&account.stores);
        stores.entry(region.clone()).or_insert_with(|| region_store(region, account.retained_bytes_max)).clone()
    };
    match operation.as_str() {
        "CreateStream" => create_tagged_stream(store, request).await,
        "GetRecords" if by_dispatcher && account.faults.is_on(Fault::UnreadShard) => {
            read_other_shards(store, request).await
        }
        "PutRecords" if account.faults.is_on(Fault::SilentApps) => {
            put_records_of_app(store, request, account.journeys_app.as_ref()).await
        }
        _ => call_store(store, request).await,
    }
}

async fn call_store(store: Router, request: Request) -> Response {
    store.oneshot(request).await.unwrap_or_else(|never: std::convert::Infallible| match never {})
}

/// Creates a stream with the tags of the request, as Kinesis does; the store leaves them out.
async fn create_tagged_stream(store: Router, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, CREATE_REQUEST_BYTES_MAX).await.unwrap_or_default();
    let call: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut tagging = Request::from_parts(head.clone(), Body::empty());
    let created = call_store(store.clone(), Request::from_parts(head, Body::from(body))).await;
    if !created.status().is_success() || !call["Tags"].is_object() {
        return created;
    }
    *tagging.body_mut() = Body::from(json!({ "StreamName": call["StreamName"], "Tags": call["Tags"] }).to_string());
    tagging.headers_mut().remove(header::CONTENT_LENGTH);
    tagging.headers_mut().insert("x-amz-target", HeaderValue::from_static("Kinesis_20131202.AddTagsToStream"));
    let tagged = call_store(store, tagging).await;
    if tagged.status().is_success() { created } else { tagged }
}

/// Makes a store safe for readers at its end. The store numbers the records of a call before it stores them, so that a read in
/// between would pass them for ever; in Kinesis that cannot happen. With this layer no call is half done during a read.
pub fn separate_reads_from_puts(store: Router) -> Router {
    store.layer(axum::middleware::from_fn_with_state(Arc::new(RwLock::new(())), run_apart))
}

/// Runs reads alone, and puts together.
async fn run_apart(State(puts): State<Arc<RwLock<()>>>, request: Request, next: Next) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (is_put, is_read) = (target.contains(".PutRecord"), target.ends_with(".GetRecords"));
    let _put = if is_put { Some(puts.read().await) } else { None };
    let _read = if is_read { Some(puts.write().await) } else { None };
    next.run(request).await
}

fn region_store(region: String, retained_bytes_max: u64) -> Router {
    let options = StoreOptions {
        aws_region: region,
        create_stream_ms: STREAM_CREATE_DELAY_MS,
        shard_limit: 10_000,
        max_retained_bytes: Some(retained_bytes_max),
        ..StoreOptions::default()
    };
    separate_reads_from_puts(ferrokinesis::create_app(options).0)
}

/// The part of a request that its headers hold.
struct KinesisCall {
    region: String,
    /// The server whose identity signed; `None` for the operator's.
    server: Option<ServerKind>,
    /// Whether the identity is that of the first pod of its server.
    by_first_pod: bool,
    operation: String,
}

impl KinesisCall {
    fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let authorization = text(header::AUTHORIZATION.as_str());
        let identity = credential_part(authorization, 0).unwrap_or_default();
        let (server, pod) = identity.split_once(POD_SEPARATOR).unwrap_or((identity, ""));
        Self {
            region: credential_part(authorization, 2).unwrap_or("none").to_owned(),
            by_first_pod: pod == "0",
            server: server.parse().ok(),
            operation: text("x-amz-target").rsplit('.').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The error by which the account refuses a call while a fault is on.
fn find_refusal(faults: &FaultSwitches, operation: &str) -> Option<(&'static str, &'static str)> {
    let puts = operation == "PutRecords";
    if faults.is_on(Fault::StreamGone) {
        return Some(("ResourceNotFoundException", "the stream does not exist"));
    }
    if puts && faults.is_on(Fault::PutDenied) {
        return Some(("AccessDeniedException", "no policy allows the identity to perform kinesis:PutRecords"));
    }
    let throttled = puts && faults.is_on(Fault::Throttled);
    throttled.then_some(("ProvisionedThroughputExceededException", "the rate of every shard is exceeded"))
}

fn refuse_call(code: &str, message: &str) -> Response {
    let body = json!({ "__type": code, "message": message }).to_string();
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, JSON_CONTENT_TYPE)], body).into_response()
}

/// Acknowledges every record and stores none.
async fn discard_records(request: Request) -> Response {
    let (_, request) = read_json(request).await;
    let count = request["Records"].as_array().map_or(0, Vec::len);
    let record = json!({ "SequenceNumber": "0", "ShardId": "shardId-000000000000" });
    let answer = json!({ "FailedRecordCount": 0, "Records": vec![record; count] });
    ([(header::CONTENT_TYPE, JSON_CONTENT_TYPE)], answer.to_string()).into_response()
}

/// Answers that the first shard has no new record, with the same iterator again; other shards are read.
async fn read_other_shards(store: Router, request: Request) -> Response {
    let (head, call) = read_json(request).await;
    let iterator = call["ShardIterator"].as_str().unwrap_or_default();
    match decode_shard_iterator(iterator) {
        Ok((_, _, shard, _)) if shard == FIRST_SHARD => {
            let page = json!({ "Records": [], "NextShardIterator": iterator, "MillisBehindLatest": 0 });
            ([(header::CONTENT_TYPE, JSON_CONTENT_TYPE)], page.to_string()).into_response()
        }
        _ => call_store(store, with_json(head, &call)).await,
    }
}

/// Stores the records of one app, and refuses those of the others.
async fn put_records_of_app(store: Router, request: Request, app: Option<&AppId>) -> Response {
    let (head, mut call) = read_json(request).await;
    let records = call["Records"].as_array().cloned().unwrap_or_default();
    let is_stored: Vec<bool> = records.iter().map(|record| app.is_some_and(|app| is_record_of(record, app))).collect();
    let stored: Vec<Value> =
        records.into_iter().zip(&is_stored).filter(|(_, stored)| **stored).map(|(record, _)| record).collect();
    let mut results = vec![];
    if !stored.is_empty() {
        call["Records"] = stored.into();
        let (head, body) = call_store(store, with_json(head, &call)).await.into_parts();
        let body = axum::body::to_bytes(body, PUT_ANSWER_BYTES_MAX).await.unwrap_or_default();
        if !head.status.is_success() {
            return Response::from_parts(head, Body::from(body));
        }
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        results = answer["Records"].as_array().cloned().unwrap_or_default();
    }
    let mut results = results.into_iter();
    let refusal = || json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "Internal service failure." });
    let mut answer_record = |stored: bool| stored.then(|| results.next()).flatten().unwrap_or_else(refusal);
    let answers: Vec<Value> = is_stored.into_iter().map(&mut answer_record).collect();
    let failed = answers.iter().filter(|answer| answer["ErrorCode"].is_string()).count();
    let answer = json!({ "FailedRecordCount": failed, "Records": answers });
    ([(header::CONTENT_TYPE, JSON_CONTENT_TYPE)], answer.to_string()).into_response()
}

/// Whether a record of `PutRecords` holds events of an app.
fn is_record_of(record: &Value, app: &AppId) -> bool {
    let data = record["Data"].as_str().unwrap_or_default();
    let data = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
    serde_json::from_slice::<StreamRecord>(&data).is_ok_and(|record| record.app == *app)
}

/// The head and the body of a request in JSON.
async fn read_json(request: Request) -> (Parts, Value) {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, FAULTY_REQUEST_BYTES_MAX).await.unwrap_or_default();
    (head, serde_json::from_slice(&body).unwrap_or_default())
}

/// The request with another body; the store verifies no signature.
fn with_json(mut head: Parts, body: &Value) -> Request {
    head.headers.remove(header::CONTENT_LENGTH);
    Request::from_parts(head, Body::from(body.to_string()))
}

/// A part of the credential in `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/kinesis/aws4_request, …`.
fn credential_part(authorization: &str, index: usize) -> Option<&str> {
    authorization.split("Credential=").nth(1)?.split('/').nth(index)
}

/// The identity of a pod: its server, and its number among the pods of the server.
#[must_use]
pub fn pod_identity(server: ServerKind, number: usize) -> String {
    format!("{}{POD_SEPARATOR}{number}", server.name())
}

/// The client settings by which a process reaches this cloud as `caller`.
#[must_use]
pub fn client_settings(address: SocketAddr, caller: &str, region: &str, stream: &StreamName) -> StreamSettings {
    StreamSettings {
        stream: stream.clone(),
        region: region.to_owned(),
        endpoint: Some(format!("http://{address}")),
        credentials: AwsCredentials::Static {
            access_key_id: caller.to_owned(),
            secret_access_key: "rehearsal".to_owned(),
        },
    }
}

/// Creates the stream, unless it exists, and waits until it can be used.
///
/// # Errors
/// It cannot be created within 10 s.
pub async fn create_stream(client: &KinesisClient, shards: u32) -> Result<(), KinesisError> {
    match client.create_stream(LiveCapacity::Provisioned(shards), &std::collections::BTreeMap::new()).await {
        Err(error) if error.class != KinesisErrorClass::Busy => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for _ in 0..500 {
        if client.describe_stream().await?.status == "ACTIVE" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(KinesisError {
        operation: "CreateStream",
        stream: client.stream().to_string(),
        region: client.region().to_owned(),
        class: KinesisErrorClass::Transient,
        code: String::new(),
        message: "not ACTIVE after 10 s".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinesis::{PutEntry, ReadPosition};

    #[test]
    fn caller_and_region_are_read_from_the_signature() {
        let text = "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host";
        assert_eq!((credential_part(text, 0), credential_part(text, 2)), (Some("AK"), Some("eu-west-1")));
        assert_eq!(credential_part("Basic x", 2), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_reader_at_the_end_misses_no_record_of_concurrent_calls() {
        const WRITERS: usize = 8;
        const CALLS: usize = 40;
        const RECORDS: usize = 50;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = serve(listener, FaultSwitches::default(), None, CancellationToken::new());
        let client =
            KinesisClient::connect(&client_settings(address, "test", "eu-west-1", &StreamName::from("s"))).await;
        create_stream(&client, 1).await.expect("created");
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let client = client.clone();
            writers.spawn(async move {
                let entry = |n| PutEntry { partition_key: format!("{writer}/{n}"), data: vec![b'x'; 300].into() };
                let entries: Vec<PutEntry> = (0..RECORDS).map(entry).collect();
                for _ in 0..CALLS {
                    client.put_records(&entries).await.expect("put");
                }
            });
        }
        let shard = client.list_shards().await.expect("shards")[0].id.clone();
        let mut at = client.request_iterator(&shard, &ReadPosition::TrimHorizon).await.expect("an iterator");
        let (mut read, mut ended) = (0, false);
        while !ended {
            // Once more after the last call has ended.
            ended = writers.is_empty();
            while writers.try_join_next().is_some() {}
            loop {
                let page = client.read(&at, 10_000).await.expect("a page");
                at = page.next.expect("an open shard");
                read += page.records.len();
                if page.records.is_empty() {
                    break;
                }
            }
        }
        assert_eq!(read, WRITERS * CALLS * RECORDS);
        served.abort();
    }

    #[tokio::test]
    async fn regions_know_nothing_of_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let served = serve(listener, FaultSwitches::default(), None, shutdown.clone());
        let stream = StreamName::from("s");
        let here = KinesisClient::connect(&client_settings(address, "test", "eu-west-1", &stream)).await;
        let there = KinesisClient::connect(&client_settings(address, "test", "us-east-1", &stream)).await;
        create_stream(&here, 2).await.expect("created");
        assert_eq!(here.list_shards().await.expect("shards").len(), 2);
        assert_eq!(there.describe_stream().await.expect_err("none").class, KinesisErrorClass::NotFound);
        let tags = std::collections::BTreeMap::from([("realtime-operator.dev/owner".to_owned(), "k/n/eu".to_owned())]);
        there.create_stream(LiveCapacity::Provisioned(1), &tags).await.expect("created");
        assert_eq!(there.list_tags().await.expect("tags"), tags, "the tags are there once the stream is");
        shutdown.cancel();
        served.await.expect("ended");
    }
}
