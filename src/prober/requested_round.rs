//! A requested round: one journey by each transport through each pod and each path, and how far it is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::coverage::TargetPair;
use crate::gate::{Hop, HopFailure, Journey, JourneyOutcome};
use crate::protocol::Transport;

/// Journeys through one route before an ambiguous failure counts: the network alone can lose one.
const ROUTE_ATTEMPTS_MAX: u32 = 3;

/// A requested proof, under way or complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedProof {
    /// The token that requested it.
    pub token: String,
    /// Start of the round, in ms since 1970.
    pub started_ms: u64,
    /// End of the round, in ms since 1970; `None` while journeys are under way.
    pub finished_ms: Option<u64>,
    /// The first broken hop in one line; `None` while nothing has failed.
    pub failure: Option<String>,
    /// The journeys of each transport.
    pub transports: Vec<RequestedTransport>,
}

/// The journeys of one transport in a requested proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedTransport {
    /// Transport of the clients.
    pub transport: Transport,
    /// Number of routes through which a journey passed.
    pub passed: usize,
    /// Number of routes that are tried, or of pods that the manifest asks for.
    pub wanted: usize,
    /// The first hop that failed.
    pub hop: Option<Hop>,
    /// Latency of each passed hop, in ms, of the journey that took longest.
    pub latency_ms: BTreeMap<Hop, u64>,
}

/// The next step after a journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteStep {
    /// The journey does not belong to the round, or decides its route.
    None,
    /// The journey decides nothing: its route is tried again.
    Retry,
}

/// The state of one round.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestedRound {
    token: String,
    started_ms: u64,
    finished_ms: Option<u64>,
    /// Pods that the manifest asks for, by the transport that they carry.
    wanted_pods: BTreeMap<Transport, usize>,
    /// Number of paths that are tried, by transport.
    paths: BTreeMap<Transport, usize>,
    /// Routes without a result, with the number of journeys that decided nothing.
    pending: BTreeMap<TargetPair, u32>,
    results: BTreeMap<TargetPair, RouteResult>,
}

/// The journey that decided a route.
#[derive(Clone, Debug)]
struct RouteResult {
    failure: Option<HopFailure>,
    latency_ms: BTreeMap<Hop, u64>,
}

impl RequestedRound {
    /// A round through these pods and paths.
    pub fn new(
        token: String,
        started_ms: u64,
        wanted_pods: BTreeMap<Transport, usize>,
        pods: &[TargetPair],
        paths: &[TargetPair],
    ) -> Self {
        let mut counted = BTreeMap::new();
        for (transport, _) in paths {
            *counted.entry(*transport).or_default() += 1;
        }
        let pending = pods.iter().chain(paths).map(|pair| (pair.clone(), 0)).collect();
        let mut round = Self { token, started_ms, wanted_pods, paths: counted, pending, ..Self::default() };
        round.finish_if_complete(started_ms);
        round
    }

    /// Drops routes that no longer exist, such as those of a deleted pod.
    pub fn retain_routes(&mut self, exists: impl Fn(&TargetPair) -> bool, now_ms: u64) {
        self.pending.retain(|pair, _| exists(pair));
        self.finish_if_complete(now_ms);
    }

    /// Adds a finished journey; one that began before the round does not count.
    pub fn add_journey(&mut self, journey: &Journey) -> RouteStep {
        let pair = (journey.transport, journey.entrance.clone());
        if journey.started_ms < self.started_ms {
            return RouteStep::None;
        }
        let Some(attempts) = self.pending.get_mut(&pair) else { return RouteStep::None };
        *attempts += 1;
        let failure = match &journey.outcome {
            JourneyOutcome::Pass => None,
            // The prober itself cut the journey: nothing is known of the route.
            JourneyOutcome::Void => return RouteStep::Retry,
            JourneyOutcome::Ambiguous(_) if *attempts < ROUTE_ATTEMPTS_MAX => return RouteStep::Retry,
            JourneyOutcome::Decisive(failure) | JourneyOutcome::Ambiguous(failure) => Some(failure.clone()),
        };
        self.pending.remove(&pair);
        self.results.insert(pair, RouteResult { failure, latency_ms: journey.latency_ms.clone() });
        self.finish_if_complete(journey.ended_ms);
        RouteStep::None
    }

    fn finish_if_complete(&mut self, now_ms: u64) {
        if self.pending.is_empty() && self.finished_ms.is_none() {
            self.finished_ms = Some(now_ms);
        }
    }

    /// The round as it is now.
    pub fn report(&self) -> RequestedProof {
        let routes = || self.pending.keys().chain(self.results.keys());
        let transports: BTreeSet<Transport> =
            routes().map(|(transport, _)| *transport).chain(self.wanted_pods.keys().copied()).collect();
        let transports: Vec<RequestedTransport> = transports
            .into_iter()
            .map(|transport| self.report_transport(transport, routes().filter(|(of, _)| *of == transport).count()))
            .collect();
        let failed = self.results.iter().filter_map(|(pair, result)| Some((pair, result.failure.as_ref()?)));
        let first = failed.min_by_key(|(_, failure)| failure.hop);
        let failure = first.map(|((transport, entrance), failure)| {
            format!("{transport} via {entrance} broke at {}: {} ({})", failure.hop, failure.detail, failure.reason)
        });
        let missing = || {
            let short = transports.iter().find(|found| found.passed < found.wanted)?;
            Some(format!(
                "{}: only {} of {} routes exist: pods are missing",
                short.transport, short.passed, short.wanted
            ))
        };
        let failure = failure.or_else(|| self.finished_ms.and_then(|_| missing()));
        RequestedProof {
            token: self.token.clone(),
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            failure,
            transports,
        }
    }

