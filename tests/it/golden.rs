//! Stored and sent formats, byte for byte: what a release writes, every later one must write and read.
//!
//! `UPDATE_GOLDEN=1 cargo test --test it golden` writes the files of `tests/golden/`. A difference in one of them is a
//! change that users, other releases or running processes see, and belongs into the changelog.

mod bus;
mod commands;
mod dead_letters;
#[cfg(feature = "rehearsal")]
mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prometheus_client::registry::Registry;
use realtime_operator::api::conditions::condition;
use realtime_operator::api::{API_GROUP, Reason};
use realtime_operator::bus::{
    Broadcast, BroadcastFrame, BusTiming, ChannelKey, ChannelStore, LastEvent, Membership, RedisBus, RelayPeer,
    SessionDirectory,
};
use realtime_operator::config::{ServerKind, VARIABLE_TABLE};
use realtime_operator::gate::Hop;
use realtime_operator::kubernetes::apply::FIELD_MANAGER;
use realtime_operator::kubernetes::lease::Leadership;
use realtime_operator::operator::OperatorMetrics;
use realtime_operator::process::admin::{self, AdminEndpoints};
use realtime_operator::process::metrics::MetricRow;
use realtime_operator::protocol::admin::{
    DeadLetterFlow, DispatcherFlow, EffectiveReport, FlowReport, RecorderFlow, SessionFlow, ShardFlow,
};
use realtime_operator::protocol::frame::{self, PresenceMember};
use realtime_operator::protocol::ledger::{DeliveryLedger, EventLedger};
use realtime_operator::protocol::record::{
    EventKind, EventOrder, LeaveCause, RecordOrigin, RecordedEvent, StreamRecord,
};
use realtime_operator::protocol::registry::{App, AppLimits, AppRegistry, BatchMode, CredentialState, WebhookEndpoint};
use realtime_operator::protocol::relay::{self, RelayHeader};
use realtime_operator::protocol::webhook::{self, WebhookBody, WebhookEvent};
use realtime_operator::protocol::{ChannelName, Secret, SocketId, Transport, fallback, sockjs};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::fixtures::{build_app, build_credential, build_webhook, write_registry};
use crate::metrics::{assert_page_is_the_table, without_values};
use crate::redis::server::Redis;
use crate::redis::wait_until_available;
use crate::resources::command_bound_to_test;
use crate::source_tree::{parse_sources, read_sources};
use crate::waiting::{WAIT_TIMEOUT, eventually, within};

/// Compares `actual` with the committed file; the error names the first line that differs.
fn compare(expected: &str, actual: &str) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    let (mut left, mut right) = (expected.lines(), actual.lines());
    for number in 1.. {
        match (left.next(), right.next()) {
            (None, None) => break,
            (expected, actual) if expected != actual => {
                let text = |line: Option<&str>| line.unwrap_or("<end>").to_owned();
                return Err(format!("line {number}\n  committed: {}\n  written:   {}", text(expected), text(actual)));
            }
            _ => {}
        }
    }
    Err("the last line's end differs".to_owned())
}

/// The committed text of a golden file; empty for one that is yet to be written.
fn read_golden(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    std::fs::read_to_string(path).unwrap_or_default()
}

pub fn golden(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is writable");
        std::fs::write(&path, actual).expect("the file is writable");
    }
    let compared = compare(&read_golden(file), actual);
    assert_eq!(compared, Ok(()), "tests/golden/{file} differs; UPDATE_GOLDEN=1 writes it, if the change is meant");
}

/// One JSON value per line, compared as it is written and then read back from the committed file.
fn golden_json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(file: &str, values: &[T]) {
    let lines: Vec<String> = values.iter().map(|value| serde_json::to_string(value).expect("json")).collect();
    golden(file, &format!("{}\n", lines.join("\n")));
    let read: Vec<T> = read_golden(file)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a committed line is readable"))
        .collect();
    assert_eq!(read, values, "tests/golden/{file} is read back as it was written");
}

#[test]
fn a_changed_byte_is_found_and_named() {
    assert_eq!(compare("a\nb\n", "a\nb\n"), Ok(()));
    let difference = compare("a\nb\n", "a\nc\n").expect_err("a difference");
    assert!(difference.starts_with("line 2"), "{difference}");
    assert!(compare("a\n", "a").is_err(), "the end of the last line counts");
    assert!(compare("a\n", "a\nb\n").is_err(), "a line more counts");
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name).expect("a valid name")
}

