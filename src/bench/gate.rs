//! The gate under random losses, in simulated time: how soon it opens, how much of the time it is open, how soon it closes.
//!
//! In: the share of journeys that are lost, the number of edge pods, a seed. Out: a row of figures. The gate is the real
//! one; the prober's rounds and confirmations are modelled with its intervals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::api::Reason;
use crate::gate::{
    CoverageTargets, Evidence, ExternalTargets, GatePhase, GatePolicy, Hop, HopFailure, Journey, JourneyOutcome,
    RestoredProof, RoundState,
};
use crate::process::clock::whole_ms;
use crate::protocol::{ShardId, Transport};

/// Duration of a journey that passes, in ms.
const PASS_MS: u64 = 300;

/// Fingerprint of the simulated cluster.
const FINGERPRINT: &str = "f1";

/// Shares of lost journeys that are simulated, in percent.
const LOSSES_PERCENT: [u32; 4] = [0, 1, 5, 40];

/// Numbers of edge pods that are simulated.
const POD_COUNTS: [usize; 3] = [1, 4, 40];

/// First proofs, and closings, that are simulated for each row.
pub const TRIAL_COUNT: u64 = 200;

/// Longest that a simulated gate is waited for, in ms.
const TRIAL_MAX_MS: u64 = 3_600_000;

const MS_PER_HOUR: u64 = 3_600_000;

/// One row of the simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct GateRow {
    /// Share of lost journeys, in percent.
    pub loss_percent: u32,
    /// Number of edge pods.
    pub pods: usize,
    /// Median time until a closed gate opens again, in s; `None` when it never did.
    pub opens_s: Option<f64>,
    /// Share of the simulated hours in which the gate was open.
    pub open_share: f64,
    /// Number of closings in the simulated hours.
    pub closings: usize,
    /// 99th percentile of the time until an open gate closes once losses begin, in s; `None` when it did not close.
    pub closes_p99_s: Option<f64>,
}

/// The prober's rounds around one gate.
struct GateSimulation {
    evidence: Evidence,
    policy: GatePolicy,
    /// The journeys of each route, one per shard in turn.
    journeys: Vec<Vec<Journey>>,
    /// Routes through the pods of each transport, and the number of those that rounds have taken.
    pod_routes: BTreeMap<Transport, (Vec<usize>, usize)>,
    /// Routes through the paths.
    path_routes: Vec<usize>,
    random: SmallRng,
    /// Share of journeys that are lost.
    loss: f64,
    now_ms: u64,
    next_round_ms: u64,
    next_ageing_ms: u64,
    journey_count: usize,
    round_failed: bool,
    failed_rounds: usize,
    phase: GatePhase,
    /// Ends of journeys, with route and start.
    underway: BinaryHeap<Reverse<(u64, usize, u64)>>,
    /// Number of journeys under way of each route.
    busy: Vec<usize>,
    /// When each suspect route is tried again, and how often it was.
    retries: BTreeMap<usize, (u64, usize)>,
    /// No retry is due before.
    next_retry_ms: u64,
}

impl GateSimulation {
    fn new(pods: usize, loss: f64, seed: u64) -> Self {
        let policy = GatePolicy::default();
        let targets = build_targets(pods);
        let mut evidence = Evidence::new(policy, FINGERPRINT);
        let observed: Vec<_> =
            targets.processes.iter().map(|process| (process.clone(), "p1".to_owned(), vec![])).collect();
        let journeys = list_journeys(&targets);
        let (mut pod_routes, mut path_routes) = (BTreeMap::<_, (Vec<usize>, usize)>::new(), vec![]);
        for (route, journey) in journeys.iter().filter_map(|turns| turns.first()).enumerate() {
            if targets.paths.contains_key(&journey.entrance) {
                path_routes.push(route);
            } else {
                pod_routes.entry(journey.transport).or_default().0.push(route);
            }
        }
        evidence.observe_all(targets, observed.iter().map(|(pod, process, drifts)| (pod, process, drifts)));
        Self {
            evidence,
            policy,
            busy: vec![0; journeys.len()],
            journeys,
            pod_routes,
            path_routes,
            random: SmallRng::seed_from_u64(seed),
            loss,
            now_ms: 0,
            next_round_ms: 0,
            next_ageing_ms: 0,
            journey_count: 0,
            round_failed: false,
            failed_rounds: 0,
            phase: GatePhase::Proving,
            underway: BinaryHeap::new(),
            retries: BTreeMap::new(),
            next_retry_ms: u64::MAX,
        }
    }

