//! Which hop broke when a webhook did not come: the stream is read back and the servers' own accounts are asked.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::observe::PodObserver;
use super::{Entrance, ProbePlan};
use crate::api::Reason;
use crate::gate::Hop;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, ReadPosition, is_before};
use crate::prober::clients::link::BrokenHop;
use crate::protocol::admin::RecorderState;
use crate::protocol::record::StreamRecord;
use crate::protocol::{ChannelName, ShardId, StreamName};

/// Between two reads of one shard: it allows five a second over all its readers, and the dispatcher needs four.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Most reads for one diagnosis.
const DIAGNOSIS_READS_MAX: usize = 10;

/// Margin before the journey's start from which the stream is read, since clocks differ.
const CLOCK_SKEW_MARGIN_MS: u64 = 5_000;

/// Pause before an unreadable stream is read again: other waiting journeys would get the same answer, only later.
const READ_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Reads the stream back, one diagnosis at a time.
#[derive(Default)]
pub(super) struct StreamReadBack {
    /// When the stream last could not be read, and why.
    last_failure: Mutex<Option<(Instant, KinesisError)>>,
}

/// A webhook that did not arrive, with the place of its record.
pub(super) struct MissingWebhook<'a> {
    /// The pod or route that took the event.
    pub entrance: &'a Entrance,
    /// The event's name in webhooks.
    pub event: &'a str,
    /// The channel of the missing event.
    pub channel: &'a ChannelName,
    /// The shard that holds the channel's records.
    pub shard: &'a ShardId,
    /// When the journey began, in ms since 1970.
    pub since_ms: u64,
    /// Time spent waiting for the webhook.
    pub waited: Duration,
}

impl StreamReadBack {
    /// The sequence number of the missing event's record; `None` when the stream was read to its newest record and does
    /// not have it. Anything less is an error: it proves nothing.
    async fn find_record(
        &self,
        stream: &KinesisClient,
        missing: &MissingWebhook<'_>,
    ) -> Result<Option<String>, KinesisError> {
        let mut turn = self.last_failure.lock().await;
        if let Some((at, error)) = turn.as_ref().filter(|(at, _)| at.elapsed() < READ_RETRY_DELAY) {
            tracing::debug!(ago = ?at.elapsed(), "read-back of the stream skipped: it failed recently");
            return Err(error.clone());
        }
        let found = Self::read(stream, missing).await;
        *turn = found
            .as_ref()
            .err()
            .filter(|error| error.class == KinesisErrorClass::Transient)
            .map(|e| (Instant::now(), e.clone()));
        found
    }

    async fn read(stream: &KinesisClient, missing: &MissingWebhook<'_>) -> Result<Option<String>, KinesisError> {
        let position = ReadPosition::AtTime(missing.since_ms.saturating_sub(CLOCK_SKEW_MARGIN_MS));
        let mut iterator = stream.request_iterator(missing.shard, &position).await?;
        for read in 0..DIAGNOSIS_READS_MAX {
            if read > 0 {
                tokio::time::sleep(READ_INTERVAL).await;
            }
            let page = stream.read(&iterator, 1000).await?;
            let found = page.records.iter().find(|record| {
                StreamRecord::parse(&record.data).is_ok_and(|record| {
                    record.channel == *missing.channel
                        && record.events.iter().any(|event| event.kind.name() == missing.event)
                })
            });
            if let Some(found) = found {
                return Ok(Some(found.sequence.clone()));
            }
            match page.next {
                Some(next) if page.behind_ms > 0 => iterator = next,
                Some(_) => return Ok(None),
                None => break,
            }
        }
        Err(KinesisError {
            operation: "GetRecords",
            stream: stream.stream().to_string(),
            region: stream.region().to_owned(),
            class: KinesisErrorClass::Transient,
            code: String::new(),
            message: format!("{} was not read to its newest record", missing.shard),
        })
    }
}

/// Names the first broken hop.
pub(super) async fn diagnose_missing_webhook(
    plan: &ProbePlan,
    observer: &PodObserver,
    read_back: &StreamReadBack,
    missing: &MissingWebhook<'_>,
) -> BrokenHop {
    let Some(client) = &plan.stream else {
        let detail = format!("no {} webhook of {}, and no stream to read back", missing.event, missing.entrance.name);
        return BrokenHop::ambiguous(Hop::Record, Reason::RecordMissing, detail);
    };
    let (pod, stream) = (&missing.entrance.name, client.stream());
    let seconds = missing.waited.as_secs();
    match read_back.find_record(client, missing).await {
        Ok(Some(sequence)) => diagnose_after_stream(plan, observer, missing, (stream, &sequence)).await,
        Ok(None) => {
            let flow = match missing.entrance.admin {
                Some(admin) => observer.read_flow(&plan.admin_token, admin).await,
                None => None,
            };
            let recorder = flow.and_then(|flow| flow.recorder);
            let writes = recorder.filter(|recorder| recorder.state == RecorderState::Kinesis);
            if let Some(error) = writes.and_then(|recorder| recorder.last_error) {
                let detail = format!("subscribed on {pod}, but its records are refused: {error}");
                return BrokenHop::decisive(Hop::Record, Reason::RecordRefused, detail);
            }
            let event = missing.event;
            let detail = format!("subscribed on {pod}, but no {event} record reached stream {stream} in {seconds} s");
            BrokenHop::decisive(Hop::Record, Reason::RecordMissing, detail)
        }
        Err(error) if error.class == KinesisErrorClass::NotFound => {
            BrokenHop::decisive(Hop::Record, Reason::StreamMissing, format!("subscribed on {pod}, but {error}"))
        }
        Err(error) => {
            let event = missing.event;
            let detail =
                format!("no {event} webhook of {pod} in {seconds} s, and the stream cannot be read back: {error}");
            BrokenHop::ambiguous(Hop::Record, Reason::RecordMissing, detail)
        }
    }
}

async fn diagnose_after_stream(
    plan: &ProbePlan,
    observer: &PodObserver,
    missing: &MissingWebhook<'_>,
    (stream, sequence): (&StreamName, &str),
) -> BrokenHop {
    let (pod, shard, seconds) = (&missing.entrance.name, missing.shard, missing.waited.as_secs());
    let observation = observer.observe_all(plan).await;
    let stuck = |detail| BrokenHop::ambiguous(Hop::Dispatch, Reason::DispatcherStuck, detail);
    let Some((holder, flow)) = observation.shard_holder(shard) else {
        return stuck(format!("the event of {pod} is in {shard} of stream {stream}, which no dispatcher holds"));
    };
    let error = flow.last_error.as_ref().map_or_else(String::new, |error| format!("; it says: {error}"));
    if flow.stream != stream.as_str() {
        return stuck(format!("the event of {pod} is in stream {stream}, but {holder} reads {}{error}", flow.stream));
    }
    let read_to = flow.shards.get(shard).and_then(|shard| shard.read_to.as_deref());
    if read_to.is_none_or(|read_to| is_before(read_to, sequence)) {
        return stuck(format!(
            "the event of {pod} is in {shard} of stream {stream}, but {holder} has not read it after {seconds} s{error}"
        ));
    }
    let event = missing.event;
    let detail =
        format!("{holder} read the {event} of {pod} from {shard}, but no webhook arrived in {seconds} s{error}");
    let broken = BrokenHop::ambiguous(Hop::Delivery, Reason::WebhookMissing, detail);
    BrokenHop { dispatcher: Some(holder.clone()), ..broken }
}