fn kinds() -> Vec<EventKind> {
    let user_id = "user-1".to_owned();
    let event = |user_id| EventKind::ClientEvent {
        event: "client-typing".into(),
        data: r#"{"a":1.0,"é":"\"x\""}"#.into(),
        socket_id: "123.456".into(),
        user_id,
    };
    vec![
        EventKind::ChannelOccupied,
        EventKind::ChannelVacated,
        EventKind::MemberAdded { user_id: user_id.clone() },
        EventKind::MemberRemoved { user_id: user_id.clone() },
        event(None),
        event(Some(user_id)),
        EventKind::CacheMiss,
        EventKind::SubscriptionCount { subscription_count: 7 },
    ]
}

fn events() -> Vec<RecordedEvent> {
    let event = |(n, kind): (u64, EventKind)| {
        let ordered = n < 4;
        RecordedEvent {
            id: format!("01J0000000000000000000000{n}"),
            time_ms: 1_700_000_000_000 + n,
            order: ordered.then_some(EventOrder { epoch: 1_700_000_000_000_000, seq: n + 1 }),
            n: (!ordered).then_some(n),
            cause: (n == 3).then_some(LeaveCause::Drain),
            kind,
        }
    };
    (0..).zip(kinds()).map(event).collect()
}

#[test]
fn kinesis_records() {
    let record = |event| StreamRecord {
        v: 1,
        app: "17".into(),
        channel: channel("presence-room"),
        edge: RecordOrigin {
            cluster: "3f1c".into(),
            server: "websocket".into(),
            pod: "eu-websocket-abc".into(),
            process: "01JPROCESS".into(),
        },
        events: vec![event],
    };
    golden_json("records.jsonl", &events().into_iter().map(record).collect::<Vec<_>>());
}

#[test]
fn webhook_bodies_and_headers() {
    let bodies: Vec<WebhookBody> = events()
        .into_iter()
        .map(|event| WebhookBody {
            time_ms: event.time_ms,
            events: vec![WebhookEvent::new(channel("presence-room"), event)],
        })
        .collect();
    golden_json("webhooks.jsonl", &bodies);
    let body = serde_json::to_string(&bodies).expect("json");
    let signature = realtime_operator::protocol::signature::sign_message(&Secret::new("secret"), body.as_bytes());
    let names = [webhook::KEY_HEADER, webhook::SIGNATURE_HEADER, webhook::ORIGINAL_TIME_HEADER, webhook::CONTENT_TYPE];
    golden("webhook-headers.txt", &format!("{}\n{signature}\n", names.join("\n")));
}

fn app(id: &str) -> App {
    App {
        credentials: vec![
            build_credential("key1", "secret1", CredentialState::Retiring),
            build_credential("key2", "secret2", CredentialState::Active),
        ],
        subscription_count: true,
        authorization_seconds: Some(30),
        allowed_origins: vec!["https://*.example.com".into()],
        limits: AppLimits { connections: Some(100), ..AppLimits::default() },
        webhooks: vec![WebhookEndpoint {
            name: "main".into(),
            events: vec!["member_added".into()],
            channel_prefix: "presence-".into(),
            timeout_seconds: 5,
            ..build_webhook("https://example.com/hook")
        }],
        ..build_app(id, "", "")
    }
}

#[test]
fn registry_files() {
    let plain = App {
        subscription_count: false,
        authorization_seconds: None,
        allowed_origins: Vec::new(),
        limits: AppLimits::default(),
        webhooks: Vec::new(),
        ..app("2")
    };
    let mut extended = app("3");
    let limits = &mut extended.limits;
    (limits.channels, limits.connections_per_source) = (Some(1_000), 50);
    (limits.handshakes_per_second, limits.api_requests_per_second) = (Some(20), Some(30));
    (limits.presence_members, limits.cache_seconds) = (200, 60);
    extended.disabled_webhooks =
        vec![WebhookEndpoint { name: "off".into(), ..build_webhook("https://example.com/off") }];
    for (endpoint, name) in extended.webhooks.iter_mut().zip(["main"]) {
        endpoint.name = name.into();
        endpoint.batch = BatchMode::One;
        endpoint.headers = [("Authorization".to_owned(), Secret::new("Bearer token"))].into();
        endpoint.unsendable = Some("the reason".into());
    }
    let registry = AppRegistry::new([app("17"), plain, extended]);
    let files = registry.to_files().expect("files");
    let mut text = String::new();
    for (name, file) in &files {
        writeln!(text, "== {name}\n{file}").expect("written");
    }
    for (id, digest) in registry.app_digests("salt") {
        writeln!(text, "digest {id} {digest}").expect("written");
    }
    golden("registry.txt", &text);
    let read = AppRegistry::parse(&files).expect("readable");
    assert!(read.apps().eq(registry.apps()));
}

