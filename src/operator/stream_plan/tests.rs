use std::ops::Range;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::*;
use crate::api::cluster::StreamManagement;
use crate::desired::StreamCapacity::{OnDemand, Provisioned};

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn goal(capacity: Option<StreamCapacity>) -> StreamGoal {
    StreamGoal {
        management: StreamManagement::Create,
        capacity,
        retention_hours: None,
        encryption_key: None,
        tags: BTreeMap::new(),
        may_lower_retention: false,
        is_deleted_with_cluster: false,
    }
}

fn summary(capacity: Option<LiveCapacity>) -> StreamSummary {
    StreamSummary {
        arn: "arn:aws:kinesis:eu-west-1:1:stream/s".to_owned(),
        status: "ACTIVE".to_owned(),
        created_ms: 1,
        capacity,
        retention_hours: 24,
        open_shards: match capacity {
            Some(LiveCapacity::Provisioned(shards)) => shards,
            _ => 4,
        },
        encryption_key: None,
    }
}

fn plan(goal: &StreamGoal, live: &StreamSummary, known: &StreamStatus) -> StreamPlan {
    plan_stream(goal, &LiveStream { summary: live, tags: &BTreeMap::new() }, known, at(NOW))
}

/// A status after this many changes of a kind, the first of them this long ago.
fn changed(kind: LimitedChange, count: usize, seconds_ago: i64) -> StreamStatus {
    let record = |index: usize| StreamChangeRecord {
        kind,
        time: at(NOW - seconds_ago + i64::try_from(index).expect("few")).to_string(),
    };
    StreamStatus { changes: (0..count).map(record).collect(), ..StreamStatus::default() }
}

#[test]
fn every_pair_of_wanted_and_live_capacity_has_its_next_change() {
    use StreamChange::{SetShardCount, SwitchToOnDemand, SwitchToProvisioned};
    let live = |shards| Some(LiveCapacity::Provisioned(shards));
    let on_demand = Some(LiveCapacity::OnDemand);
    for (wanted, found, next) in [
        (None, live(3), None),
        (None, on_demand, None),
        (Some(OnDemand), on_demand, None),
        (Some(OnDemand), live(3), Some(SwitchToOnDemand)),
        (Some(OnDemand), None, None),
        (Some(Provisioned(4)), None, None),
        (Some(Provisioned(4)), on_demand, Some(SwitchToProvisioned)),
        (Some(Provisioned(4)), live(4), None),
        (Some(Provisioned(8)), live(1), Some(SetShardCount(2))),
        (Some(Provisioned(8)), live(2), Some(SetShardCount(4))),
        (Some(Provisioned(5)), live(4), Some(SetShardCount(5))),
        (Some(Provisioned(2)), live(8), Some(SetShardCount(4))),
        (Some(Provisioned(2)), live(7), Some(SetShardCount(4))),
        (Some(Provisioned(3)), live(5), Some(SetShardCount(3))),
        (Some(Provisioned(1)), live(3), Some(SetShardCount(2))),
        (Some(Provisioned(1)), live(2), Some(SetShardCount(1))),
    ] {
        let found_plan = plan(&goal(wanted), &summary(found), &StreamStatus::default());
        assert_eq!(found_plan.next, next, "{wanted:?} {found:?}");
        assert_eq!(found_plan.pending.len(), usize::from(next.is_some()), "{wanted:?} {found:?}: {found_plan:?}");
        assert_eq!(found_plan.reason(), Reason::StreamActive, "{wanted:?} {found:?}");
    }
}

