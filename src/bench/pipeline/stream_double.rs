//! The Kinesis of a run, in this process and on loopback, with faults that the run switches and counts of its calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::DropGuard;

use super::super::error::BenchError;
use super::loopback::serve_on_loopback;
use crate::kinesis::{AwsCredentials, KinesisClient, KinesisError, LiveCapacity, StreamSettings};

/// Name of the run's stream.
pub const STREAM: &str = "bench";

/// Region of the run's stream.
pub const REGION: &str = "eu-west-1";

/// Credential that calls are signed with; the double accepts any.
pub const CREDENTIAL: &str = "bench";

/// Time that each call takes on a slow stream: as long as the attempt timeout of a real client.
const SLOW_CALL_DELAY: Duration = Duration::from_secs(5);

/// Bounds the wait for a new stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest call that is read: `PutRecords` takes 10 MiB, in base64.
const CALL_BYTES_MAX: usize = 16 << 20;

/// Bytes of a PUT payload unit, the unit that provisioned streams are billed by.
const PAYLOAD_UNIT_BYTES: usize = 25 * 1024;

/// The condition of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCondition {
    /// Every call is carried out.
    Well = 0,
    /// Every call is refused with status 500.
    Down = 1,
    /// Every call is carried out after [`SLOW_CALL_DELAY`].
    Slow = 2,
    /// Every call is refused because the rate of the shards is exceeded.
    Throttled = 3,
}

impl StreamCondition {
    /// Every condition; the undisturbed one first.
    pub const ALL: [Self; 4] = [Self::Well, Self::Down, Self::Slow, Self::Throttled];

    fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|condition| *condition as u8 == number).unwrap_or(Self::Well)
    }
}

/// Calls since the start of the double.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// `PutRecords` calls, refused ones too.
    pub puts: u64,
    /// `GetRecords` calls, refused ones too.
    pub reads: u64,
    /// Records put, while records are counted.
    pub records: u64,
    /// PUT payload units of these records.
    pub payload_units: u64,
}

impl std::ops::Sub for CallCounts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            puts: self.puts - before.puts,
            reads: self.reads - before.reads,
            records: self.records - before.records,
            payload_units: self.payload_units - before.payload_units,
        }
    }
}

#[derive(Default)]
struct DoubleState {
    condition: AtomicU8,
    /// Whether records are parsed and counted, which costs CPU.
    counts_records: AtomicBool,
    puts: AtomicU64,
    reads: AtomicU64,
    records: AtomicU64,
    payload_units: AtomicU64,
}

/// A running Kinesis with one stream.
pub struct StreamDouble {
    /// URL of the API.
    pub endpoint: String,
    state: Arc<DoubleState>,
    _stop: DropGuard,
}

impl StreamDouble {
    /// Serves a Kinesis, and creates the stream.
    pub async fn start(kinesis: Router, shards: usize) -> Result<Self, BenchError> {
        let state = Arc::<DoubleState>::default();
        let router = kinesis.layer(from_fn_with_state(state.clone(), apply_condition));
        let (address, stop) = serve_on_loopback(router, "no port for the stream is free").await?;
        let double = Self { endpoint: format!("http://{address}"), state, _stop: stop };
        double.create_stream(shards).await?;
        Ok(double)
    }

    /// A client of the stream.
    pub async fn connect(&self) -> KinesisClient {
        KinesisClient::connect(&StreamSettings {
            stream: STREAM.into(),
            region: REGION.to_owned(),
            endpoint: Some(self.endpoint.clone()),
            credentials: AwsCredentials::Static {
                access_key_id: CREDENTIAL.to_owned(),
                secret_access_key: CREDENTIAL.to_owned(),
            },
        })
        .await
    }

    /// Changes the condition; calls that have begun are not affected.
    pub fn set_condition(&self, condition: StreamCondition) {
        self.state.condition.store(condition as u8, Ordering::Relaxed);
    }

    /// Counts records from now on.
    pub fn count_records(&self) {
        self.state.counts_records.store(true, Ordering::Relaxed);
    }

    /// The calls so far.
    pub fn calls(&self) -> CallCounts {
        let state = &self.state;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallCounts {
            puts: load(&state.puts),
            reads: load(&state.reads),
            records: load(&state.records),
            payload_units: load(&state.payload_units),
        }
    }

