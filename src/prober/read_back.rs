//! Reads the stream back: one reader per shard for every journey that misses a webhook, and shards in parallel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::nonce::is_journey_channel;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, ReadPosition, RecordPage};
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::record::StreamRecord;
use crate::protocol::{ChannelName, ShardId, StreamName};

/// Between two reads of one shard: it allows five a second over all its readers, and the dispatcher needs four.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Most reads for one diagnosis.
const DIAGNOSIS_READS_MAX: usize = 10;

/// Margin before a journey's start from which the stream is read, since clocks differ.
const CLOCK_SKEW_MARGIN_MS: u64 = 5_000;

/// Pause before an unreadable shard is read again: other waiting journeys would get the same answer, only later.
const READ_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Events of journeys that a reader remembers, twelve per journey; beyond it begins anew.
const REMEMBERED_EVENTS_MAX: usize = 12_000;

/// The event of a record: its channel and its name in webhooks.
type RecordedEventKey = (ChannelName, String);

/// The reader of one shard, for the journeys that wait for it in turn.
type SharedReader = Arc<Mutex<ShardReader>>;

/// The readers of a stream's shards, as many as the stream ever had shards.
#[derive(Default)]
pub(super) struct StreamReadBack {
    readers: std::sync::Mutex<HashMap<(StreamName, ShardId), SharedReader>>,
}

/// An event whose record is looked for.
pub(super) struct SoughtRecord<'a> {
    /// The event's name in webhooks.
    pub event: &'a str,
    /// The channel of the event.
    pub channel: &'a ChannelName,
    /// The shard that holds the channel's records.
    pub shard: &'a ShardId,
    /// When the journey began, in ms since 1970.
    pub since_ms: u64,
}

/// The reader of one shard.
#[derive(Default)]
struct ShardReader {
    place: Option<ReadPlace>,
    /// Sequence number of each event of a journey that was read since the place's beginning.
    found: HashMap<RecordedEventKey, String>,
    /// When the shard last could not be read, and why.
    last_failure: Option<(Instant, KinesisError)>,
}

/// The place that a reader has reached.
struct ReadPlace {
    iterator: String,
    /// Time of the first record, in ms since 1970.
    from_ms: u64,
    /// Time of the latest read, in ms since 1970.
    read_ms: u64,
    last_read: Option<Instant>,
    /// Start of the latest read that reached the newest record.
    newest_at: Option<Instant>,
}

impl StreamReadBack {
    /// The sequence number of the event's record; `None` when the shard was read to its newest record and does not have
    /// it. Anything less is an error: it proves nothing.
    pub async fn find_record(
        &self,
        stream: &KinesisClient,
        sought: &SoughtRecord<'_>,
    ) -> Result<Option<String>, KinesisError> {
        let asked = Instant::now();
        let reader = {
            let mut readers = lock_unpoisoned(&self.readers);
            readers.entry((stream.stream().clone(), sought.shard.clone())).or_default().clone()
        };
        let mut reader = reader.lock().await;
        if let Some((at, error)) = reader.last_failure.as_ref().filter(|(at, _)| at.elapsed() < READ_RETRY_DELAY) {
            tracing::debug!(ago = ?at.elapsed(), "read-back of the stream skipped: it failed recently");
            return Err(error.clone());
        }
        let found = reader.find(stream, sought, asked).await;
        if let Err(error) = &found {
            reader.place = None;
            let transient = error.class == KinesisErrorClass::Transient;
            reader.last_failure = transient.then(|| (Instant::now(), error.clone()));
        }
        found
    }
}

impl ShardReader {
    async fn find(
        &mut self,
        stream: &KinesisClient,
        sought: &SoughtRecord<'_>,
        asked: Instant,
    ) -> Result<Option<String>, KinesisError> {
        let since_ms = sought.since_ms.saturating_sub(CLOCK_SKEW_MARGIN_MS);
        if self.place.as_ref().is_none_or(|place| place.from_ms > since_ms || place.read_ms < since_ms)
            || self.found.len() > REMEMBERED_EVENTS_MAX
        {
            self.begin_at(stream, sought.shard, since_ms).await?;
        }
        let key = (sought.channel.clone(), sought.event.to_owned());
        for _ in 0..DIAGNOSIS_READS_MAX {
            if let Some(sequence) = self.found.get(&key) {
                return Ok(Some(sequence.clone()));
            }
            let Some(place) = &self.place else { break };
            // Another journey's diagnosis has read to the newest record since this one was asked for.
            if place.newest_at.is_some_and(|at| at >= asked) {
                return Ok(None);
            }
            self.read_page(stream).await?;
        }
        match (self.found.get(&key), &self.place) {
            (Some(sequence), _) => Ok(Some(sequence.clone())),
            (None, Some(place)) if place.newest_at.is_some_and(|at| at >= asked) => Ok(None),
            _ => Err(KinesisError {
                operation: "GetRecords",
                stream: stream.stream().to_string(),
                region: stream.region().to_owned(),
                class: KinesisErrorClass::Transient,
                code: String::new(),
                message: format!("{} was not read to its newest record", sought.shard),
            }),
        }
    }

