//! Settings of an endpoint: its state, its batching, its headers.

use std::future::IntoFuture;
use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use realtime_operator::protocol::registry::{BatchMode, WebhookEndpoint};

use super::*;

/// Bodies and headers in the order of their arrival, by the path of the endpoint.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(String, HeaderMap, WebhookBody)>>>);

impl Recorder {
    async fn serve(&self) -> String {
        let record = async |State(recorder): State<Self>, uri: axum::http::Uri, headers: HeaderMap, raw: Bytes| {
            let body = serde_json::from_slice(&raw).expect("a webhook");
            recorder.0.lock().expect("not poisoned").push((uri.path().to_owned(), headers, body));
        };
        serve_routes(Router::new().route("/{endpoint}", post(record)).with_state(self.clone())).await
    }

    fn bodies(&self, path: &str) -> Vec<Vec<String>> {
        let received = self.0.lock().expect("not poisoned");
        let of_path = received.iter().filter(|(at, ..)| at == path);
        of_path.map(|(_, _, body)| body.events.iter().map(|event| event.id.clone()).collect()).collect()
    }

    /// The values of a header, one of each body.
    fn headers(&self, name: &str) -> Vec<String> {
        let received = self.0.lock().expect("not poisoned");
        let value =
            |headers: &HeaderMap| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
        received.iter().map(|(_, headers, _)| value(headers)).collect()
    }
}

fn endpoint(name: &str, url: &str) -> WebhookEndpoint {
    WebhookEndpoint { name: name.into(), ..build_webhook(&format!("{url}/{name}")) }
}

fn write(bed: &Bed, enabled: Vec<WebhookEndpoint>, disabled: Vec<WebhookEndpoint>) {
    let app = App { webhooks: enabled, disabled_webhooks: disabled, ..build_app("1001", "key", "secret") };
    write_registry(bed.apps.path(), [app]);
}

#[tokio::test]
async fn an_endpoint_that_takes_one_event_gets_a_body_for_each_and_in_order() {
    let bed = Bed::new(1).await;
    let recorder = Recorder::default();
    let url = recorder.serve().await;
    let one = WebhookEndpoint { batch: BatchMode::One, ..endpoint("one", &url) };
    write(&bed, vec![one, endpoint("many", &url)], vec![]);
    let expected: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    bed.put(CLUSTER, "a", (0..).zip(&expected).map(|(n, id)| message(id, n)).collect()).await;
    let (_running, _) = bed.dispatcher(&[LOOPBACK]).await;
    eventually("every event at both", async || recorder.bodies("/one").len(), |bodies| *bodies >= 40).await;
    let one: Vec<Vec<String>> = expected.iter().map(|id| vec![id.clone()]).collect();
    assert_eq!(recorder.bodies("/one"), one);
    assert_eq!(recorder.bodies("/many"), [expected]);
}

#[tokio::test]
async fn headers_of_an_endpoint_are_sent_and_follow_the_registry() {
    let bed = Bed::new(1).await;
    let recorder = Recorder::default();
    let url = recorder.serve().await;
    let write_token = |token: &str| {
        let headers = [("Authorization".to_owned(), Secret::new(token)), ("X-Tenant".to_owned(), Secret::new("a"))];
        write(&bed, vec![WebhookEndpoint { headers: headers.into(), ..endpoint("hook", &url) }], vec![]);
    };
    write_token("Bearer first");
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    eventually("the first", async || recorder.bodies("/hook"), |bodies| bodies.len() == 1).await;
    write_token("Bearer second");
    let mut n = 1;
    let second = async || {
        n += 1;
        bed.put(CLUSTER, "a", vec![message(&n.to_string(), n)]).await;
        recorder.headers("authorization")
    };
    eventually("the second token", second, |tokens| tokens.contains(&"Bearer second".to_owned())).await;
    assert_eq!(recorder.headers("authorization")[0], "Bearer first");
    assert!(recorder.headers("x-tenant").iter().all(|tenant| tenant == "a"));
    assert!(recorder.headers(SIGNATURE_HEADER).iter().all(|signature| signature.len() == 64));
    let shown = get(&running, "/flow").await + &get(&running, "/effective").await;
    assert!(!shown.contains("Bearer"), "{shown}");
}