    /// Advances to the next event. Returns the time that passed, in ms.
    fn step(&mut self) -> u64 {
        let before = self.now_ms;
        let ended = self.underway.peek().map_or(u64::MAX, |Reverse((ended_ms, _, _))| *ended_ms);
        self.now_ms = ended.min(self.next_retry_ms).min(self.next_round_ms).min(self.next_ageing_ms).max(before);
        if ended <= self.now_ms {
            self.end_journey();
        } else if self.next_retry_ms <= self.now_ms {
            self.retry_suspects();
        } else if self.next_round_ms <= self.now_ms {
            self.start_round();
        } else {
            self.next_ageing_ms = self.now_ms + 15_000;
            self.evidence.advance(self.now_ms);
        }
        self.now_ms - before
    }

    fn start_round(&mut self) {
        self.failed_rounds = if self.round_failed { self.failed_rounds + 1 } else { 0 };
        self.round_failed = false;
        for route in self.choose_routes() {
            if self.busy[route] < GatePolicy::concurrent_journeys_max(self.phase) {
                self.begin_journey(route);
            }
        }
        // The evidence has no word for a refusal: a cluster whose first rounds fail is one.
        let refused = self.phase == GatePhase::Proving && self.failed_rounds > 0;
        let round = RoundState {
            phase: if refused { GatePhase::Refused } else { self.phase },
            idle: self.underway.is_empty(),
            failed: false,
            failed_rounds: self.failed_rounds,
        };
        self.next_round_ms = self.now_ms + whole_ms(self.policy.round_interval(round));
    }

    /// The routes of the next round: of an open gate through the pods whose turn it is.
    fn choose_routes(&mut self) -> Vec<usize> {
        let mut routes = self.path_routes.clone();
        for (pods, taken) in self.pod_routes.values_mut() {
            let is_open = self.phase == GatePhase::Open;
            let count = if is_open { self.policy.pods_per_round(pods.len()) } else { pods.len() };
            routes.extend(pods.iter().cycle().skip(*taken % pods.len()).take(count));
            *taken += count;
        }
        routes.sort_unstable();
        routes
    }

    fn begin_journey(&mut self, route: usize) {
        self.busy[route] += 1;
        let lost = self.random.random_bool(self.loss);
        let ended_ms = self.now_ms + if lost { whole_ms(self.policy.timeout) } else { PASS_MS };
        self.underway.push(Reverse((ended_ms, route, self.now_ms)));
    }

    fn end_journey(&mut self) {
        let Some(Reverse((ended_ms, route, started_ms))) = self.underway.pop() else { return };
        self.busy[route] -= 1;
        let lost = ended_ms - started_ms > PASS_MS;
        let turns = &mut self.journeys[route];
        let turn = self.journey_count % turns.len();
        self.journey_count += 1;
        let journey = &mut turns[turn];
        (journey.started_ms, journey.ended_ms) = (started_ms, ended_ms);
        journey.outcome = if lost { JourneyOutcome::Ambiguous(lost_webhook()) } else { JourneyOutcome::Pass };
        self.evidence.add_journey(journey);
        if lost {
            if !self.round_failed && self.phase == GatePhase::Open {
                // A loss asks for the next round at once.
                self.next_round_ms = self.next_round_ms.min(self.now_ms);
            }
            self.round_failed = true;
            let (at, _) = self.retries.entry(route).or_insert((self.now_ms + whole_ms(self.policy.confirm_every), 0));
            self.next_retry_ms = self.next_retry_ms.min(*at);
        } else {
            self.retries.remove(&route);
        }
        self.phase = self.evidence.phase();
    }

    fn retry_suspects(&mut self) {
        let mut due = Vec::new();
        for (route, (at, count)) in &mut self.retries {
            if *at <= self.now_ms {
                *count += 1;
                *at = self.now_ms + whole_ms(self.policy.confirmation_delay(*count));
                due.push(*route);
            }
        }
        self.next_retry_ms = self.retries.values().map(|(at, _)| *at).min().unwrap_or(u64::MAX);
        for route in due {
            self.begin_journey(route);
        }
    }

