//! The receiver of the run's webhooks: checks each channel's order, and times each client event.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use tokio::time::sleep;
use tokio_util::sync::DropGuard;

use super::super::error::BenchError;
use super::super::latency::{LatencyHistogram, LatencyRecorder};
use super::super::load::{RunClock, parse_event};
use super::super::sequence::{DeliveryTally, EventSequence};
use super::loopback::serve_on_loopback;
use super::workload::{ChannelCounts, app_id, channel_number};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::record::EventKind;
use crate::protocol::webhook::WebhookBody;

/// Bounds the wait for the next event once all were recorded.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which the arrivals are looked at.
const ARRIVAL_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A receiver that serves on loopback until it is dropped.
pub struct Receiver {
    /// URL of the webhooks, to which an endpoint appends its app.
    pub url: String,
    /// Address of the receiver; the path `/bare` accepts any body.
    pub address: SocketAddr,
    arrivals: Arc<Arrivals>,
    _stop: DropGuard,
}

struct Arrivals {
    clock: RunClock,
    channels: Vec<Mutex<(EventSequence, EventSequence)>>,
    latency: Mutex<LatencyRecorder>,
    events: AtomicU64,
    bodies: AtomicU64,
    last_arrival_us: AtomicU64,
    /// Whether the webhooks of the first app are refused.
    refuses: AtomicBool,
}

impl Receiver {
    /// Serves a receiver for the events of so many channels.
    pub async fn start(channels: usize, clock: RunClock) -> Result<Self, BenchError> {
        let arrivals = Arc::new(Arrivals {
            clock,
            channels: (0..channels).map(|_| Mutex::default()).collect(),
            latency: Mutex::new(LatencyRecorder::new()),
            events: AtomicU64::new(0),
            bodies: AtomicU64::new(0),
            last_arrival_us: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
        });
        let router = Router::new()
            .route("/hook/{app}", post(receive_webhook))
            .route("/bare", post(async |_: Bytes| StatusCode::OK))
            .with_state(arrivals.clone());
        let (address, stop) = serve_on_loopback(router, "no port for the receiver is free").await?;
        Ok(Self { url: format!("http://{address}/hook"), address, arrivals, _stop: stop })
    }

    /// Refuses the webhooks of the first app with status 503, or accepts them again.
    pub fn refuse_first_app(&self, refuses: bool) {
        self.arrivals.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Events that have arrived, repeated ones too.
    pub fn events(&self) -> u64 {
        self.arrivals.events.load(Ordering::Relaxed)
    }

    /// Webhooks that have arrived.
    pub fn bodies(&self) -> u64 {
        self.arrivals.bodies.load(Ordering::Relaxed)
    }

    /// Time of the last arrival, on the clock of the run.
    pub fn last_arrival_us(&self) -> u64 {
        self.arrivals.last_arrival_us.load(Ordering::Relaxed)
    }

    /// Takes the latencies of client events since the last call.
    pub fn take_latency(&self) -> LatencyHistogram {
        std::mem::replace(&mut *lock_unpoisoned(&self.arrivals.latency), LatencyRecorder::new()).merge_shards()
    }

    /// Waits until so many events have arrived, or none has for [`SILENCE_TIMEOUT`].
    pub async fn wait_for_events(&self, expected: u64) {
        let (mut seen, mut since) = (self.events(), Instant::now());
        while seen < expected && since.elapsed() < SILENCE_TIMEOUT {
            sleep(ARRIVAL_CHECK_INTERVAL).await;
            let now = self.events();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    /// Compares the arrivals with the events that were recorded.
    pub fn tally(&self, expected: &[ChannelCounts]) -> DeliveryTally {
        let mut tally = DeliveryTally::default();
        for (arrived, counts) in self.arrivals.channels.iter().zip(expected) {
            let (client, state) = *lock_unpoisoned(arrived);
            tally += client.into_tally(counts.client);
            tally += state.into_tally(counts.state);
        }
        tally
    }
}

async fn receive_webhook(State(arrivals): State<Arc<Arrivals>>, Path(app): Path<String>, raw: Bytes) -> StatusCode {
    if arrivals.refuses.load(Ordering::Relaxed) && app == app_id(0) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let Ok(body) = serde_json::from_slice::<WebhookBody>(&raw) else { return StatusCode::BAD_REQUEST };
    let latency = lock_unpoisoned(&arrivals.latency);
    for event in &body.events {
        let Some(sequences) = channel_number(event.channel.as_str()).and_then(|at| arrivals.channels.get(at)) else {
            continue;
        };
        let mut sequences = lock_unpoisoned(sequences);
        match (&event.kind, event.order) {
            (EventKind::ClientEvent { data, .. }, _) => {
                if let Some((number, us)) = parse_event(data.as_bytes()) {
                    sequences.0.add_arrival(number);
                    latency.record(0, arrivals.clock.elapsed_since(us));
                }
            }
            (_, Some(order)) => sequences.1.add_arrival(order.seq.saturating_sub(1)),
            _ => {}
        }
    }
    drop(latency);
    arrivals.events.fetch_add(body.events.len() as u64, Ordering::Relaxed);
    arrivals.bodies.fetch_add(1, Ordering::Relaxed);
    arrivals.last_arrival_us.fetch_max(arrivals.clock.now_us(), Ordering::Relaxed);
    StatusCode::OK
}