#[test]
fn relay_headers() {
    let handed = RelayHeader {
        hops: 1,
        target: "01JTARGET".into(),
        time_ms: 1_700_000_000_000,
        nonce: 0x0123_4567_89ab_cdef,
        number: 42,
        body: relay::hash_body(b"body"),
        client: "2001:db8::1".parse().expect("an address"),
    };
    let text = handed.encode();
    let request = relay::RelayedRequest { method: "POST", path: "/pusher/app/key/xhr_send", query: "a=b" };
    let signature = relay::sign_request(&Secret::new("between"), request, &text);
    let names = [
        relay::RELAY_HEADER_PREFIX,
        relay::RELAY_HEADER,
        relay::RELAY_SIGNATURE_HEADER,
        relay::REFUSAL_HEADER,
        relay::UNKNOWN_SESSION,
    ];
    golden("relay.txt", &format!("{}\n{text}\n{signature}\n", names.join("\n")));
    assert_eq!(RelayHeader::parse(&text), Some(handed));
}

#[test]
fn effective_and_flow() {
    let effective = EffectiveReport {
        process: "01JPROCESS".into(),
        version: "0.1.0".into(),
        configuration: realtime_operator::protocol::admin::hash_configuration(
            "build",
            &BTreeMap::from([("REALTIME_POD".into(), "a".into()), ("REALTIME_BUS".into(), "redis".into())]),
        ),
        time_ms: 1_700_000_000_000,
        variables: BTreeMap::from([("REALTIME_BUS".into(), "redis".into())]),
        apps: BTreeMap::from([("17".into(), "digest".into())]),
    };
    golden_json("effective.jsonl", &[effective]);
    let recorder = RecorderFlow {
        decided: 7,
        accepted: 5,
        acknowledged: 4,
        queued: 1,
        dropped: BTreeMap::from([("client_event_overflow".into(), 2)]),
        last_error: Some("throttled".into()),
        silent_apps: ["17".into()].into(),
        ..RecorderFlow::default()
    };
    let shard = ShardFlow {
        read_to: Some("49".into()),
        checkpoint: Some("48".into()),
        behind_ms: 12,
        read_at_ms: 1_700_000_000_000,
        paused: Some("full".into()),
    };
    let dispatcher = DispatcherFlow {
        stream: "events".into(),
        shards: BTreeMap::from([("shardId-000000000000".into(), shard)]),
        delivered: 3,
        failed_attempts: 2,
        dropped: BTreeMap::from([("retry_window".into(), 1)]),
        unfinished: 4,
        events: Some(EventLedger { read: 9, duplicate: 1, released: 7, waiting: 1, ..EventLedger::default() }),
        deliveries: Some(DeliveryLedger {
            created: 7,
            attempted: 5,
            delivered: 3,
            dropped: 1,
            waiting: 3,
            ..DeliveryLedger::default()
        }),
        trimmed: 1,
        last_error: None,
        dead_letter: None,
    };
    let letters = DeadLetterFlow {
        stream: "events-dead-letter".into(),
        written: BTreeMap::from([("RetryWindowOver".into(), 2)]),
        waiting: 1,
        error: Some("DeadLetterUnavailable: no answer in time".into()),
    };
    let with_letters = DispatcherFlow { dead_letter: Some(letters), ..dispatcher.clone() };
    let sessions = BTreeMap::from([(ServerKind::Sockjs, SessionFlow { open: 5, opened: 9 })]);
    let empty = FlowReport { process: "01JPROCESS".into(), started_ms: 1_700_000_000_000, ..FlowReport::default() };
    let edge = FlowReport { sessions, sessions_max: Some(9_830), recorder: Some(recorder), ..empty.clone() };
    let of_dispatcher = |flow| FlowReport { dispatcher: Some(flow), ..empty.clone() };
    golden_json("flow.jsonl", &[edge, of_dispatcher(dispatcher), of_dispatcher(with_letters)]);
}

