//! Latency of other clients beside a disturbance: members that come and go in one presence channel, and clients of a killed
//! edge that all come back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::error::BenchError;
use super::super::load::{
    ChannelSubscription, PublishSchedule, connect_socket, open_subscribed_socket, private_channel, subscribe_channel,
    unsubscribe_channels,
};
use super::super::machine::{HostUsage, as_f64};
use super::super::plan::PodsPlan;
use super::super::server::ServerProcess;
use super::super::sockets::{CrowdListeners, open_sockets, targets_of, to_server_error};
use super::super::target::Target;
use super::deliver::spread_subscribers;

/// Members of the presence channel, with those that come and go: as many as Pusher admits.
const PRESENCE_MEMBERS: usize = 100;

/// Members that come and go.
const CHURNING_MEMBERS: usize = 20;

/// Joins and leaves per second of all of them.
const CHANGES_PER_SECOND: u32 = 1_000;

/// Latency of other clients during both disturbances.
#[derive(Clone, Copy, Debug, Default)]
pub struct DisturbanceMeasurement {
    /// Joins and leaves per second that the clients achieved.
    pub changes_per_second: f64,
    /// 99th percentile of the other channels' latency meanwhile, in ms.
    pub churn_p99_ms: f64,
    /// Time from the kill until the last client was subscribed at another edge, in seconds.
    pub back_s: f64,
    /// 99th percentile of the other clients' latency meanwhile, in ms.
    pub storm_p99_ms: f64,
    /// Other clients' events that did not arrive, during both.
    pub missed: u64,
}

