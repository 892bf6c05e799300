//! Clients without a signature: what they cost a process, and what they are refused.

use realtime_operator::bus::RedisBus;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::raw_client::RawClient;
use super::relay::{Cluster, SECRET};
use super::*;
use crate::processes::{Server, edge_environment};
use crate::redis::server::Redis;

/// Bytes of unfinished input that an edge holds for clients without a signature.
const UNSIGNED_INPUT_BYTES: u64 = 8 << 20;

/// A POST that lacks the last byte of its body.
fn unfinished_post(path: &str, bytes: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\ncontent-length: {}\r\n\r\n", bytes + 1);
    [head.into_bytes(), vec![b'x'; bytes]].concat()
}

/// The begin of a text message of a client: a masked fragment whose key is zero.
fn fragment(bytes: u16) -> Vec<u8> {
    [&[0x01, 0xfe][..], &bytes.to_be_bytes(), &[0; 4], &vec![b'x'; bytes.into()]].concat()
}

/// A value of the metrics page of a process, 0 while it has no series.
async fn read_metric(process: &Server, series: &str) -> u64 {
    let url = format!("http://{}/metrics", process.address("admin"));
    let page = reqwest::get(url).await.expect("an answer").text().await.expect("a text");
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a number"))
}

/// Memory that a process has now, in KiB.
fn resident_kib(process: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn a_request_without_a_valid_signature_is_refused_before_its_body_is_read() {
    let edge = alone("websocket").await;
    let now = realtime_operator::process::clock::now_ms() / 1000;
    let path = "/apps/1/events";
    let signed = |secret: &str, body: &[u8]| {
        let query = rest::signed_query("key1", &Secret::new(secret), ("POST", path), body, now);
        url::form_urlencoded::Serializer::new(format!("{path}?")).extend_pairs(query).finish().replace("?&", "?")
    };
    for (name, path) in [
        ("no signature", path.to_owned()),
        ("the signature of another secret", signed("another", b"x")),
        ("a signature without the digest of the body", signed("secret1", b"")),
    ] {
        let mut client = RawClient::send(edge.running.public, unfinished_post(&path, 60 << 10)).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{name}: {answer}");
    }
    let body = br#"{"name":"news","data":"x","channel":"room"}"#;
    let other = br#"{"name":"news","data":"y","channel":"room"}"#;
    for (name, sent, status) in [("as it was signed", body, 200), ("another body of this length", other, 401)] {
        let sent = edge.http.post(edge.url(&signed("secret1", body))).body(sent.to_vec()).send().await;
        assert_eq!(sent.expect("an answer").status(), status, "{name}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn unfinished_requests_and_messages_share_one_budget_and_backends_go_on() {
    realtime_operator::process::install_tls();
    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), vec![app("1", true)]);
    let own = [("REALTIME_SERVER", "edge"), ("REALTIME_TRANSPORTS", "websocket,xhr_polling")];
    let process = Server::start("edge", &edge_environment(apps.path(), &own)).await;
    let (address, http) = (process.address("public"), reqwest::Client::new());
    let held = async || read_metric(&process, "realtime_edge_unfinished_input_bytes").await;
    let refused = async || read_metric(&process, r#"realtime_edge_refusals_total{reason="input_bytes"}"#).await;

    let mut sockets = Vec::new();
    for _ in 0..400 {
        let mut ws = Ws::open(address, "/app/key1?protocol=7").await;
        ws.greeted().await;
        sockets.push(ws);
    }
    let before = resident_kib(&process);
    let mut posts = Vec::new();
    for n in 0..200 {
        let path = format!("/pusher/app/key1/7/unknown{n}/xhr_send");
        posts.push(RawClient::send(address, unfinished_post(&path, 200 << 10)).await);
    }
    for ws in &mut sockets {
        // A socket that was refused already may not take the rest.
        let _ = ws.socket.get_mut().write_all(&fragment(60 << 10)).await;
    }
    // 40 MB of bodies and 24 MB of messages were sent.
    let answer = posts.last_mut().expect("a request").answer().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("retry-after: "), "{answer}");
    assert_eq!(sockets.last_mut().expect("a socket").closed().await, 4100);
    eventually("the refusals", refused, |refused| *refused > 400).await;
    let bytes = held().await;
    assert!(bytes > 0 && bytes <= UNSIGNED_INPUT_BYTES, "{bytes} bytes are held");
    let taken = resident_kib(&process).saturating_sub(before);
    println!("{taken} KiB for the unfinished input of 200 requests and 400 sockets");
    // 16 MiB as measured, half of it the budget; the allocator returns freed pages after some seconds.
    assert!(taken < 24 << 10, "{taken} KiB for 200 requests and 400 messages of 64 MB in all");

    let body = json!({ "name": "news", "data": "x".repeat(10_000), "channel": "room" }).to_string();
    let now = realtime_operator::process::clock::now_ms() / 1000;
    let secret = Secret::new("secret1");
    let query = rest::signed_query("key1", &secret, ("POST", "/apps/1/events"), body.as_bytes(), now);
    let url = url::Url::parse_with_params(&format!("http://{address}/apps/1/events"), query).expect("a url");
    let published = http.post(url).body(body).send().await.expect("an answer");
    assert_eq!(published.status(), 200, "the backend of an app has a budget of its own");

    drop((posts, sockets));
    eventually("the release of every byte", held, |held| *held == 0).await;
    assert_eq!(process.terminate().await, Some(0));
}

#[tokio::test]
async fn control_frames_between_fragments_are_no_sign_of_life() {
    let settings = [("REALTIME_ACTIVITY_TIMEOUT_SECONDS", "5")];
    let edge = start_with("websocket", vec![app("1", true)], &settings, MemoryBus::new(), None).await;
    let mut ws = Ws::open(edge.running.public, "/app/key1?protocol=7").await;
    assert_eq!(ws.next().await.event, ESTABLISHED);
    ws.socket.get_mut().write_all(&fragment(10)).await.expect("written");
    // A socket that is alive is never asked.
    let asked = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = ticks.tick() => ws.socket.send(Message::Ping(vec![].into())).await.expect("sent"),
                message = ws.socket.next() => match message.expect("open").expect("a message") {
                    Message::Text(text) => return text,
                    other => assert!(matches!(other, Message::Pong(_)), "{other:?}"),
                },
            }
        }
    };
    let asked = within(WAIT_TIMEOUT, "the ping of a client that completes nothing", asked).await;
    assert!(asked.contains("pusher:ping"), "{asked}");
    edge.stop().await;
}