#[test]
fn pusher_and_sockjs_frames() {
    let member = PresenceMember { user_id: "u\"1".into(), user_info: serde_json::json!({ "name": "é" }) };
    let (room, cache) = (channel("presence-room"), channel("cache-news"));
    let mut lines = vec![
        frame::connection_established("123.456", 120),
        frame::ping_frame(),
        frame::pong_frame(),
        frame::error_frame(Some(4100), "full"),
        frame::error_frame(None, "no code"),
        frame::subscription_error("private-x", "AuthError", 401, "signature"),
        frame::subscription_succeeded(&room, Some(std::slice::from_ref(&member))),
        frame::subscription_succeeded(&cache, None),
        frame::member_added(&room, &member),
        frame::member_removed(&room, &member.user_id),
        frame::subscription_count(&cache, 3),
        frame::cache_miss(&cache),
        frame::event_frame("greeting", &cache, r#"{"n":1.0}"#, None),
        frame::event_frame("client-x", &room, "text", Some("u1")),
        frame::signin_success(r#"{"id":"7"}"#),
        frame::watchlist_events(&["a"], &["b"]),
    ];
    lines.push(sockjs::encode_messages(["a", "\"b\"\u{2028}"]));
    lines.push(sockjs::encode_close(3000, "Go away!"));
    lines.push(sockjs::quote_json("\u{ffff}é\n"));
    golden("frames.txt", &format!("{}\n", lines.join("\n")));
}

/// Bytes as a Rust literal, so that line ends and blanks at the end of a line are seen.
fn quote_lines<'a>(texts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    texts.into_iter().fold(String::new(), |text, (name, bytes)| format!("{text}{name} {bytes:?}\n"))
}

#[test]
fn fallback_frames_and_wrappings() {
    use sockjs::FrameWrapping;
    let frame = sockjs::encode_messages(["a%</script>"]);
    let wrapped = |wrapping: FrameWrapping| wrapping.wrap(&frame);
    golden(
        "fallbacks.txt",
        &quote_lines([
            ("pusher open", fallback::encode_open(None)),
            ("pusher open with a host", fallback::encode_open(Some("eu-1.example.com"))),
            ("pusher heartbeat", fallback::HEARTBEAT_FRAME.to_owned()),
            ("pusher empty", fallback::EMPTY_FRAME.to_owned()),
            ("pusher messages", fallback::encode_messages(["a", "\"b\""])),
            ("pusher close", fallback::encode_close(4200, "reconnect")),
            ("sockjs open", sockjs::OPEN_FRAME.to_owned()),
            ("sockjs heartbeat", sockjs::HEARTBEAT_FRAME.to_owned()),
            ("sockjs line", wrapped(FrameWrapping::Line)),
            ("sockjs event", wrapped(FrameWrapping::Event)),
            ("sockjs script", wrapped(FrameWrapping::Script)),
            ("sockjs call", wrapped(FrameWrapping::Call("back".into()))),
            ("sockjs line prelude", sockjs::line_prelude()),
            ("sockjs event prelude", sockjs::EVENT_PRELUDE.to_owned()),
            ("sockjs htmlfile", sockjs::htmlfile_head("back")),
            ("sockjs iframe", sockjs::iframe_page("https://example.com/sockjs.js")),
            ("sockjs payload expected", sockjs::PAYLOAD_EXPECTED.to_owned()),
            ("sockjs broken JSON", sockjs::BROKEN_JSON.to_owned()),
        ]),
    );
}

#[test]
fn close_codes() {
    use frame::code;
    let codes = [
        ("unknown app", code::APP_UNKNOWN),
        ("disabled app", code::APP_DISABLED),
        ("over quota", code::OVER_QUOTA),
        ("unknown path", code::PATH_UNKNOWN),
        ("invalid version", code::VERSION_INVALID),
        ("unsupported protocol", code::PROTOCOL_UNSUPPORTED),
        ("missing protocol", code::PROTOCOL_MISSING),
        ("unauthorized", code::UNAUTHORIZED),
        ("over capacity", code::OVER_CAPACITY),
        ("reconnect", code::RECONNECT),
        ("missing pong", code::PONG_MISSING),
        ("inactive", code::INACTIVE),
        ("refused client event", code::CLIENT_EVENT_REFUSED),
        ("cut watchlist", code::WATCHLIST_CUT),
    ];
    golden("close-codes.txt", &codes.map(|(name, code)| format!("{code} {name}\n")).concat());
}

/// String literals of a source outside its tests that begin with `prefix`.
fn literals<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let begin = format!("\"{prefix}");
    let found = text.match_indices(&begin).map(|(at, _)| &text[at + 1..]);
    found.map(|rest| rest.split('"').next().unwrap_or_default()).collect()
}

