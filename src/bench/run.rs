//! A run of a single edge beside other servers, round by round.

use std::time::Instant;

use super::error::BenchError;
use super::fallback;
use super::fanout;
use super::figures::{EdgeRound, FanOutMeasurement, ServerMeasurement, compute_edge_figures};
use super::load::{ChannelSubscription, PublishSchedule, private_channel};
use super::machine::{self, HostUsage};
use super::plan::{EdgePlan, PeerKind, PeerServer};
use super::report::{BenchReport, RunSize, begin_report};
use super::sequence::DeliveryTally;
use super::server::ServerProcess;
use super::sockets::{self, CrowdSpec, DeliveryMeasurement};
use super::target::ServerKind;

/// Members of one presence channel: as many as Pusher admits.
const PRESENCE_MEMBERS_PER_CHANNEL: usize = 100;

/// Runs the plan, and reports each step to `progress`.
///
/// # Errors
/// A limit of the system is too low, or a server fails a step that a figure depends on.
pub async fn run(plan: &EdgePlan, progress: &(dyn Fn(String) + Sync)) -> Result<BenchReport, BenchError> {
    let began = Instant::now();
    machine::allow_files(plan.open_files_needed())?;
    let mut report = begin_report(RunSize::Edge(plan.clone()), plan.peer.as_ref().map(read_peer_version)).await;
    let mut watch = HostUsage::default();
    let polls = ServerProcess::start(ServerKind::Fallbacks, None).await?;
    let (polling, rounds) = tokio::join!(fallback::measure_polling(&polls, plan.polling), async {
        let mut rounds = Vec::with_capacity(plan.rounds);
        for number in 0..plan.rounds {
            let report_step = |step: &str| progress(format!("round {} of {}: {step}", number + 1, plan.rounds));
            rounds.push(run_round(plan, number, &mut watch, &report_step).await?);
        }
        progress("waiting for the idle polls".to_owned());
        Ok::<_, BenchError>(rounds)
    });
    let peer = plan.peer.as_ref().map_or(PeerKind::Sockudo, |peer| peer.kind);
    report.figures = compute_edge_figures(&rounds?, polling?, peer);
    report.finish_run(&watch, began);
    Ok(report)
}

/// Reads the peer's own name and version.
fn read_peer_version(peer: &PeerServer) -> String {
    let argument = if peer.kind == PeerKind::Nchan { "-v" } else { "--version" };
    let output = std::process::Command::new(&peer.program).arg(argument).output().ok();
    // nginx writes it as an error.
    let output = output.map(|output| if output.stdout.is_empty() { output.stderr } else { output.stdout });
    let version = output.map(|output| String::from_utf8_lossy(&output).trim().to_owned());
    let kind = match peer.kind {
        PeerKind::Sockudo => "sockudo",
        PeerKind::Nchan => "nginx with nchan",
        PeerKind::Realtime => "realtime",
    };
    let version = version.filter(|version| !version.is_empty());
    version.unwrap_or_else(|| format!("{kind} of an unknown release"))
}

