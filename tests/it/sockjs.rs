//! `SockJS` at an edge, as a client of that protocol sees it: every way of receiving, over real connections.

// Clients of a test end it where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::time::{Duration, Instant};

use futures::SinkExt;
use realtime_operator::protocol::fallback::FallbackFrame;
use realtime_operator::protocol::frame::ServerMessage;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::edge::{ESTABLISHED, Edge, SUBSCRIBED, Wire, alone, dial, received, subscribe};
use super::waiting::{WAIT_TIMEOUT, describe_last, eventually, within};

const PATH: &str = r#"{"path":"/app/key1?protocol=7&client=js&version=8.6.0"}"#;

/// How a client receives, and what stands around a frame there.
#[derive(Clone, Copy, Debug)]
struct Way {
    path: &'static str,
    head: &'static str,
    before: &'static str,
    after: &'static str,
    /// Whether an answer has one frame.
    poll: bool,
}

const XHR: Way = Way { path: "xhr", head: "", before: "", after: "\n", poll: true };
const STREAMING: Way = Way { path: "xhr_streaming", head: "h\n", before: "", after: "\n", poll: false };
const EVENTS: Way = Way { path: "eventsource", head: "\r\n", before: "data: ", after: "\r\n\r\n", poll: false };
const HTMLFILE: Way =
    Way { path: "htmlfile?c=cb", head: " \r\n\r\n", before: "<script>\np(", after: ");\n</script>\r\n", poll: false };
const JSONP: Way = Way { path: "jsonp?c=cb", head: "", before: "/**/cb(", after: ");\r\n", poll: true };
const WAYS: [Way; 5] = [XHR, STREAMING, EVENTS, HTMLFILE, JSONP];

struct SockJs {
    http: reqwest::Client,
    base: String,
    way: Way,
    answer: Option<Response>,
    unread: String,
    read: usize,
    /// For the message of a failure.
    last: Option<FallbackFrame>,
}

impl SockJs {
    fn new(edge: &Edge, session: &str, way: Way) -> Self {
        let base = edge.url(&format!("/pusher/000/{session}"));
        Self { http: edge.http.clone(), base, way, answer: None, unread: String::new(), read: 0, last: None }
    }

    async fn open(edge: &Edge, session: &str, way: Way) -> Self {
        let mut client = Self::new(edge, session, way);
        assert_eq!(client.frame().await, FallbackFrame::Open);
        client
    }

    /// Opens a session of an app and answers with its public id.
    async fn connect(edge: &Edge, session: &str, way: Way) -> (Self, String) {
        let mut client = Self::open(edge, session, way).await;
        client.text(PATH).await;
        let id = client.expect(ESTABLISHED).await.data["socket_id"].as_str().expect("an id").to_owned();
        (client, id)
    }

