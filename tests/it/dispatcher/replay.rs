//! `realtime replay`, as a person runs it, against letters in a Kinesis and a receiver on loopback.

use axum::extract::Path;
use realtime_operator::protocol::dead_letter::{DEAD_LETTER_VERSION, DeadLetter, LetterSource, RawContent};
use realtime_operator::protocol::registry::WebhookEndpoint;
use realtime_operator::protocol::webhook::REPLAY_HEADER;
use serde_json::Value;

use super::dead_letters::{DEAD, create_dead_letter_stream, read_letters};
use super::*;
use crate::cli::realtime;

/// The acknowledged webhooks: endpoint, and id of the event.
type Acknowledged = Arc<Mutex<Vec<(String, String)>>>;

/// Id of an event that every endpoint refuses.
const REFUSED_EVENT: &str = "refused";

/// Endpoints by path: `broken` answers 500, as the others do to a body with [`REFUSED_EVENT`]; they take signed bodies that
/// are marked as replayed.
async fn serve_endpoints(acknowledged: Acknowledged) -> String {
    async fn answer(
        State(acknowledged): State<Acknowledged>,
        Path(endpoint): Path<String>,
        headers: HeaderMap,
        raw: Bytes,
    ) -> StatusCode {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if endpoint == "broken" {
            return StatusCode::INTERNAL_SERVER_ERROR;
        }
        let secret = Secret::new(if header(KEY_HEADER) == "other" { "other secret" } else { "secret" });
        if !verify_webhook(&secret, &raw, header(SIGNATURE_HEADER)) || header(REPLAY_HEADER) != "true" {
            return StatusCode::UNAUTHORIZED;
        }
        let body: WebhookBody = serde_json::from_slice(&raw).expect("a webhook");
        if body.events.iter().any(|event| event.id == REFUSED_EVENT) {
            return StatusCode::INTERNAL_SERVER_ERROR;
        }
        let ids = body.events.into_iter().map(|event| (endpoint.clone(), event.id));
        acknowledged.lock().expect("not poisoned").extend(ids);
        StatusCode::OK
    }
    serve_routes(Router::new().route("/{endpoint}", post(answer)).with_state(acknowledged)).await
}

struct ReplayBed {
    bed: Bed,
    dead: KinesisClient,
    url: String,
    acknowledged: Acknowledged,
}

impl ReplayBed {
    async fn new() -> Self {
        let bed = Bed::new(1).await;
        let dead = create_dead_letter_stream(&bed).await;
        let acknowledged = Acknowledged::default();
        let url = serve_endpoints(Arc::clone(&acknowledged)).await;
        let endpoint =
            |name: &str| WebhookEndpoint { name: name.to_owned(), ..build_webhook(&format!("{url}/{name}")) };
        let webhooks = ["hook", "second", "broken"].map(endpoint).into();
        write_registry(bed.apps.path(), [App { webhooks, ..build_app("1001", "key", "secret") }]);
        Self { bed, dead, url, acknowledged }
    }

    async fn put_letter(&self, reason: &str, endpoint: Option<&str>, event: Option<RecordedEvent>) {
        let channel = ChannelName::parse("room").expect("a name");
        let json = event.clone().map(|event| WebhookEvent::new(channel.clone(), event));
        let letter = DeadLetter {
            v: DEAD_LETTER_VERSION,
            reason: reason.to_owned(),
            detail: None,
            cluster: CLUSTER.to_owned(),
            app: event.is_some().then(|| "1001".into()),
            endpoint: endpoint.map(str::to_owned),
            attempts: 3,
            last_answer: Some("answered 503".to_owned()),
            source: LetterSource {
                stream: "stream".into(),
                shard: "shardId-000000000000".into(),
                sequence: "1".into(),
            },
            written_ms: now_ms(),
            time_ms: event.as_ref().map(|event| event.time_ms),
            event: json.map(|event| serde_json::value::to_raw_value(&event).expect("JSON")),
            raw: event.is_none().then(|| RawContent::encode(b"{", 1)),
        };
        let entry = PutEntry { partition_key: "1001/room".to_owned(), data: letter.to_bytes().into() };
        let results = self.dead.put_records(&[entry]).await.expect("put");
        assert!(results.iter().all(Result::is_ok));
    }

    /// Runs the command: its exit code, and its two outputs.
    async fn replay(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        self.replay_within("127.0.0.0/8", arguments).await
    }

    async fn replay_within(&self, networks: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let arguments: Vec<String> = ["replay"].iter().chain(arguments).map(|text| (*text).to_owned()).collect();
        let apps = self.bed.apps.path().display().to_string();
        let variables = [
            ("REALTIME_DEAD_LETTER_STREAM", DEAD),
            ("REALTIME_APPS_PATH", &apps),
            ("REALTIME_ALLOWED_NETWORKS", networks),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL_KINESIS", &self.bed.endpoint),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let variables = variables.each_ref().map(|(name, value)| (name.as_str(), value.as_str()));
            realtime(&arguments, &variables)
        };
        let output = tokio::task::spawn_blocking(run).await.expect("the program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn take_acknowledged(&self) -> Vec<(String, String)> {
        let mut taken = std::mem::take(&mut *self.acknowledged.lock().expect("not poisoned"));
        taken.sort();
        taken
    }
}

fn rows(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(endpoint, id)| ((*endpoint).to_owned(), (*id).to_owned())).collect()
}