/// Reasons and actions of Events: the literals of the calls that publish one.
fn event_words(text: &str) -> Vec<&str> {
    let calls = [".publish_event(", ".publish_change("].into_iter().flat_map(|name| text.split(name).skip(1));
    let calls = calls.map(|call| call.split(".await").next().unwrap_or_default());
    let words = calls.flat_map(|call| literals(call, ""));
    words.filter(|word| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric)).collect()
}

/// Words that other programs match on. Those of private constants are found in the source, whatever their constants
/// are called.
#[test]
fn names_in_kubernetes_and_metrics() {
    let files = parse_sources(&read_sources());
    let texts: Vec<String> = files.iter().map(|file| file.lines.join("\n")).collect();
    let mut text = format!("group {API_GROUP}\nfield manager {FIELD_MANAGER}\n");
    let mut list = |title: &str, words: BTreeSet<String>| {
        assert!(!words.is_empty(), "{title}: none was found");
        writeln!(text, "== {title}\n{}", words.into_iter().collect::<Vec<_>>().join("\n")).expect("written");
    };
    let keys = ["realtime-operator.dev/", "app.kubernetes.io/", "endpointslice.kubernetes.io/", "kubernetes.io/"];
    let in_source = |prefix| texts.iter().flat_map(move |text| literals(text, prefix)).map(str::to_owned);
    list("labels, annotations, finalizers and gates", keys.into_iter().flat_map(in_source).collect());
    list("words of Events", texts.iter().flat_map(|text| event_words(text)).map(str::to_owned).collect());
    let metrics = realtime_operator::cli::metric_rows();
    list("metrics", metrics.iter().map(MetricRow::name).collect());
    let labels = metrics.iter().flat_map(|row| &row.labels);
    let labels = labels.flat_map(|label| label.values.iter().map(|(value, _)| format!("{} {value}", label.name)));
    list("labels of metrics with their values", labels.collect());
    list("reasons", Reason::ALL.iter().map(|reason| reason.name().to_owned()).collect());
    let conditions = [
        condition::READY,
        condition::RECONCILING,
        condition::STALLED,
        condition::STREAM_READY,
        condition::WORKLOADS_AVAILABLE,
        condition::APPS_SYNCED,
        condition::WEBHOOKS_DELIVERED,
        condition::WEBHOOKS_ENABLED,
        condition::ACCEPTED,
    ];
    list("conditions", conditions.map(str::to_owned).into());
    list("hops", Hop::ALL.map(|hop| hop.name().to_owned()).into());
    list("transports", Transport::ALL.map(|transport| transport.name().to_owned()).into());
    list("servers", ServerKind::ALL.map(|server| server.name().to_owned()).into());
    list("variables", VARIABLE_TABLE.iter().map(|variable| variable.name.to_owned()).collect());
    golden("names.txt", &text);
}

/// Compares a page of metrics with its golden file, without the values of the series, and with the table of metrics.
fn golden_metrics(process: &str, page: &str) {
    golden(&format!("metrics-{process}.txt"), &without_values(page));
    assert_page_is_the_table(process, page);
}

#[tokio::test]
async fn metrics_of_an_operator() {
    realtime_operator::process::install_tls();
    let mut metrics = Registry::default();
    OperatorMetrics::new(Leadership::not_leading()).register(&mut metrics);
    let endpoints = AdminEndpoints {
        token: String::new(),
        live: Box::new(|| Ok(())),
        ready: Box::new(|| Ok(())),
        effective: Box::new(|| serde_json::Value::Null),
        flow: Box::new(|| serde_json::Value::Null),
        endpoints: None,
        drain: None,
        tail: None,
        metrics,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/metrics", listener.local_addr().expect("an address"));
    tokio::spawn(admin::serve(listener, endpoints, CancellationToken::new()));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let page = http.get(url).send().await.expect("an answer").text().await.expect("a text");
    assert!(page.contains("\nrealtime_operator_held_leases 0\n"), "without leadership: {page}");
    golden_metrics("operator", &page);
}
