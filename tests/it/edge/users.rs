//! Users, counts, last events and the rest of the HTTP API, on two edges that share a bus.

use reqwest::StatusCode;

use super::*;

/// An app that wants to know how many connections are in a channel, and a signature of each within a second.
fn strict() -> App {
    App { subscription_count: true, authorization_seconds: Some(1), ..app("3", true) }
}

struct Pair {
    one: Edge,
    two: Edge,
}

async fn pair(kinesis: Option<KinesisClient>) -> Pair {
    let bus = MemoryBus::new();
    let two = start("websocket", bus.for_another_process(), kinesis.clone()).await;
    Pair { one: start("websocket", bus, kinesis).await, two }
}

impl Edge {
    async fn api(&self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
        self.ask(("key1", "secret1"), (method, &format!("/apps/1{path}")), more, body).await
    }

    /// A request that this key's secret signs.
    async fn ask(
        &self,
        (key, secret): (&str, &str),
        (method, path): (&str, &str),
        more: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, Value) {
        let mut query: Vec<(String, String)> = vec![
            ("auth_key".into(), key.into()),
            ("auth_timestamp".into(), (realtime_operator::process::clock::now_ms() / 1000).to_string()),
            ("auth_version".into(), "1.0".into()),
        ];
        query.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if !body.is_empty() {
            query.push(("body_md5".into(), signature::body_md5(body.as_bytes())));
        }
        let message = signature::rest_message(method, path, &query);
        query.push(("auth_signature".into(), signature::sign_message(&Secret::new(secret), message.as_bytes())));
        let url = url::Url::parse_with_params(&self.url(path), query).expect("a url");
        let method = method.parse().expect("a method");
        let answer = self.http.request(method, url).body(body.to_owned()).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a text"));
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str, more: &[(&str, &str)]) -> Value {
        let (status, answer) = self.api("GET", path, more, "").await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }
}

impl Ws {
    async fn sign_in(&mut self, user_data: &Value) {
        let user_data = user_data.to_string();
        let message = signature::user_message(&self.id, &user_data);
        let auth = format!("key1:{}", signature::sign_message(&Secret::new("secret1"), message.as_bytes()));
        self.send(&json!({ "event": "pusher:signin", "data": { "auth": auth, "user_data": user_data } })).await;
    }

    pub async fn signed_in(&mut self, user_data: &Value) {
        self.sign_in(user_data).await;
        let success = self.expect("pusher:signin_success").await;
        assert_eq!(success.data["user_data"], json!(user_data.to_string()));
    }

    async fn refused(&mut self) -> u64 {
        let error = self.expect("pusher:error").await;
        error.data["code"].as_u64().expect("a code")
    }
}

fn plain(channel: &str) -> Value {
    json!({ "event": "pusher:subscribe", "data": { "channel": channel } })
}

#[tokio::test]
async fn a_cache_channel_replays_its_last_event_and_reports_a_miss_once() {
    let stream = start_stream().await;
    let Pair { one, two } = pair(Some(stream.clone())).await;
    let (mut a, mut b) = (one.websocket().await, two.websocket().await);
    for client in [&mut a, &mut b] {
        client.subscribe("private-cache-room", None).await;
        let miss = client.expect("pusher:cache_miss").await;
        assert_eq!((miss.channel.as_deref(), miss.data), (Some("private-cache-room"), json!({})));
    }
    for n in [1, 2] {
        let event = json!({ "name": "e", "data": n.to_string(), "channel": "private-cache-room", "socket_id": a.id });
        assert_eq!(one.publish("1", &event).await.status(), 200);
        assert_eq!(b.expect("e").await.data, json!(n));
    }
    // A client event is not a last event.
    b.send(&client_event("private-cache-room", &json!(3))).await;
    a.expect("client-said").await;
    let mut late = two.websocket().await;
    late.subscribe("private-cache-room", None).await;
    let last = late.expect("e").await;
    assert_eq!((last.data, last.channel.as_deref()), (json!(2), Some("private-cache-room")));
    late.still_serves().await;
    let seen = one.get("/channels/private-cache-room", &[("info", "cache,subscription_count")]).await;
    assert_eq!((&seen["cache"]["data"], &seen["subscription_count"]), (&json!("2"), &json!(3)));
    assert!(seen["cache"]["ttl"].as_u64().is_some_and(|ttl| (1_790..=1_800).contains(&ttl)), "{seen}");
    one.stop().await;
    two.stop().await;
    let names: Vec<&str> = read_events(&stream).await.iter().map(|event| event.kind.name()).collect();
    assert_eq!(names, ["channel_occupied", "cache_miss", "client_event", "channel_vacated"]);
}

