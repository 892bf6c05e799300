//! What is proven so far, per dimension, and what that makes of the gate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::series::{Series, Standing as Journeys};
use super::{Drift, Failure, Hop, Journey, Outcome};
use crate::protocol::{ShardId, Transport};

/// Journeys over which the rate of failures is taken.
const RATE_WINDOW: usize = 200;

/// Most failures among them, in percent.
const RATE_PERCENT: usize = 5;

/// The knobs.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Between two rounds once proven.
    pub interval: Duration,
    /// For hops 1 to 10, and apart from that for the farewell.
    pub timeout: Duration,
    /// Complete rounds that open.
    pub open_after: usize,
    /// Ambiguous failures in a row that close.
    pub close_after: usize,
    /// From the first one's start to the last one's end at least this long.
    pub min_span: Duration,
    /// Between two confirmations.
    pub confirm_every: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
            open_after: 3,
            close_after: 3,
            min_span: Duration::from_secs(20),
            confirm_every: Duration::from_secs(2),
        }
    }
}

/// What there is to be proven. A dimension without a value is a failure, not a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dimensions {
    /// Transports that the manifest asks for.
    pub transports: BTreeSet<Transport>,
    /// Pods that there are, with the transports that they carry.
    pub pods: BTreeMap<String, BTreeSet<Transport>>,
    /// Ways that clients take to the pods, with the transports that go there.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Every process that must say what it runs: edges and dispatchers.
    pub processes: BTreeSet<String>,
    /// Those among them that nobody has let in yet. While the gate is open they may take their time to answer; what is
    /// found against them counts all the same.
    pub newcomers: BTreeSet<String>,
    /// Whether there are webhooks at all; without them shards and dispatchers prove nothing.
    pub webhooks: bool,
    /// Open shards.
    pub shards: BTreeSet<ShardId>,
    /// Processes that hold an open shard.
    pub dispatchers: BTreeSet<String>,
}

impl Dimensions {
    /// The transports that a pod or a path carries; `None` for one that is not there.
    fn carries(&self, entrance: &str) -> Option<&BTreeSet<Transport>> {
        self.pods.get(entrance).or_else(|| self.paths.get(entrance))
    }
}

/// How one process stands by itself, apart from the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It runs what was rendered, and journeys through it passed: by each transport through an edge, one at least
    /// through a dispatcher.
    pub proven: bool,
    /// It runs what was rendered, and journeys through it hold up to the stream.
    pub reached: bool,
    /// What broke last, believed or not.
    pub failure: Option<Failure>,
}

/// The values that passed since the last complete round.
#[derive(Clone, Debug, Default)]
struct Coverage {
    transports: BTreeSet<Transport>,
    /// Pods, and paths to them.
    entrances: BTreeSet<String>,
    shards: BTreeSet<ShardId>,
    dispatchers: BTreeSet<String>,
}

/// Everything that is known. Grows by [`Evidence::add`], shrinks when a pod goes.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(super) policy: Policy,
    pub(super) dimensions: Dimensions,
    series: BTreeMap<(Transport, String), Series>,
    /// Differences by pod, as last seen.
    pub(super) drifts: BTreeMap<String, Vec<Drift>>,
    /// Processes that said what they run, by the id that each start makes anew.
    answered: BTreeMap<String, String>,
    /// Journeys whose events a dispatcher had read.
    dispatchers: BTreeMap<String, Series>,
    coverage: Coverage,
    rounds: usize,
    /// Whether each of the latest journeys failed, newest last.
    recent: VecDeque<bool>,
    latest_failure: Option<(Transport, String, Failure)>,
    /// When the latest failure ended: a pass that began before it proves nothing of the time since.
    failed_ms: u64,
    pub(super) open: bool,
    pub(super) ever_open: bool,
}