    async fn create_stream(&self, shards: usize) -> Result<(), BenchError> {
        let client = self.connect().await;
        let capacity = LiveCapacity::Provisioned(u32::try_from(shards).unwrap_or(u32::MAX));
        client
            .create_stream(capacity, &std::collections::BTreeMap::new())
            .await
            .map_err(|error| stream_error(&error))?;
        let deadline = Instant::now() + STREAM_TIMEOUT;
        while client.describe_stream().await.map_err(|error| stream_error(&error))?.status != "ACTIVE" {
            if Instant::now() > deadline {
                let detail = format!("not ACTIVE after {STREAM_TIMEOUT:?}");
                return Err(BenchError::Server { server: "the stream", step: "its creation", detail });
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The error of a call that a figure depends on.
pub fn stream_error(error: &KinesisError) -> BenchError {
    BenchError::Server { server: "the stream", step: error.operation, detail: error.to_string() }
}

async fn apply_condition(State(state): State<Arc<DoubleState>>, request: Request, next: Next) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (puts, reads) = (target.ends_with(".PutRecords"), target.ends_with(".GetRecords"));
    state.puts.fetch_add(u64::from(puts), Ordering::Relaxed);
    state.reads.fetch_add(u64::from(reads), Ordering::Relaxed);
    match StreamCondition::from_number(state.condition.load(Ordering::Relaxed)) {
        StreamCondition::Well if puts && state.counts_records.load(Ordering::Relaxed) => {
            next.run(count_records(&state, request).await).await
        }
        StreamCondition::Well => next.run(request).await,
        StreamCondition::Slow => {
            sleep(SLOW_CALL_DELAY).await;
            next.run(request).await
        }
        StreamCondition::Down => refuse_call(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure"),
        StreamCondition::Throttled => refuse_call(StatusCode::BAD_REQUEST, "ProvisionedThroughputExceededException"),
    }
}

fn refuse_call(status: StatusCode, code: &str) -> Response {
    let body = json!({ "__type": code, "message": "switched by the benchmark" }).to_string();
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}

async fn count_records(state: &DoubleState, request: Request) -> Request {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, CALL_BYTES_MAX).await.unwrap_or_default();
    let (records, units) = measure_call(&bytes);
    state.records.fetch_add(records, Ordering::Relaxed);
    state.payload_units.fetch_add(units, Ordering::Relaxed);
    Request::from_parts(parts, Body::from(bytes))
}

/// Counts the records of a `PutRecords` call, and their payload units.
fn measure_call(call: &[u8]) -> (u64, u64) {
    let call: Value = serde_json::from_slice(call).unwrap_or_default();
    let records = call["Records"].as_array().map(Vec::as_slice).unwrap_or_default();
    let units = records.iter().map(|record| {
        // Four characters of base64 are three bytes; the key counts too.
        let data = record["Data"].as_str().map_or(0, |data| data.len() / 4 * 3);
        let key = record["PartitionKey"].as_str().map_or(0, str::len);
        (data + key).div_ceil(PAYLOAD_UNIT_BYTES) as u64
    });
    (records.len() as u64, units.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_their_payload_units_are_counted() {
        let record = |bytes: usize| json!({ "Data": "x".repeat(bytes / 3 * 4), "PartitionKey": "1/a" });
        let call = json!({ "Records": [record(300), record(3 * 8_191), record(3 * 8_533), record(60_000)] });
        assert_eq!(measure_call(call.to_string().as_bytes()), (4, 1 + 1 + 2 + 3));
        assert_eq!(measure_call(b"rubbish"), (0, 0));
    }

    #[tokio::test]
    async fn calls_fail_as_the_condition_says_and_are_counted() {
        use crate::kinesis::KinesisErrorClass;
        use axum::routing::post;
        let answer = async |request: Request| {
            let target = request.headers()["x-amz-target"].to_str().unwrap_or_default().to_owned();
            let summary = json!({ "StreamDescriptionSummary": {
                "StreamName": STREAM, "StreamARN": "arn:aws:kinesis:eu-west-1:000000000000:stream/bench",
                "StreamStatus": "ACTIVE", "RetentionPeriodHours": 24, "StreamCreationTimestamp": 1,
                "EnhancedMonitoring": [], "OpenShardCount": 1,
            } });
            let put = json!({ "FailedRecordCount": 0, "Records": [{ "SequenceNumber": "1", "ShardId": "s" }] });
            let answer = if target.ends_with("DescribeStreamSummary") { summary } else { put };
            ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer.to_string())
        };
        crate::process::install_tls();
        let double = StreamDouble::start(Router::new().route("/", post(answer)), 1).await.expect("a stream");
        let client = double.connect().await;
        let entry = crate::kinesis::PutEntry { partition_key: "1/a".to_owned(), data: "x".into() };
        let put = async || client.put_records(std::slice::from_ref(&entry)).await;
        assert!(put().await.is_ok());
        for (condition, class) in [
            (StreamCondition::Down, KinesisErrorClass::Transient),
            (StreamCondition::Throttled, KinesisErrorClass::Throttled),
        ] {
            double.set_condition(condition);
            assert_eq!(put().await.expect_err("refused").class, class, "{condition:?}");
        }
        double.set_condition(StreamCondition::Well);
        double.count_records();
        let before = double.calls();
        assert!(put().await.is_ok());
        let calls = double.calls() - before;
        assert_eq!(calls, CallCounts { puts: 1, reads: 0, records: 1, payload_units: 1 });
    }
}