    async fn receive(&mut self) {
        let method = if self.way.path.starts_with("xhr") { Method::POST } else { Method::GET };
        let request = self.http.request(method, format!("{}/{}", self.base, self.way.path));
        let answer = within(WAIT_TIMEOUT, self.way.path, request.send()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        self.answer = Some(answer);
        self.read = 0;
        self.unread.clear();
        if !self.way.head.is_empty() {
            self.upto(self.way.head).await;
            self.read = 0;
        }
    }

    /// What was sent up to this mark; `None` when the answer ends before it.
    async fn find(&mut self, mark: &str) -> Option<String> {
        loop {
            if let Some(at) = self.unread.find(mark) {
                let found: String = self.unread.drain(..at + mark.len()).collect();
                return Some(found);
            }
            let chunk = match timeout(WAIT_TIMEOUT, self.answer.as_mut()?.chunk()).await {
                Ok(Ok(chunk)) => chunk?,
                failed => {
                    let last = describe_last(self.last.as_ref());
                    panic!("no {mark:?} within {WAIT_TIMEOUT:?} over {}, but {failed:?}; {last}", self.way.path)
                }
            };
            self.read += chunk.len();
            self.unread.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    }

    async fn upto(&mut self, mark: &str) -> String {
        self.find(mark).await.unwrap_or_else(|| panic!("the answer ended before {mark:?}"))
    }

    async fn frame(&mut self) -> FallbackFrame {
        loop {
            if self.answer.is_none() {
                self.receive().await;
            }
            let Some(found) = self.find(self.way.after).await else {
                // A poll has had its frame, a stream its 128 KiB.
                assert!(self.way.poll || self.read >= 128 << 10, "the answer ended after {} bytes", self.read);
                self.answer = None;
                continue;
            };
            let found = found.strip_prefix(self.way.before).expect("a frame begins");
            let found = found.strip_suffix(self.way.after).expect("a frame ends");
            let frame = if self.way.before.ends_with('(') {
                serde_json::from_str(found).expect("a script's text")
            } else {
                found.replace("%25", "%")
            };
            let frame = FallbackFrame::parse(&frame).unwrap_or_else(|| panic!("no frame: {frame}"));
            return self.last.insert(frame).clone();
        }
    }

    async fn messages(&mut self) -> Vec<ServerMessage> {
        match self.frame().await {
            FallbackFrame::Messages(texts) => {
                texts.iter().map(|text| ServerMessage::parse(text).expect("a frame")).collect()
            }
            other => panic!("not messages: {other:?}"),
        }
    }

    async fn expect(&mut self, event: &str) -> ServerMessage {
        let mut messages = self.messages().await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        let found = messages.remove(0);
        assert_eq!(found.event, event, "{found:?}");
        found
    }

    /// The close frame; an error before it is skipped.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.frame().await {
                FallbackFrame::Close(code, reason) => return (code, reason),
                FallbackFrame::Messages(_) | FallbackFrame::Heartbeat => {}
                FallbackFrame::Open => panic!("the session was opened again"),
            }
        }
    }

    async fn text(&self, text: &str) {
        assert_eq!(self.post("xhr_send", &json!([text]).to_string()).await, (204, String::new()));
    }

    async fn send(&self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let request = self.http.post(format!("{}/{path}", self.base)).header("content-type", "text/plain");
        let answer = request.body(body.to_owned()).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    }
}