    /// Runs until the gate is in the phase. Returns the time that it took, in ms.
    fn run_until(&mut self, wanted: impl Fn(GatePhase) -> bool) -> Option<u64> {
        let began = self.now_ms;
        while self.now_ms - began < TRIAL_MAX_MS {
            self.step();
            if wanted(self.phase) {
                return Some(self.now_ms - began);
            }
        }
        None
    }

    /// Runs for a time. Returns the time in which the gate was open, in ms, and the number of closings.
    fn run_for(&mut self, duration_ms: u64) -> (u64, usize) {
        let (ends_ms, mut open_ms, mut closings) = (self.now_ms + duration_ms, 0, 0);
        while self.now_ms < ends_ms {
            let open = self.phase == GatePhase::Open;
            let passed = self.step();
            open_ms += if open { passed } else { 0 };
            closings += usize::from(open && self.phase != GatePhase::Open);
        }
        (open_ms, closings)
    }
}

/// Targets of a cluster whose pods are half WebSocket servers and half servers of the fallbacks; a single pod is both.
fn build_targets(pods: usize) -> CoverageTargets {
    let transports: BTreeSet<Transport> = Transport::ALL.into_iter().collect();
    let of = |websocket: bool| -> BTreeSet<Transport> {
        transports.iter().copied().filter(|transport| (*transport == Transport::Websocket) == websocket).collect()
    };
    let carries = |number: usize| if pods == 1 { transports.clone() } else { of(number.is_multiple_of(2)) };
    let carrying = |transport: &Transport| (0..pods).filter(|number| carries(*number).contains(transport)).count();
    let tour = |transport: &Transport| (*transport, GatePolicy::default().tour_rounds(carrying(transport)));
    let tour_rounds = transports.iter().map(tour).collect();
    let edges: BTreeMap<_, _> = (0..pods).map(|number| (format!("edge-{number:02}"), carries(number))).collect();
    let dispatchers: BTreeSet<String> = (0..2).map(|number| format!("dispatcher-{number}")).collect();
    CoverageTargets {
        external: ExternalTargets::default(),
        paths: [("Service eu".to_owned(), transports.clone())].into(),
        transports,
        wanted_pods: BTreeMap::new(),
        tour_rounds,
        processes: edges.keys().chain(&dispatchers).cloned().collect(),
        pods: edges,
        newcomers: BTreeSet::new(),
        webhooks: true,
        shards: (0..4).map(|number| ShardId::from(format!("shard-{number}").as_str())).collect(),
        denied_listing: None,
        dispatcher_error: None,
        dispatchers,
    }
}

/// The journeys of a round by each transport through each pod and each path, once for each shard. Dispatchers take turns too.
fn list_journeys(targets: &CoverageTargets) -> Vec<Vec<Journey>> {
    let entrances = targets.pods.iter().chain(&targets.paths);
    let routes = entrances.flat_map(|(name, carries)| carries.iter().map(move |transport| (*transport, name)));
    let route_journeys = |(transport, entrance): (Transport, &String)| {
        let turns = targets.shards.iter().zip(targets.dispatchers.iter().cycle());
        let journeys = turns.map(|(shard, dispatcher)| Journey {
            fingerprint: FINGERPRINT.to_owned(),
            transport,
            entrance: entrance.clone(),
            shards: vec![shard.clone()],
            dispatcher: Some(dispatcher.clone()),
            started_ms: 0,
            ended_ms: 0,
            latency_ms: BTreeMap::new(),
            fan_out_tried: true,
            outcome: JourneyOutcome::Void,
        });
        journeys.collect()
    };
    routes.map(route_journeys).collect()
}

fn lost_webhook() -> HopFailure {
    HopFailure { hop: Hop::Delivery, reason: Reason::WebhookMissing, detail: String::new() }
}

