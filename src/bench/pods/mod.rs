//! The cost of the bus: several edges that share a Redis, beside a single edge without one.
//!
//! In: the size of the run. Out: figures as of any other run. Each round has its own Redis, on which one group of edges
//! has the same load as a single edge in the same round, and another group is filled, emptied, and has one edge killed. On a third one, clients are measured beside a disturbance.

mod crash_recovery;
mod deliver;
mod disturbance;
mod figures;
mod join_leave;
mod redis;

use std::time::Instant;

use self::figures::{
    PodsRound, compare_with_former_build, compose_notes, compute_disturbance_figures, compute_pods_figures,
};
use self::redis::RedisProcess;
use super::error::BenchError;
use super::machine::{self, HostUsage};
use super::plan::PodsPlan;
use super::report::{BenchReport, RunSize, begin_report};
use super::server::{BusConnection, ServerProcess};
use super::target::ServerKind;

/// Runs the plan, and reports each step to `progress`.
///
/// # Errors
/// A limit of the system is too low, or a server fails a step that a figure depends on.
pub async fn run(plan: &PodsPlan, progress: &(dyn Fn(String) + Sync)) -> Result<BenchReport, BenchError> {
    let began = Instant::now();
    machine::allow_files(plan.open_files_needed())?;
    // First, because Redis may not be installed.
    let beside = RedisProcess::start().await?.read_version().await?;
    let mut report = begin_report(RunSize::Pods(plan.clone()), Some(beside)).await;
    let (mut rounds, mut all) = (Vec::with_capacity(plan.rounds), HostUsage::default());
    for number in 0..plan.rounds {
        let report_step = |step: &str| progress(format!("round {} of {}: {step}", number + 1, plan.rounds));
        rounds.push(run_round(plan, number, &mut all, &report_step).await?);
    }
    report.figures = compute_pods_figures(&rounds);
    report.figures.extend(compute_disturbance_figures(&rounds));
    if plan.former_program.is_some() {
        report.figures.extend(compare_with_former_build(&rounds));
    }
    report.notes = compose_notes(&rounds);
    report.finish_run(&all, began);
    Ok(report)
}

async fn run_round(
    plan: &PodsPlan,
    number: usize,
    all: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<PodsRound, BenchError> {
    let mut redis = RedisProcess::start().await?;
    let mut watch = HostUsage::with_helper(redis.pid());
    let mut round = PodsRound::default();
    // The order rotates, so that no side always follows the same one.
    let mut sides = vec![Side::Single, Side::Pods];
    sides.extend(plan.former_program.is_some().then_some(Side::FormerPods));
    let turn = number % sides.len();
    sides.rotate_left(turn);
    for side in sides {
        let report_step = |step: &str| report_step(&format!("{}: {step}", side.describe(plan.pods)));
        let measured = match side {
            Side::Single => {
                let servers = [ServerProcess::start(ServerKind::Edge, None).await?];
                deliver::measure_side(&servers, None, plan, &mut watch, &report_step).await?
            }
            Side::Pods | Side::FormerPods => {
                redis.wait_until_settled().await;
                let servers = start_edges(plan, side, &redis, side.cluster()).await?;
                deliver::measure_side(&servers, Some(&mut redis), plan, &mut watch, &report_step).await?
            }
        };
        match side {
            Side::Single => round.single = measured,
            Side::Pods => round.pods = measured,
            Side::FormerPods => round.former = Some(measured),
        }
    }
    let servers = start_edges(plan, Side::Pods, &redis, "bench-store").await?;
    report_step(&format!("{} private channels, and {} presence channels", plan.occupied, plan.occupied));
    round.private = join_leave::measure_join_leave(&servers, &mut redis, (plan.occupied, false), &mut watch).await?;
    round.presence = join_leave::measure_join_leave(&servers, &mut redis, (plan.occupied, true), &mut watch).await?;
    report_step(&format!("an edge with {} presence members is killed", plan.members));
    round.sweep = crash_recovery::measure_crash_recovery(servers, &mut redis, plan.members, &mut watch).await?;
    let servers = start_edges(plan, Side::Pods, &redis, "bench-others").await?;
    round.disturbance = disturbance::measure_disturbances(servers, plan, &mut watch, report_step).await?;
    all.merge(&watch);
    Ok(round)
}

/// One side of a round.
#[derive(Clone, Copy)]
enum Side {
    /// A single edge with the memory bus.
    Single,
    /// Several edges that share a Redis.
    Pods,
    /// Several edges of another build that share a Redis.
    FormerPods,
}

impl Side {
    fn describe(self, pods: usize) -> String {
        match self {
            Self::Single => "a single edge".to_owned(),
            Self::Pods => format!("{pods} edges"),
            Self::FormerPods => format!("{pods} edges of the former build"),
        }
    }

    /// UID in the keys of the side's edges.
    fn cluster(self) -> &'static str {
        match self {
            Self::Single | Self::Pods => "bench-deliver",
            Self::FormerPods => "bench-former",
        }
    }
}

async fn start_edges(
    plan: &PodsPlan,
    side: Side,
    redis: &RedisProcess,
    cluster: &str,
) -> Result<Vec<ServerProcess>, BenchError> {
    let url = redis.url();
    let (kind, program) = match side {
        Side::FormerPods => (ServerKind::FormerEdge, plan.former_program.as_deref()),
        Side::Single | Side::Pods => (ServerKind::Edge, None),
    };
    let mut servers = Vec::with_capacity(plan.pods);
    for _ in 0..plan.pods {
        servers.push(ServerProcess::start_on_bus(kind, program, BusConnection { url: &url, cluster }).await?);
    }
    Ok(servers)
}
