//! The HTTP fallbacks: sessions, their streams and polls, and their ends.

use super::*;

#[tokio::test]
async fn a_client_learns_the_host_of_its_session() {
    for (variables, open, host) in [
        (
            &[("REALTIME_SESSION_HOST", "{pod}.rt.example")][..],
            "o{\"hostname\":\"pod-1.rt.example\"}\n",
            "pod-1.rt.example",
        ),
        (&[("REALTIME_SESSION_HOST", "rt.example")], "o{\"hostname\":\"rt.example\"}\n", "rt.example"),
        (&[], "o\n", ""),
    ] {
        let edge = start_with("sockjs", vec![app("1", true)], variables, MemoryBus::new(), None).await;
        let polls = Xhr::new(&edge, "key1", "polls", "xhr");
        let opened = edge.http.post(format!("{}/xhr?protocol=7", polls.base)).send().await.expect("an answer");
        assert_eq!(opened.text().await.expect("a text"), open);
        let streams = Xhr::new(&edge, "key1", "streams", "xhr_streaming");
        let opened = edge.http.post(format!("{}/xhr_streaming?protocol=7", streams.base)).send().await;
        let first = opened.expect("an answer").chunk().await.expect("a part").expect("more");
        assert!(first.starts_with(open.as_bytes()), "{first:?}");
        let info =
            edge.http.get(edge.url("/pusher/info")).send().await.expect("an answer").text().await.expect("a text");
        let info: Value = serde_json::from_str(&info).expect("json");
        assert_eq!(info["hostname"].as_str().unwrap_or_default(), host);
        edge.stop().await;
    }
}

#[tokio::test]
async fn the_fallbacks_carry_messages_both_ways_and_between_processes() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut ws = sockets.websocket().await;
    ws.subscribe("private-room", None).await;
    for path in ["xhr_streaming", "xhr"] {
        let mut xhr = Xhr::new(&fallbacks, "key1", &format!("s-{path}"), path);
        let id = xhr.greeted().await;
        xhr.send(&subscribe(&id, "private-room", None)).await;
        xhr.expect(SUBSCRIBED).await;
        assert_eq!(xhr.send_raw("[]").await, 204);
        assert_eq!(xhr.messages().await, [], "a ping is answered with `a[]`");
        xhr.send(&client_event("private-room", &json!(path))).await;
        assert_eq!(ws.expect("client-said").await.data, json!(path));
        ws.send(&client_event("private-room", &json!({ "to": path }))).await;
        assert_eq!(xhr.expect("client-said").await.data, json!({ "to": path }));
        let body = json!({ "name": "news", "data": "{\"n\":1}", "channel": "private-room", "socket_id": ws.id });
        assert_eq!(sockets.publish("1", &body).await.text().await.expect("a text"), "{}");
        assert_eq!(xhr.expect("news").await.data, json!({ "n": 1 }));
        xhr.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-room" } })).await;
        ws.still_serves().await;
    }
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn requests_of_no_session_are_refused_and_browsers_may_ask_first() {
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "mine", "xhr");
    assert_eq!(xhr.send_raw("[]").await, 404, "no session yet");
    xhr.greeted().await;
    assert_eq!(xhr.send_raw("x").await, 500);
    let stranger = Xhr::new(&edge, "key2", "mine", "xhr");
    assert_eq!(stranger.send_raw("[]").await, 404);
    let url = format!("{}/xhr?protocol=7", stranger.base);
    assert_eq!(edge.http.post(url).send().await.expect("an answer").status(), 404);
    let request = edge.http.request(reqwest::Method::OPTIONS, format!("{}/xhr_send?t=1&n=1", xhr.base));
    let answer = request.header("origin", "https://a.example").send().await.expect("an answer");
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.headers()["access-control-allow-headers"], "content-type");
    assert!(answer.headers().get("access-control-allow-credentials").is_none());
    edge.stop().await;
}

#[tokio::test]
async fn a_long_stream_is_resumed_without_loss_and_without_a_second_open() {
    const COUNT: u64 = 300;
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "long", "xhr_streaming");
    let id = xhr.greeted().await;
    xhr.send(&subscribe(&id, "private-room", None)).await;
    xhr.expect(SUBSCRIBED).await;
    let publish = async {
        for n in 0..COUNT {
            let data = json!({ "n": n, "fill": "ü".repeat(2000) }).to_string();
            let body = json!({ "name": "news", "data": data, "channel": "private-room" });
            assert_eq!(edge.publish("1", &body).await.status(), 200);
        }
    };
    let receive = async {
        let (mut numbers, mut resumed) = (Vec::new(), 0);
        while numbers.len() < usize::try_from(COUNT).expect("a size") {
            numbers.extend(xhr.messages().await.iter().filter_map(|message| message.data["n"].as_u64()));
            if xhr.unread.is_empty() && xhr.units > STREAM_LIMIT_UNITS {
                xhr.abort();
                resumed += 1;
            }
        }
        (numbers, resumed)
    };
    let ((), (numbers, resumed)) = tokio::join!(publish, receive);
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
    assert!(resumed >= 2, "{resumed}");
    edge.stop().await;
}

#[tokio::test]
async fn a_session_without_a_receiver_ends_after_the_grace_period() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut ann = sockets.websocket().await;
    ann.subscribe("presence-room", Some("ann")).await;
    let mut bob = Xhr::new(&fallbacks, "key1", "bob", "xhr_streaming");
    let id = bob.greeted().await;
    bob.send(&subscribe(&id, "presence-room", Some("bob"))).await;
    bob.expect(SUBSCRIBED).await;
    ann.expect("pusher_internal:member_added").await;
    bob.abort();
    bob.receive().await;
    bob.send(&client_event("presence-room", &json!("back"))).await;
    ann.expect("client-said").await;
    bob.abort();
    let since = std::time::Instant::now();
    ann.expect("pusher_internal:member_removed").await;
    assert!(since.elapsed() > Duration::from_secs(4), "{:?}", since.elapsed());
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn an_http_client_receives_the_close_code_of_a_stopping_edge() {
    let edge = alone("sockjs").await;
    let (mut streaming, mut polling) =
        (Xhr::new(&edge, "key1", "a", "xhr_streaming"), Xhr::new(&edge, "key1", "b", "xhr"));
    streaming.greeted().await;
    polling.greeted().await;
    edge.shutdown.cancel();
    assert!(matches!(streaming.frame().await, FallbackFrame::Close(4200, _)));
    assert!(matches!(polling.frame().await, FallbackFrame::Close(4200, _)));
    edge.stop().await;
}