fn simulate_row((loss_percent, pods): (u32, usize), hours: u64, trials: u64) -> GateRow {
    let loss = f64::from(loss_percent) / 100.0;
    let mut opened: Vec<Option<u64>> = (0..trials)
        .map(|seed| {
            let mut simulation = GateSimulation::new(pods, loss, seed);
            simulation.evidence.restore_proof(RestoredProof { open: false, passed_ms: 0 });
            simulation.phase = GatePhase::Closed;
            simulation.run_until(|phase| phase == GatePhase::Open)
        })
        .collect();
    opened.sort_unstable_by_key(|ms| ms.unwrap_or(u64::MAX));
    let mut closed: Vec<Option<u64>> = (0..trials)
        .map(|seed| {
            let mut simulation = GateSimulation::new(pods, 0.0, seed);
            simulation.run_until(|phase| phase == GatePhase::Open)?;
            // Losses begin anywhere between two rounds.
            simulation.run_for(60_000 + seed * 15_000 / trials);
            simulation.loss = loss;
            simulation.run_until(|phase| phase != GatePhase::Open)
        })
        .collect();
    closed.sort_unstable_by_key(|ms| ms.unwrap_or(u64::MAX));
    let nth = |sorted: &[Option<u64>], percent: usize| {
        sorted.get(sorted.len() * percent / 100).copied().flatten().map(|ms| super::machine::as_f64(ms) / 1_000.0)
    };
    let mut simulation = GateSimulation::new(pods, loss, u64::from(loss_percent) * 1_000 + pods as u64);
    let (open_ms, closings) = simulation.run_for(hours * MS_PER_HOUR);
    GateRow {
        loss_percent,
        pods,
        opens_s: nth(&opened, 50),
        open_share: super::machine::as_f64(open_ms) / super::machine::as_f64(hours * MS_PER_HOUR),
        closings,
        closes_p99_s: nth(&closed, 99),
    }
}

/// Simulates every row for so many hours, on every core. The rows are the same for the same number of hours.
///
/// # Panics
/// A simulation panics.
#[must_use]
pub fn simulate_gate(hours: u64, progress: &(dyn Fn(String) + Sync)) -> Vec<GateRow> {
    let cells: Vec<(u32, usize)> =
        LOSSES_PERCENT.iter().flat_map(|loss| POD_COUNTS.map(move |pods| (*loss, pods))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let rows = std::sync::Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                // The largest first, so that no core waits for the last one.
                while let Some(cell) =
                    cells.len().checked_sub(1 + next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let (loss, pods) = cells[cell];
                    progress(format!("{loss} % of journeys lost, {pods} pods"));
                    let row = simulate_row((loss, pods), hours, TRIAL_COUNT);
                    rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(cell, row);
                }
            });
        }
    });
    rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_values().collect()
}

/// Describes each row that misses its target.
#[must_use]
pub fn find_missed_rows(rows: &[GateRow]) -> Vec<String> {
    let mut missed = Vec::new();
    for row in rows {
        let lossless = rows.iter().find(|other| other.loss_percent == 0 && other.pods == row.pods);
        let lossless_s = lossless.and_then(|row| row.opens_s).unwrap_or(f64::NAN);
        let place = format!("{} % of journeys lost, {} pods", row.loss_percent, row.pods);
        let mut expect = |met: bool, what: &str| {
            if !met {
                missed.push(format!("{place}: {what}"));
            }
        };
        match row.loss_percent {
            0 => expect(row.closings == 0 && row.opens_s.is_some(), "it is not always open"),
            1 => {
                expect(
                    row.opens_s.is_some_and(|s| s <= 3.0 * lossless_s),
                    "it opens later than in 3 × the lossless time",
                );
                expect(row.open_share >= 0.999, "it is open less than 99.9 % of the time");
            }
            40 => {
                expect(row.opens_s.is_none() && row.open_share <= 0.0, "it opens");
                expect(row.closes_p99_s.is_some_and(|s| s <= 45.0), "it closes later than after 45 s");
            }
            _ => {}
        }
    }
    missed
}

const GATE_PAGE_HEAD: &str = "\
# The gate

A cluster is Ready while its gate is open. The gate is a pure decision (`src/gate`): journeys, configuration reports and a
clock in, a verdict out.

- **What counts.** A journey counts for the fingerprint under which it began: the hash of what runs. A rotated Secret, a
  replaced stream or another template has another fingerprint, and is Unknown until it has been proven itself.
