//! Settings for load balancers: health checks, timeouts, the PROXY protocol, and a prefix of paths.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Reads what a connection answers to these bytes, up to its end or a pause.
async fn ask_bytes(edge: &Edge, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(edge.running.public).await.expect("connected");
    socket.write_all(bytes).await.expect("written");
    let mut part = vec![0; 4_096];
    let read = within(WAIT_TIMEOUT, "an answer", socket.read(&mut part)).await.unwrap_or(0);
    String::from_utf8_lossy(&part[..read]).into_owned()
}

impl Edge {
    /// The statuses of GET and HEAD at each health check. They are two requests, so they may differ
    /// while the edge changes between them.
    async fn health(&self) -> [[u16; 2]; 3] {
        let mut found = [[0; 2]; 3];
        for (statuses, path) in found.iter_mut().zip(["/healthz", "/up", "/readyz"]) {
            for (status, request) in
                statuses.iter_mut().zip([self.http.get(self.url(path)), self.http.head(self.url(path))])
            {
                *status = request.send().await.expect("an answer").status().as_u16();
            }
        }
        found
    }
}

#[tokio::test]
async fn health_checks_pass_from_admission_to_the_hold_or_to_its_end() {
    let annotations = tempfile::NamedTempFile::new().expect("a file");
    let path = annotations.path().to_str().expect("a path");
    let variables = [
        ("REALTIME_ADMISSION", "annotation"),
        ("REALTIME_ANNOTATIONS_PATH", path),
        ("REALTIME_DRAIN_HOLD_SECONDS", "2"),
    ];
    let edge = start_with("websocket", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
    assert_eq!(edge.health().await, [[503; 2]; 3], "not admitted yet");
    let effective = edge.admin("/effective").await.text().await.expect("a text");
    let effective: Value = serde_json::from_str(&effective).expect("json");
    let admitted = format!("realtime-operator.dev/admitted={}\n", effective["configuration"]);
    fs::write(annotations.path(), admitted).expect("written");
    eventually("the admission", async || edge.health().await, |health| *health == [[200; 2]; 3]).await;
    edge.shutdown.cancel();
    eventually("the hold", async || edge.health().await, |health| *health == [[200; 2], [200; 2], [503; 2]]).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_pinged_after_the_activity_timeout_that_it_was_told() {
    let variables = [("REALTIME_ACTIVITY_TIMEOUT_SECONDS", "5")];
    let edge = start_with("websocket", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
    let mut ws = Ws::open(edge.running.public, "/app/key1?protocol=7").await;
    assert_eq!(ws.expect(ESTABLISHED).await.data["activity_timeout"], 5);
    let begun = std::time::Instant::now();
    ws.expect("pusher:ping").await;
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    edge.stop().await;

    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), [app("1", true)]);
    let short = values("websocket", "off", apps.path(), &[("REALTIME_KEEP_ALIVE_SECONDS", "100")]);
    let deps = dependencies(apps.path(), Arc::new(MemoryBus::new()), None).await;
    let error = edge::start(short, deps).await.err().expect("a refusal").to_string();
    assert!(error.contains("REALTIME_KEEP_ALIVE_SECONDS is 100, less than twice"), "{error}");
}

#[tokio::test]
async fn headers_of_the_proxy_protocol_are_read_from_trusted_networks_alone() {
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let text = b"PROXY TCP4 198.51.100.7 10.0.0.1 49152 443\r\n";
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x01\xc0\0\x01\xbb";
    let local = "127.0.0.0/8";
    for (mode, trusted, with_header, without) in [
        ("disabled", local, false, true),
        ("accepted", local, true, true),
        ("required", local, true, false),
        ("accepted", "10.0.0.0/8", false, true),
        ("required", "10.0.0.0/8", false, true),
    ] {
        let variables = [("REALTIME_PROXY_PROTOCOL", mode), ("REALTIME_TRUSTED_PROXIES", trusted)];
        let edge = start_with("websocket", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
        for header in [&text[..], binary] {
            let answer = ask_bytes(&edge, &[header, request].concat()).await;
            assert_eq!(answer.starts_with("HTTP/1.1 200"), with_header, "{mode} {trusted}: {answer}");
        }
        let answer = ask_bytes(&edge, request).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), without, "{mode} {trusted}: {answer}");
        assert_eq!(edge.refusals("proxy_header").await, u64::from(mode == "required" && trusted == local));
        edge.stop().await;
    }
}

#[tokio::test]
async fn every_public_path_may_have_the_base_path() {
    let variables = [("REALTIME_BASE_PATH", "/rt/eu")];
    let edge = start_with("edge", vec![app("1", true)], &variables, MemoryBus::new(), None).await;
    for prefix in ["", "/rt/eu"] {
        let mut ws = Ws::open(edge.running.public, &format!("{prefix}/app/key1?protocol=7")).await;
        ws.greeted().await;
        ws.subscribe("private-room", None).await;
        let answer = edge.http.get(edge.url(&format!("{prefix}/pusher/info"))).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        // A proxy on the way may remove the prefix, so either path may have been signed.
        for signed in ["/apps/1/events", "/rt/eu/apps/1/events"] {
            let body = json!({ "name": "news", "data": "1", "channel": "private-room" }).to_string();
            let now = realtime_operator::process::clock::now_ms() / 1000;
            let query = rest::signed_query("key1", &Secret::new("secret1"), ("POST", signed), body.as_bytes(), now);
            let url = url::Url::parse_with_params(&edge.url(&format!("{prefix}/apps/1/events")), query).expect("a url");
            let status = edge.http.post(url).body(body).send().await.expect("an answer").status();
            assert_eq!(status.as_u16(), if prefix.is_empty() && signed.starts_with("/rt") { 401 } else { 200 });
            if status == 200 {
                ws.expect("news").await;
            }
        }
    }
    assert_eq!(edge.http.get(edge.url("/rt/eux/pusher/info")).send().await.expect("an answer").status(), 404);
    edge.stop().await;
}
