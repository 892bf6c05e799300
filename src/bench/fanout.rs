//! Deliveries to many subscribers of one channel, single deliveries without load, and an echo as their lower bound.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::error::BenchError;
use super::http::HttpConnection;
use super::latency::{LatencyHistogram, LatencyRecorder};
use super::load::{
    self, ChannelSubscription, PublishSchedule, RunClock, open_subscribed_socket, post_event_now, private_channel,
};
use super::machine::HostUsage;
use super::server::ServerProcess;
use super::sockets::{self, CrowdListeners, DeliveryMeasurement};
use super::target::{ServerKind, Target};

/// Single deliveries, or echoes, of one measurement.
const TRIP_COUNT: u64 = 300;

/// Time between two single deliveries, or echoes.
const TRIP_INTERVAL: Duration = Duration::from_millis(2);

/// Bytes of an echo: about an event's frame.
const ECHO_BYTES: usize = 256;

/// Bounds one single delivery, or echo.
const TRIP_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures deliveries to many subscribers of one channel, at so many events per second.
pub async fn measure_fan_out(
    server: &ServerProcess,
    (subscribers, events_per_second): (usize, u32),
    publishing: Duration,
    watch: &mut HostUsage,
) -> Result<DeliveryMeasurement, BenchError> {
    let servers = std::slice::from_ref(server);
    let subscriptions = vec![ChannelSubscription::in_private_channel(0); subscribers];
    sockets::warm_up(servers, &subscriptions).await?;
    let publishing = PublishSchedule::new(vec![private_channel(0)], events_per_second, publishing);
    let listeners = CrowdListeners::open_and_listen(servers, &subscriptions, &publishing).await?;
    let delivery = listeners.publish_and_close(servers, Some(publishing), watch).await?;
    let detail = || BenchError::Server {
        server: server.target.kind.name(),
        step: "the fan-out",
        detail: "nothing was published".to_owned(),
    };
    delivery.ok_or_else(detail)
}

/// Measures single deliveries without load, from a publish at the last of these servers to a subscriber at the first.
pub async fn measure_single_delivery(servers: &[ServerProcess]) -> Result<LatencyHistogram, BenchError> {
    match servers {
        [] => Ok(LatencyRecorder::new().merge_shards()),
        [first, ..] => {
            let last = servers.last().unwrap_or(first);
            time_deliveries(last.target, first.target)
                .await
                .map_err(sockets::to_server_error(servers, "single deliveries"))
        }
    }
}

async fn time_deliveries(from: Target, to: Target) -> io::Result<LatencyHistogram> {
    let (clock, latencies) = (RunClock::start(), LatencyRecorder::new());
    let subscription = ChannelSubscription::in_private_channel(1);
    let mut socket = open_subscribed_socket(to, &subscription).await?;
    let mut publisher = HttpConnection::open(from.address).await?;
    for number in 0..TRIP_COUNT {
        // Concurrently: the event may arrive before the answer to its publish.
        let publish = post_event_now(&mut publisher, from.kind, &subscription.channel, number, clock);
        let arrival = async {
            let due = socket.wait_for(|text| load::parse_event(text).map(|(_, due)| due)).await?;
            latencies.record(0, clock.elapsed_since(due));
            Ok(())
        };
        timeout(TRIP_TIMEOUT, async { tokio::try_join!(publish, arrival) }).await??;
        sleep(TRIP_INTERVAL).await;
    }
    socket.close_gracefully().await;
    Ok(latencies.merge_shards())
}

/// Measures round trips over loopback through a process that only echoes.
pub async fn measure_echo(server: &ServerProcess) -> Result<LatencyHistogram, BenchError> {
    time_echoes(server.echo_address).await.map_err(|error| BenchError::Server {
        server: ServerKind::Baseline.name(),
        step: "the echo",
        detail: error.to_string(),
    })
}

async fn time_echoes(address: SocketAddr) -> io::Result<LatencyHistogram> {
    let latencies = LatencyRecorder::new();
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sent, mut back) = ([b'x'; ECHO_BYTES], [0; ECHO_BYTES]);
    for _ in 0..TRIP_COUNT {
        let from = Instant::now();
        timeout(TRIP_TIMEOUT, async {
            stream.write_all(&sent).await?;
            stream.read_exact(&mut back).await
        })
        .await??;
        latencies.record(0, from.elapsed());
        sleep(TRIP_INTERVAL).await;
    }
    Ok(latencies.merge_shards())
}
