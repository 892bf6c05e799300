//! Stored and sent formats, byte for byte: what a release writes, every later one must write and read.
//!
//! `UPDATE_GOLDEN=1 cargo test --test it golden` writes the files of `tests/golden/`. A difference in one of them is a
//! change that users, other releases or running processes see, and belongs into the changelog.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use realtime_operator::bus::{BroadcastFrame, Bus, BusTiming, ChannelKey, LastEvent, RedisBus};
use realtime_operator::protocol::admin::{DispatcherFlow, EffectiveReport, FlowReport, RecorderFlow, ShardFlow};
use realtime_operator::protocol::frame::{self, PresenceMember};
use realtime_operator::protocol::record::{
    EventKind, EventOrder, LeaveCause, RecordOrigin, RecordedEvent, StreamRecord,
};
use realtime_operator::protocol::registry::{
    App, AppLimits, AppRegistry, Credential, CredentialState, WebhookEndpoint,
};
use realtime_operator::protocol::relay::{self, RelayHeader};
use realtime_operator::protocol::webhook::{self, WebhookBody, WebhookEvent};
use realtime_operator::protocol::{ChannelName, Secret, SocketId, sockjs};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::redis::Redis;

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

fn golden(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is writable");
        std::fs::write(&path, actual).expect("the file is writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let compared = compare(&expected, actual);
    assert_eq!(compared, Ok(()), "tests/golden/{file} differs; UPDATE_GOLDEN=1 writes it, if the change is meant");
}

/// One JSON value per line, compared as it is written and then read back from the committed file.
fn golden_json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(file: &str, values: &[T]) {
    let lines: Vec<String> = values.iter().map(|value| serde_json::to_string(value).expect("json")).collect();
    golden(file, &format!("{}\n", lines.join("\n")));
    let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file));
    let read: Vec<T> = committed
        .expect("the file was just compared")
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
        .iter()
        .map(|event| WebhookBody {
            time_ms: event.time_ms,
            events: vec![WebhookEvent::new(&channel("presence-room"), event)],
        })
        .collect();
    golden_json("webhooks.jsonl", &bodies);
    let body = serde_json::to_string(&bodies).expect("json");
    let signature = realtime_operator::protocol::signature::sign_message(&Secret::new("secret"), body.as_bytes());
    let names = [webhook::KEY_HEADER, webhook::SIGNATURE_HEADER, webhook::ORIGINAL_TIME_HEADER, webhook::CONTENT_TYPE];
    golden("webhook-headers.txt", &format!("{}\n{signature}\n", names.join("\n")));
}

fn app(id: &str) -> App {
    let credential = |n: u8, state| Credential {
        key: format!("key{n}").as_str().into(),
        secret: Secret::new(format!("secret{n}")),
        state,
    };
    App {
        id: id.into(),
        credentials: vec![credential(1, CredentialState::Retiring), credential(2, CredentialState::Active)],
        enabled: true,
        client_events: true,
        subscription_count: true,
        authorization_seconds: Some(30),
        allowed_origins: vec!["https://*.example.com".into()],
        limits: AppLimits { connections: Some(100), message_bytes: 10_240, client_events_per_second: 10 },
        webhooks: vec![WebhookEndpoint {
            name: "main".into(),
            url: "https://example.com/hook".into(),
            events: vec!["member_added".into()],
            channel_prefix: "presence-".into(),
            timeout_seconds: 5,
        }],
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
    let registry = AppRegistry::new([app("17"), plain]);
    let files = registry.to_files().expect("files");
    let mut text = String::new();
    for (name, file) in &files {
        writeln!(text, "== {name}\n{file}").expect("written");
    }
    for (id, digest) in registry.app_digests("salt") {
        writeln!(text, "digest {id} {digest}").expect("written");
    }
    golden("registry.txt", &text);
    let read = AppRegistry::parse(files.iter().map(|(name, file)| (name.as_str(), file.as_bytes()))).expect("readable");
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
        accepted: 5,
        acknowledged: 4,
        queued: 1,
        dropped: BTreeMap::from([("client_event_overflow".into(), 2)]),
        last_error: Some("throttled".into()),
        ..RecorderFlow::default()
    };
    let shard = ShardFlow {
        read_to: Some("49".into()),
        checkpoint: Some("48".into()),
        behind_ms: 12,
        read_at_ms: 1_700_000_000_000,
    };
    let dispatcher = DispatcherFlow {
        stream: "events".into(),
        shards: BTreeMap::from([("shardId-000000000000".into(), shard)]),
        delivered: 3,
        failed_attempts: 2,
        dropped: BTreeMap::from([("retry_window".into(), 1)]),
        unfinished: 4,
        last_error: None,
    };
    let flow = |recorder, dispatcher| FlowReport { process: "01JPROCESS".into(), recorder, dispatcher };
    golden_json("flow.jsonl", &[flow(Some(recorder), None), flow(None, Some(dispatcher))]);
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

/// What differs from run to run: times of the store, and what is made of them.
fn normalise(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in text.chars().chain(std::iter::once('\n')) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out.push_str(if digits.len() >= 10 { "<N>" } else { &digits });
        digits.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn redis_cli(redis: &Redis, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &redis.port.to_string(), "--no-raw"]).args(arguments).output();
    String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
}