/// A registry with one app that has these limits.
fn limited(limits: AppLimits) -> Vec<App> {
    vec![App { limits, ..app("1", true) }, app("3", true)]
}

/// An edge behind a proxy that reports the addresses of its clients.
async fn start_behind_proxy(known: Vec<App>, bus: Arc<dyn Bus>) -> Edge {
    start_on_bus("websocket", known, &[("REALTIME_TRUSTED_PROXIES", "127.0.0.0/8")], bus, None).await
}

/// A client at this address, as the proxy reports it.
async fn connect_from(edge: &Edge, source: &str, key: &str) -> Ws {
    let path = format!("ws://{}/app/{key}?protocol=7", edge.running.public);
    let mut request = path.into_client_request().expect("a request");
    request.headers_mut().insert("x-forwarded-for", source.parse().expect("a value"));
    let (socket, _) = tokio_tungstenite::connect_async(request).await.expect("a socket");
    Ws { socket: Wire::new(socket), id: String::new() }
}

impl Edge {
    /// Whether a client from this address is greeted; otherwise the code that it is closed with.
    async fn admits(&self, source: &str) -> Result<Ws, u16> {
        let mut ws = connect_from(self, source, "key1").await;
        match ws.next().await.event.as_str() {
            ESTABLISHED => Ok(ws),
            _ => Err(ws.closed().await),
        }
    }

