//! Chat messages while the stream is well and while it is not: client events of many senders at an edge that records them.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use super::super::error::BenchError;
use super::super::figures::median_of;
use super::super::latency::LatencyRecorder;
use super::super::load::{
    ChannelSubscription, RunClock, build_event_payload, open_subscribed_socket, parse_event, private_channel,
};
use super::super::machine::HostUsage;
use super::super::plan::PipelinePlan;
use super::super::server::ServerProcess;
use super::super::socket::ClientSocket;
use super::super::sockets::{measure_servers, to_server_error};
use super::stream_double::{StreamCondition, StreamDouble};
use crate::process::locks::lock_unpoisoned;

/// Bytes of a chat message.
const MESSAGE_BYTES: usize = 200;

/// Messages per second of each sender.
const MESSAGES_PER_SECOND: u64 = 10;

/// Subscribers of each sender's channel, beside the sender.
const CHANNEL_SUBSCRIBERS: usize = 2;

/// The 99th percentiles of a chat message's latency in ms, by condition of the stream: each the median of its windows.
#[derive(Clone, Debug, Default)]
pub struct ChatLatency {
    windows: Vec<(StreamCondition, f64)>,
}

impl ChatLatency {
    /// The median of the windows of a condition, in ms.
    pub fn p99_ms(&self, condition: StreamCondition) -> f64 {
        let windows = self.windows.iter().filter(|(of, _)| *of == condition);
        median_of(&windows.map(|(_, p99)| *p99).collect::<Vec<_>>())
    }

    /// Ratio of a condition to the undisturbed stream.
    pub fn ratio_to_well(&self, condition: StreamCondition) -> f64 {
        self.p99_ms(condition) / self.p99_ms(StreamCondition::Well)
    }
}

type CurrentWindow = Arc<Mutex<LatencyRecorder>>;

/// Measures the latency of messages in windows that alternate between the conditions.
pub async fn measure_chat(
    server: &ServerProcess,
    double: &StreamDouble,
    plan: &PipelinePlan,
    watch: &mut HostUsage,
) -> Result<ChatLatency, BenchError> {
    let servers = std::slice::from_ref(server);
    let to_error = || to_server_error(servers, "chat messages");
    let (clock, window) = (RunClock::start(), CurrentWindow::new(Mutex::new(LatencyRecorder::new())));
    // Dropped at the end, which ends the tasks.
    let mut tasks = JoinSet::new();
    for channel in 0..plan.chat_senders {
        let subscription = ChannelSubscription::in_private_channel(channel);
        let sender = open_subscribed_socket(server.target, &subscription).await.map_err(to_error())?;
        tasks.spawn(send_messages(sender, channel, plan.chat_senders, clock));
        for _ in 0..CHANNEL_SUBSCRIBERS {
            let socket = open_subscribed_socket(server.target, &subscription).await.map_err(to_error())?;
            tasks.spawn(receive_messages(socket, channel, clock, window.clone()));
        }
    }
    let mut latency = ChatLatency::default();
    let (measured, _) = measure_servers(servers, watch, async {
        for _ in 0..plan.chat_windows {
            for condition in StreamCondition::ALL {
                double.set_condition(condition);
                sleep(plan.chat_settling).await;
                *lock_unpoisoned(&window) = LatencyRecorder::new();
                sleep(plan.chat_window).await;
                let ended = std::mem::replace(&mut *lock_unpoisoned(&window), LatencyRecorder::new());
                latency.windows.push((condition, ended.merge_shards().quantile_ms(0.99)));
                if let Some(ended) = tasks.try_join_next() {
                    let detail = ended.map_or_else(|error| error.to_string(), |error| error.to_string());
                    return Err(to_error()(io::Error::other(detail)));
                }
            }
        }
        Ok(latency)
    })
    .await?;
    double.set_condition(StreamCondition::Well);
    Ok(measured)
}

/// Sends messages until an error; senders are spread over the interval.
async fn send_messages(mut socket: ClientSocket, channel: usize, senders: usize, clock: RunClock) -> io::Error {
    let every = Duration::from_secs(1) / u32::try_from(MESSAGES_PER_SECOND).unwrap_or(1);
    let share = super::super::machine::as_f64(channel as u64) / super::super::machine::as_f64(senders.max(1) as u64);
    let mut due = interval_at(tokio::time::Instant::now() + every.mul_f64(share), every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        due.tick().await;
        let message = serde_json::json!({
            "event": "client-bench",
            "channel": private_channel(channel),
            "data": build_event_payload(number, clock.now_us(), MESSAGE_BYTES),
        });
        if let Err(error) = socket.send(&message.to_string()).await {
            return error;
        }
    }
    io::Error::other("all messages were sent")
}

/// Receives messages until an error, and records the latency of each in the current window.
async fn receive_messages(
    mut socket: ClientSocket,
    client: usize,
    clock: RunClock,
    window: CurrentWindow,
) -> io::Error {
    loop {
        let reading = socket.read(|text| {
            if let Some((_, us)) = parse_event(text) {
                lock_unpoisoned(&window).record(client, clock.elapsed_since(us));
            }
        });
        if let Err(error) = reading.await {
            return error;
        }
    }
}
