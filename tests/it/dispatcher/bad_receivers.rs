//! Receivers that misbehave, over real connections: each failure is bounded, counted and named, and other endpoints go on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use realtime_operator::protocol::admin::EndpointReport;
use realtime_operator::protocol::registry::WebhookEndpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::*;

/// A receiver, and the number of its connections.
struct RawReceiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl RawReceiver {
    /// Serves connections; `answer` gets each once its request was read.
    async fn serve<A>(answer: impl Fn(TcpStream) -> A + Copy + Send + 'static) -> Self
    where
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut head = [0; 8 * 1024];
                    let _ = stream.read(&mut head).await;
                    answer(stream).await;
                });
            }
        });
        Self { address, connections }
    }

    /// A receiver that answers with these bytes, then closes the connection.
    async fn serve_answer(bytes: &'static str) -> Self {
        Self::serve(move |mut stream| async move {
            let _ = stream.write_all(bytes.as_bytes()).await;
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Sends an event to the bad endpoint and to one that works, until the bad one has been reported with this answer.
async fn send_beside_a_working_one(bad: WebhookEndpoint, answer: &str) -> (Bed, RunningDispatcher, EndpointReport) {
    let bed = Bed::new(1).await;
    let working = WebhookEndpoint { name: "working".into(), ..build_webhook(&bed.receiver.serve().await) };
    let bad = WebhookEndpoint { name: "bad".into(), timeout_seconds: 1, ..bad };
    let app = App { webhooks: vec![bad, working], ..build_app("1001", "key", "secret") };
    write_registry(bed.apps.path(), [app]);
    let (running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    let started = Instant::now();
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    bed.receiver.receives("the working endpoint gets it", |ids| ids == ["1"]).await;
    let look = async || endpoint_reports(&running).await.remove("bad");
    let has_answer =
        |report: &Option<EndpointReport>| report.as_ref().is_some_and(|it| it.last_answer.contains(answer));
    let report = eventually(&format!("an answer with {answer:?}"), look, has_answer).await.expect("a report");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    (bed, running, report)
}

async fn assert_failing(receiver: &RawReceiver, answer: &str) -> (Bed, RunningDispatcher, EndpointReport) {
    let found = send_beside_a_working_one(build_webhook(&receiver.url()), answer).await;
    assert!(found.2.failing_since_ms.is_some() && found.2.last_delivered_ms.is_none(), "{:?}", found.2);
    assert!(flow(&found.1).await.failed_attempts >= 1);
    found
}

#[tokio::test]
async fn an_answer_after_a_minute_is_not_awaited() {
    let receiver = RawReceiver::serve(|mut stream| async move {
        tokio::time::sleep(Duration::from_mins(1)).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    assert_failing(&receiver, "response: not within 1 s").await;
}

#[tokio::test]
async fn a_success_whose_body_never_ends_is_a_success() {
    let receiver = RawReceiver::serve(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    })
    .await;
    let (_bed, running, report) = send_beside_a_working_one(build_webhook(&receiver.url()), "200").await;
    assert!(report.last_delivered_ms.is_some() && report.failing_since_ms.is_none(), "{report:?}");
    eventually("nothing waits", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    assert_eq!(receiver.connections(), 1, "nothing is repeated");
}

#[tokio::test]
async fn a_head_that_ends_half_way_is_no_answer() {
    let receiver = RawReceiver::serve_answer("HTTP/1.1 200 O").await;
    assert_failing(&receiver, "response: ").await;
}

#[tokio::test]
async fn a_redirect_is_not_followed_whether_to_metadata_or_to_itself() {
    let head = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/\r\ncontent-length: 0\r\n\r\n";
    let metadata = RawReceiver::serve_answer(head).await;
    assert_failing(&metadata, "302: write the final address").await;
    let head = "HTTP/1.1 301 Moved\r\nlocation: /hook\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let itself = RawReceiver::serve_answer(head).await;
    let (_bed, running, _) = assert_failing(&itself, "301: write the final address").await;
    let look = async || (flow(&running).await.failed_attempts, itself.connections() as u64);
    eventually("one connection for each attempt", look, |(attempts, connections)| attempts == connections).await;
}

#[tokio::test]
async fn an_answer_of_64_mib_is_not_read() {
    let receiver = RawReceiver::serve(|mut stream| async move {
        let length = 64 * 1024 * 1024;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..length / chunk.len() {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The whole answer was taken.
        tokio::time::sleep(Duration::from_mins(1)).await;
    })
    .await;
    let (bed, running, report) = send_beside_a_working_one(build_webhook(&receiver.url()), "200").await;
    assert!(report.last_delivered_ms.is_some());
    bed.put(CLUSTER, "a", vec![message("2", 2)]).await;
    eventually("both are delivered to both", async || flow(&running).await.delivered, |count| *count == 4).await;
    assert_eq!(receiver.connections(), 2, "a connection with an unread answer is closed");
}

#[tokio::test]
async fn a_long_retry_after_is_shown_as_it_came() {
    let receiver =
        RawReceiver::serve_answer("HTTP/1.1 429 Slow\r\nretry-after: 7200\r\ncontent-length: 0\r\n\r\n").await;
    let (_bed, running, report) = assert_failing(&receiver, "429, Retry-After 7200").await;
    assert_eq!(report.dropped, 0, "the event waits");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(flow(&running).await.failed_attempts, 1, "the header is honoured");
}

#[tokio::test]
async fn a_server_without_tls_and_one_that_is_gone_are_named() {
    let receiver = RawReceiver::serve_answer("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let url = receiver.url().replace("http:", "https:");
    let (.., report) = send_beside_a_working_one(build_webhook(&url), "TLS: ").await;
    assert!(report.failing_since_ms.is_some());
    send_beside_a_working_one(build_webhook("http://127.0.0.1:1/"), "connection refused").await;
}

/// Answers questions for an IPv4 address with the addresses in turn, with a lifetime of 0 s, and others with none.
async fn serve_names(addresses: &'static [[u8; 4]]) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let (address, asked) = (socket.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question).await {
            let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name") + 1;
            let is_ipv4 = question[name_end..name_end + 2] == [0, 1];
            let mut answer = question[..name_end + 4].to_vec();
            // An answer to the question, recursion available; one question, and one answer or none.
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            if is_ipv4 {
                let turn = counted.fetch_add(1, Ordering::SeqCst);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(addresses[turn % addresses.len()]);
            }
            assert!(length >= answer.len() || is_ipv4);
            let _ = socket.send_to(&answer, from).await;
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_name_that_changes_between_check_and_connection_reaches_no_private_address() {
    // The public address is one that nothing answers at; the port is that of the secret service.
    static ADDRESSES: &[[u8; 4]] = &[[127, 0, 0, 1], [192, 88, 98, 1]];
    let (name_server, asked) = serve_names(ADDRESSES).await;
    let bed = Bed::new(1).await;
    let bad = WebhookEndpoint { name: "bad".into(), timeout_seconds: 1, ..build_webhook("https://rebind.test/") };
    let app = App { webhooks: vec![bad], ..build_app("1001", "key", "secret") };
    write_registry(bed.apps.path(), [app]);
    let egress = EgressOverrides { name_server: Some(name_server), ..EgressOverrides::default() };
    let (running, _) = bed.dispatcher_on_network(egress, &[("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    let look = async || (asked.load(Ordering::SeqCst), endpoint_reports(&running).await.remove("bad"));
    let mut answers = BTreeSet::new();
    while answers.len() < 2 {
        let (_, report) = eventually("a report", look, |(_, report)| report.is_some()).await;
        let answer = report.expect("a report").last_answer;
        assert!(asked.load(Ordering::SeqCst) < 100, "{answers:?}");
        answers.insert(if answer.contains("rebind.test (127.0.0.1) is not a public address") {
            "refused".to_owned()
        } else {
            assert!(!answer.contains("127.0.0.1") && !answer.contains("connection refused"), "{answer}");
            "connected to the public address alone".to_owned()
        });
    }
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("realtime_dispatcher_attempts_total{result=\"refused\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_name_server_delays_no_endpoint_that_needs_no_name() {
    let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let bed = Bed::new(1).await;
    let working = WebhookEndpoint { name: "working".into(), ..build_webhook(&bed.receiver.serve().await) };
    let unresolved = |n: usize| WebhookEndpoint {
        name: format!("unresolved-{n}"),
        timeout_seconds: 4,
        ..build_webhook(&format!("https://h{n}.test/"))
    };
    let webhooks = (0..99).map(unresolved).chain([working]).collect();
    write_registry(bed.apps.path(), [App { webhooks, ..build_app("1001", "key", "secret") }]);
    let egress = EgressOverrides { name_server: mute.local_addr().ok(), ..EgressOverrides::default() };
    let (running, _) = bed.dispatcher_on_network(egress, &[LOOPBACK, ("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    bed.put(CLUSTER, "first", vec![message("first", 0)]).await;
    bed.receiver.receives("the first event", |ids| ids == ["first"]).await;
    // Together fewer events than one shard may hold, over more time than a lookup takes.
    for n in 0..4 {
        let channels = (0..20).map(|channel| format!("c{channel}"));
        for channel in channels {
            bed.put(CLUSTER, &channel, vec![message(&format!("{channel}-{n}"), n)]).await;
        }
        let put = Instant::now();
        let all = 1 + 20 * (usize::try_from(n).expect("small") + 1);
        bed.receiver.receives("the working endpoint gets all", |ids| ids.len() >= all).await;
        assert!(put.elapsed() < Duration::from_secs(5), "{:?}", put.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The registry is still read, which blocking lookups would stop.
    bed.write_apps(&bed.receiver.serve().await);
    let is_removed = |flow: &DispatcherFlow| flow.dropped.contains_key("EndpointRemoved");
    eventually("the registry is read", async || flow(&running).await, is_removed).await;
}

#[test]
fn the_address_that_stands_for_a_public_one_is_no_special_one() {
    let address = IpAddr::V4(Ipv4Addr::new(192, 88, 98, 1));
    assert!(realtime_operator::protocol::egress_policy::is_global(address));
}