impl Evidence {
    /// No evidence.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            dimensions: Dimensions::default(),
            series: BTreeMap::new(),
            drifts: BTreeMap::new(),
            answered: BTreeMap::new(),
            dispatchers: BTreeMap::new(),
            coverage: Coverage::default(),
            rounds: 0,
            recent: VecDeque::new(),
            latest_failure: None,
            failed_ms: 0,
            open: false,
            ever_open: false,
        }
    }

    /// Says what there is to be proven. Evidence of a pod that is gone goes with it.
    pub fn expect(&mut self, dimensions: Dimensions) {
        self.replace(dimensions);
        self.judge();
    }

    /// Takes what there is to be proven and what every process said of itself, and judges the two together: a half of
    /// it would read as unknown.
    pub fn look<'a>(
        &mut self,
        dimensions: Dimensions,
        said: impl IntoIterator<Item = (&'a String, &'a String, &'a Vec<Drift>)>,
    ) {
        self.replace(dimensions);
        for (pod, process, drifts) in said {
            self.note(pod, process, drifts.clone());
        }
        self.judge();
    }

    fn replace(&mut self, dimensions: Dimensions) {
        self.series.retain(|(transport, entrance), _| {
            dimensions.carries(entrance).is_some_and(|carries| carries.contains(transport))
        });
        self.drifts.retain(|pod, _| dimensions.processes.contains(pod));
        self.answered.retain(|pod, _| dimensions.processes.contains(pod));
        self.dispatchers.retain(|pod, _| dimensions.processes.contains(pod));
        if !self.open && dimensions != self.dimensions {
            self.forget_rounds();
        }
        self.dimensions = dimensions;
    }

    /// What was proven before holds, as an earlier keeper of this evidence wrote it down; `open` unless it broke since.
    pub fn resume(&mut self, open: bool) {
        self.open = open;
        self.ever_open = true;
    }

    /// What is to be proven is another thing now: nothing known of the old one holds for it.
    pub fn renew(&mut self) {
        let dimensions = std::mem::take(&mut self.dimensions);
        *self = Self { dimensions, ..Self::new(self.policy) };
    }

    /// Takes what was found of one process; nothing means that it runs what was rendered. Of a pod whose process is
    /// another than before nothing is known any more.
    pub fn drifted(&mut self, pod: &str, process: &str, drifts: Vec<Drift>) {
        self.note(pod, process, drifts);
        self.judge();
    }

    fn note(&mut self, pod: &str, process: &str, drifts: Vec<Drift>) {
        let before = self.answered.insert(pod.to_owned(), process.to_owned());
        if before.is_some_and(|before| before != process) {
            self.series.retain(|(_, found), _| found != pod);
            self.dispatchers.remove(pod);
        }
        if drifts.is_empty() {
            self.drifts.remove(pod);
        } else {
            self.drifts.insert(pod.to_owned(), drifts);
        }
    }

    /// A process no longer says what it runs: unknown is not proven. What was known of it against it stays.
    pub fn silent(&mut self, pod: &str) {
        self.answered.remove(pod);
        self.judge();
    }

    /// The first process that has not said what it runs.
    pub(super) fn unanswered(&self) -> Option<&str> {
        let excused = |process: &String| self.open && self.dimensions.newcomers.contains(process);
        let missing = |process: &&String| !self.answered.contains_key(*process) && !excused(process);
        self.dimensions.processes.iter().find(missing).map(String::as_str)
    }

    /// Whether nobody has let this process in yet: it may still be on its way up.
    pub(super) fn is_newcomer(&self, process: &str) -> bool {
        self.dimensions.newcomers.contains(process)
    }

    /// Takes a finished journey. One through what is gone says nothing.
    pub fn add(&mut self, journey: &Journey) {
        if self.dimensions.carries(&journey.entrance).is_none() {
            return;
        }
        let key = (journey.transport, journey.entrance.clone());
        self.series.entry(key).or_default().add(journey);
        if let Some(dispatcher) = &journey.dispatcher {
            self.dispatchers.entry(dispatcher.clone()).or_default().add(journey);
        }
        match &journey.outcome {
            Outcome::Void => return,
            Outcome::Pass if journey.started_ms < self.failed_ms => {}
            Outcome::Pass => self.cover(journey),
            Outcome::Decisive(failure) | Outcome::Ambiguous(failure) => {
                self.forget_rounds();
                self.failed_ms = self.failed_ms.max(journey.ended_ms);
                self.latest_failure = Some((journey.transport, journey.entrance.clone(), failure.clone()));
            }
        }
        if self.recent.len() == RATE_WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(journey.outcome != Outcome::Pass);
        self.judge();
    }

    /// What is known of one process by itself.
    #[must_use]
    pub fn standing(&self, pod: &str) -> Standing {
        let sound = self.answered.contains_key(pod) && !self.drifts.contains_key(pod);
        let Some(carries) = self.dimensions.pods.get(pod) else {
            let standing = self.dispatchers.get(pod).map(|series| series.standing(&self.policy, self.ever_open));
            let proven = sound && standing == Some(Journeys::Passing);
            let failure = match standing {
                Some(Journeys::Suspect(failure) | Journeys::Failing(failure)) => Some(failure),
                _ => None,
            };
            return Standing { proven, reached: proven, failure };
        };
        let standings: Vec<Journeys> = carries
            .iter()
            .map(|transport| {
                let series = self.series.get(&(*transport, pod.to_owned()));
                series.map_or(Journeys::Unknown, |series| series.standing(&self.policy, self.ever_open))
            })
            .collect();
        let reached = |standing: &Journeys| match standing {
            Journeys::Passing => true,
            Journeys::Suspect(failure) | Journeys::Failing(failure) => failure.hop >= Hop::Record,
            Journeys::Unknown => false,
        };
        let failure = standings.iter().find_map(|standing| match standing {
            Journeys::Suspect(failure) | Journeys::Failing(failure) => Some(failure.clone()),
            _ => None,
        });
        Standing {
            proven: sound && standings.iter().all(|standing| *standing == Journeys::Passing),
            reached: sound && standings.iter().all(reached),
            failure,
        }
    }

    /// Pairs whose latest failure asks for a confirmation.
    #[must_use]
    pub fn suspects(&self) -> Vec<(Transport, String)> {
        let suspect = |series: &Series| matches!(series.standing(&self.policy, self.ever_open), Journeys::Suspect(_));
        self.series.iter().filter(|(_, series)| suspect(series)).map(|(key, _)| key.clone()).collect()
    }

    fn cover(&mut self, journey: &Journey) {
        let covered = &mut self.coverage;
        covered.transports.insert(journey.transport);
        covered.entrances.insert(journey.entrance.clone());
        covered.shards.extend(journey.shards.iter().cloned());
        covered.dispatchers.extend(journey.dispatcher.clone());
        let wanted = &self.dimensions;
        let edges = wanted.transports.is_subset(&covered.transports)
            && wanted.pods.keys().chain(wanted.paths.keys()).all(|entrance| covered.entrances.contains(entrance));
        let pipeline = !wanted.webhooks
            || (wanted.shards.is_subset(&covered.shards) && wanted.dispatchers.is_subset(&covered.dispatchers));
        if edges && pipeline && self.empty().is_none() {
            self.rounds += 1;
            self.coverage = Coverage::default();
        }
    }

    /// The dimension that has no value.
    pub(super) fn empty(&self) -> Option<String> {
        let carried = |transport: &Transport| self.dimensions.pods.values().any(|carries| carries.contains(transport));
        if self.dimensions.transports.is_empty() {
            return Some("no transport is asked for".to_owned());
        }
        if let Some(transport) = self.dimensions.transports.iter().find(|transport| !carried(transport)) {
            return Some(format!("{}/{transport}: no pod serves it", transport.server()));
        }
        if self.dimensions.webhooks && self.dimensions.shards.is_empty() {
            return Some("the stream has no open shard".to_owned());
        }
        if self.dimensions.webhooks && self.dimensions.dispatchers.is_empty() {
            return Some("dispatcher: no process holds a shard".to_owned());
        }
        None
    }

    fn judge(&mut self) {
        if self.broken() {
            // What was proven before says nothing of what comes after.
            self.forget_rounds();
            self.open = false;
        } else if self.rounds >= self.policy.open_after {
            self.open = true;
            self.ever_open = true;
        }
    }

    fn forget_rounds(&mut self) {
        self.rounds = 0;
        self.coverage = Coverage::default();
    }

    /// Whether anything that is believed speaks against the cluster.
    fn broken(&self) -> bool {
        self.empty().is_some()
            || !self.drifts.is_empty()
            || self.unanswered().is_some()
            || self.failures().next().is_some()
            || self.undelivered().is_some()
            || self.rate_exceeded()
    }

    /// A dispatcher of which it is believed that it does not deliver. One that nobody has let in closes no gate that is
    /// open: others hold its shards soon.
    pub(super) fn undelivered(&self) -> Option<(&str, Failure)> {
        let excused = |pod: &str| self.open && self.is_newcomer(pod);
        self.dispatchers.iter().filter(|(pod, _)| !excused(pod)).find_map(|(pod, series)| {
            match series.standing(&self.policy, self.ever_open) {
                Journeys::Failing(failure) => Some((pod.as_str(), failure)),
                _ => None,
            }
        })
    }

    /// More than 5 % of the last 200 journeys failed.
    pub(super) fn rate_exceeded(&self) -> bool {
        let failed = self.recent.iter().filter(|failed| **failed).count();
        self.recent.len() == RATE_WINDOW && failed * 100 > RATE_PERCENT * RATE_WINDOW
    }

    /// The failures that are believed, with transport and pod: those that are confirmed, and those that a known
    /// difference explains.
    pub(super) fn failures(&self) -> impl Iterator<Item = (Transport, &str, Failure)> {
        self.series.iter().filter_map(|((transport, pod), series)| {
            match series.standing(&self.policy, self.ever_open) {
                Journeys::Failing(failure) => Some((*transport, pod.as_str(), failure)),
                Journeys::Suspect(failure) if self.explanation(pod, &failure).is_some() => {
                    Some((*transport, pod.as_str(), failure))
                }
                _ => None,
            }
        })
    }

    /// The differences that explain a failure: on the pod itself, or past the stream on a pod that is no edge.
    pub(super) fn explanation(&self, pod: &str, failure: &Failure) -> Option<(&str, &[Drift])> {
        let own = self.drifts.get_key_value(pod);
        let past = || self.drifts.iter().find(|(found, _)| !self.dimensions.pods.contains_key(*found));
        let found = if failure.hop > Hop::Record { past().or(own) } else { own };
        found.map(|(pod, drifts)| (pod.as_str(), drifts.as_slice()))
    }

    /// The latest failure of all, believed or not.
    pub(super) fn latest_failure(&self) -> Option<&(Transport, String, Failure)> {
        self.latest_failure.as_ref()
    }

    /// How many of a transport's pods pass, and of how many.
    pub(super) fn passing(&self, transport: Transport) -> (usize, usize) {
        let pods = self.dimensions.pods.iter().filter(|(_, carries)| carries.contains(&transport));
        let passes = |pod: &String| {
            let series = self.series.get(&(transport, pod.clone()));
            series.is_some_and(|series| series.standing(&self.policy, self.ever_open) == Journeys::Passing)
        };
        let pods: Vec<bool> = pods.map(|(pod, _)| passes(pod)).collect();
        (pods.iter().filter(|passes| **passes).count(), pods.len())
    }

    /// The median of each hop of a transport, in ms.
    pub(super) fn latencies(&self, transport: Transport) -> BTreeMap<Hop, u64> {
        let mut all: BTreeMap<Hop, Vec<u64>> = BTreeMap::new();
        for (_, series) in self.series.iter().filter(|((found, _), _)| *found == transport) {
            series.latencies().for_each(|(hop, ms)| all.entry(hop).or_default().push(ms));
        }
        all.into_iter()
            .map(|(hop, mut ms)| {
                ms.sort_unstable();
                (hop, ms[ms.len() / 2])
            })
            .collect()
    }
}
