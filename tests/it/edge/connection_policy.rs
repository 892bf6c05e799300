//! Origins, keys and connection limits: a refused client receives the reason.

use reqwest::{Method, Response};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::super::openmetrics;
use super::*;

const GOOD: &str = "https://shop.example.com";
const BAD: &str = "https://example.org";

fn guarded() -> App {
    App { allowed_origins: vec!["https://*.example.com".into()], ..app("5", true) }
}

impl Ws {
    async fn with(edge: &Edge, path: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://{}{path}", edge.running.public).into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        let (socket, _) = tokio_tungstenite::connect_async(request).await.expect("a socket");
        Self { socket: Wire::new(socket), id: String::new() }
    }

    /// The code of a refused socket, which is in an error and then in the close frame.
    async fn refusal(&mut self) -> u16 {
        let error = self.expect("pusher:error").await.data["code"].clone();
        let code = self.closed().await;
        assert_eq!(error, json!(code));
        code
    }
}

impl Edge {
    async fn asked(&self, method: Method, path: &str, origin: Option<&str>, body: &str) -> Response {
        let mut request = self.http.request(method, self.url(path)).body(body.to_owned());
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        within(WAIT_TIMEOUT, path, request.send()).await.expect("an answer")
    }

    pub(super) async fn refusals(&self, reason: &str) -> u64 {
        self.metric(&format!("realtime_edge_refusals_total{{reason=\"{reason}\"}}")).await
    }
}

fn allows(answer: &Response) -> &str {
    answer.headers().get("access-control-allow-origin").map_or("", |value| value.to_str().expect("text"))
}

#[tokio::test]
async fn a_socket_is_closed_with_pushers_code() {
    let edge =
        start_with("websocket", vec![app("1", true), app("2", false), guarded()], &[], MemoryBus::new(), None).await;
    for (path, origin, code) in [
        ("/app/nobody?protocol=7", None, 4001),
        ("/app/key2?protocol=7", None, 4003),
        ("/app/", None, 4005),
        ("/app", None, 4005),
        ("/app/key1/more?protocol=7", None, 4005),
        ("/elsewhere?protocol=7", None, 4005),
        ("/app/key1?protocol=x", None, 4006),
        ("/app/key1?protocol=3", None, 4007),
        ("/app/key1?protocol=99", None, 4007),
        ("/app/key1", None, 4008),
        ("/app/key5?protocol=7", Some(BAD), 4009),
        ("/app/key5?protocol=7", Some("null"), 4009),
        ("/app/key5?protocol=7", Some("https://example.com.example.org"), 4009),
    ] {
        let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let mut ws = Ws::with(&edge, path, &headers).await;
        assert_eq!(ws.refusal().await, code, "{path} {origin:?}");
    }
    for (reason, count) in
        [("app_unknown", 1), ("app_disabled", 1), ("path_unknown", 4), ("protocol", 4), ("origin", 3)]
    {
        assert_eq!(edge.refusals(reason).await, count, "{reason}");
    }
    for (path, headers) in [
        ("/app/key5?protocol=7", vec![("origin", GOOD)]),
        ("/app/key5?protocol=7", vec![]),
        ("/app/key1?protocol=7", vec![("origin", BAD)]),
    ] {
        Ws::with(&edge, path, &headers).await.greeted().await;
    }
    for path in ["/app/", "/elsewhere"] {
        assert_eq!(edge.asked(Method::GET, path, None, "").await.status(), 404, "{path} without a socket");
    }
    edge.stop().await;
}