#[test]
fn every_pair_of_wanted_and_live_settings_has_its_next_change_or_its_sentence() {
    let wanted = |retention: Option<u32>, lower: bool, key: Option<&str>| StreamGoal {
        retention_hours: retention,
        may_lower_retention: lower,
        encryption_key: key.map(str::to_owned),
        ..goal(None)
    };
    let live = |hours, key: Option<&str>| StreamSummary {
        retention_hours: hours,
        encryption_key: key.map(str::to_owned),
        ..summary(Some(LiveCapacity::OnDemand))
    };
    let encrypt = |key: &str| Some(StreamChange::Encrypt(key.to_owned()));
    for (name, wanted, live, requested, next, says) in [
        ("as it is", wanted(None, false, None), live(48, Some("k")), "", None, ""),
        ("the same retention", wanted(Some(48), false, None), live(48, None), "", None, ""),
        (
            "a longer retention",
            wanted(Some(72), false, None),
            live(48, None),
            "",
            Some(StreamChange::RaiseRetention(72)),
            "raising the retention to 72 h",
        ),
        (
            "a shorter retention without its word",
            wanted(Some(24), false, None),
            live(48, None),
            "",
            None,
            "write acknowledgeDataLoss: [LowerRetention], or retentionHours: 48",
        ),
        (
            "a shorter retention",
            wanted(Some(24), true, None),
            live(48, None),
            "",
            Some(StreamChange::LowerRetention(24)),
            "lowering the retention to 24 h",
        ),
        ("no encryption yet", wanted(None, false, Some("k")), live(24, None), "", encrypt("k"), "is not encrypted"),
        ("encryption that somebody ended", wanted(None, false, Some("k")), live(24, None), "k", encrypt("k"), "k"),
        ("the same key", wanted(None, false, Some("k")), live(24, Some("k")), "", None, ""),
        ("another key", wanted(None, false, Some("k")), live(24, Some("j")), "j", encrypt("k"), "encrypted with j"),
        ("the key under another name", wanted(None, false, Some("k")), live(24, Some("arn:k")), "k", None, ""),
        (
            "a retention that is held back does not hold up the key",
            wanted(Some(24), false, Some("k")),
            live(48, None),
            "",
            encrypt("k"),
            "acknowledgeDataLoss",
        ),
    ] {
        let known = StreamStatus { requested_key: requested.to_owned(), ..StreamStatus::default() };
        let found = plan(&wanted, &live, &known);
        assert_eq!(found.next, next, "{name}");
        assert_eq!(found.pending.is_empty(), says.is_empty(), "{name}: {found:?}");
        assert!(found.pending.join("\n").contains(says), "{name}: {found:?}");
        let observed = plan(&StreamGoal { management: StreamManagement::Observe, ..wanted }, &live, &known);
        assert_eq!(observed.next, None, "{name}, observed");
        assert!(observed.pending.iter().all(|line| line.contains("with management: Observe nothing is changed")));
        let reason = if says.is_empty() { Reason::StreamActive } else { Reason::StreamDiffers };
        assert_eq!(observed.reason(), reason, "{name}, observed");
    }
}

#[test]
fn tags_are_written_and_removed_ten_at_a_time_and_those_of_others_stay() {
    let tag = |number: usize| (format!("tag{number:02}"), "v".to_owned());
    let wanted = StreamGoal { tags: (0..12).map(tag).collect(), ..goal(None) };
    let summary = summary(None);
    let next = |tags: &BTreeMap<String, String>, wanted: &StreamGoal, written: &[&str]| {
        let written = written.iter().map(|key| (*key).to_owned()).collect();
        let known = StreamStatus { written_tags: written, ..StreamStatus::default() };
        plan_stream(wanted, &LiveStream { summary: &summary, tags }, &known, at(NOW)).next
    };
    let Some(StreamChange::AddTags(first)) = next(&BTreeMap::new(), &wanted, &[]) else { panic!("no tags") };
    assert_eq!(first.len(), 10);
    let mut live: BTreeMap<String, String> = first.into_iter().collect();
    live.insert("team".to_owned(), "other".to_owned());
    let Some(StreamChange::AddTags(rest)) = next(&live, &wanted, &[]) else { panic!("no tags") };
    assert_eq!(rest.keys().map(String::as_str).collect::<Vec<_>>(), ["tag10", "tag11"]);
    live.extend(rest);
    assert_eq!(next(&live, &wanted, &["tag00"]), None);
    let fewer = StreamGoal { tags: (1..12).map(tag).collect(), ..goal(None) };
    let removed = Some(StreamChange::RemoveTags(BTreeSet::from(["tag00".to_owned()])));
    assert_eq!(next(&live, &fewer, &["tag00", "tag01"]), removed);
    assert_eq!(next(&live, &fewer, &["tag01"]), None, "a tag that somebody else wrote");
}

