//! Details of the wire that clients, backends and proxies in the field depend on.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Sends the text of a request and returns the answer up to its end or a pause.
async fn ask_raw(edge: &Edge, request: &str) -> String {
    let mut socket = TcpStream::connect(edge.running.public).await.expect("connected");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut part = vec![0; 4_096];
    let read = within(WAIT_TIMEOUT, "an answer", socket.read(&mut part)).await.expect("read");
    String::from_utf8_lossy(&part[..read]).to_ascii_lowercase()
}

/// A signed request of a backend whose path is signed in one form and sent in another, and whose signature is changed.
async fn ask_signed(edge: &Edge, signed: &str, sent: &str, change: impl Fn(&mut String)) -> (u16, String) {
    let now = realtime_operator::process::clock::now_ms() / 1000;
    let mut query = rest::signed_query("key1", &Secret::new("secret1"), ("GET", signed), b"", now);
    change(&mut query.last_mut().expect("a signature").1);
    let url = url::Url::parse_with_params(&edge.url(sent), query).expect("a url");
    let answer = edge.http.get(url).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

#[tokio::test]
async fn a_refused_channel_name_is_told_on_the_connection_and_on_the_channel() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    for name in ["café-room", "private-messages--localhost:3000-25", ""] {
        ws.send(&json!({ "event": "pusher:subscribe", "data": { "channel": name } })).await;
        assert_eq!(ws.expect("pusher:error").await.data["code"], Value::Null, "{name}");
        let error = ws.expect("pusher:subscription_error").await;
        assert_eq!((error.channel.as_deref(), &error.data["status"]), (Some(name), &json!(400)));
    }
    let long = "é".repeat(100_000 / 2);
    ws.send(&json!({ "event": "pusher:subscribe", "data": { "channel": long } })).await;
    ws.expect("pusher:error").await;
    ws.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn a_second_subscription_as_another_user_is_an_error_and_changes_nothing() {
    let edge = alone("websocket").await;
    let (mut ws, mut other) = (edge.websocket().await, edge.websocket().await);
    ws.subscribe("presence-room", Some("ann")).await;
    ws.send(&subscribe(&ws.id, "presence-room", Some("bob"))).await;
    let error = ws.expect("pusher:error").await.data;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("as another user")), "{error}");
    assert_eq!(error["code"], Value::Null);
    assert_eq!(ws.expect("pusher:subscription_error").await.data["status"], 401);
    assert_eq!(ws.subscribe("presence-room", Some("ann")).await["presence"]["ids"], json!(["ann"]));
    assert_eq!(other.subscribe("presence-room", Some("eve")).await["presence"]["ids"], json!(["ann", "eve"]));
    edge.stop().await;
}