/// The lengths of the words of a text.
fn words(text: &str) -> String {
    text.split_whitespace().map(|word| format!("<{} characters>", word.len())).collect::<Vec<_>>().join(" ")
}

/// Every key with its type and content, times replaced.
fn dump(redis: &Redis) -> String {
    let keys = Command::new("redis-cli").args(["-p", &redis.port.to_string(), "--scan"]).output().expect("redis-cli");
    let mut keys: Vec<String> = String::from_utf8_lossy(&keys.stdout).lines().map(str::to_owned).collect();
    keys.sort();
    let mut text = String::new();
    for key in keys {
        let kind = redis_cli(redis, &["type", &key]).trim().to_owned();
        let content = match kind.as_str() {
            "hash" => redis_cli(redis, &["hgetall", &key]),
            "set" => redis_cli(redis, &["sort", &key, "alpha"]),
            "zset" => redis_cli(redis, &["zrange", &key, "0", "-1", "withscores"]),
            "list" => redis_cli(redis, &["lrange", &key, "0", "-1"]),
            // Random: the form is what counts.
            _ if key.ends_with("incarnation") => words(&redis_cli(redis, &["get", &key])),
            _ => redis_cli(redis, &["get", &key]),
        };
        let expires = redis_cli(redis, &["pttl", &key]).trim() != "(integer) -1";
        writeln!(text, "{key} {kind} expires={expires}\n{}", content.trim_end()).expect("written");
    }
    normalise(&text)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keys_and_frames() {
    let redis = Redis::start(None);
    redis.aged(6).await;
    let mut listener = Command::new("redis-cli")
        .args(["-p", &redis.port.to_string(), "--no-raw", "subscribe", "rt:uid-1:frames"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli");
    let timing = BusTiming {
        lease_ttl: Duration::from_secs(30),
        renew_interval: Duration::from_millis(200),
        settling_period: Duration::from_millis(100),
        sweep_grace: Duration::from_mins(1),
    };
    let bus = RedisBus::start(&redis.url(), "uid-1", "p1", timing, CancellationToken::new()).expect("a bus");
    let key = |name: &str| ChannelKey { app: "17".into(), channel: channel(name) };
    let ready = async {
        while !bus.is_available() || bus.inspect_channel(&key("nowhere")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("the bus answers");
    let (socket, member) = (
        SocketId::from("1.1"),
        PresenceMember { user_id: "user-1".into(), user_info: serde_json::json!({ "name": "\"é\"" }) },
    );
    bus.join_channel(&key("room"), &socket, None).await.expect("joined");
    bus.join_channel(&key("presence-room"), &socket, Some(&member)).await.expect("joined");
    bus.join_channel(&key("left"), &socket, None).await.expect("joined");
    bus.leave_channel(&key("left"), &socket, None).await.expect("left");
    bus.store_last_event(&key("cache-news"), &LastEvent { event: "greeting".into(), data: r#"{"n":1.0}"#.into() })
        .await
        .expect("kept");
    bus.claim_session("session-1", "p1").await.expect("owned");
    bus.report_lost_send("session-1", "p1").await.expect("lost");
    let message = |frame: &'static str, except: Option<SocketId>, ends: bool| BroadcastFrame {
        subject: key("room"),
        frame: frame.into(),
        except,
        ends,
    };
    bus.publish_frame(message(r#"{"event":"one"}"#, None, false)).await.expect("published");
    bus.publish_frame(message(r#"{"event":"two"}"#, Some(socket.clone()), false)).await.expect("published");
    bus.publish_frame(message(r#"{"event":"three"}"#, None, true)).await.expect("published");
    // Published on the same connection as the frames before it, so that whoever hears it has heard them.
    let heard = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let output = std::io::BufReader::new(listener.stdout.take().expect("piped"));
        let mut lines = Vec::new();
        for line in output.lines() {
            let line = line.expect("text");
            let last = line.contains("three");
            lines.push(line);
            if last {
                break;
            }
        }
        let _ = listener.kill();
        let _ = listener.wait();
        lines.join("\n")
    });
    let heard = tokio::time::timeout(Duration::from_secs(20), heard).await.expect("frames in time").expect("frames");
    golden("redis.txt", &format!("{}\n== frames\n{}\n", dump(&redis), normalise(&heard)));
}

fn command(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_realtime"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .output()
        .expect("the program runs");
    format!("exit {:?}\n{}", output.status.code(), String::from_utf8_lossy(&output.stdout))
}

/// Names, labels, annotations, variables, ports and volumes of everything that a cluster becomes.
#[test]
fn rendered_objects() {
    golden("render-eu.yaml", &command(&["render", "examples/eu.yaml"]));
}

#[test]
fn names_of_commands() {
    let help = command(&["--help"]);
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    // A name is indented by two; the lines of its explanation by more.
    let entries = listed.take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("   "));
    let names: Vec<&str> = entries.filter_map(|line| line.split_whitespace().next()).collect();
    golden("commands.txt", &format!("{}\n", names.join("\n")));
}