#[test]
fn a_change_waits_while_the_limit_of_a_day_is_reached_and_holds_up_no_other() {
    let wanted = StreamGoal { retention_hours: Some(48), ..goal(Some(Provisioned(8))) };
    let live = summary(Some(LiveCapacity::Provisioned(4)));
    let nine = plan(&wanted, &live, &changed(LimitedChange::Shards, 9, 3_600));
    assert_eq!(nine.next, Some(StreamChange::SetShardCount(8)));
    let ten = plan(&wanted, &live, &changed(LimitedChange::Shards, 10, 3_600));
    assert_eq!(ten.next, Some(StreamChange::RaiseRetention(48)), "the next attribute");
    let until = at(NOW + 23 * 3_600);
    assert!(ten.waits_for_quota && ten.pending[0].contains(&format!("the next at {until}")), "{ten:?}");
    let settled = StreamGoal { retention_hours: None, ..wanted.clone() };
    let waiting = plan(&settled, &live, &changed(LimitedChange::Shards, 10, 3_600));
    assert_eq!((waiting.next.clone(), waiting.reason()), (None, Reason::WaitingForQuota));
    let expired = plan(&wanted, &live, &changed(LimitedChange::Shards, 10, 24 * 3_600 + 10));
    assert_eq!(expired.next, Some(StreamChange::SetShardCount(8)));
    let modes = plan(&goal(Some(OnDemand)), &live, &changed(LimitedChange::Mode, 2, 60));
    assert_eq!((modes.next.clone(), modes.reason()), (None, Reason::WaitingForQuota));
    assert_eq!(shard_changes_left(&changed(LimitedChange::Shards, 3, 60), at(NOW)), 7);
    assert_eq!(shard_changes_left(&changed(LimitedChange::Shards, 12, 60), at(NOW)), 0);
}

/// Kinesis with its rules: a change in progress refuses another one, and limits are enforced by its own count.
struct KinesisModel {
    live: StreamSummary,
    tags: BTreeMap<String, String>,
    /// Time at which the change in progress is complete, in s.
    busy_until: i64,
    made: Vec<(LimitedChange, i64)>,
    /// The changes that had an effect.
    effects: Vec<StreamChange>,
}

impl KinesisModel {
    fn count(&self, kind: LimitedChange, now: i64) -> usize {
        self.made.iter().filter(|(made, time)| *made == kind && time + 24 * 3_600 > now).count()
    }

    fn observe(&mut self, now: i64) {
        self.live.status = if now < self.busy_until { "UPDATING" } else { "ACTIVE" }.to_owned();
    }

    /// Makes a change, as Kinesis does; `false` if it refuses it.
    fn change(&mut self, change: &StreamChange, now: i64) -> bool {
        assert!(now >= self.busy_until, "a call while a change is in progress: {change:?}");
        let (kind, limit) = match change {
            StreamChange::SetShardCount(_) => (Some(LimitedChange::Shards), 10),
            StreamChange::SwitchToOnDemand | StreamChange::SwitchToProvisioned => (Some(LimitedChange::Mode), 2),
            StreamChange::Encrypt(_) => (Some(LimitedChange::Encryption), 25),
            _ => (None, 0),
        };
        if kind.is_some_and(|kind| self.count(kind, now) >= limit) {
            return false;
        }
        self.made.extend(kind.map(|kind| (kind, now)));
        let live = &mut self.live;
        match change {
            StreamChange::SwitchToOnDemand => {
                assert_ne!(live.capacity, Some(LiveCapacity::OnDemand), "twice");
                live.capacity = Some(LiveCapacity::OnDemand);
            }
            StreamChange::SwitchToProvisioned => {
                assert_eq!(live.capacity, Some(LiveCapacity::OnDemand), "twice");
                live.capacity = Some(LiveCapacity::Provisioned(live.open_shards));
            }
            StreamChange::SetShardCount(shards) => {
                assert!(*shards != live.open_shards, "twice");
                assert!(*shards <= live.open_shards * 2 && *shards * 2 >= live.open_shards, "a step that AWS refuses");
                assert_ne!(live.capacity, Some(LiveCapacity::OnDemand), "shards of an on-demand stream");
                (live.open_shards, live.capacity) = (*shards, Some(LiveCapacity::Provisioned(*shards)));
            }
            StreamChange::RaiseRetention(hours) => {
                assert!(*hours > live.retention_hours, "twice");
                live.retention_hours = *hours;
            }
            StreamChange::LowerRetention(hours) => {
                assert!(*hours < live.retention_hours, "twice");
                live.retention_hours = *hours;
            }
            StreamChange::Encrypt(key) => {
                assert_ne!(live.encryption_key.as_ref(), Some(key), "twice");
                live.encryption_key = Some(key.clone());
            }
            StreamChange::AddTags(tags) => self.tags.extend(tags.clone()),
            StreamChange::RemoveTags(keys) => self.tags.retain(|key, _| !keys.contains(key)),
        }
        self.busy_until = now + 30;
        self.effects.push(change.clone());
        true
    }
}

