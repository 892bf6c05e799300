//! How an edge sends its clients to others.

use std::time::Instant;

use realtime_operator::protocol::derive_journey_app;
use reqwest::StatusCode;

use super::*;

/// Sessions of one drain.
const CROWD: usize = 120;

async fn drain(edge: &Edge, query: &str) -> (StatusCode, Value) {
    let url = format!("http://{}/drain{query}", edge.running.admin);
    let answer = edge.http.post(url).bearer_auth(TOKEN).send().await.expect("an answer");
    let status = answer.status();
    let text = answer.text().await.expect("a text");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn progress(edge: &Edge) -> Value {
    serde_json::from_str(&edge.admin("/drain").await.text().await.expect("a text")).expect("json")
}

async fn stage(edge: &Edge, wanted: &str) {
    eventually(&format!("the stage {wanted}"), async || progress(edge).await, |seen| seen["stage"] == wanted).await;
}

#[tokio::test]
async fn a_requested_drain_holds_then_closes_every_session_and_stays_in_force() {
    let variables = [("REALTIME_DRAIN_HOLD_SECONDS", "2")];
    let edge = start_with("websocket", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
    let mut early = edge.websocket().await;
    early.subscribe("private-room", None).await;
    assert_eq!(progress(&edge).await, json!({ "stage": "serving", "sessions": 1, "code": 4200 }));
    let url = format!("http://{}/drain", edge.running.admin);
    assert_eq!(edge.http.post(url).send().await.expect("an answer").status(), 401, "without the token");
    let (status, answer) = drain(&edge, "?code=1000").await;
    assert_eq!((status, answer.as_str().is_some_and(|text| text.contains("4200"))), (StatusCode::BAD_REQUEST, true));
    assert_eq!(edge.admin("/readyz").await.status(), 200);

    let begun = Instant::now();
    let (status, answer) = drain(&edge, "?code=4100").await;
    assert_eq!((status, answer), (StatusCode::ACCEPTED, json!({ "stage": "holding", "sessions": 1, "code": 4100 })));
    let ready = edge.admin("/readyz").await;
    assert_eq!(
        (ready.status(), ready.text().await.expect("a text").as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "going away\n")
    );
    let mut late = edge.websocket().await;
    late.subscribe("private-room", None).await;
    late.send(&client_event("private-room", &json!(1))).await;
    assert_eq!(early.expect("client-said").await.data, 1, "served while load balancers learn of it");
    let answer = edge.publish("1", &json!({ "name": "e", "data": "1", "channel": "room" })).await;
    let connection = answer.headers().get("connection").and_then(|value| value.to_str().ok());
    assert_eq!(
        (answer.status().as_u16(), connection),
        (200, Some("close")),
        "served over connections that lead elsewhere"
    );
    assert_eq!(progress(&edge).await["stage"], "holding");
    // A second time changes nothing.
    assert_eq!(drain(&edge, "").await.1["code"], 4100);
    assert_eq!((early.closed().await, late.closed().await), (4100, 4100));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    stage(&edge, "drained").await;
    assert_eq!(progress(&edge).await["sessions"], 0);
    let mut refused = Ws::open(edge.running.public, "/app/key1?protocol=7").await;
    assert_eq!(refused.expect("pusher:error").await.data["code"], 4100);
    assert_eq!(refused.closed().await, 4100);
    edge.stop().await;
}

#[tokio::test]
async fn a_drain_closes_sessions_one_by_one_and_never_many_at_once() {
    let edge = alone("websocket").await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(edge.websocket().await);
    }
    edge.shutdown.cancel();
    let ends = crowd.iter_mut().map(|ws| async {
        assert_eq!(ws.closed().await, 4200);
        Instant::now()
    });
    let mut ends = futures::future::join_all(ends).await;
    ends.sort();
    // At a hundred in a second; what is late on this machine can only be later.
    let took = *ends.last().expect("a crowd") - ends[0];
    assert!(took >= Duration::from_millis(10) * u32::try_from(CROWD - 20).expect("a number"), "{took:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a_drained_client_can_reconnect_although_its_app_is_at_its_connection_limit() {
    let bus = MemoryBus::new();
    let mut limited = app("1", true);
    limited.limits.connections = Some(20);
    let edge = start_with("websocket", vec![limited.clone()], &[], bus.for_another_process(), None).await;
    let other = start_with("websocket", vec![limited], &[], bus, None).await;
    let mut crowd = Vec::new();
    for _ in 0..20 {
        crowd.push(edge.websocket().await);
    }
    let mut refused = Ws::open(other.running.public, "/app/key1?protocol=7").await;
    assert_eq!(refused.expect("pusher:error").await.data["code"], 4004);
    edge.shutdown.cancel();
    let back = crowd.iter_mut().map(|ws| async {
        assert_eq!(ws.closed().await, 4200);
        // As pusher-js does: at once, before the server has heard of its close.
        other.websocket().await
    });
    let back = futures::future::join_all(back).await;
    assert_eq!(back.len(), 20);
    edge.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_share_of_the_clients_moves_and_the_server_serves_on() {
    let bus = MemoryBus::new();
    let edge = start_with("websocket", vec![app("1", true)], &[], bus.for_another_process(), None).await;
    let other = start_with("websocket", vec![app("1", true)], &[], bus, None).await;
    let mut crowd = Vec::new();
    for _ in 0..20 {
        crowd.push(edge.websocket().await);
    }
    assert_eq!(drain(&edge, "?share=0").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(drain(&edge, "?share=25").await.0, StatusCode::ACCEPTED);
    // A client that does not answer its close stays for a moment, so every client reads.
    let (mut moved, mut stayed) = (0, 0);
    for mut ws in crowd {
        let next = timeout(Duration::from_secs(1), ws.socket.next()).await;
        match next {
            Ok(Some(Ok(Message::Close(Some(frame))))) => {
                assert_eq!(u16::from(frame.code), 4200);
                moved += 1;
                other.websocket().await.still_serves().await;
            }
            Ok(found) => panic!("not a close frame: {found:?}"),
            Err(_) => {
                ws.still_serves().await;
                stayed += 1;
            }
        }
    }
    assert_eq!((moved, stayed), (5, 15));
    assert_eq!(
        (edge.admin("/readyz").await.status(), progress(&edge).await["stage"].as_str()),
        (StatusCode::OK, Some("serving"))
    );
    edge.websocket().await.still_serves().await;
    drain(&edge, "").await;
    stage(&edge, "drained").await;
    let (status, told) = drain(&edge, "?share=25").await;
    assert!(status == StatusCode::BAD_REQUEST && told.as_str().is_some_and(|text| text.contains("drains")), "{told}");
    edge.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_drain_lets_go_of_connections_and_tells_newcomers_to_wait() {
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "drained", "xhr");
    xhr.greeted().await;
    drain(&edge, "").await;
    stage(&edge, "closing").await;
    assert!(matches!(xhr.frame().await, FallbackFrame::Close(4200, _)));
    stage(&edge, "drained").await;
    for path in ["xhr", "xhr_streaming"] {
        let url = edge.url(&format!("/pusher/app/key1/7/new-{path}/{path}?protocol=7"));
        let answer = edge.http.post(url).send().await.expect("an answer");
        assert_eq!(answer.headers()["connection"], "close", "{path}");
        let text = answer.text().await.expect("a text");
        assert!(text.contains("c[4100,"), "{path}: {text}");
    }
    let answer = edge.publish("1", &json!({ "name": "e", "data": "1", "channel": "room" })).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["connection"]), (200, &"close".parse().expect("a value")));
    edge.stop().await;
}

/// The numbers that a watcher hears.
async fn numbers(watcher: &mut Ws, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(watcher.expect("client-said").await.data.as_u64().expect("a number"));
    }
    numbers
}

#[tokio::test]
async fn messages_sent_before_the_close_frame_are_not_lost() {
    let bus = MemoryBus::new();
    let other = start("websocket", bus.for_another_process(), None).await;
    let mut watcher = other.websocket().await;
    watcher.subscribe("private-room", None).await;
    let sent: Vec<u64> = (0..5).collect();
    let message = |n: &u64| client_event("private-room", &json!(n));

    let edge = start("websocket", bus.for_another_process(), None).await;
    let mut ws = edge.websocket().await;
    ws.subscribe("private-room", None).await;
    drain(&edge, "").await;
    stage(&edge, "closing").await;
    for n in &sent {
        ws.send(&message(n)).await;
    }
    assert_eq!(numbers(&mut watcher, sent.len()).await, sent, "websocket");
    assert_eq!(ws.closed().await, 4200);
    edge.stop().await;

    let edge = start("sockjs", bus.for_another_process(), None).await;
    for path in ["xhr_streaming", "xhr"] {
        let mut xhr = Xhr::new(&edge, "key1", path, path);
        let id = xhr.greeted().await;
        xhr.send(&subscribe(&id, "private-room", None)).await;
        xhr.expect(SUBSCRIBED).await;
        if path == "xhr" {
            // Between two polls when it is ended.
            drain(&edge, "").await;
            stage(&edge, "closing").await;
            for n in &sent {
                xhr.send(&message(n)).await;
            }
            assert!(matches!(xhr.frame().await, FallbackFrame::Close(4200, _)));
            xhr.send(&message(&9)).await;
            assert_eq!(numbers(&mut watcher, sent.len() + 1).await, [&sent[..], &[9]].concat(), "{path}");
        }
    }
    edge.stop().await;

    let edge = start("sockjs", bus.for_another_process(), None).await;
    let mut wire = dial(edge.running.public, "/pusher/0/last/websocket").await;
    assert_eq!(received(&mut wire, "open frame").await.to_text().expect("text"), "o");
    let first = json!([json!({ "path": "/app/key1?protocol=7" }).to_string()]);
    wire.send(Message::text(first.to_string())).await.expect("sent");
    let greeting = received(&mut wire, "greeting").await.to_text().expect("text").to_owned();
    let socket =
        greeting.split(r#"socket_id\\\":\\\""#).nth(1).and_then(|rest| rest.split('\\').next()).expect("an id");
    let ask = subscribe(socket, "private-room", None).to_string();
    wire.send(Message::text(json!([ask]).to_string())).await.expect("sent");
    let answer = received(&mut wire, "answer to the subscription").await;
    assert!(answer.to_text().expect("text").contains("subscription_succeeded"));
    drain(&edge, "").await;
    stage(&edge, "closing").await;
    for n in &sent {
        wire.send(Message::text(json!([message(n).to_string()]).to_string())).await.expect("sent");
    }
    assert_eq!(numbers(&mut watcher, sent.len()).await, sent, "sockjs");
    let end = received(&mut wire, "close frame").await;
    assert!(end.to_text().expect("text").starts_with("c[4200"), "{end}");
    edge.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_share_of_one_servers_clients_moves_and_journeys_are_no_clients() {
    let probe = derive_journey_app("uid-1").to_string();
    let known = vec![app("1", true), app(&probe, true)];
    let edge = start_with("edge", known, &[], MemoryBus::new(), None).await;
    let mut journey = Xhr::new(&edge, &format!("key{probe}"), "abcdefgh", "xhr_streaming");
    let mut client = Xhr::new(&edge, "key1", "ijklmnop", "xhr_streaming");
    journey.greeted().await;
    client.greeted().await;
    let mut socket = edge.websocket().await;
    let report = async || {
        let text = edge.admin("/flow").await.text().await.expect("a text");
        serde_json::from_str::<Value>(&text).expect("json")
    };
    let flow = async || report().await["sessions"].clone();
    let one = json!({ "open": 1, "opened": 1 });
    assert_eq!(flow().await, json!({ "websocket": one, "sockjs": one }));
    assert_eq!(drain(&edge, "?server=sockjs").await.0, StatusCode::BAD_REQUEST, "a drain ends every session");
    assert_eq!(drain(&edge, "?share=100&server=sockjs").await.0, StatusCode::ACCEPTED);
    let closed = client.awaited_frame("a close").await;
    assert!(format!("{closed:?}").contains("4200"), "{closed:?}");
    let gone = json!({ "open": 0, "opened": 1 });
    eventually("an edge without the client", flow, |seen| seen["sockjs"] == gone).await;
    socket.still_serves().await;
    assert_eq!((flow().await["websocket"].clone(), progress(&edge).await["sessions"].clone()), (one, json!(2)));
    assert!(report().await["sessionsMax"].as_u64() > Some(0), "an edge whose clients move takes others");
    drain(&edge, "").await;
    assert_eq!(report().await["sessionsMax"], 0, "one that drains takes none");
    edge.stop().await;
}

#[tokio::test]
async fn clients_wait_before_they_reconnect_when_the_other_servers_are_near_their_limit() {
    let bus = MemoryBus::new();
    let edge = start_with("websocket", vec![app("1", true)], &[], bus.for_another_process(), None).await;
    let few = [("REALTIME_CONNECTIONS_MAX", "10")];
    let other = start_with("websocket", vec![app("1", true)], &few, bus.for_another_process(), None).await;
    // Clients of another kind of server do not reconnect there.
    let fallbacks = start_with("sockjs", vec![app("1", true)], &[], bus, None).await;
    let mut crowd = Vec::new();
    for _ in 0..9 {
        crowd.push(edge.websocket().await);
    }
    let chosen = async |code: u16| {
        eventually("the chosen code", async || progress(&edge).await, |seen| seen["code"] == code).await;
    };
    chosen(4200).await;
    crowd.push(edge.websocket().await);
    chosen(4100).await;
    assert_eq!(drain(&edge, "?share=10").await.0, StatusCode::ACCEPTED);
    // One of ten fits.
    let moved = futures::future::select_all(crowd.iter_mut().map(|ws| Box::pin(ws.closed()))).await.0;
    assert_eq!(moved, 4200);
    let left = progress(&edge).await["sessions"].as_u64().expect("a number");
    assert!(left >= 9, "{left}");
    let again = edge.websocket().await;
    chosen(4100).await;
    edge.shutdown.cancel();
    let mut again = again;
    assert_eq!(again.closed().await, 4100);
    drop(crowd);
    edge.stop().await;
    other.stop().await;
    fallbacks.stop().await;
}
