//! Dead letters: an event that is given up is in the dead-letter stream before its record counts as finished.

use realtime_operator::kinesis::{LiveCapacity, ReadPosition};
use realtime_operator::protocol::AppId;
use realtime_operator::protocol::dead_letter::{DeadLetter, RawContent};

use super::scripted_receiver::{Behaviour, ScriptedReceiver};
use super::*;
use crate::waiting::eventually_within;

pub const DEAD: &str = "dead";
const DEAD_LETTERS: (&str, &str) = ("REALTIME_DEAD_LETTER_STREAM", DEAD);
/// A flood, in events and in events per record.
const FLOOD_EVENTS: u64 = 30_000;
const FLOOD_RECORD_EVENTS: u64 = 100;

pub(super) async fn create_dead_letter_stream(bed: &Bed) -> KinesisClient {
    let client = connect_kinesis(&bed.endpoint, DEAD).await;
    client.create_stream(LiveCapacity::Provisioned(1), &BTreeMap::new()).await.expect("created");
    wait_until_active(&client).await;
    client
}

/// Every letter of the stream, oldest first.
pub async fn read_letters(client: &KinesisClient) -> Vec<DeadLetter> {
    let shard = client.list_shards().await.expect("shards").remove(0).id;
    let mut iterator = client.request_iterator(&shard, &ReadPosition::TrimHorizon).await.expect("an iterator");
    let mut letters = Vec::new();
    loop {
        let page = client.read(&iterator, 1_000).await.expect("a page");
        letters.extend(page.records.iter().map(|record| DeadLetter::parse(&record.data).expect("a letter")));
        match page.next {
            Some(next) if !page.records.is_empty() => iterator = next,
            _ => return letters,
        }
    }
}

async fn wait_for_letters(client: &KinesisClient, count: usize) -> Vec<DeadLetter> {
    let enough = |letters: &Vec<DeadLetter>| letters.len() >= count;
    eventually(&format!("{count} letters"), async || read_letters(client).await, enough).await
}

fn written(flow: &DispatcherFlow) -> BTreeMap<String, u64> {
    flow.dead_letter.as_ref().map(|letters| letters.written.clone()).unwrap_or_default()
}

fn rubbish() -> PutEntry {
    PutEntry { partition_key: "1001/a".into(), data: Bytes::from_static(b"\xf3\x89\x9a\xc2") }
}

#[tokio::test]
async fn an_event_becomes_a_letter_for_the_endpoint_that_did_not_take_it() {
    let bed = Bed::new(1).await;
    let dead = create_dead_letter_stream(&bed).await;
    let receiver = ScriptedReceiver::default();
    let url = receiver.serve().await;
    receiver.set("broken", Behaviour::Status(503));
    let endpoints = ["works", "broken"].map(|name| {
        let endpoint = build_webhook(&format!("{url}/{name}"));
        realtime_operator::protocol::registry::WebhookEndpoint { name: name.to_owned(), ..endpoint }
    });
    write_registry(bed.apps.path(), [App { webhooks: endpoints.into(), ..build_app("1001", "key", "secret") }]);
    let settings =
        [LOOPBACK, DEAD_LETTERS, ("REALTIME_RETRY_WINDOW_SECONDS", "2"), ("REALTIME_MAX_BACKOFF_SECONDS", "1")];
    let (running, _) = bed.dispatcher(&settings).await;
    let before = now_ms();
    let put = state("1", before, 1, EventKind::ChannelOccupied);
    bed.put(CLUSTER, "a", vec![put.clone()]).await;
    let letter = wait_for_letters(&dead, 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.cluster.as_str()), ("RetryWindowOver", CLUSTER));
    assert_eq!((letter.app.as_ref().map(AppId::as_str), letter.endpoint.as_deref()), (Some("1001"), Some("broken")));
    assert_eq!((letter.last_answer.as_deref(), letter.time_ms), (Some("answered 503"), Some(before)));
    assert!(letter.attempts >= 2, "{letter:?}");
    assert_eq!((letter.source.stream.as_str(), letter.source.shard.as_str()), ("stream", "shardId-000000000000"));
    let event = letter.parse_event().expect("an event");
    assert_eq!((event.id.as_str(), event.order), ("1", put.order));
    assert_eq!(receiver.received("works").len(), 1);
    let flow = eventually("it is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    assert_eq!(written(&flow), BTreeMap::from([("RetryWindowOver".to_owned(), 1)]));
    assert!(flow.dropped.is_empty(), "{flow:?}");
    let ledger = flow.deliveries.expect("deliveries");
    assert_eq!((ledger.created, ledger.delivered, ledger.dead_lettered, ledger.dropped), (2, 1, 1, 0));
    let broken = endpoint_reports(&running).await.remove("broken").expect("a report");
    assert_eq!((broken.dead_lettered, broken.dropped), (1, 0));
    let metrics = get(&running, "/metrics").await;
    assert!(
        metrics.contains("realtime_dispatcher_events_dead_lettered_total{reason=\"retry_window_over\"} 1"),
        "{metrics}"
    );
    assert_eq!(read_letters(&dead).await.len(), 1);
}

