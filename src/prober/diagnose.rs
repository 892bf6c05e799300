//! Which hop broke when a webhook did not come: the stream is read back and the servers' own accounts are asked.

use std::time::Duration;

use super::observe::PodObserver;
use super::read_back::{SoughtRecord, StreamReadBack};
use super::{Entrance, ProbePlan};
use crate::api::Reason;
use crate::gate::Hop;
use crate::kinesis::{KinesisErrorClass, is_before};
use crate::prober::clients::link::BrokenHop;
use crate::protocol::StreamName;
use crate::protocol::admin::RecorderState;

/// A webhook that did not arrive, with the place of its record.
pub(super) struct MissingWebhook<'a> {
    /// The pod or route that took the event.
    pub entrance: &'a Entrance,
    /// The record of the missing event.
    pub record: SoughtRecord<'a>,
    /// Time spent waiting for the webhook.
    pub waited: Duration,
}

/// Names the first broken hop.
pub(super) async fn diagnose_missing_webhook(
    plan: &ProbePlan,
    observer: &PodObserver,
    read_back: &StreamReadBack,
    missing: &MissingWebhook<'_>,
) -> BrokenHop {
    let Some(client) = &plan.stream else {
        let detail =
            format!("no {} webhook of {}, and no stream to read back", missing.record.event, missing.entrance.name);
        return BrokenHop::ambiguous(Hop::Record, Reason::RecordMissing, detail);
    };
    let (pod, stream) = (&missing.entrance.name, client.stream());
    let seconds = missing.waited.as_secs();
    match read_back.find_record(client, &missing.record).await {
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
            let event = missing.record.event;
            let detail = format!("subscribed on {pod}, but no {event} record reached stream {stream} in {seconds} s");
            BrokenHop::decisive(Hop::Record, Reason::RecordMissing, detail)
        }
        Err(error) if error.class == KinesisErrorClass::NotFound => {
            BrokenHop::decisive(Hop::Record, Reason::StreamMissing, format!("subscribed on {pod}, but {error}"))
        }
        Err(error) => {
            let event = missing.record.event;
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
    let (pod, shard, seconds) = (&missing.entrance.name, missing.record.shard, missing.waited.as_secs());
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
    let event = missing.record.event;
    let detail =
        format!("{holder} read the {event} of {pod} from {shard}, but no webhook arrived in {seconds} s{error}");
    let broken = BrokenHop::ambiguous(Hop::Delivery, Reason::WebhookMissing, detail);
    BrokenHop { dispatcher: Some(holder.clone()), ..broken }
}
