//! The memory of a dispatcher while an endpoint refuses its events, and over many users.

use tokio::time::sleep;

use super::super::error::BenchError;
use super::super::plan::PipelinePlan;
use super::super::sequence::DeliveryTally;
use super::feeder::Pace;
use super::{TestBed, deliver_events, sample_memory};

/// Events per second while an endpoint refuses its own: as many as timers of a millisecond allow.
const REFUSED_EVENTS_PER_SECOND: u32 = 1_000;

/// Memory of one dispatcher, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadMemory {
    /// At most, while one endpoint refused its events.
    pub refused_kib: u64,
    /// After half of the users had joined.
    pub half_users_kib: u64,
    /// After all users had joined.
    pub users_kib: u64,
    /// Deliveries of all events, those too that were refused at first.
    pub tally: DeliveryTally,
}

/// Refuses the events of one endpoint, accepts them, then has distinct users join.
pub async fn measure_memory(bed: &mut TestBed, plan: &PipelinePlan) -> Result<LoadMemory, BenchError> {
    let mut memory = LoadMemory::default();
    bed.receiver.refuse_first_app(true);
    let feeding = async {
        bed.feeder.feed(plan.refused_events, Pace::PerSecond(REFUSED_EVENTS_PER_SECOND)).await?;
        bed.feeder.flush().await
    };
    (_, memory.refused_kib) = sample_memory(&bed.dispatcher, feeding).await?;
    bed.receiver.refuse_first_app(false);
    bed.receiver.wait_for_events(bed.feeder.emitted()).await;
    bed.feeder.feed_users_only();
    for kib in [&mut memory.half_users_kib, &mut memory.users_kib] {
        deliver_events(&mut bed.feeder, &bed.receiver, plan.users / 2, Pace::AsFastAsWritten).await?;
        sleep(plan.memory_settling).await;
        *kib = bed.dispatcher.rss_kib()?;
    }
    memory.tally = bed.tally();
    Ok(memory)
}
