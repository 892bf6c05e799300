//! What edges deliver: the same subscribers and events at one edge alone, and at several that share a Redis.

use super::super::crowd::{Delivery, Listeners, warm};
use super::super::error::BenchError;
use super::super::fanout;
use super::super::load::{Place, Publishing, private};
use super::super::machine::{Watch, as_f64};
use super::super::plan::PodsPlan;
use super::super::sequence::Tally;
use super::super::server::Server;
use super::redis::Redis;

/// What one side of a round gave.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// One channel with many subscribers.
    pub fan: Load,
    /// Many channels with a hundred subscribers each.
    pub crowd: Load,
    /// Few deliveries, for their latency.
    pub calm: Load,
    /// Median of single deliveries without load, in ms; from one edge to another where there are several.
    pub one_ms: f64,
}

/// What one load gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// CPU of the edges for one delivery, in microseconds.
    pub cpu_us: f64,
    /// CPU of Redis for one publish, in microseconds.
    pub redis_us: Option<f64>,
    /// 50th percentile of the latency, in ms.
    pub p50_ms: f64,
    /// 99th percentile of the latency, in ms.
    pub p99_ms: f64,
    /// What was heard.
    pub tally: Tally,
    /// The share of the host's CPU that was taken meanwhile, by whomever.
    pub busy: f64,
}

/// The subscribers of so many channels. Those of one channel follow each other, so that each is at every edge.
fn places(subscribers: usize, channels: usize, edges: usize) -> Vec<Place> {
    (0..subscribers).map(|number| Place::private((number / edges) % channels)).collect()
}

/// Measures one side.
pub async fn side(
    servers: &[Server],
    mut redis: Option<&mut Redis>,
    plan: &PodsPlan,
    watch: &mut Watch,
    told: &(dyn Fn(&str) + Sync),
) -> Result<Side, BenchError> {
    warm(servers, &vec![Place::private(0); plan.subscribers]).await?;
    let one_ms = fanout::one(servers).await?.quantile_ms(0.5);
    let mut loads = [Load::default(); 3];
    for (load, (what, subscribers, channels, per_second)) in loads.iter_mut().zip([
        ("fan-out", plan.subscribers, 1, plan.events_per_second),
        ("crowd", plan.sockets, plan.channels, plan.publishes_per_second),
        ("calm", plan.calm_sockets, plan.calm_channels, plan.calm_per_second),
    ]) {
        told(&format!("{what}: {subscribers} subscribers, {channels} channels, {per_second} publishes/s"));
        let places = places(subscribers, channels, plan.pods);
        let publishing = Publishing::new((0..channels).map(private).collect(), per_second, plan.publishing);
        *load = deliver(servers, redis.as_deref_mut(), (&places, publishing), watch).await?;
    }
    let [fan, crowd, calm] = loads;
    Ok(Side { fan, crowd, calm, one_ms })
}

async fn deliver(
    servers: &[Server],
    redis: Option<&mut Redis>,
    (places, publishing): (&[Place], Publishing),
    watch: &mut Watch,
) -> Result<Load, BenchError> {
    let events = as_f64(publishing.events.max(1));
    let listeners = Listeners::enter(servers, places, &publishing).await?;
    let mut window = watch.fresh();
    let (took, redis_us) = match redis {
        Some(redis) => {
            let before = redis.cpu_us().await?;
            let took = listeners.publish(servers, publishing, &mut window).await?;
            (took, Some((redis.cpu_us().await? - before) / events))
        }
        None => (listeners.publish(servers, publishing, &mut window).await?, None),
    };
    watch.merge(&window);
    let Delivery { tally, latency, cpu_us } = listeners.end(took).await;
    let (p50_ms, p99_ms) = (latency.quantile_ms(0.5), latency.quantile_ms(0.99));
    Ok(Load { cpu_us, redis_us, p50_ms, p99_ms, tally, busy: window.busy() })
}
