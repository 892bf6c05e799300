//! Apps that come, change and go while sockets of theirs and of others are open.

use super::*;

/// A subscription that is signed with this key.
fn signed(key: &str, socket: &str, channel: &str) -> Value {
    let message = signature::channel_message(socket, channel, None);
    let auth =
        format!("{key}:{}", signature::sign_message(&Secret::new(format!("secret of {key}")), message.as_bytes()));
    json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } })
}

impl Edge {
    /// A greeted socket of a key, once the key is known.
    pub(super) async fn socket_of(&self, key: &str) -> Ws {
        let path = format!("/app/{key}?protocol=7");
        eventually_ok(&format!("a socket of {key}"), async || {
            let mut ws = Ws::open(self.running.public, &path).await;
            let greeting = ws.next().await;
            let Some(id) = greeting.data["socket_id"].as_str() else { return Err(greeting) };
            id.clone_into(&mut ws.id);
            Ok(ws)
        })
        .await
    }

    /// The code that a new socket of this key is closed with, once it is refused.
    async fn refusal_of(&self, key: &str) -> u16 {
        let path = format!("/app/{key}?protocol=7");
        eventually_ok(&format!("a refusal of {key}"), async || {
            let mut ws = Ws::open(self.running.public, &path).await;
            let greeting = ws.next().await;
            if greeting.event == ESTABLISHED { Err(greeting) } else { Ok(ws.closed().await) }
        })
        .await
    }
}

