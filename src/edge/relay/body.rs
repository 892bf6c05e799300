//! Carries the answer of another process to the client, part by part: a part is read only once the client takes it,
//! and an abort on either side is an abort on the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderName, header};
use axum::response::Response;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use crate::edge::metrics::{EdgeMetrics, RelayFailure};
use crate::edge::relay::client::ForwardResponse;

/// Bounds the random delay, in ms, from the end of a process until the clients of its sessions reconnect.
const RECONNECT_DELAY_MS: std::ops::RangeInclusive<u64> = 250..=750;

/// Waits before a client is asked to reconnect because the owner of its session is gone. The client reconnects at once,
/// and the kernel closes a dead process's connections before its listeners: a client that the load balancer sends there
/// in between is cut a second time, and pusher-js then waits for 15 s. The delay also spreads the reconnects.
pub(super) async fn delay_reconnect() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(RECONNECT_DELAY_MS))).await;
}

/// Headers that belong to one connection and must not reach the next one.
const HOP_BY_HOP_HEADERS: [HeaderName; 3] =
    [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")];

struct ProxiedBody {
    /// The body of the other process; `None` once it has ended.
    body: Option<BodyDataStream>,
    given_up: BoxFuture<'static, RelayFailure>,
    close_frame: Option<(String, &'static str)>,
    /// Whether the streamed data ends with a complete frame.
    is_at_frame_end: bool,
    metrics: Arc<EdgeMetrics>,
    _permit: OwnedSemaphorePermit,
}

/// Streams the answer to the client. If the owner dies meanwhile, or this process ends, the client receives a close frame
/// between two frames: a mere abort would count against the transport.
pub(crate) fn proxy_body(
    ForwardResponse { response, permit: place }: ForwardResponse,
    farewell: Option<(String, &'static str)>,
    given_up: impl Future<Output = RelayFailure> + Send + 'static,
    metrics: Arc<EdgeMetrics>,
) -> Response {
    let (mut parts, body) = response.into_parts();
    for name in HOP_BY_HOP_HEADERS {
        parts.headers.remove(name);
    }
    let body = Some(Body::new(body).into_data_stream());
    let through = ProxiedBody {
        body,
        given_up: Box::pin(given_up),
        close_frame: farewell,
        is_at_frame_end: true,
        metrics,
        _permit: place,
    };
    let body = stream::unfold(through, |mut through| async {
        let part = through.next().await?;
        Some((part, through))
    });
    Response::from_parts(parts, Body::from_stream(body))
}

impl ProxiedBody {
    async fn next(&mut self) -> Option<Result<Bytes, axum::BoxError>> {
        let (part, failure) = tokio::select! {
            part = self.body.as_mut()?.next() => (part?.map_err(axum::BoxError::from), RelayFailure::Cut),
            reason = &mut self.given_up => {
                // The answer of a dead owner had begun.
                let failure = if reason == RelayFailure::Dead { RelayFailure::Cut } else { reason };
                (Err(io::Error::from(io::ErrorKind::ConnectionReset).into()), failure)
            }
        };
        match part {
            Ok(bytes) => {
                if let (Some((_, end)), false) = (&self.close_frame, bytes.is_empty()) {
                    self.is_at_frame_end = bytes.ends_with(end.as_bytes());
                }
                Some(Ok(bytes))
            }
            Err(error) => {
                self.body = None;
                self.metrics.relay_failures.with_label(failure).inc();
                match self.close_frame.take() {
                    Some((farewell, _)) if self.is_at_frame_end => {
                        delay_reconnect().await;
                        Some(Ok(farewell.into()))
                    }
                    _ => Some(Err(error)),
                }
            }
        }
    }
}