    fn report_transport(&self, transport: Transport, routes: usize) -> RequestedTransport {
        let results = || self.results.iter().filter(|((of, _), _)| *of == transport).map(|(_, result)| result);
        let failed = results().filter_map(|result| result.failure.as_ref().map(|failure| (failure.hop, result)));
        let failed = failed.min_by_key(|(hop, _)| *hop);
        let slowest = results().max_by_key(|result| result.latency_ms.values().sum::<u64>());
        let shown = failed.as_ref().map(|(_, result)| *result).or(slowest);
        let wanted = self.wanted_pods.get(&transport).copied().unwrap_or_default();
        RequestedTransport {
            transport,
            passed: results().filter(|result| result.failure.is_none()).count(),
            wanted: routes.max(wanted + self.paths.get(&transport).copied().unwrap_or_default()),
            hop: failed.map(|(hop, _)| hop),
            latency_ms: shown.map(|result| result.latency_ms.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    fn journey(entrance: &str, started_ms: u64, outcome: JourneyOutcome) -> Journey {
        Journey {
            fingerprint: "f".into(),
            transport: Transport::Websocket,
            entrance: entrance.into(),
            shards: vec![],
            dispatcher: None,
            started_ms,
            ended_ms: started_ms + 5,
            latency_ms: BTreeMap::from([(Hop::Connect, 1)]),
            fan_out_tried: true,
            outcome,
        }
    }

    fn round(wanted: usize, pods: &[&str]) -> RequestedRound {
        let pairs: Vec<TargetPair> = pods.iter().map(|pod| (Transport::Websocket, (*pod).to_owned())).collect();
        let wanted = BTreeMap::from([(Transport::Websocket, wanted)]);
        RequestedRound::new("t".to_owned(), 10, wanted, &pairs, &[])
    }

    fn lost(hop: Hop) -> JourneyOutcome {
        JourneyOutcome::Ambiguous(HopFailure { hop, reason: Reason::RecordMissing, detail: "lost".to_owned() })
    }

    /// Journeys by pod and start, and the passed routes, whether the round is over and whether it failed.
    type RoundCase<'a> = (&'a str, usize, &'a [(&'a str, u64, JourneyOutcome)], (usize, bool, bool));

    #[test]
    fn a_round_ends_with_the_last_route_and_fails_with_a_confirmed_failure_or_a_missing_pod() {
        let pass = || JourneyOutcome::Pass;
        let cases: [RoundCase<'_>; 7] = [
            ("nothing yet", 2, &[], (0, false, false)),
            ("one of two", 2, &[("a", 10, pass())], (1, false, false)),
            ("both", 2, &[("a", 10, pass()), ("b", 11, pass())], (2, true, false)),
            ("a journey of before", 2, &[("a", 10, pass()), ("b", 9, pass())], (1, false, false)),
            (
                "one loss is tried again",
                2,
                &[("a", 10, pass()), ("b", 10, lost(Hop::Record)), ("b", 12, pass())],
                (2, true, false),
            ),
            (
                "three losses fail",
                2,
                &[
                    ("a", 10, pass()),
                    ("b", 10, lost(Hop::Record)),
                    ("b", 12, lost(Hop::Record)),
                    ("b", 14, lost(Hop::Record)),
                ],
                (1, true, true),
            ),
            ("a third pod is missing", 3, &[("a", 10, pass()), ("b", 10, pass())], (2, true, true)),
        ];
        for (name, wanted, journeys, expected) in cases {
            let mut round = round(wanted, &["a", "b"]);
            for (pod, started, outcome) in journeys {
                let step = round.add_journey(&journey(pod, *started, outcome.clone()));
                assert!(step == RouteStep::None || matches!(outcome, JourneyOutcome::Ambiguous(_)), "{name}");
            }
            let report = round.report();
            let found = (report.transports[0].passed, report.finished_ms.is_some(), report.failure.is_some());
            assert_eq!(found, expected, "{name}: {report:?}");
        }
    }

    #[test]
    fn a_failure_names_transport_route_and_hop_and_a_deleted_pod_is_not_awaited() {
        let mut round = round(1, &["a", "b"]);
        let failure = HopFailure { hop: Hop::Record, reason: Reason::RecordRefused, detail: "denied".to_owned() };
        round.add_journey(&journey("a", 10, JourneyOutcome::Decisive(failure)));
        assert_eq!(round.report().finished_ms, None);
        round.retain_routes(|(_, pod)| pod != "b", 20);
        let report = round.report();
        assert_eq!(report.finished_ms, Some(20));
        assert_eq!(report.failure.as_deref(), Some("websocket via a broke at record: denied (RecordRefused)"));
        assert_eq!((report.transports[0].hop, report.transports[0].latency_ms.len()), (Some(Hop::Record), 1));
    }
}