    async fn count_refusals(&self, reason: &str) -> u64 {
        self.metric(&format!("realtime_edge_refusals_total{{reason=\"{reason}\"}}")).await
    }
}

#[tokio::test]
async fn connections_of_one_address_are_bounded_by_the_app_and_an_edit_is_in_force_at_once() {
    let limits = |most| limited(AppLimits { connections_per_source: most, ..AppLimits::default() });
    let edge = start_behind_proxy(limits(2), Arc::new(MemoryBus::new())).await;
    let admit = async |source| edge.admits(source).await.map_err(|code| (source, code));
    let mut held = vec![admit("192.0.2.1").await.expect("room"), admit("192.0.2.1").await.expect("room")];
    assert_eq!(admit("192.0.2.1").await.err(), Some(("192.0.2.1", 4100)));
    held.push(admit("192.0.2.2").await.expect("another address"));
    for _ in 0..5 {
        held.push(edge.websocket().await);
    }
    assert_eq!(edge.count_refusals("source_connections").await, 1, "those of the proxy itself are not counted");
    write_registry(edge.apps.path(), limits(3));
    held.push(eventually_ok("room for a third", async || edge.admits("192.0.2.1").await).await);
    held.remove(0);
    held.push(eventually_ok("the place of one that left", async || edge.admits("192.0.2.1").await).await);
    drop(held);
    edge.stop().await;
}

#[tokio::test]
async fn an_app_limits_its_handshakes_requests_channels_members_and_last_events() {
    let limits = AppLimits {
        handshakes_per_second: Some(3),
        api_requests_per_second: Some(2),
        channels: Some(2),
        presence_members: 1,
        cache_seconds: 1,
        ..AppLimits::default()
    };
    let edge = start_behind_proxy(limited(limits), Arc::new(MemoryBus::new())).await;
    let refused = async || {
        for _ in 0..4 {
            if edge.admits("192.0.2.9").await.is_err() {
                return edge.count_refusals("handshake_rate").await;
            }
        }
        0
    };
    eventually("a fourth handshake in one second", refused, |refused| *refused > 0).await;
    let admitted = async || eventually_ok("a connection", async || edge.admits("192.0.2.9").await).await;
    let (mut one, mut two) = (admitted().await, admitted().await);

    for room in ["cache-a", "b"] {
        one.send(&json!({ "event": "pusher:subscribe", "data": { "channel": room } })).await;
        one.expect(SUBSCRIBED).await;
        if room.starts_with("cache") {
            one.expect("pusher:cache_miss").await;
        }
    }
    one.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "c" } })).await;
    one.expect("pusher:error").await;
    assert_eq!(one.expect("pusher:subscription_error").await.data["status"], 403);
    assert_eq!(edge.count_refusals("app_channels").await, 1);
    two.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "b" } })).await;
    two.expect(SUBSCRIBED).await;

    let event = json!({ "name": "e", "data": "x", "channel": "cache-a" });
    let exceeded = async || {
        for _ in 0..3 {
            let answer = edge.publish("1", &event).await;
            if answer.status() == 429 {
                return answer.headers().get("retry-after").cloned();
            }
        }
        None
    };
    let retry = eventually("a third request in one second", exceeded, Option::is_some).await;
    assert_eq!(retry, Some("1".parse().expect("a value")));
    assert_eq!(edge.publish("3", &event).await.status(), 200, "the other app has its own rate");
    assert!(edge.count_refusals("api_request_rate").await >= 1);
    let missing = async || {
        let mut late = edge.admits("192.0.2.9").await.ok()?;
        late.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "cache-a" } })).await;
        late.expect(SUBSCRIBED).await;
        Some(late.next().await.event)
    };
    let is_miss = |event: &Option<String>| event.as_deref() == Some("pusher:cache_miss");
    eventually("the end of the last event after a second", missing, is_miss).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_presence_channel_has_the_members_that_its_app_allows() {
    let limits = limited(AppLimits { presence_members: 2, ..AppLimits::default() });
    let edge = start_with("websocket", limits, &[], MemoryBus::new(), None).await;
    let (mut one, mut two, mut three) = (edge.websocket().await, edge.websocket().await, edge.websocket().await);
    one.subscribe("presence-room", Some("a")).await;
    two.subscribe("presence-room", Some("b")).await;
    three.send(&subscribe(&three.id, "presence-room", Some("c"))).await;
    let error = three.expect("pusher:error").await;
    assert!(error.data["message"].as_str().is_some_and(|text| text.contains("2 members")), "{error:?}");
    edge.stop().await;
}

