//! The schedule: rounds of journeys, looks at every pod, confirmations, and the verdict that comes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::control_journey::{EndedControl, SelfTest};
use super::coverage::{TargetPair, coverage_targets, process_names};
use super::dead_letter::{LetterAttempt, LetterProver};
use super::handle::{PodStanding, Prober};
use super::journey::JourneyContext;
use super::journey_budget::{BudgetShare, CONCURRENT_JOURNEYS_MAX};
use super::metrics::JourneyMetrics;
use super::observe::{PodObservation, PodObserver};
use super::pod_tour::PodTour;
use super::progress::{HopTick, PROGRESS_QUEUE_LEN};
use super::receiver::WebhookReceiver;
use super::requested_round::{RequestedProof, RequestedRound};
use super::service_routes::RouteTracker;
use super::{JourneyProof, ProbePlan, SessionShedder};
use crate::gate::{Evidence, GatePhase, GatePolicy, Journey, JourneyOutcome, RestoredProof, RoundState, Verdict};
use crate::kinesis::{KinesisError, KinesisErrorClass, Shard};
use crate::process::clock;
use crate::process::heartbeat::Heartbeat;
use crate::protocol::Transport;

/// Between two looks at every pod, until the cluster is proven.
const UNPROVEN_OBSERVATION_INTERVAL: Duration = Duration::from_millis(500);

/// Interval at which the age of the evidence is checked.
const AGEING_INTERVAL: Duration = Duration::from_secs(1);

/// Delay of the first round until dispatchers hold every shard: an unread event would count as a failure.
const FIRST_ROUND_DELAY: Duration = Duration::from_secs(5);

/// Interval of shard listings.
const SHARD_LIST_INTERVAL: Duration = Duration::from_secs(30);

/// Delay after taking over a proven cluster before a verdict, so that evidence can be collected first.
const WARM_UP_DELAY: Duration = Duration::from_secs(15);

/// Grace period in which a shard of a proven cluster may have no holder: a dead holder is noticed after 8 s.
const SHARD_HANDOVER_GRACE: Duration = Duration::from_secs(20);

/// Consecutive observations without a response before a process counts as unreachable: a single one may be lost.
const MISSED_OBSERVATIONS_MAX: usize = 3;

/// Margin on the senders' longest back-off before a receiver that took over counts as missed.
const SENDER_RETRY_GRACE: Duration = Duration::from_secs(5);

/// Queue length of results that wait for evaluation.
const RESULT_QUEUE_LEN: usize = 1024;