#[tokio::test]
async fn records_that_hold_no_event_of_the_cluster_become_letters_with_their_bytes() {
    let bed = Bed::new(1).await;
    let dead = create_dead_letter_stream(&bed).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK, DEAD_LETTERS]).await;
    bed.put("cluster-2", "a", vec![message("foreign", 0), message("foreign too", 1)]).await;
    bed.kinesis.put_records(&[rubbish()]).await.expect("put");
    bed.put(CLUSTER, "a", vec![message("ours", 1)]).await;
    bed.receiver.receives("ours arrives", |ids| ids == ["ours"]).await;
    let mut letters = wait_for_letters(&dead, 2).await;
    letters.sort_by(|one, other| one.reason.cmp(&other.reason));
    let [foreign, poison] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((foreign.reason.as_str(), poison.reason.as_str()), ("ForeignCluster", "Poison"));
    assert_eq!(foreign.detail.as_deref(), Some("a record of the cluster cluster-2"));
    let bytes = |letter: &DeadLetter| letter.raw.as_ref().and_then(RawContent::decode).expect("bytes");
    let record = StreamRecord::parse(&bytes(foreign)).expect("the whole record");
    assert_eq!((record.edge.cluster.as_str(), record.events.len()), ("cluster-2", 2));
    assert_eq!(bytes(poison), b"\xf3\x89\x9a\xc2");
    let flow = eventually("all is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    let expected = [("ForeignCluster".to_owned(), 2), ("Poison".to_owned(), 1)];
    assert_eq!(written(&flow), BTreeMap::from(expected), "by events");
    let ledger = flow.events.expect("events");
    assert_eq!((ledger.read, ledger.foreign, ledger.poison, ledger.released), (4, 2, 1, 1));
}

#[tokio::test]
async fn a_record_stays_unfinished_until_its_letter_is_written_and_other_events_are_delivered_meanwhile() {
    let (bed, faults) = Bed::with_faults(1).await;
    let dead = create_dead_letter_stream(&bed).await;
    let (running, stop) = bed.dispatcher(&[LOOPBACK, DEAD_LETTERS]).await;
    faults.set(Some(CallFault::UnavailableStream(DEAD)));
    bed.kinesis.put_records(&[rubbish()]).await.expect("put");
    bed.put(CLUSTER, "a", vec![message("1", 1)]).await;
    bed.receiver.receives("the event arrives", |ids| ids == ["1"]).await;
    wait_for_error(&running, &["DeadLetterUnavailable", DEAD, "InternalFailure"]).await;
    let has_letter = |flow: &DispatcherFlow| flow.dead_letter.as_ref().is_some_and(|letters| letters.waiting == 1);
    let waits = |flow: &DispatcherFlow| flow.unfinished == 1 && has_letter(flow);
    let found = eventually("a letter waits", async || flow(&running).await, waits).await;
    assert!(found.shards.values().all(|shard| shard.checkpoint.is_none() && shard.paused.is_none()), "{found:?}");
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("realtime_dispatcher_waiting_dead_letters 1"), "{metrics}");
    // A dispatcher that ends leaves the record to the next one.
    stop.cancel();
    within(Duration::from_secs(15), "the end of the dispatcher", running.wait_until_stopped()).await;
    assert!(read_letters(&dead).await.is_empty());
    let (next, _) = bed.dispatcher(&[LOOPBACK, DEAD_LETTERS]).await;
    wait_for_error(&next, &["DeadLetterUnavailable"]).await;
    faults.set(None);
    let letters = wait_for_letters(&dead, 1).await;
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "Poison"));
    let done = |flow: &DispatcherFlow| flow.unfinished == 0 && flow.last_error.is_none();
    let found = eventually("all is done", async || flow(&next).await, done).await;
    assert!(found.shards.values().all(|shard| shard.checkpoint == shard.read_to), "{found:?}");
}