#[tokio::test]
async fn halves_of_emojis_and_long_numbers_arrive_as_far_as_they_can() {
    let edge = alone("edge").await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    ann.subscribe("presence-room", Some("ann")).await;
    let data = r#"{"user_id":100000000000000000000000000000,"user_info":{"name":"Bob \ud83d"}}"#;
    let auth = auth(&bob.id, "presence-room", Some(data));
    let channel_data = json!({ "channel": "presence-room", "auth": auth + "\n", "channel_data": data });
    bob.send(&json!({ "event": "pusher:subscribe", "data": channel_data })).await;
    let roster = bob.expect(SUBSCRIBED).await.data["presence"]["hash"].clone();
    let user = json!({ "name": "Bob \u{fffd}" });
    assert_eq!((&roster["100000000000000000000000000000"], roster["ann"].is_object()), (&user, true), "{roster}");
    let added = ann.expect("pusher_internal:member_added").await.data;
    assert_eq!(added, json!({ "user_id": "100000000000000000000000000000", "user_info": { "name": "Bob \u{fffd}" } }));
    bob.text(r#"{"event":"client-said","channel":"presence-room","data":"cut \ud83d"}"#).await;
    assert_eq!(ann.expect("client-said").await.data, "cut \u{fffd}");

    // Of one request over HTTP, the message that is none is refused alone.
    let mut xhr = Xhr::new(&edge, "key1", "details", "xhr_streaming");
    let id = xhr.greeted().await;
    xhr.send(&subscribe(&id, "presence-room", Some("eve"))).await;
    xhr.expect(SUBSCRIBED).await;
    ann.expect("pusher_internal:member_added").await;
    let said = |data: &str| format!(r#"{{"event":"client-said","channel":"presence-room","data":{data}}}"#);
    let [first, last] = ["1", "2"].map(|data| Value::from(said(data)).to_string());
    let cut = r#""{\"event\":\"client-said\",\"channel\":\"presence-room\",\"data\":\"\ud83d\"}""#;
    assert_eq!(xhr.send_raw(&format!("[{first},7,{cut},{last}]")).await, 204);
    let heard = [ann.expect("client-said").await.data, ann.expect("client-said").await.data];
    assert_eq!(heard, [json!(1), json!("\u{fffd}")]);
    assert_eq!(ann.expect("client-said").await.data, 2);
    assert_eq!(xhr.expect("pusher:error").await.data["code"], Value::Null);
    edge.stop().await;
}

#[tokio::test]
async fn a_backend_is_believed_however_its_language_writes_a_request() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    ws.subscribe("presence-a,b=c", Some("ann")).await;
    let (plain, encoded) = ("/apps/1/channels/presence-a,b=c/users", "/apps/1/channels/presence-a%2Cb%3Dc/users");
    let users = (200, r#"{"users":[{"id":"ann"}]}"#.to_owned());
    for (name, signed, sent, change) in [
        ("as it is", plain, plain, (|_| {}) as fn(&mut String)),
        ("encoded on the way", plain, encoded, |_| {}),
        ("signed as it was encoded", encoded, encoded, |_| {}),
        ("in capitals", plain, plain, |signature| *signature = signature.to_uppercase()),
        ("with a line end", plain, plain, |signature| signature.push('\n')),
    ] {
        assert_eq!(ask_signed(&edge, signed, sent, change).await, users, "{name}");
    }
    let (status, told) = ask_signed(&edge, "/apps/1/channels/presence-a", encoded, |_| {}).await;
    assert!(status == 401 && told.contains("invalid signature"), "{told}");

    let body = json!({ "name": "e", "data": "1", "channel": "presence-a,b=c", "channels": null, "info": null });
    assert_eq!(edge.publish("1", &body).await.status(), 200);
    ws.expect("e").await;
    for name in ["pusher:error", "pusher_internal:member_removed"] {
        let body = json!({ "name": name, "data": "{\"user_id\":\"ann\"}", "channel": "presence-a,b=c" });
        let answer = edge.publish("1", &body).await;
        assert_eq!(answer.status(), 400);
        assert!(answer.text().await.expect("a text").contains("the server's own"), "{name}");
    }
    ws.still_serves().await;
    let request = edge.http.post(edge.url("/apps/1/events")).header("content-encoding", "gzip").body("x");
    let answer = request.send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers()["accept-encoding"].to_str().ok()), (415, Some("identity")));
    assert!(answer.text().await.expect("a text").contains("`gzip`"));
    edge.stop().await;
}

#[tokio::test]
async fn a_handshake_that_is_not_that_of_rfc_6455_is_refused_with_the_right_version() {
    let edge = alone("edge").await;
    let handshake = async |path: &str, version: &str, key: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
        ask_raw(&edge, &format!("{head}Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: {key}\r\n\r\n")).await
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    for path in ["/app/key1?protocol=7", "/pusher/0/s/websocket"] {
        assert!(handshake(path, "13", key).await.starts_with("http/1.1 101"), "{path}");
        let other = handshake(path, "8", key).await;
        assert!(other.starts_with("http/1.1 400") && other.contains("\r\nsec-websocket-version: 13\r\n"), "{other}");
        for key in ["dGhl", "", "dGhlIHNhbXBsZSBub25jZSB0aGF0IGlzIGxvbmc=", "not base64"] {
            assert!(handshake(path, "13", key).await.starts_with("http/1.1 400"), "{path} {key:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn preflights_allow_every_header_and_cookies_fit_the_scheme() {
    let variables = [("REALTIME_SOCKJS_COOKIE", "on")];
    let edge = start_with("sockjs", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
    let traced = "content-type,sentry-trace,baggage,traceparent";
    for path in ["/pusher/app/key1/1/abcdefgh/xhr_streaming", "/pusher/app/key1/1/abcdefgh/xhr_send", "/pusher/0/s/xhr"]
    {
        let request = edge.http.request(reqwest::Method::OPTIONS, edge.url(path));
        let request =
            request.header("origin", "https://shop.example.com").header("access-control-request-method", "POST");
        let answer = request.header("access-control-request-headers", traced).send().await.expect("an answer");
        assert_eq!(answer.headers()["access-control-allow-headers"], traced, "{path}");
    }
    for (name, value, cookie) in [
        ("x-forwarded-proto", "https", "JSESSIONID=dummy; path=/; SameSite=None; Secure"),
        ("origin", "https://shop.example.com", "JSESSIONID=dummy; path=/; SameSite=None; Secure"),
        ("x-forwarded-proto", "http", "JSESSIONID=dummy; path=/"),
    ] {
        let request = edge.http.post(edge.url("/pusher/0/cookies/xhr")).header(name, value);
        assert_eq!(request.send().await.expect("an answer").headers()["set-cookie"], cookie, "{name}: {value}");
    }
    edge.stop().await;
}