async fn run_round(
    plan: &EdgePlan,
    number: usize,
    watch: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<EdgeRound, BenchError> {
    let mut round = EdgeRound::default();
    // The order rotates, so that no server always follows the same one.
    let mut servers = vec![ServerKind::Edge, ServerKind::Baseline];
    let peer_kind = plan.peer.as_ref().map(|peer| match peer.kind {
        PeerKind::Sockudo => ServerKind::Sockudo,
        PeerKind::Nchan => ServerKind::Nchan,
        PeerKind::Realtime => ServerKind::FormerEdge,
    });
    servers.extend(peer_kind);
    let turn = number % servers.len();
    servers.rotate_left(turn);
    for kind in &servers {
        report_step(&format!("{}: fan-out to {} subscribers", kind.name(), plan.subscribers));
        let server = ServerProcess::start(*kind, plan.peer.as_ref()).await?;
        if *kind == ServerKind::Edge {
            round.single_delivery_ms =
                fanout::measure_single_delivery(std::slice::from_ref(&server)).await?.quantile_ms(0.5);
        }
        if *kind == ServerKind::Baseline {
            round.echo_ms = fanout::measure_echo(&server).await?.quantile_ms(0.5);
        }
        let size = (plan.subscribers, plan.events_per_second);
        let fan = summarize_fan_out(&fanout::measure_fan_out(&server, size, plan.publishing, watch).await?);
        match kind {
            ServerKind::Baseline => round.baseline = fan,
            ServerKind::Edge => round.edge.fan_out = fan,
            _ => round.peer.get_or_insert_default().fan_out = fan,
        }
    }
    if peer_kind == Some(ServerKind::Nchan) {
        measure_other_fan_outs(plan, &servers, &mut round, watch, report_step).await?;
    }
    for kind in servers.into_iter().filter(|kind| *kind != ServerKind::Baseline) {
        let into = if kind == ServerKind::Edge { &mut round.edge } else { round.peer.get_or_insert_default() };
        report_step(&format!("{}: {} sockets over {} channels", kind.name(), plan.sockets, plan.channels));
        measure_sockets(plan, kind, into, watch).await?;
        if kind == ServerKind::Nchan {
            into.member_kib = f64::NAN;
            continue;
        }
        report_step(&format!("{}: {} presence members", kind.name(), plan.members));
        measure_members(plan, kind, into, watch).await?;
    }
    if peer_kind == Some(ServerKind::FormerEdge) {
        let into = round.peer.get_or_insert_default();
        measure_sessions(plan, ServerKind::FormerFallbacks, into, watch, report_step).await?;
    }
    measure_sessions(plan, ServerKind::Fallbacks, &mut round.edge, watch, report_step).await?;
    Ok(round)
}

async fn measure_other_fan_outs(
    plan: &EdgePlan,
    servers: &[ServerKind],
    round: &mut EdgeRound,
    watch: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<(), BenchError> {
    for (number, size) in plan.other_fan_outs.into_iter().enumerate() {
        for kind in servers.iter().filter(|kind| **kind != ServerKind::Baseline) {
            report_step(&format!("{}: fan-out to {} subscribers", kind.name(), size.0));
            let server = ServerProcess::start(*kind, plan.peer.as_ref()).await?;
            let fan = summarize_fan_out(&fanout::measure_fan_out(&server, size, plan.publishing, watch).await?);
            let into = if *kind == ServerKind::Edge { &mut round.edge } else { round.peer.get_or_insert_default() };
            into.other_fan_outs[number] = fan;
        }
    }
    Ok(())
}

async fn measure_sessions(
    plan: &EdgePlan,
    kind: ServerKind,
    into: &mut ServerMeasurement,
    watch: &mut HostUsage,
    report_step: &(dyn Fn(&str) + Sync),
) -> Result<(), BenchError> {
    report_step(&format!("{}: {} sessions over xhr_streaming", kind.name(), plan.sessions));
    let server = ServerProcess::start(kind, plan.peer.as_ref()).await?;
    into.session_kib = fallback::measure_streaming(&server, plan.sessions, watch).await?;
    Ok(())
}

async fn measure_sockets(
    plan: &EdgePlan,
    kind: ServerKind,
    into: &mut ServerMeasurement,
    watch: &mut HostUsage,
) -> Result<(), BenchError> {
    let server = ServerProcess::start(kind, plan.peer.as_ref()).await?;
    let channels = (0..plan.channels).map(private_channel).collect();
    let order = CrowdSpec {
        subscriptions: (0..plan.sockets)
            .map(|socket| ChannelSubscription::in_private_channel(socket % plan.channels))
            .collect(),
        publishing: Some(PublishSchedule::new(channels, plan.publishes_per_second, plan.publishing)),
        measure_release: !matches!(kind, ServerKind::Sockudo | ServerKind::Nchan),
    };
    let crowd = sockets::run(&server, order, watch).await?;
    (into.accept_us, into.plain_kib, into.released_ratio) = (crowd.accept_us, crowd.held_kib, crowd.released_ratio);
    (into.crowd, into.crowd_p99_ms) = crowd
        .delivery
        .map_or((DeliveryTally::default(), f64::NAN), |delivery| (delivery.tally, delivery.latency.quantile_ms(0.99)));
    Ok(())
}

async fn measure_members(
    plan: &EdgePlan,
    kind: ServerKind,
    into: &mut ServerMeasurement,
    watch: &mut HostUsage,
) -> Result<(), BenchError> {
    let server = ServerProcess::start(kind, plan.peer.as_ref()).await?;
    let member = |number: usize| ChannelSubscription {
        channel: format!("presence-bench-{}", number / PRESENCE_MEMBERS_PER_CHANNEL),
        user: Some(format!("user-{number}")),
    };
    let order =
        CrowdSpec { subscriptions: (0..plan.members).map(member).collect(), publishing: None, measure_release: false };
    into.member_kib = sockets::run(&server, order, watch).await?.held_kib;
    Ok(())
}

fn summarize_fan_out(delivery: &DeliveryMeasurement) -> FanOutMeasurement {
    FanOutMeasurement {
        cpu_us: delivery.cpu_us,
        p50_ms: delivery.latency.quantile_ms(0.5),
        p99_ms: delivery.latency.quantile_ms(0.99),
        tally: delivery.tally,
    }
}