#[tokio::test]
async fn messages_that_cost_only_an_answer_are_answered_at_a_bounded_rate() {
    const SENT: u64 = 600;
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    for _ in 0..SENT / 3 {
        ws.send(&json!({ "event": "pusher:ping", "data": {} })).await;
        ws.send(&json!({ "event": "unknown", "data": {} })).await;
        ws.text("no message").await;
    }
    ws.send(&subscribe(&ws.id, "private-end", None)).await;
    let mut answers = 0;
    while ws.next().await.event != SUBSCRIBED {
        answers += 1;
    }
    assert!((256..SENT).contains(&answers), "{answers} answers");
    assert_eq!(edge.count_refusals("message_rate").await, SENT - answers);
    edge.stop().await;
}

#[tokio::test]
async fn a_process_has_so_many_clients_and_one_address_a_part_of_its_connections() {
    let settings = [
        ("REALTIME_CONNECTIONS_MAX", "8"),
        ("REALTIME_PROXY_PROTOCOL", "accepted"),
        ("REALTIME_TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let edge = start_with("websocket", vec![app("1", true)], &settings, MemoryBus::new(), None).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(edge.websocket().await);
    }
    let mut late = Ws::open(edge.running.public, "/app/key1?protocol=7").await;
    assert_eq!((late.next().await.event.as_str(), late.closed().await), ("pusher:error", 4100));
    assert_eq!(edge.count_refusals("server_full").await, 1);
    assert_eq!(edge.http.get(edge.url("/healthz")).send().await.expect("an answer").status(), 200);

    // An eighth more connections than clients, and 64; a quarter of them for one address.
    let ask = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 4711 80\r\nGET /up HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..19 {
        let mut client = RawClient::send(edge.running.public, ask("192.0.2.1")).await;
        assert!(client.answer().await.starts_with("HTTP/1.1 200 "));
        held.push(client);
    }
    let refused = RawClient::send(edge.running.public, ask("192.0.2.1")).await.answer().await;
    assert_eq!(refused, "", "closed without an answer");
    assert!(RawClient::send(edge.running.public, ask("192.0.2.2")).await.answer().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(edge.count_refusals("listener_source").await, 1);
    drop((held, clients));
    edge.stop().await;
}

/// Sockets of the stranger.
const STRANGER_SOCKETS: usize = 20;

/// Subscriptions that each of them asks for, each to a channel of its own that it leaves at once: more than a source may
/// make at once.
const ASKED_EACH: usize = 300;

/// Requests to the bus that an edge allows one source at once, and in a second.
const SOURCE_REQUESTS: (u64, u64) = (4_096, 50);

/// One stranger with the public key keeps one address busy; a client of another app goes on. Returns the requests that
/// may have reached the bus.
async fn attack(edge: &Edge) -> u64 {
    let mut other = connect_from(edge, "198.51.100.7", "key3").await;
    other.next().await;
    other.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "news" } })).await;
    other.expect(SUBSCRIBED).await;
    let began = std::time::Instant::now();
    let mut sockets = Vec::new();
    for socket in 0..STRANGER_SOCKETS {
        let mut ws = connect_from(edge, "192.0.2.66", "key1").await;
        for n in 0..ASKED_EACH {
            for event in ["pusher:subscribe", "pusher:unsubscribe"] {
                let message = json!({ "event": event, "data": { "channel": format!("room-{socket}-{n}") } });
                ws.socket.feed(Message::text(message.to_string())).await.expect("queued");
            }
        }
        ws.socket.flush().await.expect("sent");
        sockets.push(ws);
    }
    let pauses = async || edge.metric("realtime_edge_source_pauses_total").await;
    let all_paused = u64::try_from(STRANGER_SOCKETS).expect("a number");
    eventually("a pause of every socket", pauses, |pauses| *pauses >= all_paused).await;
    let event = json!({ "name": "e", "data": "x", "channel": "news" });
    assert_eq!(edge.publish("3", &event).await.status(), 200);
    other.expect("e").await;
    let (at_once, per_second) = SOURCE_REQUESTS;
    // A socket asks once more, and then pauses.
    at_once + all_paused + per_second * (began.elapsed().as_secs() + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_one_address_is_bounded_on_the_bus_in_memory() {
    let edge = start_behind_proxy(limited(AppLimits::default()), Arc::new(MemoryBus::new())).await;
    let most = attack(&edge).await;
    // Each subscription is answered with one frame; the rest are greetings and the event of the other app.
    let frames = edge.metric("realtime_edge_frames_total").await;
    assert!((SOURCE_REQUESTS.0..most + 100).contains(&frames), "{frames} answers to at most {most} requests");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_one_address_is_bounded_on_redis() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let life = CancellationToken::new();
    let bus = RedisBus::connect(redis.url().as_str(), "uid-1", "edge", life.clone()).await.expect("a bus");
    let edge = start_behind_proxy(limited(AppLimits::default()), Arc::new(bus)).await;
    let scripts = || {
        let stats = redis.command(&["info", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let before = scripts();
    let most = attack(&edge).await;
    // One script for a subscription and one for its end; leases and acknowledgements take some more.
    let ran = scripts() - before;
    assert!(ran <= 2 * most + most / 2, "{ran} scripts ran for at most {most} requests");
    let counters = redis.command(&["--scan", "--pattern", "rt:*room-*:order"]);
    let names: Vec<&str> = counters.lines().filter(|line| !line.is_empty()).collect();
    assert!(names.len() > 1_000, "{} channels have a counter", names.len());
    for name in names.iter().step_by(100) {
        let ttl: i64 = redis.command(&["ttl", name]).trim().parse().expect("a number");
        assert!(ttl <= 60, "{name} is kept for {ttl} s");
    }
    edge.stop().await;
    life.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_an_unknown_app_is_never_registered_on_the_bus() {
    let redis = Redis::start().await;
    let pods = Cluster::with(&redis.url(), ("uid-1".into(), "sockjs"), &[SECRET]).await;
    let edge = &pods.pods[0];
    let receive = async |key: &str, session: &str| {
        let url = edge.url(&format!("/pusher/app/{key}/7/{session}/xhr?protocol=7"));
        edge.http.post(url).send().await.expect("an answer").text().await.expect("a text")
    };
    for n in 0..20 {
        let answer = receive("nobody", &format!("unknown{n}")).await;
        assert!(answer.contains("4001"), "{answer}");
    }
    // A claim that was released has no key, but it ran this script.
    let claims = || {
        let stats = redis.command(&["info", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let before = claims();
    assert_eq!(receive("key1", "known").await, "o\n");
    let sessions = redis.command(&["--scan", "--pattern", "rt:*:session:*"]);
    assert_eq!(sessions.lines().filter(|line| !line.is_empty()).count(), 1, "{sessions}");
    assert!(before < 20 && claims() > before, "{before} claims for unknown apps");
}