    async fn begin_at(&mut self, stream: &KinesisClient, shard: &ShardId, from_ms: u64) -> Result<(), KinesisError> {
        let iterator = stream.request_iterator(shard, &ReadPosition::AtTime(from_ms)).await?;
        self.found.clear();
        self.place = Some(ReadPlace { iterator, from_ms, read_ms: clock::now_ms(), last_read: None, newest_at: None });
        Ok(())
    }

    /// Reads one page, not sooner than [`READ_INTERVAL`] after the former one.
    async fn read_page(&mut self, stream: &KinesisClient) -> Result<(), KinesisError> {
        let Some(place) = &mut self.place else { return Ok(()) };
        if let Some(last) = place.last_read {
            tokio::time::sleep_until(last + READ_INTERVAL).await;
        }
        let started = Instant::now();
        (place.last_read, place.read_ms) = (Some(started), clock::now_ms());
        let RecordPage { records, next, behind_ms } = stream.read(&place.iterator, 1000).await?;
        for record in &records {
            let Ok(parsed) = StreamRecord::parse(&record.data) else { continue };
            if !is_journey_channel(&parsed.channel) {
                continue;
            }
            for event in parsed.events {
                let key = (parsed.channel.clone(), event.kind.name().to_owned());
                self.found.entry(key).or_insert_with(|| record.sequence.clone());
            }
        }
        match next {
            Some(next) => {
                place.iterator = next;
                if behind_ms == 0 {
                    place.newest_at = Some(started);
                }
            }
            None => self.place = None,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Json;
    use axum::Router;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::routing::post;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    use super::*;
    use crate::kinesis::{AwsCredentials, StreamSettings};
    use crate::protocol::record::{EventKind, RecordOrigin, RecordedEvent};

    const JOURNEYS: usize = 40;
    const RECORDED: usize = JOURNEYS / 2;

    fn channel(n: usize) -> ChannelName {
        ChannelName::parse(&format!("presence-probe-n{n}")).expect("a name")
    }

    /// Records of one event each, as Kinesis returns them.
    fn page() -> Value {
        let record = |n: usize| {
            let event = RecordedEvent {
                id: n.to_string(),
                time_ms: 1,
                order: None,
                n: None,
                cause: None,
                kind: EventKind::ChannelOccupied,
            };
            let edge =
                RecordOrigin { cluster: "c".into(), server: "websocket".into(), pod: "p".into(), process: "x".into() };
            let record = StreamRecord { v: 1, app: "1".into(), channel: channel(n), edge, events: vec![event] };
            let data = ByteString(record.to_bytes().expect("bytes"));
            json!({ "Data": data, "PartitionKey": "k", "SequenceNumber": n.to_string() })
        };
        let records: Vec<Value> = (0..RECORDED).map(record).collect();
        json!({ "Records": records, "NextShardIterator": "next", "MillisBehindLatest": 0 })
    }

    async fn answer(
        State(reads): State<Arc<AtomicUsize>>,
        headers: HeaderMap,
    ) -> ([(&'static str, &'static str); 1], Json<Value>) {
        let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let body = if target.ends_with(".GetRecords") {
            reads.fetch_add(1, Ordering::Relaxed);
            page()
        } else {
            json!({ "ShardIterator": "first" })
        };
        ([("content-type", "application/x-amz-json-1.1")], Json(body))
    }

    #[tokio::test]
    async fn the_journeys_that_miss_webhooks_of_one_shard_share_its_reader() {
        crate::process::install_tls();
        let reads = Arc::new(AtomicUsize::new(0));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(post(answer)).with_state(reads.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let credentials = AwsCredentials::Static { access_key_id: "a".to_owned(), secret_access_key: "s".to_owned() };
        let endpoint = Some(format!("http://{address}"));
        let settings = StreamSettings { stream: "s".into(), region: "eu-west-1".to_owned(), endpoint, credentials };
        let (stream, read_back) = (KinesisClient::connect(&settings).await, StreamReadBack::default());
        let now_ms = clock::now_ms();
        let diagnose = async |n: usize| {
            let (channel, shard) = (channel(n), ShardId::from(if n.is_multiple_of(2) { "even" } else { "odd" }));
            let sought = SoughtRecord {
                event: "channel_occupied",
                channel: &channel,
                shard: &shard,
                since_ms: now_ms + n as u64,
            };
            read_back.find_record(&stream, &sought).await.expect("read")
        };
        let began = Instant::now();
        let found = futures::future::join_all((0..JOURNEYS).map(diagnose)).await;
        for (n, found) in found.into_iter().enumerate() {
            assert_eq!(found, (n < RECORDED).then(|| n.to_string()), "journey {n}");
        }
        assert_eq!(reads.load(Ordering::Relaxed), 2, "one read of each shard");
        assert!(began.elapsed() < READ_INTERVAL, "shards are read in parallel, without a pause: {:?}", began.elapsed());
    }
}