#[tokio::test]
async fn a_user_receives_events_and_is_terminated_on_every_connection_and_nobody_else_is() {
    let Pair { one, two } = pair(None).await;
    let (mut ann, mut again, mut bob) = (one.websocket().await, two.websocket().await, two.websocket().await);
    let mut strangers = one.websocket().await;
    ann.signed_in(&json!({ "id": "ann", "user_info": { "name": "Ann" } })).await;
    again.signed_in(&json!({ "id": "ann" })).await;
    bob.signed_in(&json!({ "id": "bob" })).await;
    for client in [&mut ann, &mut again] {
        client.send(&plain("#server-to-user-ann")).await;
        assert_eq!(client.expect(SUBSCRIBED).await.channel.as_deref(), Some("#server-to-user-ann"));
    }
    for client in [&mut bob, &mut strangers] {
        client.send(&plain("#server-to-user-ann")).await;
        assert_eq!(client.expect("pusher:error").await.data["code"], Value::Null);
        client.expect("pusher:subscription_error").await;
    }
    let event = json!({ "name": "hello", "data": "\"you\"", "channel": "#server-to-user-ann" });
    assert_eq!(two.publish("1", &event).await.status(), 200);
    for client in [&mut ann, &mut again] {
        let heard = client.expect("hello").await;
        assert_eq!((heard.data, heard.channel.as_deref()), (json!("you"), Some("#server-to-user-ann")));
    }
    ann.sign_in(&json!({ "id": "bob" })).await;
    assert_eq!(ann.refused().await, 4009, "another user");
    strangers.send(&json!({ "event": "pusher:signin", "data": { "auth": "key1:00", "user_data": "{}" } })).await;
    assert_eq!(strangers.refused().await, 4009, "a wrong signature");

    // Who signed in needs no `channel_data`, and lists know nothing of the server's own channels.
    let message = json!({ "event": "pusher:subscribe",
        "data": { "channel": "presence-room", "auth": auth(&ann.id, "presence-room", None) } });
    ann.send(&message).await;
    let roster = ann.expect(SUBSCRIBED).await.data;
    assert_eq!(roster["presence"]["hash"], json!({ "ann": { "name": "Ann" } }));
    assert_eq!(two.get("/channels", &[]).await, json!({ "channels": { "presence-room": {} } }));

    let (status, answer) = two.api("POST", "/users/ann/terminate_connections", &[], "{}").await;
    assert_eq!((status, answer), (StatusCode::OK, json!({})));
    for client in [&mut ann, &mut again] {
        assert_eq!(client.refused().await, 4009);
        assert_eq!(client.closed().await, 4009);
    }
    bob.still_serves().await;
    strangers.still_serves().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_path_without_an_app_ends_a_user_of_the_app_whose_key_signed() {
    let edge = alone("websocket").await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    ann.signed_in(&json!({ "id": "ann" })).await;
    bob.signed_in(&json!({ "id": "bob" })).await;
    let end = ("POST", "/users/ann/terminate_connections");
    for (name, signer, expected) in [
        ("an unknown key", ("key9", "secret9"), 401),
        ("a wrong secret", ("key1", "secret2"), 401),
        ("a disabled app", ("key2", "secret2"), 403),
    ] {
        assert_eq!(edge.ask(signer, end, &[], "{}").await.0, expected, "{name}");
    }
    let unsigned = edge.http.post(edge.url(end.1)).body("{}").send().await.expect("an answer");
    assert_eq!(unsigned.status(), 401);
    ann.still_serves().await;
    assert_eq!(edge.ask(("key1", "secret1"), end, &[], "{}").await, (StatusCode::OK, json!({})));
    assert_eq!(ann.refused().await, 4009);
    assert_eq!(ann.closed().await, 4009);
    bob.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn every_path_of_the_http_api_wants_a_signature_of_an_app_that_is_enabled() {
    let edge = alone("websocket").await;
    for (method, path) in [
        ("POST", "events"),
        ("POST", "batch_events"),
        ("GET", "channels"),
        ("GET", "channels/room"),
        ("GET", "channels/presence-room/users"),
        ("POST", "users/ann/terminate_connections"),
    ] {
        let body = if method == "POST" { "{}" } else { "" };
        for (name, signer, app, expected) in [
            ("a wrong secret", ("key1", "secret2"), 1, 401),
            ("the key of another app", ("key2", "secret2"), 1, 401),
            ("a disabled app", ("key2", "secret2"), 2, 403),
            ("no app", ("key1", "secret1"), 9, 404),
        ] {
            let (status, answer) = edge.ask(signer, (method, &format!("/apps/{app}/{path}")), &[], body).await;
            assert_eq!(status, expected, "{method} {path}, {name}: {answer}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn watchers_receive_the_first_and_last_connection_of_a_user() {
    let Pair { one, two } = pair(None).await;
    let mut watcher = one.websocket().await;
    let mut ann = two.websocket().await;
    ann.signed_in(&json!({ "id": "ann" })).await;
    watcher.signed_in(&json!({ "id": "w", "watchlist": ["ann", "bob"] })).await;
    let change = |name: &str, user: &str| json!({ "events": [{ "name": name, "user_ids": [user] }] });
    let watchlist = "pusher_internal:watchlist_events";
    let here = watcher.expect(watchlist).await.data;
    let both = [change("online", "ann")["events"][0].clone(), change("offline", "bob")["events"][0].clone()];
    assert_eq!(here, json!({ "events": both }));
    let (mut bob, mut again) = (two.websocket().await, one.websocket().await);
    bob.signed_in(&json!({ "id": "bob" })).await;
    assert_eq!(watcher.expect(watchlist).await.data, change("online", "bob"));
    again.signed_in(&json!({ "id": "bob" })).await;
    drop(bob);
    watcher.still_serves().await;
    drop(again);
    assert_eq!(watcher.expect(watchlist).await.data, change("offline", "bob"));
    drop(ann);
    assert_eq!(watcher.expect(watchlist).await.data, change("offline", "ann"));
    let mut many = one.websocket().await;
    let hundred: Vec<String> = (0..101).map(|n| format!("u{n}")).collect();
    many.signed_in(&json!({ "id": "m", "watchlist": hundred })).await;
    let offline = many.expect(watchlist).await.data;
    assert_eq!(offline["events"][0]["user_ids"].as_array().map(Vec::len), Some(100));
    assert_eq!(many.refused().await, 4302);
    many.still_serves().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_user_that_reconnects_at_once_was_never_offline() {
    let Pair { one, two } = pair(None).await;
    let (mut watcher, mut ann) = (one.websocket().await, two.websocket().await);
    ann.signed_in(&json!({ "id": "ann" })).await;
    watcher.signed_in(&json!({ "id": "w", "watchlist": ["ann"] })).await;
    let online = watcher.expect("pusher_internal:watchlist_events").await.data;
    assert_eq!(online["events"][0]["name"], json!("online"));
    drop(ann);
    sleep(Duration::from_millis(500)).await;
    // On the other server, as after a page was loaded anew.
    let mut back = one.websocket().await;
    back.signed_in(&json!({ "id": "ann" })).await;
    sleep(Duration::from_millis(3_500)).await;
    watcher.still_serves().await;
    let left = std::time::Instant::now();
    drop(back);
    let offline = watcher.expect("pusher_internal:watchlist_events").await.data;
    assert_eq!(offline["events"], json!([{ "name": "offline", "user_ids": ["ann"] }]));
    assert!(left.elapsed() >= Duration::from_secs(3), "{:?}", left.elapsed());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn subscription_counts_are_sent_where_the_app_enables_them_and_a_signature_must_arrive_in_time() {
    let stream = start_stream().await;
    let edge = start("websocket", MemoryBus::new(), Some(stream.clone())).await;
    write_registry(edge.apps.path(), vec![app("1", true), strict()]);
    let path = "/app/key3?protocol=7";
    let mut one = edge.socket_of("key3").await;
    let sign = |id: &str, channel: &str, data: Option<&str>| {
        let message = signature::channel_message(id, channel, data);
        format!("key3:{}", signature::sign_message(&Secret::new("secret3"), message.as_bytes()))
    };
    let data = json!({ "user_id": "u" }).to_string();
    let auth = sign(&one.id, "presence-room", Some(&data));
    let subscribe = json!({ "channel": "presence-room", "auth": auth, "channel_data": data });
    one.send(&json!({ "event": "pusher:subscribe", "data": subscribe })).await;
    one.expect(SUBSCRIBED).await;
    one.still_serves().await;
    let counted = "pusher_internal:subscription_count";
    one.send(&plain("room")).await;
    one.expect(SUBSCRIBED).await;
    assert_eq!(one.expect(counted).await.data, json!({ "subscription_count": 1 }));
    let mut silent = Ws::open(edge.running.public, path).await;
    silent.greeted().await;
    silent.send(&plain("room")).await;
    silent.expect(SUBSCRIBED).await;
    for client in [&mut silent, &mut one] {
        assert_eq!(client.expect(counted).await.data, json!({ "subscription_count": 2 }));
    }
    // A public channel needs no signature, so this one never showed any.
    assert_eq!(silent.refused().await, 4009);
    assert_eq!(silent.closed().await, 4009);
    assert_eq!(one.expect(counted).await.data, json!({ "subscription_count": 1 }));
    one.still_serves().await;
    edge.stop().await;
    let counts: Vec<u64> = read_events(&stream)
        .await
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::SubscriptionCount { subscription_count } => Some(subscription_count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [1, 2, 1, 0]);
}

#[tokio::test]
async fn a_large_channel_is_counted_at_intervals_and_its_last_count_is_sent() {
    let edge = alone("websocket").await;
    write_registry(edge.apps.path(), vec![App { subscription_count: true, ..app("4", true) }]);
    let path = "/app/key4?protocol=7";
    let mut first = edge.socket_of("key4").await;
    let began = std::time::Instant::now();
    first.send(&plain("room")).await;
    first.expect(SUBSCRIBED).await;
    let mut others = Vec::new();
    for _ in 1..110 {
        let mut ws = Ws::open(edge.running.public, path).await;
        ws.greeted().await;
        ws.send(&plain("room")).await;
        ws.expect(SUBSCRIBED).await;
        others.push(ws);
    }
    let mut counts = Vec::new();
    while counts.last() != Some(&110) {
        let count = first.expect("pusher_internal:subscription_count").await;
        counts.push(count.data["subscription_count"].as_u64().expect("a count"));
    }
    assert!(counts.is_sorted() && counts[..100] == (1..=100).collect::<Vec<u64>>(), "{counts:?}");
    let large = u64::try_from(counts.len() - 100).expect("a number");
    assert!(large <= 1 + began.elapsed().as_secs() / 5, "{large} counts of a large channel: {counts:?}");
    edge.stop().await;
}

#[tokio::test]
async fn the_http_api_knows_the_channels_of_every_edge() {
    let Pair { one, two } = pair(None).await;
    let (mut a, mut b, mut c) = (one.websocket().await, two.websocket().await, two.websocket().await);
    a.subscribe("presence-room", Some("ann")).await;
    b.subscribe("presence-room", Some("bob")).await;
    a.expect("pusher_internal:member_added").await;
    c.subscribe("presence-room", Some("bob")).await;
    c.subscribe("news", None).await;
    assert_eq!(one.get("/channels", &[]).await, json!({ "channels": { "news": {}, "presence-room": {} } }));
    let query = [("filter_by_prefix", "presence-"), ("info", "user_count")];
    assert_eq!(one.get("/channels", &query).await, json!({ "channels": { "presence-room": { "user_count": 2 } } }));
    assert_eq!(one.get("/channels", &[("filter_by_prefix", "*")]).await, json!({ "channels": {} }));
    let query = [("info", "user_count,subscription_count")];
    let room = json!({ "occupied": true, "user_count": 2, "subscription_count": 3 });
    assert_eq!(one.get("/channels/presence-room", &query).await, room);
    assert_eq!(one.get("/channels/nobody", &[]).await, json!({ "occupied": false }));
    let users = json!({ "users": [{ "id": "ann" }, { "id": "bob" }] });
    assert_eq!(two.get("/channels/presence-room/users", &[]).await, users);
    for (path, query) in [
        ("/channels", &[("info", "user_count")][..]),
        ("/channels/news", &[("info", "user_count")]),
        ("/channels/news", &[("info", "cache")]),
        ("/channels/news/users", &[]),
        ("/channels/%23server-to-user-1", &[]),
    ] {
        assert_eq!(one.api("GET", path, query, "").await.0, 400, "{path}");
    }
    let event = json!({ "name": "e", "data": "1", "channels": ["presence-room", "news"], "info": "user_count" });
    let (status, answer) = one.api("POST", "/events", &[], &event.to_string()).await;
    let expected = json!({ "channels": { "presence-room": { "user_count": 2 }, "news": {} } });
    assert_eq!((status, answer), (StatusCode::OK, expected));
    assert_eq!([a.expect("e").await.data, b.expect("e").await.data], [json!(1), json!(1)]);
    for _ in 0..2 {
        c.expect("e").await;
    }
    let except = b.id.clone();
    let item = |channel: &str| json!({ "name": "b", "data": "2", "channel": channel, "socket_id": except });
    let mut batch = vec![item("presence-room"), item("news")];
    batch[1]["info"] = json!("subscription_count");
    let (status, answer) = one.api("POST", "/batch_events", &[], &json!({ "batch": batch }).to_string()).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({ "batch": [{}, { "subscription_count": 1 }] })));
    assert_eq!(a.expect("b").await.data, json!(2));
    let heard = [c.expect("b").await.channel, c.expect("b").await.channel];
    assert_eq!(heard, ["presence-room", "news"].map(|name| Some(name.to_owned())));
    b.still_serves().await;
    batch.resize(11, item("news"));
    let (status, answer) = one.api("POST", "/batch_events", &[], &json!({ "batch": batch }).to_string()).await;
    assert_eq!((status, answer), (StatusCode::BAD_REQUEST, json!("a batch has 1 to 10 events, not 11\n")));
    let unsigned = one.http.get(one.url("/apps/1/channels")).send().await.expect("an answer");
    assert_eq!(unsigned.status(), 401);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_connection_beyond_its_subscription_rate_is_refused_and_stays_open() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    let (mut asked, mut refused) = (0, 0);
    while refused == 0 && asked < 20_000 {
        for _ in 0..200 {
            ws.send(&plain("room")).await;
        }
        asked += 200;
        ws.send(&json!({ "event": "pusher:ping", "data": {} })).await;
        loop {
            let answer = ws.next().await;
            match answer.event.as_str() {
                SUBSCRIBED => {}
                "pusher:error" => {
                    assert_eq!(answer.data["code"], 4100);
                    ws.expect("pusher:subscription_error").await;
                    refused += 1;
                }
                "pusher:pong" => break,
                other => panic!("{other}"),
            }
        }
    }
    assert!(refused > 0 && asked - refused >= 4_096, "{refused} of {asked} were refused");
    ws.still_serves().await;
    edge.stop().await;
}

#[tokio::test]
async fn an_http_client_with_an_unknown_key_is_refused_and_leaves_no_session() {
    let edge = alone("sockjs").await;
    for path in ["xhr_streaming", "xhr"] {
        let mut stranger = Xhr::new(&edge, "nobody", path, path);
        assert_eq!(stranger.frame().await, FallbackFrame::Open);
        assert_eq!(stranger.expect("pusher:error").await.data["code"], 4001);
        assert!(matches!(stranger.frame().await, FallbackFrame::Close(4001, _)));
        // The name of its session is free.
        let mut known = Xhr::new(&edge, "key1", path, path);
        known.greeted().await;
    }
    edge.stop().await;
}
