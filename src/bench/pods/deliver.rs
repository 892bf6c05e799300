//! Deliveries of the same load at a single edge, and at several that share a Redis.

use super::super::error::BenchError;
use super::super::fanout;
use super::super::load::{ChannelSubscription, PublishSchedule, private_channel};
use super::super::machine::{HostUsage, as_f64};
use super::super::plan::PodsPlan;
use super::super::sequence::DeliveryTally;
use super::super::server::ServerProcess;
use super::super::sockets::{CrowdListeners, DeliveryMeasurement, warm_up};
use super::redis::RedisProcess;

/// Measurements of one side of a round.
#[derive(Clone, Debug, Default)]
pub struct SideMeasurement {
    /// Load on one channel with many subscribers.
    pub fan_out: LoadMeasurement,
    /// Load on many channels with a hundred subscribers each.
    pub crowd: LoadMeasurement,
    /// Load with few deliveries, of which latency is measured.
    pub calm: LoadMeasurement,
    /// Median of single deliveries without load, in ms; from one edge to another where there are several.
    pub single_delivery_ms: f64,
}

/// Measurements of one load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadMeasurement {
    /// CPU of the edges for one delivery, in microseconds.
    pub cpu_us: f64,
    /// CPU of Redis for one publish, in microseconds.
    pub redis_us: Option<f64>,
    /// 50th percentile of the latency, in ms.
    pub p50_ms: f64,
    /// 99th percentile of the latency, in ms.
    pub p99_ms: f64,
    /// Deliveries to the subscribers.
    pub tally: DeliveryTally,
    /// Share of the host's CPU that was busy during the load, with our own processes.
    pub busy: f64,
}

/// Spreads subscribers over channels. Subscribers of one channel follow each other, so that every edge has some of each
/// channel.
pub fn spread_subscribers(subscribers: usize, channels: usize, edges: usize) -> Vec<ChannelSubscription> {
    (0..subscribers).map(|number| ChannelSubscription::in_private_channel((number / edges) % channels)).collect()
}

/// Measures one side of a round with all three loads.
pub async fn measure_side(
    servers: &[ServerProcess],
    mut redis: Option<&mut RedisProcess>,
    plan: &PodsPlan,
    watch: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<SideMeasurement, BenchError> {
    warm_up(servers, &vec![ChannelSubscription::in_private_channel(0); plan.subscribers]).await?;
    let one_ms = fanout::measure_single_delivery(servers).await?.quantile_ms(0.5);
    let mut loads = [LoadMeasurement::default(); 3];
    for (load, (load_name, subscribers, channels, per_second)) in loads.iter_mut().zip([
        ("fan-out", plan.subscribers, 1, plan.events_per_second),
        ("crowd", plan.sockets, plan.channels, plan.publishes_per_second),
        ("calm", plan.calm_sockets, plan.calm_channels, plan.calm_per_second),
    ]) {
        report_step(&format!("{load_name}: {subscribers} subscribers, {channels} channels, {per_second} publishes/s"));
        let subscriptions = spread_subscribers(subscribers, channels, plan.pods);
        let publishing =
            PublishSchedule::new((0..channels).map(private_channel).collect(), per_second, plan.publishing);
        *load = measure_load(servers, redis.as_deref_mut(), (&subscriptions, publishing), watch).await?;
    }
    let [fan, crowd, calm] = loads;
    Ok(SideMeasurement { fan_out: fan, crowd, calm, single_delivery_ms: one_ms })
}

async fn measure_load(
    servers: &[ServerProcess],
    redis: Option<&mut RedisProcess>,
    (subscriptions, publishing): (&[ChannelSubscription], PublishSchedule),
    watch: &mut HostUsage,
) -> Result<LoadMeasurement, BenchError> {
    let events = as_f64(publishing.events.max(1));
    let listeners = CrowdListeners::open_and_listen(servers, subscriptions, &publishing).await?;
    let mut window = watch.new_window();
    let (took, redis_us) = match redis {
        Some(redis) => {
            let before = redis.read_cpu_us().await?;
            let took = listeners.publish_and_wait(servers, publishing, &mut window).await?;
            (took, Some((redis.read_cpu_us().await? - before) / events))
        }
        None => (listeners.publish_and_wait(servers, publishing, &mut window).await?, None),
    };
    watch.merge(&window);
    let DeliveryMeasurement { tally, latency, cpu_us } = listeners.close_and_tally(took).await;
    let (p50_ms, p99_ms) = (latency.quantile_ms(0.5), latency.quantile_ms(0.99));
    Ok(LoadMeasurement { cpu_us, redis_us, p50_ms, p99_ms, tally, busy: window.busy_share() })
}
