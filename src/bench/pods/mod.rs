//! Several edges that share a Redis, beside a single edge without one: what the bus costs.
//!
//! In: how large. Out: figures as of any other run. Each round has its own Redis, on which one group of edges delivers
//! what a single edge delivers in the same round, and another group is filled, emptied and robbed of one of its own.

mod deliver;
mod figures;
mod occupy;
mod redis;
mod sweep;

use std::time::Instant;

use self::figures::{Round, figures, notes};
use self::redis::Redis;
use super::error::BenchError;
use super::machine::{self, Watch};
use super::plan::PodsPlan;
use super::report::{Report, Size, begin};
use super::server::{Bus, Kind, Server};

/// Runs the plan; `progress` hears what is being done.
///
/// # Errors
/// The system does not let it run, or a server does not do what it must for a figure to mean anything.
pub async fn run(plan: &PodsPlan, progress: &(dyn Fn(String) + Sync)) -> Result<Report, BenchError> {
    let began = Instant::now();
    machine::allow_files(plan.files())?;
    // Before anything that takes long: it may not be installed.
    let beside = Redis::start().await?.version().await?;
    let mut report = begin(Size::Pods(plan.clone()), Some(beside)).await;
    let (mut rounds, mut all) = (Vec::with_capacity(plan.rounds), Watch::default());
    for number in 0..plan.rounds {
        let told = |what: &str| progress(format!("round {} of {}: {what}", number + 1, plan.rounds));
        rounds.push(round(plan, number, &mut all, &told).await?);
    }
    report.figures = figures(&rounds);
    report.notes = notes(&rounds);
    report.end(&all, began);
    Ok(report)
}

async fn round(
    plan: &PodsPlan,
    number: usize,
    all: &mut Watch,
    told: &(dyn Fn(&str) + Sync),
) -> Result<Round, BenchError> {
    let mut redis = Redis::start().await?;
    let mut watch = Watch::with(redis.pid());
    let mut round = Round::default();
    // Who goes first changes, so that none always follows the other.
    let first = !number.is_multiple_of(2);
    for several in [first, !first] {
        if several {
            redis.ripe().await;
            let servers = start(plan.pods, &redis, "bench-deliver").await?;
            let told = |what: &str| told(&format!("{} edges: {what}", plan.pods));
            round.pods = deliver::side(&servers, Some(&mut redis), plan, &mut watch, &told).await?;
        } else {
            let servers = [Server::start(Kind::Edge, None).await?];
            let told = |what: &str| told(&format!("a single edge: {what}"));
            round.single = deliver::side(&servers, None, plan, &mut watch, &told).await?;
        }
    }
    let servers = start(plan.pods, &redis, "bench-store").await?;
    told(&format!("{} private channels, and {} presence channels", plan.occupied, plan.occupied));
    round.private = occupy::occupy(&servers, &mut redis, (plan.occupied, false), &mut watch).await?;
    round.presence = occupy::occupy(&servers, &mut redis, (plan.occupied, true), &mut watch).await?;
    told(&format!("an edge with {} presence members is killed", plan.members));
    round.swept = sweep::kill(servers, &mut redis, plan.members, &mut watch).await?;
    all.merge(&watch);
    Ok(round)
}

async fn start(pods: usize, redis: &Redis, cluster: &str) -> Result<Vec<Server>, BenchError> {
    let url = redis.url();
    let mut servers = Vec::with_capacity(pods);
    for _ in 0..pods {
        servers.push(Server::joined(Bus { url: &url, cluster }).await?);
    }
    Ok(servers)
}