/// Measures the calm load beside both disturbances; the first edge is killed for the second.
pub async fn measure_disturbances(
    mut servers: Vec<ServerProcess>,
    plan: &PodsPlan,
    watch: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<DisturbanceMeasurement, BenchError> {
    let mut measured = DisturbanceMeasurement::default();
    report_step(&format!("{CHANGES_PER_SECOND} joins and leaves/s in a channel of {PRESENCE_MEMBERS} members"));
    measure_churn(&servers, plan, watch, &mut measured).await?;
    report_step(&format!("an edge with {} sockets is killed, and they come back", plan.storm_sockets));
    let dying = servers.remove(0);
    measure_storm((dying, &servers), plan, watch, &mut measured).await?;
    Ok(measured)
}

/// The calm load: its subscriptions, and its publishes for a time.
fn calm_load(plan: &PodsPlan, servers: usize, lasts: Duration) -> (Vec<ChannelSubscription>, PublishSchedule) {
    let channels = (0..plan.calm_channels).map(private_channel).collect();
    let subscriptions = spread_subscribers(plan.calm_sockets, plan.calm_channels, servers);
    (subscriptions, PublishSchedule::new(channels, plan.calm_per_second, lasts))
}

async fn measure_churn(
    servers: &[ServerProcess],
    plan: &PodsPlan,
    watch: &mut HostUsage,
    measured: &mut DisturbanceMeasurement,
) -> Result<(), BenchError> {
    let subscription = |number: usize| ChannelSubscription {
        channel: "presence-bench-churn".into(),
        user: Some(format!("user-{number}")),
    };
    let staying: Vec<ChannelSubscription> = (CHURNING_MEMBERS..PRESENCE_MEMBERS).map(subscription).collect();
    let staying = CrowdListeners::start(open_sockets(servers, &staying).await?, None, servers.len());
    let (subscriptions, publishing) = calm_load(plan, servers.len(), plan.publishing);
    let others = CrowdListeners::open_and_listen(servers, &subscriptions, &publishing).await?;
    let (changes, stop, mut churning) = (Arc::new(AtomicU64::new(0)), CancellationToken::new(), JoinSet::new());
    for (number, target) in targets_of(servers).into_iter().cycle().take(CHURNING_MEMBERS).enumerate() {
        churning.spawn(join_and_leave(target, subscription(number), changes.clone(), stop.clone()));
    }
    let (began, before) = (Instant::now(), changes.load(Ordering::Relaxed));
    let took = others.publish_and_wait(servers, publishing, watch).await?;
    let made = changes.load(Ordering::Relaxed) - before;
    measured.changes_per_second = as_f64(made) / began.elapsed().as_secs_f64();
    stop.cancel();
    while let Some(ended) = churning.join_next().await {
        ended.map_err(io::Error::other).flatten().map_err(to_server_error(servers, "joins and leaves"))?;
    }
    let calm = others.close_and_tally(took).await;
    staying.close_and_tally(0).await;
    measured.churn_p99_ms = calm.latency.quantile_ms(0.99);
    measured.missed += calm.tally.missed;
    Ok(())
}

/// Joins and leaves a channel in turn until the token ends it.
async fn join_and_leave(
    target: Target,
    subscription: ChannelSubscription,
    changes: Arc<AtomicU64>,
    stop: CancellationToken,
) -> io::Result<()> {
    let (mut socket, id) = connect_socket(target).await?;
    // A pair of a join and a leave in each tick.
    let pairs_per_second = f64::from(CHANGES_PER_SECOND) / 2.0 / as_f64(CHURNING_MEMBERS as u64);
    let mut tick = interval(Duration::from_secs_f64(1.0 / pairs_per_second));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stop.is_cancelled() {
        tick.tick().await;
        subscribe_channel(&mut socket, &id, &subscription).await?;
        changes.fetch_add(1, Ordering::Relaxed);
        unsubscribe_channels(&mut socket, std::slice::from_ref(&subscription)).await?;
        changes.fetch_add(1, Ordering::Relaxed);
    }
    socket.close_gracefully().await;
    Ok(())
}

async fn measure_storm(
    (dying, servers): (ServerProcess, &[ServerProcess]),
    plan: &PodsPlan,
    watch: &mut HostUsage,
    measured: &mut DisturbanceMeasurement,
) -> Result<(), BenchError> {
    let subscriptions: Vec<ChannelSubscription> = (0..plan.storm_sockets)
        .map(|number| ChannelSubscription { channel: format!("private-bench-storm-{}", number % 100), user: None })
        .collect();
    let sockets = open_sockets(std::slice::from_ref(&dying), &subscriptions).await?;
    let (others, publishing) = calm_load(plan, servers.len(), plan.storm_window);
    let others = CrowdListeners::open_and_listen(servers, &others, &publishing).await?;
    drop(dying);
    drop(sockets);
    let killed = Instant::now();
    let mut returning = JoinSet::new();
    for (number, target) in targets_of(servers).into_iter().cycle().take(subscriptions.len()).enumerate() {
        let part = as_f64(number as u64) / as_f64(subscriptions.len() as u64);
        let (subscription, due) = (subscriptions[number].clone(), killed + plan.storm_window.mul_f64(part));
        returning.spawn(async move {
            sleep_until(due.into()).await;
            let socket = open_subscribed_socket(target, &subscription).await?;
            Ok::<_, io::Error>((socket, Instant::now()))
        });
    }
    let back = async {
        let mut sockets = Vec::with_capacity(subscriptions.len());
        let mut last = killed;
        while let Some(ended) = returning.join_next().await {
            let (socket, at) =
                ended.map_err(io::Error::other).flatten().map_err(to_server_error(servers, "coming back"))?;
            last = last.max(at);
            sockets.push(socket);
        }
        Ok::<_, BenchError>((sockets, last))
    };
    let (took, back) = tokio::join!(others.publish_and_wait(servers, publishing, watch), back);
    let (took, (sockets, last)) = (took?, back?);
    measured.back_s = (last - killed).as_secs_f64();
    let calm = others.close_and_tally(took).await;
    measured.storm_p99_ms = calm.latency.quantile_ms(0.99);
    measured.missed += calm.tally.missed;
    drop(sockets);
    Ok(())
}