#[tokio::test]
async fn an_endpoint_whose_headers_cannot_be_sent_keeps_its_events() {
    let bed = Bed::new(1).await;
    let recorder = Recorder::default();
    let url = recorder.serve().await;
    let reason = Some("spec.webhooks[0].headersSecretRef references the Secret `h`, which does not exist".to_owned());
    write(&bed, vec![WebhookEndpoint { unsendable: reason, ..endpoint("hook", &url) }], vec![]);
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    wait_for_error(&running, &["1001/hook", "no request can be made", "headersSecretRef"]).await;
    assert_eq!(recorder.bodies("/hook"), [[""; 0]; 0]);
    write(&bed, vec![endpoint("hook", &url)], vec![]);
    eventually("the event, late", async || recorder.bodies("/hook"), |bodies| bodies.len() == 1).await;
    assert_eq!(flow(&running).await.dropped, BTreeMap::new());
}

#[tokio::test]
async fn a_disabled_endpoint_gets_nothing_and_no_event_waits_for_it() {
    let bed = Bed::new(1).await;
    let recorder = Recorder::default();
    let url = recorder.serve().await;
    let dead = WebhookEndpoint { name: "dead".into(), ..build_webhook("http://127.0.0.1:1/") };
    write(&bed, vec![dead.clone(), endpoint("hook", &url)], vec![]);
    let (running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    wait_for_error(&running, &["1001/dead"]).await;
    write(&bed, vec![endpoint("hook", &url)], vec![dead.clone()]);
    let is_dropped = |flow: &DispatcherFlow| flow.dropped.get("EndpointDisabled") == Some(&1) && flow.unfinished == 0;
    eventually("the waiting event is dropped", async || flow(&running).await, is_dropped).await;
    bed.put(CLUSTER, "a", vec![message("2", 2)]).await;
    eventually("the other endpoint", async || recorder.bodies("/hook").concat(), |ids| *ids == ["1", "2"]).await;
    eventually("nothing waits", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("realtime_dispatcher_events_skipped_total{reason=\"endpoint_disabled\"} 1"), "{metrics}");
    let failed = flow(&running).await.failed_attempts;
    assert_eq!(flow(&running).await.last_error, None, "a disabled endpoint is no failure");
    bed.put(CLUSTER, "a", vec![message("3", 3)]).await;
    eventually("the third", async || recorder.bodies("/hook").concat().len(), |count| *count == 3).await;
    assert_eq!(flow(&running).await.failed_attempts, failed, "nothing is tried");
}

#[tokio::test]
async fn endpoints_of_one_host_use_their_connections_again() {
    const ENDPOINTS: usize = 40;
    const EVENTS: u64 = 5;
    type Posts = Arc<Mutex<Vec<SocketAddr>>>;
    let note_post = async |State(posts): State<Posts>, ConnectInfo(from): ConnectInfo<SocketAddr>| {
        // All endpoints are called at a time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        posts.lock().expect("not poisoned").push(from);
    };
    let posts = Posts::default();
    let routes = Router::new().route("/{endpoint}", post(note_post)).with_state(posts.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>());
    tokio::spawn(server.into_future());
    let bed = Bed::new(1).await;
    write(&bed, (0..ENDPOINTS).map(|n| endpoint(&format!("e{n}"), &url)).collect(), vec![]);
    let (_running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let count_posts = async || posts.lock().expect("not poisoned").len();
    for n in 1..=EVENTS {
        bed.put(CLUSTER, "a", vec![message(&n.to_string(), n)]).await;
        let expected = ENDPOINTS * usize::try_from(n).expect("a small number");
        eventually("the event at every endpoint", count_posts, |posts| *posts >= expected).await;
    }
    let connections: BTreeSet<SocketAddr> = posts.lock().expect("not poisoned").iter().copied().collect();
    assert!(connections.len() < 2 * ENDPOINTS, "{} connections of {ENDPOINTS} endpoints", connections.len());
}