/// Starts journeys until the token ends them.
///
/// # Errors
/// No HTTP client can be made on this machine.
pub fn start(
    plan: ProbePlan,
    receiver: WebhookReceiver,
    reports: ProberReports,
    shutdown: CancellationToken,
) -> Result<Prober, reqwest::Error> {
    // Each request has its own timeout: the plan's may change.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut evidence = Evidence::new(plan.policy, plan.fingerprint.clone());
    evidence.advance(clock::now_ms());
    match plan.proof {
        JourneyProof::Never => {}
        JourneyProof::Lapsed { passed_ms } => evidence.restore_proof(RestoredProof { open: false, passed_ms }),
        JourneyProof::Holds { passed_ms } => evidence.restore_proof(RestoredProof { open: true, passed_ms }),
    }
    let wait = plan.max_backoff + SENDER_RETRY_GRACE;
    let found = (plan.proof != JourneyProof::Never).then(|| clock::whole_ms(wait));
    let found_ms = found.map_or(0, |wait| clock::now_ms().saturating_add(wait));
    let verdict = evidence.verdict();
    let (plan, plans) = watch::channel(Arc::new(plan));
    receiver.accept_app(plans.borrow().app.id.clone());
    let context = JourneyContext {
        plan: plans.borrow().clone(),
        receiver,
        observer: PodObserver::new()?,
        read_back: Arc::default(),
        http,
    };
    let endpoints = context.observer.endpoints();
    let shedder = SessionShedder { observer: context.observer.clone(), plans: plans.clone() };
    let (verdicts, latest) = watch::channel(verdict);
    let (standings, pods) = watch::channel(BTreeMap::new());
    let (requested_reports, requested) = watch::channel(None);
    let (intervals, round_interval) = watch::channel(context.plan.policy.interval);
    let (effective_intervals, effective_interval) = watch::channel(context.plan.policy.interval);
    let (ticks, hops) = broadcast::channel(PROGRESS_QUEUE_LEN);
    let (results, arriving) = mpsc::channel(RESULT_QUEUE_LEN);
    let mut schedule = JourneySchedule {
        // After taking over a proven cluster, every pod is observed before a verdict is given.
        warm: context.plan.proof == JourneyProof::Never,
        request: context.plan.requested.clone(),
        applied_policy: context.plan.policy,
        context: Arc::new(context),
        evidence,
        verdicts,
        reports: standings,
        intervals,
        effective_intervals,
        ticks,
        results,
        shards: Arc::new(vec![]),
        denied_listing: None,
        observation: PodObservation::default(),
        last_holders: None,
        journey_count: 0,
        journey_slots: Arc::new(Semaphore::new(CONCURRENT_JOURNEYS_MAX)),
        attempted: BTreeSet::new(),
        confirmations: BTreeMap::new(),
        missed_observations: BTreeMap::new(),
        paths: RouteTracker::default(),
        tour: PodTour::default(),
        underway: BTreeMap::new(),
        began: Instant::now(),
        round_failed: false,
        failed_rounds: 0,
        receiver_found_ms: found_ms,
        process: reports,
        requested_round: None,
        requested_reports,
        letter_prover: LetterProver::default(),
        self_test: SelfTest::default(),
    };
    schedule.update_paths();
    schedule.update_targets();
    schedule.restart_letter_proof();
    schedule.restart_self_test();
    schedule.verdicts.send_replace(schedule.evidence.verdict());
    let task = tokio::spawn(schedule.run(arriving, plans, shutdown));
    Ok(Prober {
        verdicts: latest,
        pods,
        endpoints,
        shedder,
        round_interval,
        effective_interval,
        plan,
        requested,
        hops,
        task,
    })
}

/// An event on which the schedule acts.
pub(super) enum ScheduleEvent {
    /// Every pod was looked at.
    PodsObserved(PodObservation),
    /// The shards were listed, or could not be.
    ShardsListed(Result<Vec<Shard>, KinesisError>),
    /// The hops of a journey are over; its farewell may go on.
    HopsEnded(TargetPair),
    /// A journey is over.
    JourneyEnded(Journey),
    /// An attempt to prove dead letters is over.
    LettersRead(LetterAttempt),
    /// A control journey is over.
    ControlEnded(EndedControl),
}

/// The schedule of one cluster's journeys.
pub(super) struct JourneySchedule {
    pub(super) context: Arc<JourneyContext>,
    pub(super) evidence: Evidence,
    /// The policy by which the evidence is judged, with the interval in force.
    applied_policy: GatePolicy,
    pub(super) verdicts: watch::Sender<Verdict>,
    reports: watch::Sender<BTreeMap<String, PodStanding>>,
    /// The time in force between two rounds.
    intervals: watch::Sender<Duration>,
    effective_intervals: watch::Sender<Duration>,
    pub(super) ticks: broadcast::Sender<HopTick>,
    pub(super) results: mpsc::Sender<ScheduleEvent>,
    pub(super) shards: Arc<Vec<Shard>>,
    /// The error by which AWS refused the latest listing of shards.
    denied_listing: Option<String>,
    pub(super) observation: PodObservation,
    /// Dispatchers that held shards, and when they were last seen to.
    last_holders: Option<(BTreeSet<String>, Instant)>,
    /// Whether enough is known for a verdict.
    warm: bool,
    /// Counts journeys, so that shards and companions take turns.
    pub(super) journey_count: usize,
    pub(super) journey_slots: Arc<Semaphore>,
    /// Attempts made, by transport, pod and process.
    pub(super) attempted: BTreeSet<(Transport, String, String)>,
    /// When each suspect is tried again, and how often it was.
    pub(super) confirmations: BTreeMap<TargetPair, (Instant, usize)>,
    /// Looks in a row that a process did not answer.
    missed_observations: BTreeMap<String, usize>,
    /// Which paths lead somewhere.
    pub(super) paths: RouteTracker,
    /// The pods whose turn it is.
    pub(super) tour: PodTour,
    /// Journeys whose hops are not over: few of each pair at a time, or those that fail slowly would pile up.
    pub(super) underway: BTreeMap<TargetPair, usize>,
    began: Instant,
    /// Whether a journey has failed since the latest round began.
    pub(super) round_failed: bool,
    /// Number of rounds in a row with a failed journey.
    pub(super) failed_rounds: usize,
    /// When senders that could not reach the former receiver have found this one, in ms since 1970.
    receiver_found_ms: u64,
    /// Reports to the process: progress and counts.
    pub(super) process: ProberReports,
    /// Token of a requested round that has not begun.
    pub(super) request: Option<String>,
    /// The latest requested round.
    pub(super) requested_round: Option<RequestedRound>,
    pub(super) requested_reports: watch::Sender<Option<RequestedProof>>,
    /// The proof of dead letters.
    pub(super) letter_prover: LetterProver,
    /// The gate's test of itself.
    pub(super) self_test: SelfTest,
}

