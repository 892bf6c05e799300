use super::*;
use crate::migration::{EndpointDigest, GateSnapshot};

const KEY: &str = "0123456789abcdef";

type Pairs<'a> = &'a [(&'a str, &'a str)];

type Expected = Vec<(FindingCode, &'static str)>;

fn server(variables: Pairs<'_>) -> ServerSnapshot {
    let text = |text: &str| VariableValue::Text(text.to_owned());
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
    ServerSnapshot { variables, ..ServerSnapshot::default() }
}

const SERVES: Pairs<'_> = &[
    ("REALTIME_WEBHOOKS", "kinesis"),
    ("REALTIME_TRANSPORTS", "xhr_streaming,xhr_polling"),
    ("REALTIME_BUS_GROUP", "fleet"),
    ("REALTIME_BUS", "redis"),
];

/// A cluster that is alike in every respect, with some variables of its SockJS server replaced.
fn cluster(replaced: Pairs<'_>) -> ClusterSnapshot {
    let kept = SERVES.iter().filter(|(name, _)| !replaced.iter().any(|(other, _)| other == name));
    let variables: Vec<_> = kept.chain(replaced.iter().filter(|(_, value)| *value != "ABSENT")).copied().collect();
    let servers = [(ServerKind::Sockjs, server(&variables)), (ServerKind::Dispatcher, server(&[]))].into();
    let gate = GateSnapshot { ready: "True".to_owned(), current: true, ..GateSnapshot::default() };
    ClusterSnapshot {
        version: Some("0.2.0".to_owned()),
        key_id: Some(KEY.to_owned()),
        gate: Some(gate),
        apps: Some([("1001".into(), app())].into()),
        ..ClusterSnapshot::new(SnapshotOrigin::Operator, "channels/eu".to_owned(), servers)
    }
}

fn app() -> AppDigest {
    AppDigest {
        enabled: true,
        credentials: Some(vec!["c1".to_owned()]),
        settings: "s".to_owned(),
        endpoints: [("orders".to_owned(), EndpointDigest { settings: Some("e".to_owned()), refused: false })].into(),
    }
}

fn review(source: &ClusterSnapshot, target: &ClusterSnapshot) -> MigrationReview {
    review_migration(source, target, &ReviewOptions::default())
}

fn codes(review: &MigrationReview) -> Vec<(FindingCode, &str)> {
    review.findings.iter().map(|finding| (finding.code, finding.subject.as_str())).collect()
}

#[test]
fn equal_clusters_have_no_finding_and_are_not_blocked() {
    let found = review(&cluster(&[]), &cluster(&[]));
    assert_eq!((codes(&found), found.blocked), (vec![], false));
}

#[test]
fn each_difference_of_a_variable_has_its_code() {
    use FindingCode::{Changed, Extra, Missing, Suspicious, SwitchedOff, TransportsMissing, WebhooksOff};
    let cases: [(&str, Pairs<'_>, Pairs<'_>, Expected); 12] = [
        ("webhooks are off", &[], &[("REALTIME_WEBHOOKS", "off")], vec![(WebhooksOff, "sockjs/REALTIME_WEBHOOKS")]),
        (
            "webhooks are absent",
            &[],
            &[("REALTIME_WEBHOOKS", "ABSENT")],
            vec![(WebhooksOff, "sockjs/REALTIME_WEBHOOKS")],
        ),
        (
            "webhooks are off in both",
            &[("REALTIME_WEBHOOKS", "off")],
            &[("REALTIME_WEBHOOKS", "off")],
            vec![(Suspicious, "sockjs/REALTIME_WEBHOOKS")],
        ),
        ("webhooks are on at the target only", &[("REALTIME_WEBHOOKS", "off")], &[], vec![]),
        (
            "a cookie is gone",
            &[("REALTIME_SOCKJS_COOKIE", "on")],
            &[],
            vec![(SwitchedOff, "sockjs/REALTIME_SOCKJS_COOKIE")],
        ),
        (
            "fewer transports",
            &[],
            &[("REALTIME_TRANSPORTS", "xhr_polling")],
            vec![(TransportsMissing, "sockjs/REALTIME_TRANSPORTS")],
        ),
        ("another default", &[("REALTIME_LOG", "debug")], &[], vec![(Changed, "sockjs/REALTIME_LOG")]),
        ("a variable of other servers", &[("KINESIS", "on")], &[], vec![(Missing, "sockjs/KINESIS")]),
        ("a variable more", &[], &[("GOGC", "50")], vec![(Extra, "sockjs/GOGC")]),
        ("a variable more that is off", &[], &[("FEATURE", "false")], vec![(Suspicious, "sockjs/FEATURE")]),
        ("a zero instead of a number", &[("MAX", "5")], &[("MAX", "0")], vec![(SwitchedOff, "sockjs/MAX")]),
        ("a name of the cluster's own", &[("REALTIME_STREAM_NAME", "a")], &[("REALTIME_STREAM_NAME", "b")], vec![]),
    ];
    for (case, source, target, expected) in cases {
        let found = review(&cluster(source), &cluster(target));
        assert_eq!(codes(&found), expected, "{case}");
        assert_eq!(found.blocked, expected.iter().any(|(code, _)| code.is_blocking()), "{case}");
    }
}