#[tokio::test]
async fn a_new_app_is_served_and_both_keys_of_a_rotation_are_good() {
    let edge = start_with("websocket", vec![app("1", true), app("3", true)], &[], MemoryBus::new(), None).await;
    let (mut own, mut other) = (edge.socket_of("key1").await, edge.socket_of("key3").await);
    let rotated = App {
        credentials: vec![
            build_credential("old", "secret of old", CredentialState::Retiring),
            build_credential("new", "secret of new", CredentialState::Active),
        ],
        ..app("1", true)
    };
    write_registry(edge.apps.path(), vec![rotated.clone(), app("3", true), app("4", true)]);
    edge.socket_of("key4").await.still_serves().await;
    for key in ["old", "new"] {
        let mut fresh = edge.socket_of(key).await;
        fresh.send(&signed(key, &fresh.id.clone(), "private-room")).await;
        fresh.expect(SUBSCRIBED).await;
        // Who came with one key may show a signature of the other.
        own.send(&signed(key, &own.id.clone(), &format!("private-{key}"))).await;
        own.expect(SUBSCRIBED).await;
    }
    let only_new = App { credentials: rotated.credentials[1..].to_vec(), ..rotated };
    write_registry(edge.apps.path(), vec![only_new, app("3", true), app("4", true)]);
    assert_eq!(edge.refusal_of("old").await, 4001);
    own.still_serves().await;
    other.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn changed_permissions_of_an_app_apply_to_open_sockets() {
    let edge = start_with("websocket", vec![app("1", true), app("3", true)], &[], MemoryBus::new(), None).await;
    let mut ws = edge.websocket().await;
    ws.subscribe("private-room", None).await;
    let mut refused = async |changed: App, reason: &str| {
        write_registry(edge.apps.path(), vec![changed, app("3", true)]);
        let ws = &mut ws;
        eventually_ok(reason, async || {
            for _ in 0..2 {
                ws.send(&client_event("private-room", &json!("x".repeat(50)))).await;
            }
            ws.send(&json!({ "event": "pusher:ping", "data": {} })).await;
            let mut texts = Vec::new();
            while let message = ws.next().await
                && message.event != "pusher:pong"
            {
                assert_eq!(message.data["code"], 4301, "{message:?}");
                texts.push(message.data["message"].as_str().expect("a text").to_owned());
            }
            sleep(Duration::from_millis(250)).await;
            if texts.iter().any(|text| text.contains(reason)) { Ok(()) } else { Err(texts) }
        })
        .await;
    };
    let limits = |limits: AppLimits| App { limits, ..app("1", true) };
    refused(limits(AppLimits { client_events_per_second: 1, ..AppLimits::default() }), "more than 1 client events")
        .await;
    refused(limits(AppLimits { message_bytes: 10, ..AppLimits::default() }), "at most 10 are allowed").await;
    refused(App { client_events: false, ..app("1", true) }, "not enabled").await;
    write_registry(edge.apps.path(), vec![app("1", true), app("3", true)]);
    let large = json!({ "name": "e", "data": "x".repeat(11), "channel": "room" });
    assert_eq!(edge.publish("3", &large).await.status(), 200);
    write_registry(
        edge.apps.path(),
        vec![limits(AppLimits { message_bytes: 10, ..AppLimits::default() }), app("3", true)],
    );
    eventually("the limit at the API", async || edge.publish("1", &large).await.status(), |status| *status == 413)
        .await;
    assert_eq!(edge.publish("3", &large).await.status(), 200, "the other app has its own");
    edge.stop().await;
}

#[tokio::test]
async fn the_sockets_of_a_removed_app_are_closed_with_its_code_and_others_stay() {
    let edge = start_with("websocket", vec![app("1", true), app("3", true)], &[], MemoryBus::new(), None).await;
    let (mut own, mut other) = (edge.socket_of("key1").await, edge.socket_of("key3").await);
    write_registry(edge.apps.path(), vec![app("1", false), app("3", true)]);
    assert_eq!(own.closed().await, 4003);
    assert_eq!(edge.refusal_of("key1").await, 4003);
    assert_eq!(edge.publish("1", &json!({ "name": "e", "data": "", "channel": "c" })).await.status(), 403);
    other.still_serves().await;
    write_registry(edge.apps.path(), vec![app("1", true), app("3", true)]);
    let mut back = edge.socket_of("key1").await;
    write_registry(edge.apps.path(), vec![app("3", true)]);
    assert_eq!(back.closed().await, 4001);
    assert_eq!(edge.refusal_of("key1").await, 4001);
    other.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn http_sessions_receive_the_close_code_of_a_disabled_app() {
    let edge = start_with("sockjs", vec![app("1", true), app("3", true)], &[], MemoryBus::new(), None).await;
    let mut other = Xhr::new(&edge, "key3", "other", "xhr_streaming");
    let id = other.greeted().await;
    let mut streaming = Xhr::new(&edge, "key1", "streams", "xhr_streaming");
    let mut polling = Xhr::new(&edge, "key1", "polls", "xhr");
    streaming.greeted().await;
    polling.greeted().await;
    write_registry(edge.apps.path(), vec![app("1", false), app("3", true)]);
    for client in [&mut streaming, &mut polling] {
        assert!(matches!(client.frame().await, FallbackFrame::Close(4003, _)));
    }
    assert!(!id.is_empty());
    other.send(&json!({ "event": "pusher:ping", "data": {} })).await;
    other.expect("pusher:pong").await;
    edge.stop().await;
}

#[tokio::test]
async fn a_registry_that_cannot_be_used_changes_nothing_and_is_counted() {
    let edge = start_with("websocket", vec![app("1", true), app("3", true)], &[], MemoryBus::new(), None).await;
    let (mut one, mut three) = (edge.socket_of("key1").await, edge.socket_of("key3").await);
    let metric = async |line: &str| {
        let page = async || edge.admin("/metrics").await.text().await.expect("a text");
        eventually(line, page, |page| page.contains(line)).await;
    };
    replace_file(edge.apps.path(), "0.json", "{");
    metric(r#"realtime_edge_registry_reads_total{result="refused"} 1"#).await;
    replace_file(edge.apps.path(), "0.json", r#"[{"id":"9"}]"#);
    metric(r#"realtime_edge_registry_reads_total{result="refused"} 2"#).await;
    one.still_serves().await;
    three.still_serves().await;
    edge.socket_of("key1").await.still_serves().await;
    // The whole mount goes away.
    for entry in fs::read_dir(edge.apps.path()).expect("a directory") {
        fs::remove_file(entry.expect("an entry").path()).expect("removed");
    }
    sleep(Duration::from_millis(1_200)).await;
    one.still_serves().await;
    edge.socket_of("key1").await.still_serves().await;
    write_registry(edge.apps.path(), vec![app("1", true)]);
    assert_eq!(three.closed().await, 4001, "it is followed again");
    metric(r#"realtime_edge_registry_reads_total{result="applied"}"#).await;
    one.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn the_registry_is_followed_and_a_broken_one_is_not() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    write_registry(edge.apps.path(), vec![app("1", true), app("3", true)]);
    let known = async || {
        let text = edge.admin("/effective").await.text().await.expect("a text");
        let effective: Value = serde_json::from_str(&text).expect("json");
        effective["apps"].as_object().expect("apps").keys().cloned().collect::<Vec<_>>()
    };
    eventually("the apps 1 and 3", &known, |known| known == &["1", "3"]).await;
    ws.still_serves().await;
    fs::write(edge.apps.path().join("0.json"), "{").expect("written");
    fs::write(edge.apps.path().join("z.json"), "[]").expect("written");
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(known().await, ["1", "3"], "a broken registry changes nothing");
    write_registry(edge.apps.path(), vec![app("1", false)]);
    assert_eq!(ws.closed().await, 4003);
    edge.stop().await;
}