- **Opening.** Every value of every dimension (each transport through each pod and each Service, each shard, each
  dispatcher) has passed `gate.openAfter` times, its newest journey passed, as many pods run as the manifest asks for,
  and at most 5 % of the latest journeys since the closing failed.
- **From outside.** With hosts and a load balancer, journeys also enter at its published address, by the host and its certificate.
  They count as [exposure.md](exposure.md#the-condition-externalpathproven) says, and never as a loss of a pod.
- **Closing.** A result that was measured wrong closes at once. A lost journey is confirmed twice; `gate.closeAfter`
  losses of one value in a row that span 20 s close, and so do more than 5 % of the last 200 journeys.
- **Dead letters.** With `webhooks.deadLetter` the gate opens once the letter of a test record has come out of the dead-letter
  stream, once for each fingerprint. A record that a dispatcher read and did not keep closes as `DeadLetterBroken`
  ([dead-letter.md](dead-letter.md)).
- **Self-test.** Once for each fingerprint, the open gate must refuse two journeys through an admitted pod: one whose webhooks are
  verified with another secret (`SignatureInvalid`), and one whose webhooks are withheld from it (`WebhookMissing`). A gate that
  passes one of them is closed as `GateBroken`.
- **Ageing.** A value without a finished journey for three intervals, and at least a minute, closes the gate as
  `EvidenceStale`; Ready is then Unknown. `status.gate.passedAt` is the start of the oldest pass of the latest complete
  round. A new leader goes on with the recorded proof, without renewing it, for 15 minutes at most
  (`--inherited-evidence-max`).
- **Pace.** The clusters of one operator share 50 journeys per second (`--journeys-per-second`). While their intervals ask for
  more, all of them are stretched by the same factor, and evidence ages by the stretched interval, which is the metric
  `realtime_operator_round_interval_seconds`. Through gates that are not open, 32 journeys are under way at once, of all
  clusters together, so that many clusters created at once do not fail each other's proofs by their load; gates that failed
  for ten rounds have 32 of their own.
- **Tours.** While the gate is open, rounds take turns with the pods of a transport that has more than 12: each round takes at
  least 12, and all of them within 5 minutes at the interval of the manifest. A value of such a pod ages by its tour. Until the
  gate is open, each round takes every pod; a pod that waits for admission, and the round of `realtime prove`, too.

";

/// Renders the page of the simulation in Markdown.
#[must_use]
pub fn render_gate_page(rows: &[GateRow], hours: u64) -> String {
    let table = render_gate_table(rows);
    format!(
        "{GATE_PAGE_HEAD}## Under random losses\n\nThis page is written by a command, \
         `realtime bench gate --write docs/gate.md`. It simulates {hours} hours of the real\ndecision with the prober's \
         intervals, each share of lost journeys, and each number of pods; a lost journey takes its\n10 s, a pass 0.3 s. \
         Half of the pods carry WebSocket and half the fallbacks; a single pod carries both. The times to open again and\n\
         to close are of {TRIAL_COUNT} trials each.\n\n{table}"
    )
}

/// Renders the rows as a table in Markdown.
#[must_use]
pub fn render_gate_table(rows: &[GateRow]) -> String {
    let mut text =
        "| journeys lost | edge pods | opens again after (median) | open | closings | closes after (p99) |\n\
                    |---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
    for row in rows {
        let seconds = |value: Option<f64>| value.map_or_else(|| "never".to_owned(), |value| format!("{value:.1} s"));
        let _ = writeln!(
            text,
            "| {} % | {} | {} | {:.3} % | {} | {} |",
            row.loss_percent,
            row.pods,
            seconds(row.opens_s),
            row.open_share * 100.0,
            row.closings,
            seconds(row.closes_p99_s)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_stays_open_and_closes_as_its_losses_ask() {
        let rows: Vec<GateRow> =
            [(0, 1), (1, 1), (40, 1), (0, 4), (40, 4)].map(|cell| simulate_row(cell, 10, 20)).into();
        assert_eq!(find_missed_rows(&rows), Vec::<String>::new(), "\n{}", render_gate_table(&rows));
        let late = GateRow { closes_p99_s: Some(46.0), ..rows[2].clone() };
        assert_eq!(find_missed_rows(&[late]).len(), 1);
    }
}