#[test]
fn each_fault_of_the_target_has_its_code() {
    use FindingCode::{
        AppsChanged, AppsMissing, Changed, DispatcherMissing, Extra, FanoutSplit, KeysDiffer, NotProven, ServerMissing,
        Unread,
    };
    type Change = fn(&mut ClusterSnapshot);
    let cases: [(&str, Change, Expected); 18] = [
        (
            "no server",
            |t| drop(t.servers.remove(&ServerKind::Sockjs)),
            vec![(ServerMissing, "sockjs"), (FanoutSplit, "bus")],
        ),
        (
            "no dispatcher",
            |t| drop(t.servers.remove(&ServerKind::Dispatcher)),
            vec![(DispatcherMissing, "dispatcher"), (ServerMissing, "dispatcher")],
        ),
        ("not ready", |t| gate(t).ready = "False".to_owned(), vec![(NotProven, "gate")]),
        ("an older manifest", |t| gate(t).current = false, vec![(NotProven, "gate")]),
        ("ready without webhooks", |t| gate(t).reason = "ReadyWithoutWebhooks".to_owned(), vec![(NotProven, "gate")]),
        ("no app", |t| t.apps = Some(BTreeMap::new()), vec![(AppsMissing, "apps")]),
        ("another secret", |t| target_app(t).credentials = Some(vec!["c2".to_owned()]), vec![(AppsMissing, "apps")]),
        ("a secret more", |t| target_app(t).credentials.get_or_insert_default().push("c2".to_owned()), vec![]),
        ("no endpoint", |t| target_app(t).endpoints.clear(), vec![(AppsMissing, "apps")]),
        ("a disabled app", |t| target_app(t).enabled = false, vec![(AppsChanged, "apps")]),
        ("another URL", |t| endpoint(t).settings = Some("x".to_owned()), vec![(AppsChanged, "apps")]),
        ("an address that is not allowed", |t| endpoint(t).refused = true, vec![(AppsChanged, "apps")]),
        ("other limits", |t| target_app(t).settings = "x".to_owned(), vec![(Changed, "apps")]),
        ("an app more", |t| drop(t.apps.as_mut().map(|apps| apps.insert("7".into(), app()))), vec![(Extra, "apps")]),
        ("keys that were not read", |t| target_app(t).credentials = None, vec![(Unread, "apps")]),
        ("headers that were not read", |t| endpoint(t).settings = None, vec![(Unread, "apps")]),
        ("apps that were not read", |t| t.apps = None, vec![(Unread, "apps")]),
        ("another key", |t| t.key_id = Some("other".to_owned()), vec![(KeysDiffer, "key")]),
    ];
    for (case, change, expected) in cases {
        let mut target = cluster(&[]);
        change(&mut target);
        let found = review(&cluster(&[]), &target);
        assert_eq!(codes(&found), expected, "{case}: {found:#?}");
        assert_eq!(found.blocked, expected.iter().any(|(code, _)| code.is_blocking()), "{case}");
    }
}

fn gate(target: &mut ClusterSnapshot) -> &mut GateSnapshot {
    target.gate.get_or_insert_default()
}

fn target_app(target: &mut ClusterSnapshot) -> &mut AppDigest {
    target.apps.get_or_insert_default().entry("1001".into()).or_insert_with(app)
}

fn endpoint(target: &mut ClusterSnapshot) -> &mut EndpointDigest {
    target_app(target).endpoints.get_mut("orders").expect("an endpoint")
}

#[test]
fn clusters_without_one_group_on_one_redis_are_split() {
    let redis = |snapshot: &mut ClusterSnapshot, digest: &str| {
        let server = snapshot.servers.get_mut(&ServerKind::Sockjs).expect("a server");
        server.variables.insert("REALTIME_REDIS_URL".to_owned(), VariableValue::Digest(digest.to_owned()));
    };
    for (case, group, stores, is_split) in [
        ("one group, one Redis", "fleet", ["r", "r"], false),
        ("another group", "other", ["r", "r"], true),
        ("no group", "ABSENT", ["r", "r"], true),
        ("one group, two addresses", "fleet", ["r", "s"], true),
    ] {
        let (mut source, mut target) = (cluster(&[]), cluster(&[("REALTIME_BUS_GROUP", group)]));
        redis(&mut source, stores[0]);
        redis(&mut target, stores[1]);
        let found = review(&source, &target);
        assert_eq!(found.findings.iter().any(|found| found.code == FindingCode::FanoutSplit), is_split, "{case}");
    }
}

