//! The gates of a track beyond the target's proof: deliveries to the endpoints of customers, and room for the clients, there and
//! back. A gate that fails holds the track, and takes nothing back: its numbers are those of two clusters minutes apart, and a
//! rollback moves every client twice.

use std::fmt::Write;

use super::{TrackObservations, TrackPlan};
use crate::api::EnabledState;
use crate::api::migration::{
    DeliveryGate, GateName, GateState, HeadroomGate, MigrationPhase, RollbackSessions, TrackGateStatus, TrackProgress,
};
use crate::migration::{DeliverySnapshot, EdgeLoad};

/// Most endpoints that a message names.
const NAMED_ENDPOINTS_MAX: usize = 3;

/// Evidence of the gates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateEvidence {
    /// Evidence of the target, as it is now.
    pub target: ClusterEvidence,
    /// Evidence of the source, as its snapshot has it.
    pub source: ClusterEvidence,
    /// Time of the source's evidence, in ms since 1970.
    pub source_at_ms: u64,
}

/// Evidence of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterEvidence {
    /// Deliveries to the endpoints of customers; `None` while they are not known.
    pub delivery: Option<DeliverySnapshot>,
    /// Load of the edges that carry the track's transport; `None` while it is not known.
    pub load: Option<EdgeLoad>,
}

/// State and message of a gate.
type GateReading = (GateState, String);

/// Judges the gates of a track that are enabled, in the order of their names. None counts once the move is over or goes back.
pub(super) fn judge_gates(
    plan: &TrackPlan,
    progress: &TrackProgress,
    observations: &TrackObservations,
    now_ms: u64,
) -> Vec<TrackGateStatus> {
    if matches!(progress.phase, MigrationPhase::Completed | MigrationPhase::RollingBack) {
        return vec![];
    }
    let GateEvidence { target, source, source_at_ms } = &observations.gates;
    let is_fresh = now_ms.saturating_sub(*source_at_ms) <= plan.limits.evidence_ms;
    let unknown = ClusterEvidence::default();
    let source = if is_fresh { source } else { &unknown };
    let mut found = Vec::new();
    if plan.delivery.state == EnabledState::Enabled {
        let (state, message) = judge_delivery(plan.delivery, observations, target, source);
        found.push(TrackGateStatus { name: GateName::Delivery, state, message });
    }
    if plan.headroom.state == EnabledState::Enabled {
        let step = next_step(progress);
        let weights = (plan.step(step).weight, plan.source_weight_at(step));
        let returns = plan.after_rollback == RollbackSessions::Drain;
        let (state, message) = judge_headroom(plan.headroom, weights, returns, (target.load, source.load));
        found.push(TrackGateStatus { name: GateName::Headroom, state, message });
    }
    found
}

/// The gates that hold a track: those that fail, and those that failed before and cannot be measured any more. Without a
/// weight nothing is remembered.
pub(super) fn list_failing(former: &[GateName], gates: &[TrackGateStatus], written: Option<u8>) -> Vec<GateName> {
    let has_clients = written.is_some_and(|weight| weight > 0);
    let holds = |gate: &&TrackGateStatus| match gate.state {
        GateState::Passing => false,
        GateState::Failing => true,
        GateState::Unavailable => has_clients && former.contains(&gate.name),
    };
    gates.iter().filter(holds).map(|gate| gate.name).collect()
}

