//! Kinesis in this process, with a region apart from another as in the real one.
//!
//! A call is signed for a region, and the stores of two regions know nothing of each other: a server with the wrong
//! region finds no stream, as it would in the cloud.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::Response;
use ferrokinesis::store::StoreOptions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::kinesis::{AwsCredentials, KinesisClient, KinesisError, KinesisErrorClass, StreamSettings};
use crate::protocol::StreamName;

/// A stream's creation takes this long here; in the cloud it is some seconds.
const STREAM_CREATE_DELAY_MS: u64 = 20;

#[derive(Clone, Default)]
struct RegionStores(Arc<Mutex<HashMap<String, Router>>>);

/// Kinesis, to be served or put behind something that watches or breaks it.
pub fn kinesis_router() -> Router {
    Router::new().fallback(route_by_region).with_state(RegionStores::default())
}

/// Serves Kinesis on `listener` until the token ends it.
pub fn serve(listener: TcpListener, shutdown: CancellationToken) -> tokio::task::JoinHandle<()> {
    let router = kinesis_router();
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "in-process Kinesis failed");
        }
    })
}

async fn route_by_region(State(regions): State<RegionStores>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let region = authorization.and_then(region_of).unwrap_or("none").to_owned();
    let store = {
        let mut stores = regions.0.lock().unwrap_or_else(PoisonError::into_inner);
        stores.entry(region.clone()).or_insert_with(|| region_store(region)).clone()
    };
    store.oneshot(request).await.unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn region_store(region: String) -> Router {
    let options = StoreOptions {
        aws_region: region,
        create_stream_ms: STREAM_CREATE_DELAY_MS,
        shard_limit: 10_000,
        max_retained_bytes: Some(256 * 1024 * 1024),
        ..StoreOptions::default()
    };
    ferrokinesis::create_app(options).0
}

/// The region in `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/kinesis/aws4_request, …`.
fn region_of(authorization: &str) -> Option<&str> {
    authorization.split("Credential=").nth(1)?.split('/').nth(2)
}

/// The client settings by which a process reaches this cloud.
#[must_use]
pub fn client_settings(address: SocketAddr, region: &str, stream: &StreamName) -> StreamSettings {
    StreamSettings {
        stream: stream.clone(),
        region: region.to_owned(),
        endpoint: Some(format!("http://{address}")),
        credentials: AwsCredentials::Static {
            access_key_id: "rehearsal".to_owned(),
            secret_access_key: "rehearsal".to_owned(),
        },
    }
}

/// Creates the stream and waits until it can be used.
///
/// # Errors
/// It cannot be created within 10 s.
pub async fn create_stream(client: &KinesisClient, shards: u32) -> Result<(), KinesisError> {
    client.create_stream(Some(i32::try_from(shards).unwrap_or(i32::MAX)), &std::collections::BTreeMap::new()).await?;
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

    #[test]
    fn the_region_is_read_from_the_signature() {
        let text = "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host";
        assert_eq!(region_of(text), Some("eu-west-1"));
        assert_eq!(region_of("Basic x"), None);
    }

    #[tokio::test]
    async fn regions_know_nothing_of_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let served = serve(listener, shutdown.clone());
        let stream = StreamName::from("s");
        let here = KinesisClient::connect(&client_settings(address, "eu-west-1", &stream)).await;
        let there = KinesisClient::connect(&client_settings(address, "us-east-1", &stream)).await;
        create_stream(&here, 2).await.expect("created");
        assert_eq!(here.list_shards().await.expect("shards").len(), 2);
        assert_eq!(there.describe_stream().await.expect_err("none").class, KinesisErrorClass::NotFound);
        shutdown.cancel();
        served.await.expect("ended");
    }
}