#[tokio::test]
async fn reading_stops_only_when_letters_fill_the_shards_bound_and_loses_nothing() {
    let (bed, faults) = Bed::with_faults(1).await;
    let dead = create_dead_letter_stream(&bed).await;
    faults.set(Some(CallFault::UnavailableStream(DEAD)));
    let (running, _) = bed.dispatcher(&[LOOPBACK, DEAD_LETTERS]).await;
    for _ in 0..24 {
        let results = bed.kinesis.put_records(&vec![rubbish(); 500]).await.expect("put");
        assert!(results.iter().all(Result::is_ok));
    }
    bed.put(CLUSTER, "a", vec![message("behind", 1)]).await;
    let is_full = |flow: &DispatcherFlow| flow.shards.values().any(|shard| shard.paused.as_deref() == Some("full"));
    let full = eventually("a full shard", async || flow(&running).await, is_full).await;
    assert_eq!(full.unfinished, 10_000);
    assert!(bed.receiver.ids().is_empty());
    faults.set(None);
    bed.receiver.receives("the event behind them arrives", |ids| ids == ["behind"]).await;
    let done = |flow: &DispatcherFlow| flow.unfinished == 0;
    let found = eventually("all is done", async || flow(&running).await, done).await;
    assert_eq!(written(&found), BTreeMap::from([("Poison".to_owned(), 12_000)]));
    let sequences: BTreeSet<String> = read_letters(&dead).await.into_iter().map(|it| it.source.sequence).collect();
    assert_eq!(sequences.len(), 12_000);
}

#[tokio::test]
async fn events_of_a_deleted_app_delay_no_other_app_and_become_letters_after_their_wait() {
    let bed = Bed::new(1).await;
    create_dead_letter_stream(&bed).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK, DEAD_LETTERS]).await;
    bed.put(CLUSTER, "a", vec![message("first", 0)]).await;
    bed.receiver.receives("an event", |ids| ids == ["first"]).await;
    let records: Vec<PutEntry> = (0..FLOOD_EVENTS / FLOOD_RECORD_EVENTS).map(record_of_deleted_app).collect();
    let put = now_ms();
    for records in records.chunks(100) {
        bed.kinesis.put_records(records).await.expect("put");
    }
    let flooded = now_ms();
    bed.put(CLUSTER, "a", vec![message("behind", 1)]).await;
    bed.receiver.receives("the event behind them", |ids| ids.len() == 2).await;
    let (arrived, _) = bed.receiver.events()[1].clone();
    // Reading the flood takes as long as writing it; a machine with other work is slower at both.
    let (delay_ms, flood_ms) = (arrived - flooded, flooded - put);
    assert!(delay_ms < 1_000 + flood_ms, "{delay_ms} ms after a flood that was put in {flood_ms} ms");
    let waits = |flow: &DispatcherFlow| flow.unfinished == FLOOD_EVENTS;
    let found = eventually("they wait for their app", async || flow(&running).await, waits).await;
    assert!(found.shards.values().all(|shard| shard.paused.is_none()), "{found:?}");
    let limit = Duration::from_mins(1);
    let all = BTreeMap::from([("UnknownApp".to_owned(), FLOOD_EVENTS)]);
    eventually_within(limit, "a letter for each", async || match written(&flow(&running).await) {
        found if found == all => Ok(()),
        found => Err(found),
    })
    .await;
    assert!(now_ms() - put > 29_000, "after their wait");
    let found = eventually("all is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    let ledger = found.events.expect("events");
    assert_eq!((ledger.read, ledger.unknown_app, ledger.released), (FLOOD_EVENTS + 2, FLOOD_EVENTS, 2));
}

fn record_of_deleted_app(n: u64) -> PutEntry {
    let first = n * FLOOD_RECORD_EVENTS;
    let events = (first..first + FLOOD_RECORD_EVENTS).map(|n| message(&format!("d{n}"), n)).collect();
    build_record("9", CLUSTER, &format!("c{}", n % 7), events)
}