/// A prober's reports to its process.
pub struct ProberReports {
    /// Reports that the schedule goes on. Journeys that never end make the evidence stale instead.
    pub heartbeat: Heartbeat,
    /// Counts the journeys of all clusters.
    pub metrics: Arc<JourneyMetrics>,
    /// Paces the journeys of all clusters.
    pub budget: BudgetShare,
}

impl JourneySchedule {
    async fn run(
        mut self,
        mut arriving: mpsc::Receiver<ScheduleEvent>,
        mut plans: watch::Receiver<Arc<ProbePlan>>,
        shutdown: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut looked, mut listed, mut read, mut round, mut aged) = (None, None, None, None, None);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = arriving.recv() => if let Some(event) = event { self.apply_event(event) },
                Ok(()) = plans.changed() => {
                    let plan = plans.borrow_and_update().clone();
                    self.adopt_plan(plan);
                    looked = None;
                }
                now = tick.tick() => {
                    self.process.heartbeat.beat();
                    let proven = self.verdicts.borrow().phase == GatePhase::Open;
                    let interval = self.adjust_interval();
                    if is_due(listed, now, if self.shards.is_empty() { UNPROVEN_OBSERVATION_INTERVAL } else { SHARD_LIST_INTERVAL }) {
                        listed = Some(now);
                        self.list_shards();
                    }
                    if is_due(looked, now, if proven { interval } else { UNPROVEN_OBSERVATION_INTERVAL }) {
                        looked = Some(now);
                        self.observe_pods();
                    }
                    if is_due(read, now, self.context.observer.endpoints_interval()) {
                        read = Some(now);
                        self.read_endpoints();
                    }
                    if is_due(aged, now, AGEING_INTERVAL) {
                        aged = Some(now);
                        self.advance_evidence();
                    }
                    let every = self.round_interval();
                    send_if_changed(&self.intervals, every);
                    if self.warm && self.is_ready() && is_due(round, now, every) {
                        round = Some(now);
                        self.start_round();
                    }
                    if self.warm && self.is_ready() {
                        self.prove_newcomers();
                        self.start_requested_round();
                        self.attempt_letter_proof(now);
                        self.attempt_self_test(now);
                    }
                    self.retry_suspects(now);
                }
            }
        }
    }

    /// Asks for the journeys of one round of an open gate in each interval of the manifest. Returns the interval in force, by
    /// which evidence ages too.
    fn adjust_interval(&mut self) -> Duration {
        let plan = &self.context.plan;
        let interval = self.process.budget.adjust_interval(self.round_size(), plan.policy.interval);
        send_if_changed(&self.effective_intervals, interval);
        let policy = GatePolicy { interval, ..plan.policy };
        if self.applied_policy != policy {
            self.applied_policy = policy;
            self.evidence.set_policy(policy);
        }
        interval
    }

    fn advance_evidence(&mut self) {
        self.evidence.advance(clock::now_ms());
        self.publish_verdict();
    }

    /// Time in force between two rounds.
    fn round_interval(&self) -> Duration {
        let interval = self.context.plan.policy.round_interval(self.round_state());
        interval.mul_f64(self.process.budget.stretch())
    }

    pub(super) fn round_state(&self) -> RoundState {
        RoundState {
            phase: self.verdicts.borrow().phase,
            idle: self.underway.is_empty(),
            failed: self.round_failed,
            failed_rounds: self.failed_rounds,
        }
    }

    /// Another plan: pods that came and went, or another thing to prove.
    fn adopt_plan(&mut self, plan: Arc<ProbePlan>) {
        let before = &self.context.plan;
        let are_proofs_due = plan.fingerprint != before.fingerprint
            || plan.dead_letter != before.dead_letter
            || plan.stream.is_some() != before.stream.is_some()
            || plan.requested.is_some() && plan.requested != before.requested;
        if plan.fingerprint != before.fingerprint {
            self.evidence.reset_proof(plan.fingerprint.clone());
            self.warm = true;
            self.last_holders = None;
            self.began = Instant::now();
        }
        // A journey under the former plan proves nothing of this one.
        let is_restarted = plan.fingerprint != before.fingerprint && plan.requested.is_some();
        if plan.requested != before.requested || is_restarted {
            self.request.clone_from(&plan.requested);
            self.requested_round = None;
        }
        self.context.receiver.accept_app(plan.app.id.clone());
        let context = JourneyContext { plan, ..(*self.context).clone() };
        self.context = Arc::new(context);
        if are_proofs_due {
            self.restart_letter_proof();
            self.restart_self_test();
        }
        self.adjust_interval();
        self.update_paths();
        self.observation.pods.retain(|pod, _| process_names(&self.context.plan).any(|found| found == pod));
        self.attempted.retain(|(_, pod, _)| self.context.plan.edges.iter().any(|edge| edge.pod == *pod));
        self.observation.dispatchers.retain(|pod, _| process_names(&self.context.plan).any(|found| found == pod));
        self.update_targets();
        self.drop_removed_routes();
        self.publish_verdict();
    }

    fn update_paths(&mut self) {
        let plan = &self.context.plan;
        self.paths.update(plan.paths.iter().chain(&plan.external.routes), Instant::now());
    }

    /// Whether journeys may begin: every shard is held, or it took too long.
    fn is_ready(&self) -> bool {
        let held = |shard: &Shard| self.observation.shard_holder(&shard.id).is_some();
        let reading = !self.context.plan.webhooks || (!self.shards.is_empty() && self.shards.iter().all(held));
        reading || self.began.elapsed() > FIRST_ROUND_DELAY
    }

    fn apply_event(&mut self, event: ScheduleEvent) {
        match event {
            ScheduleEvent::PodsObserved(mut observation) => {
                let known: BTreeSet<&str> = process_names(&self.context.plan).collect();
                observation.pods.retain(|pod, _| known.contains(pod.as_str()));
                observation.dispatchers.retain(|pod, _| known.contains(pod.as_str()));
                for pod in observation.pods.keys() {
                    self.missed_observations.remove(pod);
                }
                self.missed_observations.retain(|pod, _| known.contains(pod.as_str()));
                for pod in known.into_iter().filter(|pod| !observation.pods.contains_key(*pod)) {
                    let misses = self.missed_observations.entry(pod.to_owned()).or_default();
                    *misses += 1;
                    if self.warm && *misses >= MISSED_OBSERVATIONS_MAX {
                        self.evidence.mark_unreachable(pod);
                    }
                }
                for (pod, seen) in std::mem::take(&mut self.observation.pods) {
                    if self.missed_observations.get(&pod).is_some_and(|misses| *misses < MISSED_OBSERVATIONS_MAX) {
                        observation.pods.entry(pod).or_insert(seen);
                    }
                }
                // One lost answer does not take the shards from their holder.
                for (pod, flow) in std::mem::take(&mut self.observation.dispatchers) {
                    if self.missed_observations.get(&pod).is_none_or(|misses| *misses < MISSED_OBSERVATIONS_MAX) {
                        observation.dispatchers.entry(pod).or_insert(flow);
                    }
                }
                self.observation = observation;
                let all = process_names(&self.context.plan).all(|pod| self.observation.pods.contains_key(pod));
                let listed = !self.context.plan.webhooks || !self.shards.is_empty();
                self.warm |= (all && listed) || self.began.elapsed() > WARM_UP_DELAY;
                self.update_targets();
            }
            ScheduleEvent::ShardsListed(listed) => {
                let denied = listed.as_ref().err().filter(|error| error.class == KinesisErrorClass::Denied);
                self.denied_listing = denied.map(ToString::to_string);
                if let Ok(shards) = listed {
                    self.shards = Arc::new(shards.into_iter().filter(|shard| shard.open).collect());
                }
                self.update_targets();
            }
            ScheduleEvent::HopsEnded(pair) => {
                if let Some(count) = self.underway.get_mut(&pair).filter(|count| **count > 1) {
                    *count -= 1;
                } else {
                    self.underway.remove(&pair);
                }
            }
            ScheduleEvent::JourneyEnded(journey) => {
                tracing::debug!(?journey, unclaimed = self.context.receiver.unclaimed_count(), "journey finished");
                // Rounds of pods need not slow down for a load balancer that the operator cannot reach.
                let is_external = self.context.plan.external.routes.iter().any(|path| path.name == journey.entrance);
                self.round_failed |= !is_external
                    && matches!(journey.outcome, JourneyOutcome::Decisive(_) | JourneyOutcome::Ambiguous(_));
                let journey = journey.void_if_missed_before(self.receiver_found_ms);
                self.process.metrics.count_journey(&journey);
                self.evidence.add_journey(&journey);
                self.add_to_requested_round(&journey);
            }
            ScheduleEvent::LettersRead(attempt) => self.add_letter_attempt(attempt),
            ScheduleEvent::ControlEnded(ended) => self.add_control_journey(&ended),
        }
        self.publish_verdict();
    }

    fn publish_verdict(&self) {
        let standings: BTreeMap<String, PodStanding> =
            process_names(&self.context.plan).map(|pod| (pod.to_owned(), self.pod_report(pod))).collect();
        send_if_changed(&self.reports, standings);
        if self.warm {
            let verdict = self.evidence.verdict();
            // Whoever reads it gets the newest latencies; nobody is woken for them.
            self.verdicts.send_if_modified(|known| {
                let changed = !known.is_same_as(&verdict);
                *known = verdict;
                changed
            });
        }
    }

    fn pod_report(&self, pod: &str) -> PodStanding {
        let seen = self.observation.pods.get(pod);
        let drifts = seen.map(|seen| seen.drifts.iter().map(ToString::to_string).collect::<Vec<_>>());
        PodStanding {
            configuration: seen.map(|seen| seen.configuration.clone()).unwrap_or_default(),
            proof: self.evidence.process_proof(pod),
            drift: drifts.unwrap_or_default().join("; "),
            registry: seen.and_then(|seen| seen.registry.clone()),
        }
    }

    fn update_targets(&mut self) {
        if !self.warm {
            return;
        }
        let mut dimensions =
            coverage_targets(&self.context.plan, &self.shards, self.denied_listing.as_deref(), &self.observation);
        // Between two holders a shard has none for a moment, which is no failure of a cluster that was proven.
        let now = Instant::now();
        match &self.last_holders {
            Some((held, at)) if dimensions.dispatchers.is_empty() && now.duration_since(*at) < SHARD_HANDOVER_GRACE => {
                dimensions.dispatchers.clone_from(held);
            }
            _ => self.last_holders = Some((dimensions.dispatchers.clone(), now)),
        }
        let seen = self.observation.pods.iter();
        self.evidence.observe_all(dimensions, seen.map(|(pod, seen)| (pod, &seen.process, &seen.drifts)));
    }
}

/// Sends a value only if it differs from the current one.
pub(super) fn send_if_changed<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|known| {
        let changed = *known != value;
        *known = value;
        changed
    });
}

fn is_due(last: Option<Instant>, now: Instant, every: Duration) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= every)
}
