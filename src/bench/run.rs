//! One run: rounds in which every server has its turn.

use std::time::Instant;

use super::crowd::{self, Delivery, Order};
use super::error::BenchError;
use super::fallback;
use super::fanout;
use super::figures::{Fan, Numbers, Round, figures};
use super::load::{Place, Publishing, private};
use super::machine::{self, Watch};
use super::plan::{Peer, Plan};
use super::report::{Report, Size, begin};
use super::sequence::Tally;
use super::server::{Kind, Server};

/// Members of one presence channel: as many as Pusher lets in.
const TOGETHER: usize = 100;

/// Runs the plan; `progress` hears what is being done.
///
/// # Errors
/// The system does not let it run, or a server does not do what it must for a figure to mean anything.
pub async fn run(plan: &Plan, progress: &(dyn Fn(String) + Sync)) -> Result<Report, BenchError> {
    let began = Instant::now();
    machine::allow_files(plan.files())?;
    let mut report = begin(Size::Edge(plan.clone()), plan.peer.as_ref().map(version)).await;
    let mut watch = Watch::default();
    let polls = Server::start(Kind::Fallbacks, None).await?;
    let (polling, rounds) = tokio::join!(fallback::polling(&polls, plan.polling), async {
        let mut rounds = Vec::with_capacity(plan.rounds);
        for number in 0..plan.rounds {
            let told = |what: &str| progress(format!("round {} of {}: {what}", number + 1, plan.rounds));
            rounds.push(round(plan, number, &mut watch, &told).await?);
        }
        progress("waiting for the idle polls".to_owned());
        Ok::<_, BenchError>(rounds)
    });
    report.figures = figures(&rounds?, polling?);
    report.end(&watch, began);
    Ok(report)
}

/// What the peer calls itself.
fn version(peer: &Peer) -> String {
    let asked = std::process::Command::new(&peer.program).arg("--version").output();
    let told = asked.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.filter(|told| !told.is_empty()).unwrap_or_else(|| "sockudo of an unknown release".to_owned())
}

async fn round(
    plan: &Plan,
    number: usize,
    watch: &mut Watch,
    told: &(dyn Fn(&str) + Sync),
) -> Result<Round, BenchError> {
    let mut round = Round::default();
    // Who goes first changes, so that none always follows the same one.
    let mut servers = vec![Kind::Edge, Kind::Bare];
    if plan.peer.is_some() {
        servers.push(Kind::Sockudo);
    }
    let turn = number % servers.len();
    servers.rotate_left(turn);
    for kind in &servers {
        told(&format!("{}: fan-out to {} subscribers", kind.name(), plan.subscribers));
        let server = Server::start(*kind, plan.peer.as_ref()).await?;
        if *kind == Kind::Edge {
            round.one_ms = fanout::one(std::slice::from_ref(&server)).await?.quantile_ms(0.5);
        }
        if *kind == Kind::Bare {
            round.echo_ms = fanout::echo(&server).await?.quantile_ms(0.5);
        }
        let fan = fan(&fanout::many(&server, plan, watch).await?);
        match kind {
            Kind::Bare => round.bare = fan,
            Kind::Sockudo => round.peer.get_or_insert_default().fan = fan,
            Kind::Edge | Kind::Fallbacks => round.edge.fan = fan,
        }
    }
    for kind in servers.into_iter().filter(|kind| *kind != Kind::Bare) {
        let into = if kind == Kind::Sockudo { round.peer.get_or_insert_default() } else { &mut round.edge };
        told(&format!("{}: {} sockets over {} channels", kind.name(), plan.sockets, plan.channels));
        sockets(plan, kind, into, watch).await?;
        told(&format!("{}: {} presence members", kind.name(), plan.members));
        members(plan, kind, into, watch).await?;
    }
    told(&format!("edge: {} sessions over xhr_streaming", plan.sessions));
    let server = Server::start(Kind::Fallbacks, None).await?;
    round.session_kib = fallback::streaming(&server, plan.sessions, watch).await?;
    Ok(round)
}

async fn sockets(plan: &Plan, kind: Kind, into: &mut Numbers, watch: &mut Watch) -> Result<(), BenchError> {
    let server = Server::start(kind, plan.peer.as_ref()).await?;
    let channels = (0..plan.channels).map(private).collect();
    let order = Order {
        places: (0..plan.sockets).map(|socket| Place::private(socket % plan.channels)).collect(),
        publishing: Some(Publishing::new(channels, plan.publishes_per_second, plan.publishing)),
        leave: kind != Kind::Sockudo,
    };
    let crowd = crowd::run(&server, order, watch).await?;
    (into.accept_us, into.plain_kib, into.back) = (crowd.accept_us, crowd.held_kib, crowd.back);
    (into.crowd, into.crowd_p99_ms) = crowd
        .delivery
        .map_or((Tally::default(), f64::NAN), |delivery| (delivery.tally, delivery.latency.quantile_ms(0.99)));
    Ok(())
}

async fn members(plan: &Plan, kind: Kind, into: &mut Numbers, watch: &mut Watch) -> Result<(), BenchError> {
    let server = Server::start(kind, plan.peer.as_ref()).await?;
    let member = |number: usize| Place {
        channel: format!("presence-bench-{}", number / TOGETHER),
        user: Some(format!("user-{number}")),
    };
    let order = Order { places: (0..plan.members).map(member).collect(), publishing: None, leave: false };
    into.member_kib = crowd::run(&server, order, watch).await?.held_kib;
    Ok(())
}

fn fan(delivery: &Delivery) -> Fan {
    Fan {
        cpu_us: delivery.cpu_us,
        p50_ms: delivery.latency.quantile_ms(0.5),
        p99_ms: delivery.latency.quantile_ms(0.99),
        tally: delivery.tally,
    }
}