async fn publish(edge: &Edge, channel: &str, data: &str) {
    let answer = edge.publish("1", &json!({ "name": "news", "data": data, "channel": channel })).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn every_way_of_receiving_carries_a_session() {
    let edge = alone("sockjs").await;
    for (n, way) in WAYS.into_iter().enumerate() {
        let (mut client, id) = SockJs::connect(&edge, &format!("every{n}"), way).await;
        let room = format!("presence-room{n}");
        client.send(&subscribe(&id, &room, Some("ann"))).await;
        assert_eq!(client.expect(SUBSCRIBED).await.data["presence"]["ids"], json!(["ann"]), "{way:?}");
        publish(&edge, &room, "100 % </script> \u{2028} \u{1f600}").await;
        assert_eq!(client.expect("news").await.data, json!("100 % </script> \u{2028} \u{1f600}"), "{way:?}");
    }
    let metrics = edge.admin("/metrics").await.text().await.expect("a text");
    for (transport, opened) in [("sockjs_xhr", 2), ("sockjs_xhr_streaming", 1), ("sockjs_eventsource", 2)] {
        let line = format!("realtime_edge_connections_opened_total{{transport=\"{transport}\"}} {opened}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_session_may_change_its_transport_and_its_server_id() {
    let edge = alone("sockjs").await;
    let (mut client, id) = SockJs::connect(&edge, "changes", XHR).await;
    client.send(&subscribe(&id, "private-room", None)).await;
    client.expect(SUBSCRIBED).await;
    // `app` is what the paths of pusher-js's own fallbacks begin with.
    for (server, way) in [("app", JSONP), ("1", EVENTS)] {
        let base = edge.url(&format!("/pusher/{server}/changes"));
        client = SockJs { base, ..SockJs::new(&edge, "", way) };
        let body = json!([json!({ "event": "pusher:ping", "data": {} }).to_string()]).to_string();
        assert_eq!(client.post("jsonp_send", &body).await, (200, "ok".to_owned()));
        client.expect("pusher:pong").await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_second_receiver_is_refused_and_an_abort_ends_the_session() {
    let edge = alone("sockjs").await;
    let (mut other, id) = SockJs::connect(&edge, "other", STREAMING).await;
    other.send(&subscribe(&id, "presence-room", Some("bob"))).await;
    other.expect(SUBSCRIBED).await;
    for (n, way) in WAYS.into_iter().enumerate() {
        let session = format!("second{n}");
        let (mut client, id) = SockJs::connect(&edge, &session, way).await;
        client.send(&subscribe(&id, "presence-room", Some("ann"))).await;
        client.expect(SUBSCRIBED).await;
        other.expect("pusher_internal:member_added").await;
        if way.poll {
            client.receive().await;
        }
        let mut second = SockJs::new(&edge, &session, way);
        assert_eq!(second.closed().await, (2010, "Another connection still open".to_owned()), "{way:?}");
        // The first one has lost nothing by it.
        publish(&edge, "presence-room", "{}").await;
        client.expect("news").await;
        other.expect("news").await;
        if way.poll {
            client.receive().await;
        }
        let began = Instant::now();
        drop(client);
        other.expect("pusher_internal:member_removed").await;
        assert!(began.elapsed() < Duration::from_secs(4), "{way:?}: an abort is not waited out");
        assert_eq!(
            SockJs::new(&edge, &session, way).frame().await,
            FallbackFrame::Open,
            "{way:?}: a session of its own"
        );
    }
    edge.stop().await;
}

#[tokio::test]
async fn the_close_frame_is_repeated_until_the_session_is_forgotten() {
    let edge = alone("sockjs").await;
    let unknown = r#"{"path":"/app/nobody?protocol=7"}"#;
    for (n, (first, code)) in
        [(unknown, 4001), (r#"{"path":"/app/key2?protocol=7"}"#, 4003), ("{}", 4005), (r#"{"path":"/app/key1"}"#, 4008)]
            .into_iter()
            .enumerate()
    {
        let mut client = SockJs::open(&edge, &format!("refused{n}"), XHR).await;
        client.text(first).await;
        let messages = client.messages().await;
        assert_eq!((messages[0].event.as_str(), &messages[0].data["code"]), ("pusher:error", &json!(code)), "{first}");
        assert_eq!(client.closed().await.0, code, "{first}");
    }
    let mut client = SockJs::open(&edge, "again", STREAMING).await;
    client.text(unknown).await;
    assert_eq!(client.closed().await.0, 4001);
    assert_eq!(client.find("\n").await, None, "the answer ends with the close frame");
    let mut again = SockJs::new(&edge, "again", XHR);
    for _ in 0..3 {
        assert_eq!(again.closed().await.0, 4001);
    }
    again.text("too late, and no error").await;
    let body = json!(["x"]).to_string();
    let status = async || again.post("xhr_send", &body).await.0;
    eventually("a forgotten session", status, |status| *status == 404).await;
    assert_eq!(SockJs::new(&edge, "again", XHR).frame().await, FallbackFrame::Open);
    edge.stop().await;
}

#[tokio::test]
async fn a_session_without_a_receiver_ends_after_five_seconds() {
    let edge = alone("sockjs").await;
    let (mut other, id) = SockJs::connect(&edge, "other", STREAMING).await;
    other.send(&subscribe(&id, "presence-room", Some("bob"))).await;
    other.expect(SUBSCRIBED).await;
    let (mut client, id) = SockJs::connect(&edge, "leaves", XHR).await;
    client.send(&subscribe(&id, "presence-room", Some("ann"))).await;
    other.expect("pusher_internal:member_added").await;
    client.expect(SUBSCRIBED).await;
    let began = Instant::now();
    other.expect("pusher_internal:member_removed").await;
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_secs(9), "{waited:?}");
    assert_eq!(SockJs::new(&edge, "leaves", XHR).frame().await, FallbackFrame::Open);
    edge.stop().await;
}

#[tokio::test]
async fn a_long_answer_ends_after_128_kib_and_nothing_is_lost() {
    const EVENTS_SENT: u64 = 64;
    let edge = alone("sockjs").await;
    for (n, way) in [STREAMING, EVENTS, HTMLFILE].into_iter().enumerate() {
        let (mut client, id) = SockJs::connect(&edge, &format!("long{n}"), way).await;
        let room = format!("private-long{n}");
        client.send(&subscribe(&id, &room, None)).await;
        client.expect(SUBSCRIBED).await;
        let mut answers = 1;
        let reader = async {
            let mut got = Vec::new();
            while got.len() < usize::try_from(EVENTS_SENT).expect("small") {
                let before = client.read;
                got.extend(client.messages().await.iter().map(|message| message.data["n"].as_u64().expect("a number")));
                answers += u64::from(client.read < before);
            }
            got
        };
        let sender = async {
            for n in 0..EVENTS_SENT {
                publish(&edge, &room, &json!({ "n": n, "x": "x".repeat(8_000) }).to_string()).await;
            }
        };
        let (got, ()) = tokio::join!(reader, sender);
        assert_eq!(got, (0..EVENTS_SENT).collect::<Vec<_>>(), "{way:?}");
        assert!((3..=6).contains(&answers), "{way:?}: half a megabyte came in {answers} answers");
    }
    edge.stop().await;
}

#[tokio::test]
async fn clients_receive_the_close_code_of_a_drain() {
    let edge = alone("sockjs").await;
    let mut clients = Vec::new();
    for (n, way) in WAYS.into_iter().enumerate() {
        clients.push(SockJs::connect(&edge, &format!("drain{n}"), way).await.0);
        clients.push(SockJs::open(&edge, &format!("early{n}"), way).await);
    }
    let mut socket = Socket::connect(&edge, "/pusher/0/drains/websocket").await;
    edge.shutdown.cancel();
    for (n, mut client) in clients.into_iter().enumerate() {
        // The second of each pair has not named its app yet.
        let code = if n % 2 == 0 { 4200 } else { 4100 };
        assert_eq!(client.closed().await.0, code, "{:?}", client.way);
    }
    assert_eq!(socket.closed().await.0, 4200);
    edge.stop().await;
}

/// A client over WebSocket.
struct Socket {
    wire: Wire,
}

impl Socket {
    async fn open(edge: &Edge, path: &str) -> Self {
        Self { wire: dial(edge.running.public, path).await }
    }

    async fn connect(edge: &Edge, path: &str) -> Self {
        let mut socket = Self::open(edge, path).await;
        assert_eq!(socket.text().await, "o");
        socket.send(&json!([PATH]).to_string()).await;
        assert!(socket.text().await.starts_with(r#"a["{\"event\":\"pusher:connection_established\""#));
        socket
    }

    async fn send(&mut self, text: &str) {
        self.wire.send(Message::text(text)).await.expect("sent");
    }

    async fn text(&mut self) -> String {
        received(&mut self.wire, "text").await.to_text().expect("text").to_owned()
    }

    /// The code of the close frame, and the WebSocket's own.
    async fn closed(&mut self) -> (u16, u16) {
        let mut inner = 0;
        loop {
            match received(&mut self.wire, "close frame").await {
                Message::Text(text) => {
                    if let Some(FallbackFrame::Close(code, _)) = FallbackFrame::parse(&text) {
                        inner = code;
                    }
                }
                Message::Close(Some(frame)) => return (inner, frame.code.into()),
                other => panic!("not an end: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_socket_is_a_session_of_its_own() {
    let edge = alone("sockjs").await;
    let path = "/pusher/0/same/websocket";
    let (mut one, mut two) = (Socket::connect(&edge, path).await, Socket::connect(&edge, path).await);
    let ping = json!({ "event": "pusher:ping", "data": {} }).to_string();
    for text in ["", "[]", &json!([ping, ping]).to_string()] {
        one.send(text).await;
    }
    two.send(&json!(ping).to_string()).await;
    let mut pongs = 0;
    while pongs < 2 {
        let Some(FallbackFrame::Messages(texts)) = FallbackFrame::parse(&one.text().await) else {
            panic!("no messages")
        };
        assert!(texts.iter().all(|text| text.contains("pusher:pong")), "{texts:?}");
        pongs += texts.len();
    }
    assert!(two.text().await.starts_with(r#"a["{\"event\":\"pusher:pong\""#));
    two.send("[\"x").await;
    assert_eq!(two.closed().await, (0, 3000), "what is not JSON ends it");
    let mut refused = Socket::open(&edge, path).await;
    refused.send(r#"["{\"path\":\"/app/nobody?protocol=7\"}"]"#).await;
    assert_eq!(refused.text().await, "o");
    assert!(refused.text().await.contains("pusher:error"));
    assert_eq!(refused.closed().await, (4001, 1000));
    edge.stop().await;
}

#[tokio::test]
async fn a_raw_socket_has_no_frames() {
    let edge = alone("sockjs").await;
    let mut socket = Socket::open(&edge, "/pusher/websocket").await;
    socket.send(PATH).await;
    assert!(socket.text().await.starts_with(r#"{"event":"pusher:connection_established""#));
    socket.send(&json!({ "event": "pusher:ping", "data": {} }).to_string()).await;
    assert!(socket.text().await.starts_with(r#"{"event":"pusher:pong""#));
    let mut refused = Socket::open(&edge, "/pusher/websocket").await;
    refused.send(r#"{"path":"/app/nobody?protocol=7"}"#).await;
    assert!(refused.text().await.starts_with(r#"{"event":"pusher:error""#));
    assert_eq!(refused.closed().await, (0, 4001));
    edge.shutdown.cancel();
    assert_eq!(socket.closed().await, (0, 4200));
    edge.stop().await;
}

#[tokio::test]
async fn a_script_of_a_hidden_frame_is_never_the_clients_choice() {
    let edge = alone("sockjs").await;
    let get = async |path: &str| edge.http.get(edge.url(path)).send().await.expect("an answer");
    let script = "https://js.pusher.com/8.6.0/sockjs.min.js";
    let listed = get(&format!("/pusher/iframe.html?js_path={script}")).await;
    let policy = listed.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains(&format!("default-src 'none'; script-src {script} 'sha256-")), "{policy}");
    assert!(listed.text().await.expect("a text").contains(&format!("<script src=\"{script}\"></script>")));
    let other = get("/pusher/iframe.html?js_path=https://evil.example/sockjs.min.js").await;
    assert_eq!(other.status(), 404);
    assert!(!other.text().await.expect("a text").contains("evil"));
    let usual = get("/pusher/iframe-1.6.1.html").await;
    assert_eq!(usual.status(), 200);
    assert_eq!(usual.headers()["cache-control"], "public, max-age=31536000");
    let tag = usual.headers()["etag"].clone();
    let request = edge.http.get(edge.url("/pusher/iframe-1.6.1.html")).header("if-none-match", tag);
    assert_eq!(request.send().await.expect("an answer").status(), 304);
    edge.stop().await;
}

#[tokio::test]
async fn the_websocket_server_serves_no_sockjs() {
    let edge = alone("websocket").await;
    for path in ["/pusher", "/pusher/", "/pusher/info", "/pusher/0/s/xhr", "/pusher/websocket"] {
        assert_eq!(edge.http.get(edge.url(path)).send().await.expect("an answer").status(), 404, "{path}");
    }
    edge.stop().await;
}