#[test]
fn webhooks_that_are_off_come_first_and_an_accepted_finding_does_not_block() {
    let target = cluster(&[("REALTIME_WEBHOOKS", "off"), ("REALTIME_BUS_GROUP", "other"), ("REALTIME_LOG", "debug")]);
    let accept = |words: &[&str]| {
        let accepted = words.iter().map(|word| (*word).to_owned()).collect();
        review_migration(&cluster(&[]), &target, &ReviewOptions { accepted, ..ReviewOptions::default() })
    };
    let found = accept(&[]);
    assert_eq!(found.findings[0].code, FindingCode::WebhooksOff);
    assert!(accept(&["FanoutSplit"]).blocked);
    assert!(accept(&["FanoutSplit", "WebhooksOff:websocket/REALTIME_WEBHOOKS"]).blocked, "of another server");
    let accepted = accept(&["FanoutSplit", "WebhooksOff:sockjs/REALTIME_WEBHOOKS"]);
    assert!(!accepted.blocked && accepted.findings.len() == found.findings.len());
    assert_ne!(accepted.approval_hash, found.approval_hash);
}

#[test]
fn an_approval_holds_until_a_compared_value_changes() {
    let hash = |target: &ClusterSnapshot| review(&cluster(&[]), target).approval_hash;
    let mut target = cluster(&[]);
    let before = hash(&target);
    target.taken_at = Some("2026-01-01T00:00:00Z".to_owned());
    gate(&mut target).passed_at = Some("2026-01-01T00:00:00Z".to_owned());
    target.servers.get_mut(&ServerKind::Sockjs).expect("a server").replicas = Some(9);
    assert_eq!(hash(&target), before, "the time of a snapshot and the number of pods are no difference");
    target_app(&mut target).credentials.get_or_insert_default().push("c2".to_owned());
    assert_ne!(hash(&target), before, "a value that is no finding was not seen either");
}

#[test]
fn a_combined_edge_does_the_work_of_both_and_other_servers_can_be_left_out() {
    let mut target = cluster(&[]);
    let combined = target.servers.remove(&ServerKind::Sockjs).expect("a server");
    target.servers.insert(ServerKind::Edge, combined);
    assert_eq!(codes(&review(&cluster(&[]), &target)), []);
    let mut source = cluster(&[]);
    source.servers.insert(ServerKind::Websocket, server(SERVES));
    let target = cluster(&[]);
    assert_eq!(codes(&review(&source, &target)), [(FindingCode::ServerMissing, "websocket")]);
    let only = ReviewOptions { servers: vec![ServerKind::Sockjs], ..ReviewOptions::default() };
    assert_eq!(codes(&review_migration(&source, &target, &only)), []);
}

#[test]
fn webhooks_that_are_off_are_found_behind_any_source() {
    let mut source = cluster(&[("REALTIME_WEBHOOKS", "ABSENT"), ("KINESIS_STREAM", "events")]);
    (source.origin, source.gate, source.version, source.apps) = (SnapshotOrigin::Foreign, None, None, None);
    let found = review(&source, &cluster(&[("REALTIME_WEBHOOKS", "off")]));
    assert_eq!(found.findings[0].code, FindingCode::WebhooksOff);
    assert_eq!((found.findings[0].source.as_str(), found.findings[0].target.as_str()), ("not known", "off"));
}

#[test]
fn the_hash_of_an_accepted_finding_outlives_its_text_and_not_its_kind() {
    let options = ReviewOptions { accepted: vec!["NotProven".to_owned()], ..ReviewOptions::default() };
    let with_gate = |ready: &str, reason: &str, message: &str| {
        let gate = GateSnapshot {
            ready: ready.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            current: true,
            ..GateSnapshot::default()
        };
        ClusterSnapshot { gate: Some(gate), ..cluster(&[]) }
    };
    let hash = |target: &ClusterSnapshot| {
        let found = review_migration(&cluster(&[]), target, &options);
        assert!(!found.blocked, "{:?}", codes(&found));
        found.approval_hash
    };
    let first = hash(&with_gate("False", "RecordMissing", "pod eu-1 fails since 12 s"));
    assert_eq!(hash(&with_gate("False", "RecordMissing", "pod eu-2 fails since 40 s")), first);
    assert_eq!(hash(&with_gate("Unknown", "EvidenceStale", "")), first, "the same finding");
    assert_ne!(hash(&cluster(&[])), first, "a target without the finding is another review");
    let blocked = review_migration(&cluster(&[]), &with_gate("False", "RecordMissing", ""), &ReviewOptions::default());
    assert_ne!(blocked.approval_hash, first, "nobody accepted it");
}