/// The reason for which gates hold a track; `None` when none does.
pub(super) fn describe_hold(failing: &[GateName], gates: &[TrackGateStatus]) -> Option<String> {
    let holding = gates.iter().filter(|gate| failing.contains(&gate.name));
    let texts: Vec<String> = holding
        .map(|gate| match gate.state {
            GateState::Unavailable => format!("{} failed, and is not measured any more: {}", gate.name, gate.message),
            GateState::Failing | GateState::Passing => format!("{} fails: {}", gate.name, gate.message),
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Index of the step whose weight would be written next.
fn next_step(progress: &TrackProgress) -> u32 {
    match progress.phase {
        MigrationPhase::Baking | MigrationPhase::AwaitingApproval => progress.step + 1,
        MigrationPhase::Shifting | MigrationPhase::CuttingOver | MigrationPhase::Frozen => progress.step,
        _ => 0,
    }
}

/// Compares the endpoints that fail at the target with those that fail at the source. Those that fail at both are failures of
/// their owners.
fn judge_delivery(
    gate: DeliveryGate,
    observations: &TrackObservations,
    target: &ClusterEvidence,
    source: &ClusterEvidence,
) -> GateReading {
    let unavailable = |why: &str| (GateState::Unavailable, why.to_owned());
    // States of a former attempt stay until the next webhook.
    if observations.written.is_none_or(|weight| weight == 0) {
        return unavailable("no client is led to the target");
    }
    let Some(target) = &target.delivery else { return unavailable("the apps of the target are not known") };
    let Some(source) = &source.delivery else {
        return unavailable("no snapshot of the source of the last minutes has the states of its endpoints");
    };
    if target.attempted == 0 {
        return unavailable("the target has sent no webhook to an endpoint yet");
    }
    let alone = target.failing_alone(source);
    let counts = format!(
        "{} of {} endpoints fail at the target and not at the source; {} of {} fail at the source",
        alone.len(),
        target.attempted,
        source.failing_count(),
        source.attempted
    );
    let failing = u64::try_from(alone.len()).unwrap_or(u64::MAX);
    if failing.saturating_mul(100) <= u64::from(gate.max_delta).saturating_mul(target.attempted) {
        return (GateState::Passing, counts);
    }
    let named = alone.get(..NAMED_ENDPOINTS_MAX).unwrap_or(&alone).join(", ");
    let more = alone.len().saturating_sub(NAMED_ENDPOINTS_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (GateState::Failing, format!("{counts}; maxDelta is {} %: {named}{more}", gate.max_delta))
}

/// Compares the clients that the next weights move with the room at the target, and all clients with the limit of the source.
/// The way back needs no reserve: the source has carried these clients, and one that is nearly full is a reason to move.
fn judge_headroom(
    gate: HeadroomGate,
    (weight, source_weight): (u8, u8),
    returns: bool,
    (target, source): (Option<EdgeLoad>, Option<EdgeLoad>),
) -> GateReading {
    let unavailable = |why: &str| (GateState::Unavailable, why.to_owned());
    let Some(target) = target else { return unavailable("the edges of the target do not report their limits") };
    // Sessions that are open at the target stay there: the share of the others is the most that the weight can bring.
    let moved = source.map_or(0, |source| share_up(source.open, weight, source_weight));
    let needed = target.open.saturating_add(target.others).saturating_add(moved);
    let room = share_down(target.sessions_max, 100_u8.saturating_sub(gate.reserve), 100);
    let mut message = format!(
        "weight {weight} leads to {needed} connections at the target; its {} edges take {}, {room} of them beyond the reserve \
         of {} %",
        target.edges, target.sessions_max, gate.reserve
    );
    let mut fits = needed <= room;
    let Some(source) = source else {
        // Even without those of the source the target may be full.
        let why = "no snapshot of the source of the last minutes has the load of its edges";
        return if fits { unavailable(why) } else { (GateState::Failing, message) };
    };
    if returns {
        let back = [source.open, source.others, target.open].into_iter().fold(0, u64::saturating_add);
        let _ = write!(
            message,
            "; a way back leads to {back} at the source, whose {} edges take {}",
            source.edges, source.sessions_max
        );
        fits &= back <= source.sessions_max;
    }
    (if fits { GateState::Passing } else { GateState::Failing }, message)
}

/// The part of a count that `weight` against `other` has, rounded up.
fn share_up(count: u64, weight: u8, other: u8) -> u64 {
    let sum = u128::from(weight) + u128::from(other);
    u64::try_from((u128::from(count) * u128::from(weight)).div_ceil(sum.max(1))).unwrap_or(u64::MAX)
}

/// `part` of `whole` of a count, rounded down.
fn share_down(count: u64, part: u8, whole: u8) -> u64 {
    u64::try_from(u128::from(count) * u128::from(part) / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::simulation::World;
    use super::*;

    fn delivery(attempted: u64, failing: &[(&str, &str)]) -> DeliverySnapshot {
        let mut found = DeliverySnapshot { attempted, ..DeliverySnapshot::default() };
        for (app, name) in failing {
            found.failing.entry((*app).into()).or_default().insert((*name).to_owned());
        }
        found
    }

    fn load(edges: u64, sessions_max: u64, open: u64, others: u64) -> EdgeLoad {
        EdgeLoad { edges, sessions_max, open, others }
    }

    #[test]
    fn endpoints_that_fail_at_the_target_alone_fail_the_gate_beyond_their_share() {
        use GateState::{Failing, Passing, Unavailable};
        let broken = || delivery(200, &[("1", "a"), ("1", "b"), ("2", "a")]);
        let cases = [
            ("none fails", Some(delivery(200, &[])), Some(delivery(300, &[])), Some(20), 1, Passing, "0 of 200"),
            (
                "the same fail at both",
                Some(broken()),
                Some(broken()),
                Some(20),
                0,
                Passing,
                "3 of 200 fail at the source",
            ),
            ("exactly one percent", Some(broken()), Some(delivery(9, &[("1", "a")])), Some(20), 1, Passing, "2 of 200"),
            ("more than one percent", Some(broken()), Some(delivery(9, &[])), Some(20), 1, Failing, "1/a, 1/b, 2/a"),
            ("a larger limit", Some(broken()), Some(delivery(9, &[])), Some(20), 2, Passing, "3 of 200"),
            ("one of few", Some(delivery(3, &[("1", "a")])), Some(delivery(9, &[])), Some(1), 1, Failing, "1 of 3"),
            ("any", Some(delivery(1, &[("1", "a")])), Some(delivery(9, &[])), Some(1), 100, Passing, "1 of 1"),
            ("no record", Some(broken()), Some(delivery(9, &[])), None, 1, Unavailable, "no client"),
            ("weight 0", Some(broken()), Some(delivery(9, &[])), Some(0), 1, Unavailable, "no client"),
            ("no webhook yet", Some(delivery(0, &[])), Some(broken()), Some(20), 1, Unavailable, "no webhook"),
            ("an unknown target", None, Some(broken()), Some(20), 1, Unavailable, "apps of the target"),
            ("a source of an older release", Some(broken()), None, Some(20), 1, Unavailable, "no snapshot"),
        ];
        for (case, target, source, written, max_delta, state, part) in cases {
            let mut world = World::new();
            world.observations.written = written;
            let evidence = |delivery| ClusterEvidence { delivery, load: None };
            let gate = DeliveryGate { state: EnabledState::Enabled, max_delta };
            let found = judge_delivery(gate, &world.observations, &evidence(target), &evidence(source));
            assert_eq!(found.0, state, "{case}: {}", found.1);
            assert!(found.1.contains(part), "{case}: {}", found.1);
        }
        let many: Vec<(String, &str)> = (10..15).map(|app| (app.to_string(), "a")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(app, name)| (app.as_str(), *name)).collect();
        let mut world = World::new();
        world.observations.written = Some(1);
        let evidence = |delivery| ClusterEvidence { delivery: Some(delivery), load: None };
        let target = evidence(delivery(5, &many));
        let found = judge_delivery(DeliveryGate::default(), &world.observations, &target, &evidence(delivery(5, &[])));
        assert!(found.1.ends_with("10/a, 11/a, 12/a and 2 more"), "{}", found.1);
    }

    #[test]
    fn clients_need_room_at_the_target_with_a_reserve_and_at_the_source_without() {
        use GateState::{Failing, Passing, Unavailable};
        let source = Some(load(4, 4_000, 2_000, 500));
        let cases = [
            ("a half of two thousand", Some(load(2, 2_000, 0, 0)), source, (20, 20), 30, Passing, "leads to 1000"),
            ("beyond the reserve", Some(load(2, 2_000, 0, 500)), source, (20, 20), 30, Failing, "leads to 1500"),
            ("a smaller reserve", Some(load(2, 2_000, 0, 500)), source, (20, 20), 25, Passing, "leads to 1500"),
            ("the first step", Some(load(1, 137, 0, 0)), source, (1, 20), 30, Failing, "leads to 96 "),
            ("rounded up", Some(load(1, 138, 0, 0)), source, (1, 20), 30, Passing, "96 of them"),
            ("those that are there", Some(load(2, 3_000, 1_500, 0)), source, (255, 1), 30, Failing, "leads to 3493"),
            (
                "a source that shrank",
                Some(load(9, 9_000, 1_501, 0)),
                source,
                (20, 20),
                30,
                Failing,
                "to 4001 at the source",
            ),
            ("a source that has just room", Some(load(9, 9_000, 1_500, 0)), source, (20, 20), 30, Passing, "4000 at"),
            ("no edge takes clients", Some(load(0, 0, 0, 0)), source, (1, 20), 30, Failing, "0 edges take 0"),
            ("an unknown source", Some(load(2, 2_000, 1_400, 0)), None, (20, 20), 30, Unavailable, "no snapshot"),
            ("full without it", Some(load(2, 2_000, 1_401, 0)), None, (20, 20), 30, Failing, "leads to 1401"),
            ("an unknown target", None, source, (20, 20), 30, Unavailable, "edges of the target"),
        ];
        for (case, target, source, weights, reserve, state, part) in cases {
            let gate = HeadroomGate { state: EnabledState::Enabled, reserve };
            let found = judge_headroom(gate, weights, true, (target, source));
            assert_eq!(found.0, state, "{case}: {}", found.1);
            assert!(found.1.contains(part), "{case}: {}", found.1);
        }
        // Clients of other hosts are not told from those that moved.
        let shared = Some(load(9, 90_000, 50_000, 0));
        assert_eq!(judge_headroom(HeadroomGate::default(), (20, 20), false, (shared, source)).0, Passing);
        let most = Some(load(u64::MAX, u64::MAX, u64::MAX, u64::MAX));
        assert_eq!(judge_headroom(HeadroomGate::default(), (254, 1), true, (most, most)).0, Failing);
    }

    #[test]
    fn a_gate_that_failed_holds_until_it_is_measured_again() {
        use GateName::{Delivery, Headroom};
        use GateState::{Failing, Passing, Unavailable};
        let gate = |name, state| TrackGateStatus { name, state, message: "numbers".to_owned() };
        let cases = [
            ("both pass", vec![Delivery, Headroom], Passing, Passing, Some(20), vec![]),
            ("one fails", vec![], Passing, Failing, Some(20), vec![Headroom]),
            ("one cannot be measured", vec![], Unavailable, Passing, Some(20), vec![]),
            ("one failed and cannot be measured", vec![Delivery], Unavailable, Passing, Some(20), vec![Delivery]),
            ("one failed at a former record", vec![Delivery], Unavailable, Passing, None, vec![]),
        ];
        for (case, former, delivery, headroom, written, expected) in cases {
            let gates = [gate(Delivery, delivery), gate(Headroom, headroom)];
            let failing = list_failing(&former, &gates, written);
            assert_eq!(failing, expected, "{case}");
            assert_eq!(describe_hold(&failing, &gates).is_some(), !expected.is_empty(), "{case}");
        }
        let gates = [gate(Delivery, Unavailable), gate(Headroom, Failing)];
        let text = describe_hold(&[Delivery, Headroom], &gates).expect("a reason");
        assert_eq!(text, "delivery failed, and is not measured any more: numbers; headroom fails: numbers");
    }
}
