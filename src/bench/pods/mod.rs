//! Several edges that share a Redis, beside a single edge without one: what the bus costs.
//!
//! In: how large. Out: figures as of any other run. Each round has its own Redis, on which one group of edges delivers
//! what a single edge delivers in the same round, and another group is filled, emptied and robbed of one of its own.

mod crash_recovery;
mod deliver;
mod figures;
mod join_leave;
mod redis;

use std::time::Instant;

use self::figures::{PodsRound, compose_notes, compute_pods_figures};
use self::redis::RedisProcess;
use super::error::BenchError;
use super::machine::{self, HostUsage};
use super::plan::PodsPlan;
use super::report::{BenchReport, RunSize, begin_report};
use super::server::{BusConnection, ServerProcess};
use super::target::ServerKind;

/// Runs the plan; `progress` hears what is being done.
///
/// # Errors
/// The system does not let it run, or a server does not do what it must for a figure to mean anything.
pub async fn run(plan: &PodsPlan, progress: &(dyn Fn(String) + Sync)) -> Result<BenchReport, BenchError> {
    let began = Instant::now();
    machine::allow_files(plan.open_files_needed())?;
    // Before anything that takes long: it may not be installed.
    let beside = RedisProcess::start().await?.read_version().await?;
    let mut report = begin_report(RunSize::Pods(plan.clone()), Some(beside)).await;
    let (mut rounds, mut all) = (Vec::with_capacity(plan.rounds), HostUsage::default());
    for number in 0..plan.rounds {
        let told = |what: &str| progress(format!("round {} of {}: {what}", number + 1, plan.rounds));
        rounds.push(run_round(plan, number, &mut all, &told).await?);
    }
    report.figures = compute_pods_figures(&rounds);
    report.notes = compose_notes(&rounds);
    report.finish_run(&all, began);
    Ok(report)
}

async fn run_round(
    plan: &PodsPlan,
    number: usize,
    all: &mut HostUsage,
    told: &(dyn Fn(&str) + Sync),
) -> Result<PodsRound, BenchError> {
    let mut redis = RedisProcess::start().await?;
    let mut watch = HostUsage::with_helper(redis.pid());
    let mut round = PodsRound::default();
    // Who goes first changes, so that none always follows the other.
    let first = !number.is_multiple_of(2);
    for several in [first, !first] {
        if several {
            redis.wait_until_settled().await;
            let servers = start_edges(plan.pods, &redis, "bench-deliver").await?;
            let told = |what: &str| told(&format!("{} edges: {what}", plan.pods));
            round.pods = deliver::measure_side(&servers, Some(&mut redis), plan, &mut watch, &told).await?;
        } else {
            let servers = [ServerProcess::start(ServerKind::Edge, None).await?];
            let told = |what: &str| told(&format!("a single edge: {what}"));
            round.single = deliver::measure_side(&servers, None, plan, &mut watch, &told).await?;
        }
    }
    let servers = start_edges(plan.pods, &redis, "bench-store").await?;
    told(&format!("{} private channels, and {} presence channels", plan.occupied, plan.occupied));
    round.private = join_leave::measure_join_leave(&servers, &mut redis, (plan.occupied, false), &mut watch).await?;
    round.presence = join_leave::measure_join_leave(&servers, &mut redis, (plan.occupied, true), &mut watch).await?;
    told(&format!("an edge with {} presence members is killed", plan.members));
    round.sweep = crash_recovery::measure_crash_recovery(servers, &mut redis, plan.members, &mut watch).await?;
    all.merge(&watch);
    Ok(round)
}

async fn start_edges(pods: usize, redis: &RedisProcess, cluster: &str) -> Result<Vec<ServerProcess>, BenchError> {
    let url = redis.url();
    let mut servers = Vec::with_capacity(pods);
    for _ in 0..pods {
        servers.push(ServerProcess::start_on_bus(BusConnection { url: &url, cluster }).await?);
    }
    Ok(servers)
}