#[tokio::test]
async fn letters_are_sent_to_the_endpoint_that_they_name_and_superseded_state_is_not() {
    let replay = ReplayBed::new().await;
    let now = now_ms();
    replay.put_letter("RetryWindowOver", Some("hook"), Some(message("m1", 1))).await;
    replay.put_letter("RetryWindowOver", Some("hook"), Some(state("s1", now, 1, EventKind::ChannelOccupied))).await;
    replay.put_letter("UnknownApp", None, Some(message("m2", 2))).await;
    replay.put_letter("Poison", None, None).await;
    replay.put_letter("EndpointRemoved", Some("gone"), Some(message("m3", 3))).await;
    // The endpoint got the later state of the channel.
    replay.bed.put(CLUSTER, "room", vec![state("s2", now, 2, EventKind::ChannelVacated)]).await;

    let (code, table, progress) = replay.replay(&["--dry-run"]).await;
    assert_eq!(code, Some(0), "{progress}");
    assert!(table.contains("4 would be sent, 3 skipped; nothing was sent"), "{table}");
    let line = |text: &str| table.lines().find(|line| line.contains(text)).unwrap_or_default().to_owned();
    assert!(line("channel_occupied").contains("Skipped: a later state"), "{table}");
    assert!(line("gone").contains("no endpoint of this name"), "{table}");
    assert_eq!(replay.take_acknowledged(), []);

    let (code, report, _) = replay.replay(&["-o", "json"]).await;
    let report: Value = serde_json::from_str(&report).expect("a report");
    assert_eq!(code, Some(1), "one endpoint answers 500: {report}");
    assert_eq!(report["totals"], serde_json::json!({ "Delivered": 3, "Failed": 1, "Skipped": 3 }));
    let failed = report["items"].as_array().expect("items").iter().find(|item| item["result"] == "Failed");
    assert_eq!(failed.expect("one")["message"], "answered 500");
    assert_eq!(replay.take_acknowledged(), rows(&[("hook", "m1"), ("hook", "m2"), ("second", "m2")]));
    assert_eq!(read_letters(&replay.dead).await.len(), 5, "a replay writes no letter");

    let (code, text, _) = replay.replay(&["--endpoint", "hook", "--reason", "RetryWindowOver", "--all"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "2 delivered, 0 failed, 0 skipped\n"));
    assert_eq!(replay.take_acknowledged(), rows(&[("hook", "m1"), ("hook", "s1")]));
    let (code, text, _) = replay.replay(&["--until", "1h", "--since", "2h"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "0 delivered, 0 failed, 0 skipped\n"));
}

#[tokio::test]
async fn an_event_that_its_endpoint_refuses_holds_back_no_other() {
    let replay = ReplayBed::new().await;
    for (n, id) in (1..).zip(["m1", REFUSED_EVENT, "m2"]) {
        replay.put_letter("RetryWindowOver", Some("hook"), Some(message(id, n))).await;
    }
    let (code, report, _) = replay.replay(&["-o", "json"]).await;
    let report: Value = serde_json::from_str(&report).expect("a report");
    assert_eq!((code, &report["totals"]), (Some(1), &serde_json::json!({ "Delivered": 2, "Failed": 1 })), "{report}");
    let failed = report["items"].as_array().expect("items").iter().find(|item| item["result"] == "Failed");
    assert_eq!(failed.expect("one")["event"], REFUSED_EVENT);
    assert_eq!(replay.take_acknowledged(), rows(&[("hook", "m1"), ("hook", "m2")]));
}

#[tokio::test]
async fn a_named_url_gets_the_letters_of_one_app_and_private_addresses_are_refused() {
    let replay = ReplayBed::new().await;
    replay.put_letter("EndpointRemoved", Some("gone"), Some(message("m1", 1))).await;
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "other secret\n").expect("written");
    let (url, file) = (format!("{}/elsewhere", replay.url), secret.path().display().to_string());
    let named = ["--app", "1001", "--url", &url, "--key", "other", "--secret-file", &file];
    let (code, text, _) = replay.replay_within("10.0.0.0/8", &named).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("127.0.0.1 is not a public address"), "{text}");
    assert_eq!(replay.take_acknowledged(), []);
    let (code, text, progress) = replay.replay(&named).await;
    assert_eq!((code, text.as_str()), (Some(0), "1 delivered, 0 failed, 0 skipped\n"), "{progress}");
    assert_eq!(replay.take_acknowledged(), rows(&[("elsewhere", "m1")]));
}

#[tokio::test]
async fn input_that_cannot_be_used_ends_a_replay_with_its_remedy_before_anything_is_sent() {
    let replay = ReplayBed::new().await;
    for (name, arguments, says) in [
        ("a stream that does not exist", &["--stream", "none"][..], "check the stream's name, the region"),
        ("a time that is none", &["--since", "yesterday"], "or an age such as 90m, 6h or 2d"),
        ("a range that is empty", &["--since", "1h", "--until", "2h"], "exchange them"),
        ("no registry", &["--apps", "/nowhere"], "name its directory by --apps"),
        ("a URL without a key", &["--url", "https://a.test"], "--key"),
    ] {
        let (code, _, error) = replay.replay(arguments).await;
        assert_eq!(code, Some(2), "{name}: {error}");
        assert!(error.contains(says), "{name}: {error}");
    }
}