/// One event in the life of a stream.
#[derive(Clone, Debug)]
enum Event {
    /// The manifest is edited.
    Edit(StreamGoal),
    /// A reconcile ends well.
    Reconcile,
    /// The call of a reconcile fails before it has an effect.
    CallFails,
    /// The call has its effect, and the operator dies before the status is written.
    DiesAfterCall,
    /// Time passes, in s.
    Pass(i64),
}

fn any_goal() -> impl Strategy<Value = StreamGoal> {
    let capacity = prop_oneof![Just(None), Just(Some(OnDemand)), (1..40_u32).prop_map(|n| Some(Provisioned(n)))];
    let retention = prop_oneof![Just(None), (24..100_u32).prop_map(Some)];
    let key = prop_oneof![Just(None), Just(Some("a".to_owned())), Just(Some("b".to_owned()))];
    let tags: Range<usize> = 0..14;
    let managed = prop_oneof![Just(StreamManagement::Create), Just(StreamManagement::Observe)];
    (capacity, retention, key, tags, any::<bool>(), managed).prop_map(
        |(capacity, retention_hours, encryption_key, tags, may_lower_retention, management)| StreamGoal {
            management,
            retention_hours,
            encryption_key,
            tags: (0..tags).map(|number| (format!("t{number}"), "v".to_owned())).collect(),
            may_lower_retention,
            ..goal(capacity)
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => any_goal().prop_map(Event::Edit),
        6 => Just(Event::Reconcile),
        2 => Just(Event::CallFails),
        2 => Just(Event::DiesAfterCall),
        4 => prop_oneof![1..60_i64, 3_600..40_000_i64].prop_map(Event::Pass),
    ]
}

/// One reconcile. Whether a call was made or is due later.
fn reconcile(model: &mut KinesisModel, goal: &StreamGoal, known: &mut StreamStatus, now: i64, event: &Event) -> bool {
    model.observe(now);
    let plan = plan_stream(goal, &LiveStream { summary: &model.live, tags: &model.tags }, known, at(now));
    let is_active = model.live.status == "ACTIVE";
    let Some(change) = plan.next.filter(|_| is_active) else { return !is_active || plan.waits_for_quota };
    assert!(goal.is_managed(), "a call on an observed stream");
    assert!(goal.may_lower_retention || !matches!(change, StreamChange::LowerRetention(_)), "a loss without its word");
    if !matches!(event, Event::CallFails) && model.change(&change, now) && !matches!(event, Event::DiesAfterCall) {
        record_change(known, &change, at(now));
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_edits_and_failures_end_at_the_settings_of_the_manifest(
        first in any_goal(),
        events in proptest::collection::vec(any_event(), 0..40),
    ) {
        let mut model = KinesisModel {
            live: summary(Some(LiveCapacity::Provisioned(4))),
            tags: BTreeMap::from([("team".to_owned(), "other".to_owned())]),
            busy_until: 0,
            made: vec![],
            effects: vec![],
        };
        let (mut goal, mut known, mut now) = (first, StreamStatus::default(), NOW);
        for event in events {
            match event {
                Event::Edit(edited) => goal = edited,
                Event::Pass(seconds) => now += seconds,
                event => {
                    reconcile(&mut model, &goal, &mut known, now, &event);
                }
            }
        }
        let before = (model.live.clone(), model.effects.len());
        // A day for each ten changes, and one for those before.
        for _ in 0..1_000 {
            if !reconcile(&mut model, &goal, &mut known, now, &Event::Reconcile) {
                break;
            }
            now += 600;
        }
        if !goal.is_managed() {
            assert_eq!((model.live.open_shards, model.effects.len()), (before.0.open_shards, before.1));
            return Ok(());
        }
        let plan = plan_stream(&goal, &LiveStream { summary: &model.live, tags: &model.tags }, &known, at(now));
        assert_eq!(plan.next, None, "not settled: {:?}", plan.pending);
        match goal.capacity {
            Some(OnDemand) => assert_eq!(model.live.capacity, Some(LiveCapacity::OnDemand)),
            Some(Provisioned(shards)) => assert_eq!(model.live.capacity, Some(LiveCapacity::Provisioned(shards))),
            None => {}
        }
        if let Some(hours) = goal.retention_hours {
            let is_reached = model.live.retention_hours == hours;
            assert!(is_reached || (model.live.retention_hours > hours && !goal.may_lower_retention));
        }
        if goal.encryption_key.is_some() {
            assert_eq!(model.live.encryption_key, goal.encryption_key);
        }
        assert!(goal.tags.iter().all(|(key, value)| model.tags.get(key) == Some(value)));
        assert_eq!(model.tags.get("team").map(String::as_str), Some("other"), "a tag of somebody else");
    }
}