#[tokio::test]
async fn pages_of_other_origins_have_no_session_over_http() {
    let edge = start_with("sockjs", vec![app("1", true), guarded()], &[], MemoryBus::new(), None).await;
    let base = "/pusher/app/key5/7/mine";
    let query = "protocol=7&client=js&version=8.6.0";
    for path in ["xhr", "xhr_streaming"] {
        let asked = format!("/pusher/app/key5/7/bad-{path}/{path}?{query}");
        let answer = edge.asked(Method::POST, &asked, Some(BAD), "").await;
        assert_eq!((answer.status().as_u16(), allows(&answer)), (200, BAD), "it may read why");
        let text = answer.text().await.expect("a text");
        assert!(text.starts_with("o\n") && text.contains("c[4009,"), "{text}");
    }
    let answer = edge.asked(Method::POST, &format!("{base}/xhr?{query}"), Some(GOOD), "").await;
    assert_eq!((allows(&answer), answer.headers()["vary"].to_str().ok()), (GOOD, Some("Origin")));
    assert_eq!(answer.text().await.expect("a text"), "o\n");
    // Another page knows the session's name, and has nothing of it.
    let stolen = edge.asked(Method::POST, &format!("{base}/xhr?{query}"), Some(BAD), "").await;
    assert!(stolen.text().await.expect("a text").contains("c[4009,"));
    let send = format!("{base}/xhr_send?t=1&n=1");
    assert_eq!(edge.asked(Method::POST, &send, Some(BAD), "[]").await.status(), 403);
    let answer = edge.asked(Method::POST, &send, Some(GOOD), "[]").await;
    assert_eq!((answer.status().as_u16(), allows(&answer)), (204, GOOD));
    assert_eq!(edge.asked(Method::POST, &send, None, "[]").await.status(), 204, "no browser");
    let answer = edge.asked(Method::OPTIONS, &send, Some(GOOD), "").await;
    assert_eq!((answer.status().as_u16(), allows(&answer)), (204, GOOD));
    let open = edge.asked(Method::POST, &format!("/pusher/app/key1/7/other/xhr?{query}"), Some(BAD), "").await;
    assert_eq!((allows(&open), open.headers().get("vary")), ("*", None), "an app without a list");
    assert_eq!(edge.refusals("origin").await, 4);
    edge.stop().await;
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_when_a_sockjs_session_names_its_app() {
    let edge = start_with("sockjs", vec![app("1", true), guarded()], &[], MemoryBus::new(), None).await;
    let first = |key: &str| json!([json!({ "path": format!("/app/{key}?protocol=7") }).to_string()]).to_string();
    for (n, (key, origin, expected)) in [
        ("key5", Some(BAD), "c[4009,"),
        ("key5", Some(GOOD), ESTABLISHED),
        ("key5", None, ESTABLISHED),
        ("key1", Some(BAD), ESTABLISHED),
    ]
    .into_iter()
    .enumerate()
    {
        let base = format!("/pusher/000/guarded{n}");
        let poll = async || {
            let answer = edge.asked(Method::POST, &format!("{base}/xhr"), origin, "").await;
            answer.text().await.expect("a text")
        };
        assert_eq!(poll().await, "o\n");
        let sent = edge.asked(Method::POST, &format!("{base}/xhr_send"), origin, &first(key)).await;
        assert_eq!(sent.status(), 204);
        let mut answer = poll().await;
        if answer.contains("pusher:error") {
            answer = poll().await;
        }
        assert!(answer.contains(expected), "{key} {origin:?}: {answer}");
        let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let mut socket = Ws::with(&edge, "/pusher/websocket", &headers).await;
        socket.text(&json!({ "path": format!("/app/{key}?protocol=7") }).to_string()).await;
        if expected == ESTABLISHED {
            socket.greeted().await;
        } else {
            assert_eq!(socket.refusal().await, 4009);
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn the_connection_limit_of_an_app_holds_for_all_pods_together() {
    let bus = MemoryBus::new();
    let apps = || {
        let limits = AppLimits { connections: Some(2), ..AppLimits::default() };
        vec![App { limits, ..app("1", true) }, app("3", true)]
    };
    let one = start_with("websocket", apps(), &[], bus.for_another_process(), None).await;
    let two = start_with("websocket", apps(), &[], bus.for_another_process(), None).await;
    let fallbacks = start_with("sockjs", apps(), &[], bus, None).await;
    let (first, mut second) = (one.websocket().await, two.websocket().await);
    let path = "/app/key1?protocol=7";
    for edge in [&one, &two] {
        assert_eq!(Ws::with(edge, path, &[]).await.refusal().await, 4004);
        assert_eq!(edge.refusals("over_quota").await, 1);
    }
    let mut xhr = Xhr::new(&fallbacks, "key1", "one-too-many", "xhr_streaming");
    assert_eq!(xhr.frame().await, FallbackFrame::Open);
    assert_eq!(xhr.expect("pusher:error").await.data["code"], 4004);
    assert!(matches!(xhr.frame().await, FallbackFrame::Close(4004, _)));
    second.still_serves().await;
    Ws::with(&one, "/app/key3?protocol=7", &[]).await.greeted().await;
    drop(first);
    let mut third = eventually_ok("a released quota slot", async || {
        let mut ws = Ws::with(&two, path, &[]).await;
        let greeting = ws.next().await;
        if greeting.event == ESTABLISHED { Ok(ws) } else { Err(greeting) }
    })
    .await;
    third.still_serves().await;
    for edge in [one, two, fallbacks] {
        edge.stop().await;
    }
}

#[tokio::test]
async fn no_client_adds_a_time_series() {
    let edge = start("websocket", MemoryBus::new(), None).await;
    let series = async || {
        let text = edge.admin("/metrics").await.text().await.expect("a text");
        let families = openmetrics::read(&text).unwrap_or_else(|fault| panic!("{fault}"));
        families.values().flat_map(|family| family.series.keys().cloned()).collect::<Vec<_>>()
    };
    let attack = async |mark: &str| {
        let path = format!("/app/{mark}?protocol=7&client={mark}&version={mark}");
        assert_eq!(Ws::with(&edge, &path, &[("origin", mark)]).await.refusal().await, 4001);
        assert_eq!(Ws::with(&edge, &format!("/{mark}"), &[]).await.refusal().await, 4005);
        let mut ws = edge.websocket().await;
        ws.subscribe(&format!("presence-{mark}"), Some(mark)).await;
        for message in [
            json!({ "event": mark }),
            json!({ "event": format!("client-{mark}"), "channel": mark, "data": mark }),
            json!({ "event": "pusher:subscribe", "data": { "channel": format!("private-{mark}"), "auth": mark } }),
            json!({ "event": "pusher:signin", "data": { "auth": mark, "user_data": mark } }),
        ] {
            ws.send(&message).await;
            ws.expect("pusher:error").await;
            if message["event"] == "pusher:subscribe" {
                ws.expect("pusher:subscription_error").await;
            }
        }
        let body = json!({ "name": mark, "data": "", "channel": mark });
        assert_eq!(edge.publish("1", &body).await.status(), 200);
        assert_eq!(edge.publish(mark, &body).await.status(), 404);
    };
    attack("first").await;
    let before = series().await;
    for n in 0..5 {
        attack(&format!("evil{n}")).await;
    }
    assert_eq!(series().await, before);
    assert!(!before.is_empty() && before.iter().all(|name| !name.contains("first")), "{before:?}");
    edge.stop().await;
}
