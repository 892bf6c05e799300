//! Clients that mean harm or know no better: each gets the answer that `docs/limits.md` tells, none takes more memory
//! than it says, and whoever is connected meanwhile notices nothing.

mod memory;

use tokio::io::AsyncWriteExt;

use super::raw_client::RawClient;
use super::*;

const GIGABYTE: u64 = 1 << 30;

/// A client that is there the whole time and hears everything.
struct Bystander {
    ws: Ws,
    heard: u64,
}

impl Bystander {
    async fn join(edge: &Edge) -> Self {
        let mut ws = edge.websocket().await;
        ws.subscribe("private-bystander", None).await;
        Self { ws, heard: 0 }
    }

    /// It receives the event that is published now, and received nothing else.
    async fn hears(&mut self, edge: &Edge) {
        self.heard += 1;
        let body = json!({ "name": "news", "data": self.heard.to_string(), "channel": "private-bystander" });
        assert_eq!(edge.publish("1", &body).await.status(), 200);
        assert_eq!(self.ws.expect("news").await.data, json!(self.heard));
    }
}

fn head(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// The status of a request of the HTTP API that was signed at this time.
async fn signed(edge: &Edge, body: &[u8], then: u64) -> u16 {
    let path = "/apps/1/events";
    let query = rest::signed_query("key1", &Secret::new("secret1"), ("POST", path), body, then);
    let url = url::Url::parse_with_params(&edge.url(path), query).expect("a url");
    edge.http.post(url).body(body.to_vec()).send().await.expect("an answer").status().as_u16()
}

/// The path of a publish that was signed with a body, whatever is sent with it.
fn signed_path() -> String {
    let path = "/apps/1/events";
    let query = rest::signed_query("key1", &Secret::new("secret1"), ("POST", path), b"x", now());
    url::form_urlencoded::Serializer::new(format!("{path}?")).extend_pairs(query).finish().replace("?&", "?")
}

fn now() -> u64 {
    realtime_operator::process::clock::now_ms() / 1000
}

#[tokio::test]
async fn a_malformed_or_too_large_request_is_refused_at_once() {
    let edge = alone("websocket").await;
    let mut bystander = Bystander::join(&edge).await;
    let many = "x: y\r\n".repeat(101);
    let large = format!("x: {}\r\n", "y".repeat(70 << 10));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let events = |fields: &str| head(&format!("POST {}", signed_path()), fields).into_bytes();
    let not_utf8 =
        [b"GET /app/\xff?protocol=7 HTTP/1.1\r\nHost: x\r\n".as_slice(), upgrade.as_bytes(), b"\r\n"].concat();
    let chunked =
        [events("transfer-encoding: chunked\r\n"), format!("{:x}\r\n", 2 << 20).into_bytes(), vec![b'x'; 2 << 20]];
    for (name, bytes, status) in [
        ("no request", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400),
        ("no version", b"GET / HTTP/9.1\r\n\r\n".to_vec(), 400),
        ("too many fields", head("GET /", &many).into_bytes(), 431),
        ("a field too large", head("GET /", &large).into_bytes(), 431),
        ("an address too large", head(&format!("GET /{}", "y".repeat(70 << 10)), "").into_bytes(), 431),
        ("a gigabyte declared", events(&format!("content-length: {GIGABYTE}\r\n")), 413),
        ("two megabytes in parts", chunked.concat(), 413),
        ("a length that is no number", events("content-length: -1\r\n"), 400),
        ("a path that is not UTF-8", not_utf8, 400),
        ("the same, escaped", head("GET /app/%ff?protocol=7", upgrade).into_bytes(), 400),
        ("no upgrade", head("GET /app/key1?protocol=7", "").into_bytes(), 400),
    ] {
        let mut raw = RawClient::send(edge.running.public, bytes).await;
        assert_eq!(raw.status().await, status, "{name}");
        if status != 400 {
            raw.ended().await;
        }
    }
    let hundred = "x: y\r\n".repeat(99);
    assert_eq!(
        RawClient::send(edge.running.public, head("GET /", &hundred)).await.status().await,
        404,
        "as many as may be"
    );
    bystander.hears(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_times_out() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut bystander = Bystander::join(&sockets).await;
    let mut xhr = Xhr::new(&fallbacks, "key1", "slow", "xhr_streaming");
    xhr.greeted().await;
    let length = "content-length: 100\r\n";
    let mut slow = Vec::new();
    for (address, path) in [
        (sockets.running.public, signed_path()),
        (fallbacks.running.public, "/pusher/app/key1/7/slow/xhr_send".to_owned()),
        (fallbacks.running.public, "/pusher/7/slow/xhr_send".to_owned()),
    ] {
        for part in ["", "[\"x"] {
            slow.push(RawClient::send(address, head(&format!("POST {path}"), length) + part).await);
        }
        let mut cut = RawClient::send(address, head(&format!("POST {path}"), length) + "[\"x").await;
        cut.0.shutdown().await.expect("shut");
        assert!(matches!(cut.status().await, 0 | 400), "{path}: cut short");
    }
    let half = RawClient::send(sockets.running.public, "GET /app/key1?proto").await;
    let began = std::time::Instant::now();
    bystander.hears(&sockets).await;
    for (n, raw) in slow.iter_mut().enumerate() {
        // A byte now and then does not give it more time.
        let _ = raw.0.write_all(b"x").await;
        assert_eq!(raw.status().await, 400, "{n}");
    }
    assert!(began.elapsed() > Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(xhr.send_raw("[]").await, 204, "the session of which a send was cut goes on");
    bystander.hears(&sockets).await;
    drop(half);
    sockets.stop().await;
    fallbacks.stop().await;
}

/// A frame's header of WebSocket, with the mask 0, of any declared length.
fn frame(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(0x80 | u8::try_from(length).expect("small")),
        126..0x1_0000 => {
            header.push(0xfe);
            header.extend(u16::try_from(length).expect("small").to_be_bytes());
        }
        _ => {
            header.push(0xff);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend([0; 4]);
    header
}

#[tokio::test]
async fn frames_that_break_the_protocol_close_their_socket_alone_with_a_code() {
    const TEXT: u8 = 0x81;
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut bystander = Bystander::join(&sockets).await;
    let parts = [frame(0x01, 100 << 10), vec![b'x'; 100 << 10], frame(0x80, 100 << 10), vec![b'x'; 100 << 10]].concat();
    let table: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a gigabyte declared", frame(TEXT, GIGABYTE), 1009),
        ("all that can be declared", frame(TEXT, u64::MAX >> 1), 1009),
        ("a byte more than may be", frame(TEXT, (128 << 10) + 1), 1009),
        ("too much in parts", parts, 1009),
        ("text that is not UTF-8", [frame(TEXT, 2), vec![0xc3, 0x28]].concat(), 1007),
        ("half a surrogate as UTF-8", [frame(TEXT, 3), vec![0xed, 0xa0, 0x80]].concat(), 1007),
        ("a reserved kind of frame", frame(0x83, 0), 1002),
        ("a reserved bit", frame(0xc1, 0), 1002),
        ("a ping too large", [frame(0x89, 126), vec![b'x'; 126]].concat(), 1002),
        ("a ping in parts", frame(0x09, 0), 1002),
        ("a part of nothing", frame(0x80, 0), 1002),
        ("no mask", vec![TEXT, 2, b'{', b'}'], 1002),
        ("no frame", b"GET / HTTP/1.1\r\n".to_vec(), 1002),
    ];
    for (name, bytes, code) in &table {
        let mut ws = sockets.websocket().await;
        ws.socket.get_mut().write_all(bytes).await.expect("written");
        assert_eq!(ws.closed().await, *code, "{name}");
        let mut sockjs = Ws::open(fallbacks.running.public, "/pusher/7/any/websocket").await;
        assert_eq!(received(&mut sockjs.socket, "open frame").await, Message::text("o"));
        sockjs.socket.get_mut().write_all(bytes).await.expect("written");
        assert_eq!(sockjs.closed().await, *code, "SockJS: {name}");
    }
    let count = u64::try_from(table.len()).expect("a number");
    assert_eq!([sockets.refusals("unreadable").await, fallbacks.refusals("unreadable").await], [count; 2]);
    let mut ws = sockets.websocket().await;
    ws.socket.send(Message::binary(vec![0xff; 9])).await.expect("sent");
    assert!(ws.expect("pusher:error").await.data["message"].as_str().is_some_and(|text| text.contains("binary")));
    ws.still_serves().await;
    bystander.hears(&sockets).await;
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn unusual_json_is_refused_or_forwarded_unchanged() {
    let edge = alone("websocket").await;
    let (mut ws, mut other) = (edge.websocket().await, edge.websocket().await);
    ws.subscribe("private-room", None).await;
    other.subscribe("private-room", None).await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let said = |data: &str| format!(r#"{{"event":"client-said","channel":"private-room","data":{data}}}"#);
    let subscribe = format!(r#"{{"event":"pusher:subscribe","data":{}}}"#, deep(60_000));
    for (name, text, part) in [
        ("a hundred thousand levels", "[".repeat(100_000), "not a JSON object"),
        ("levels instead of a channel", subscribe, "needs `channel`"),
        ("levels in a client event", said(&deep(60_000)), "at most 10240"),
        ("half a surrogate in a channel", r#"{"event":"client-a","channel":"\udc00","data":1}"#.into(), "in it"),
        ("an event twice", r#"{"event":"pusher:ping","event":"client-a"}"#.into(), "not a JSON object"),
        ("a text, large and full of signs", format!("\"{}\"", "\u{7f}".repeat(100_000)), "not a JSON object"),
        ("nothing", String::new(), "not a JSON object"),
    ] {
        ws.text(&text).await;
        let message = received(&mut ws.socket, name).await;
        assert!(message.len() < 32 << 10, "{name}: an answer of {} bytes", message.len());
        let error = ServerMessage::parse(message.to_text().expect("text")).expect("a frame").data;
        assert!(error["message"].as_str().is_some_and(|text| text.contains(part)), "{name}: {error}");
    }
    for (name, data, passed) in [
        ("half a surrogate", r#""\ud800""#.to_owned(), "\u{fffd}".to_owned()),
        ("half a surrogate in an object", r#"{"a":"\ud800"}"#.to_owned(), r#"{"a":"\ud800"}"#.to_owned()),
        ("many levels", deep(5_000), deep(5_000)),
        ("digits", "1e999".to_owned(), "1e999".to_owned()),
    ] {
        ws.text(&said(&data)).await;
        assert_eq!(other.expect("client-said").await.data, json!(passed), "{name}");
    }
    for (name, body) in [
        ("levels", "[".repeat(100_000).into_bytes()),
        ("not UTF-8", b"{\"name\":\"e\",\"channel\":\"a\",\"data\":\"\xff\"}".to_vec()),
        ("cut short", br#"{"name":"e","chan"#.to_vec()),
    ] {
        assert_eq!(signed(&edge, &body, now()).await, 400, "{name}");
    }
    ws.still_serves().await;
    other.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn unreadable_sends_and_sends_to_no_session_are_refused() {
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "odd", "xhr_streaming");
    let id = xhr.greeted().await;
    let post = async |path: &str, body: &[u8]| {
        let answer = edge.http.post(edge.url(path)).body(body.to_vec()).send().await.expect("an answer");
        answer.status().as_u16()
    };
    let own = "/pusher/app/key1/7/odd/xhr_send";
    let levels = "[".repeat(100_000).into_bytes();
    for (name, path, body, status) in [
        ("levels", own, &levels[..], 500),
        ("nothing", own, b"", 500),
        ("too large", own, &vec![b' '; (256 << 10) + 1], 413),
        ("no session", "/pusher/app/key1/7/none/xhr_send", b"[]", 404),
        ("a session of another key", "/pusher/app/key2/7/odd/xhr_send", b"[]", 404),
        ("a session with a dot", "/pusher/app/key1/7/a.b/xhr_send", b"[]", 404),
        ("a long session", &format!("/pusher/app/key1/7/{}/xhr_send", "s".repeat(65)), b"[]", 404),
        ("no session of SockJS", "/pusher/7/none/xhr_send", b"[\"x\"]", 404),
    ] {
        assert_eq!(post(path, body).await, status, "{name}");
    }
    xhr.send(&subscribe(&id, "private-room", None)).await;
    xhr.expect(SUBSCRIBED).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_signature_is_for_one_socket_and_for_ten_minutes() {
    let edge = alone("websocket").await;
    let body = json!({ "name": "news", "data": "1", "channel": "private-room" }).to_string();
    let (mut one, mut two) = (edge.websocket().await, edge.websocket().await);
    let of_one = subscribe(&one.id, "private-room", None);
    one.send(&of_one).await;
    one.expect(SUBSCRIBED).await;
    two.send(&of_one).await;
    assert_eq!(two.expect("pusher:error").await.data["code"], Value::Null);
    assert_eq!(two.expect("pusher:subscription_error").await.data["status"], 401);
    for (name, then, status) in [
        ("now", now(), 200),
        ("again", now(), 200),
        ("nearly too old", now() - 590, 200),
        ("nearly too early", now() + 590, 200),
        ("too old", now() - 601, 401),
        ("too early", now() + 610, 401),
    ] {
        assert_eq!(signed(&edge, body.as_bytes(), then).await, status, "{name}");
        if status == 200 {
            one.expect("news").await;
        }
    }
    one.still_serves().await;
    two.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn a_huge_signed_text_is_refused_with_a_short_message() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    let large = json!({ "user_id": "7", "user_info": "x".repeat(100 << 10) }).to_string();
    let forged = "\u{7f}".repeat(100 << 10);
    for (name, data, auth, part) in [
        ("signed", &large, auth(&ws.id, "presence-room", Some(&large)), "`user_info`"),
        ("forged", &forged, "key1:00".to_owned(), "invalid signature"),
        ("of an app with a long name", &large, format!("{}:00", "k".repeat(1000)), "does not belong"),
    ] {
        let message = json!({ "event": "pusher:subscribe", "data": {
            "channel": "presence-room", "auth": auth, "channel_data": data,
        } });
        ws.send(&message).await;
        for expected in ["pusher:error", "pusher:subscription_error"] {
            let answer = received(&mut ws.socket, name).await;
            assert!(answer.len() < 32 << 10, "{name}: an answer of {} bytes", answer.len());
            let answer = ServerMessage::parse(answer.to_text().expect("text")).expect("a frame");
            assert_eq!(answer.event, expected, "{name}");
            assert!(answer.data.to_string().contains(part), "{name}: {}", answer.data);
        }
    }
    ws.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn a_socket_is_refused_channels_beyond_the_limit() {
    const ASKED: usize = 20_000;
    let edge = alone("websocket").await;
    let mut bystander = Bystander::join(&edge).await;
    let mut ws = edge.websocket().await;
    let (mut entered, mut full, mut often) = (0, 0, 0);
    for part in 0..ASKED / 500 {
        for n in 0..500 {
            let data = json!({ "channel": format!("room-{}", part * 500 + n) });
            ws.send(&json!({ "event": "pusher:subscribe", "data": data })).await;
        }
        for _ in 0..500 {
            let answer = ws.next().await;
            if answer.event == SUBSCRIBED {
                entered += 1;
                continue;
            }
            assert_eq!(answer.event, "pusher:error");
            match (ws.expect("pusher:subscription_error").await.data["status"].as_u64(), answer.data["code"].as_u64()) {
                (Some(403), None) => full += 1,
                (Some(429), Some(4100)) => often += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((entered, entered + full + often), (2_048, ASKED));
    // So many at once, and a hundred in each second since.
    assert!(full >= 2_048 && often > 0, "{full} and {often}");
    assert_eq!(edge.refusals("channels").await, u64::try_from(full).expect("a number"));
    assert_eq!(edge.refusals("request_rate").await, u64::try_from(often).expect("a number"));
    bystander.hears(&edge).await;
    ws.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn an_http_client_that_did_not_read_receives_the_reason_when_it_polls_again() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut bystander = Bystander::join(&sockets).await;
    let mut slow = Xhr::new(&fallbacks, "key1", "slow", "xhr_streaming");
    let id = slow.greeted().await;
    let rooms: Vec<String> = (0..50).map(|n| format!("private-{n}")).collect();
    for room in &rooms {
        slow.send(&subscribe(&id, room, None)).await;
        slow.expect(SUBSCRIBED).await;
    }
    let body = json!({ "name": "news", "data": "x".repeat(10_240), "channels": rooms });
    let ended = async {
        while fallbacks.metric("realtime_edge_slow_consumers_total").await == 0 {
            assert_eq!(sockets.publish("1", &body).await.status(), 200);
            bystander.hears(&sockets).await;
        }
    };
    within(3 * WAIT_TIMEOUT, "the end of the connection", ended).await;
    slow.abort();
    slow.receive().await;
    assert!(matches!(slow.frame().await, FallbackFrame::Close(4100, _)));
    bystander.hears(&sockets).await;
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn a_socket_that_ends_without_a_close_frame_leaves_its_channels() {
    let edge = alone("websocket").await;
    let mut ann = edge.websocket().await;
    ann.subscribe("presence-room", Some("ann")).await;
    for (name, reset) in [("its half is closed", false), ("it is reset", true)] {
        let mut bob = edge.websocket().await;
        bob.subscribe("presence-room", Some("bob")).await;
        ann.expect("pusher_internal:member_added").await;
        if reset {
            let MaybeTlsStream::Plain(socket) = bob.socket.get_ref() else { panic!("no plain socket") };
            // With no time to linger, a socket that is closed is reset.
            socket.set_zero_linger().expect("set");
            drop(bob);
        } else {
            bob.socket.get_mut().shutdown().await.expect("shut");
        }
        let removed = ann.expect("pusher_internal:member_removed").await;
        assert_eq!(removed.data, json!({ "user_id": "bob" }), "{name}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn many_sessions_of_one_client_end_when_it_does_not_return() {
    const COUNT: u64 = 400;
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut bystander = Bystander::join(&sockets).await;
    let began = std::time::Instant::now();
    for n in 0..COUNT {
        let url = fallbacks.url(&format!("/pusher/app/key1/7/many{n}/xhr?protocol=7"));
        let answer = fallbacks.http.post(url).send().await.expect("an answer");
        assert_eq!(answer.text().await.expect("a text"), "o\n");
        let url = fallbacks.url(&format!("/pusher/7/many{n}/xhr"));
        let answer = fallbacks.http.post(url).send().await.expect("an answer");
        assert_eq!(answer.text().await.expect("a text"), "o\n");
    }
    let opened = fallbacks.metric("realtime_edge_connections_opened_total{transport=\"xhr_polling\"}").await;
    assert_eq!(opened, COUNT, "those of SockJS that name no app are no sessions");
    bystander.hears(&sockets).await;
    let open = async || fallbacks.metric("realtime_edge_connections{transport=\"xhr_polling\"}").await;
    eventually("the end of every session", open, |open| *open == 0).await;
    assert!(began.elapsed() > Duration::from_secs(5));
    bystander.hears(&sockets).await;
    sockets.stop().await;
    fallbacks.stop().await;
}
