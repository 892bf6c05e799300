//! Messages of clients over WebSocket, and of the app's backend: delivered, or refused with the reason.

use super::*;

#[tokio::test]
async fn client_events_reach_the_other_subscribers_and_not_their_sender() {
    let edge = alone("websocket").await;
    let (mut one, mut two) = (edge.websocket().await, edge.websocket().await);
    assert_eq!(one.subscribe("private-room", None).await, json!({}));
    two.subscribe("private-room", None).await;
    one.send(&client_event("private-room", &json!({ "x": 1 }))).await;
    let heard = two.expect("client-said").await;
    assert_eq!((heard.data, heard.channel.as_deref(), heard.user_id), (json!({ "x": 1 }), Some("private-room"), None));
    one.still_serves().await;
    two.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-room" } })).await;
    two.still_serves().await;
    one.send(&client_event("private-room", &json!("again"))).await;
    one.still_serves().await;
    two.still_serves().await;
    let flow = edge.flow().await;
    assert_eq!((flow.state, flow.queued), (RecorderState::Off, 0));
    assert_eq!(flow.accepted, 3, "occupied and two client events");
    edge.stop().await;
}

#[tokio::test]
async fn members_receive_each_others_joins_and_leaves() {
    let edge = alone("websocket").await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    assert_eq!(ann.subscribe("presence-room", Some("ann")).await["presence"]["ids"], json!(["ann"]));
    assert_eq!(bob.subscribe("presence-room", Some("bob")).await["presence"]["count"], json!(2));
    let added = ann.expect("pusher_internal:member_added").await.data;
    assert_eq!(added, json!({ "user_id": "bob", "user_info": { "name": "bob" } }));
    bob.send(&client_event("presence-room", &json!("hi"))).await;
    assert_eq!(ann.expect("client-said").await.user_id.as_deref(), Some("bob"));
    bob.socket.close(None).await.expect("closed");
    assert_eq!(ann.expect("pusher_internal:member_removed").await.data, json!({ "user_id": "bob" }));
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_message_leaves_the_connection_as_it_was() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    ws.subscribe("private-room", None).await;
    let forged = json!({ "event": "pusher:subscribe", "data": { "channel": "private-x", "auth": "key1:00" } });
    ws.send(&forged).await;
    assert_eq!(ws.expect("pusher:error").await.data["code"], Value::Null, "clients end the connection at 40xx");
    let error = ws.expect("pusher:subscription_error").await;
    assert_eq!((error.channel.as_deref(), &error.data["status"]), (Some("private-x"), &json!(401)));
    for (message, part) in [
        ("not json".to_owned(), "not a JSON object"),
        (client_event("private-room", &json!("x".repeat(11 * 1024))).to_string(), "at most 10240"),
        (client_event("private-other", &json!("x")).to_string(), "subscribe to"),
        (client_event("room", &json!("x")).to_string(), "private or presence"),
        (json!({ "event": "pusher:subscribe", "data": { "channel": "a b" } }).to_string(), "` ` in it"),
        (json!({ "event": "else" }).to_string(), "no answer"),
    ] {
        ws.text(&message).await;
        let error = ws.expect("pusher:error").await.data;
        assert!(error["message"].as_str().is_some_and(|text| text.contains(part)), "{error}");
        if message.contains("a b") {
            assert_eq!(ws.expect("pusher:subscription_error").await.channel.as_deref(), Some("a b"));
        }
        ws.still_serves().await;
    }
    for _ in 0..40 {
        ws.send(&client_event("private-room", &json!("x"))).await;
    }
    ws.send(&json!({ "event": "pusher:ping", "data": {} })).await;
    let mut refused = 0;
    while let error = ws.next().await
        && error.event != "pusher:pong"
    {
        assert_eq!(error.data["code"], 4301);
        refused += 1;
    }
    assert!((1..=30).contains(&refused), "ten pass in each second: {refused}");
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_client_receives_the_reason_on_every_transport() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    for (path, code) in [
        ("/app/nobody?protocol=7", 4001),
        ("/app/key2?protocol=7", 4003),
        ("/app/key1", 4008),
        ("/app/key1?protocol=x", 4006),
        ("/app/key1?protocol=3", 4007),
    ] {
        let mut ws = Ws::open(sockets.running.public, path).await;
        assert_eq!(ws.expect("pusher:error").await.data["code"], code, "{path}");
        assert_eq!(ws.closed().await, code, "{path}");
    }
    for path in ["xhr_streaming", "xhr"] {
        let mut xhr = Xhr::new(&fallbacks, "nobody", &format!("bad-{path}"), path);
        assert_eq!(xhr.frame().await, FallbackFrame::Open);
        assert_eq!(xhr.expect("pusher:error").await.data["code"], 4001);
        assert!(matches!(xhr.frame().await, FallbackFrame::Close(4001, _)));
    }
    for (edge, path) in [(&sockets, "/pusher/app/key1/7/abc/xhr"), (&fallbacks, "/elsewhere")] {
        let answer = edge.http.post(edge.url(path)).send().await.expect("an answer");
        assert_eq!(answer.status(), 404, "{path}");
    }
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn the_http_api_names_the_mistake_in_a_request() {
    let edge = alone("sockjs").await;
    let body = json!({ "name": "a", "data": "{}", "channel": "room" });
    let large = json!({ "name": "a", "data": "x".repeat(11 * 1024), "channel": "room" });
    let huge = json!({ "name": "a", "data": "x".repeat(2 << 20), "channel": "room" });
    for (app, body, status) in [
        ("1", &body, 200),
        ("9", &body, 404),
        ("2", &body, 403),
        ("1", &json!({ "name": "a", "data": "{}" }), 400),
        ("1", &large, 413),
        ("1", &huge, 413),
    ] {
        assert_eq!(edge.publish(app, body).await.status(), status, "{app}");
    }
    let url = edge.url("/apps/1/events?auth_key=key1&auth_timestamp=1&auth_version=1.0&auth_signature=00");
    let answer = edge.http.post(url).body(body.to_string()).send().await.expect("an answer");
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.expect("a text").contains("auth_timestamp"));
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_ended_and_others_are_not() {
    let edge = alone("websocket").await;
    let (mut slow, mut quick) = (edge.websocket().await, edge.websocket().await);
    let rooms: Vec<String> = (0..50).map(|n| format!("private-{n}")).collect();
    for room in &rooms {
        slow.subscribe(room, None).await;
    }
    quick.subscribe(&rooms[0], None).await;
    let body = json!({ "name": "news", "data": "x".repeat(10_240), "channels": rooms });
    let ended = async {
        loop {
            for _ in 0..5 {
                assert_eq!(edge.publish("1", &body).await.status(), 200);
                quick.expect("news").await;
            }
            let metrics = edge.admin("/metrics").await.text().await.expect("a text");
            if metrics.contains("realtime_edge_slow_consumers_total 1") {
                return;
            }
        }
    };
    within(3 * WAIT_TIMEOUT, "the end of the slow client", ended).await;
    quick.still_serves().await;
    drop(slow);
    edge.stop().await;
}
