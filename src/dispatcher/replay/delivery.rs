//! Sends the selected letters, endpoint by endpoint.
//!
//! The events of a body that an endpoint refuses are posted one by one, so that a bad event costs itself alone. An endpoint
//! that does not answer, or refuses event after event, gets no further body: its other letters stay in the stream for
//! another replay.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::selection::{Decision, SelectedLetter, SkipCause};
use crate::dispatcher::endpoint::queue::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::dispatcher::endpoint::{AttemptOutcome, EndpointId, OutgoingEvent, PendingDelivery};
use crate::dispatcher::events::FOREIGN_SLOT;
use crate::dispatcher::retry::backoff_ms;
use crate::dispatcher::sender::WebhookSender;

/// Attempts to post one body.
const ATTEMPTS_MAX: u32 = 4;
/// Longest back-off between two of them.
const ATTEMPT_BACKOFF_MAX_MS: u64 = 5_000;
/// Consecutive events that failed alone, after which an endpoint gets no further body.
const FAILED_EVENTS_MAX: u32 = 5;

/// Sends letters at a pace.
pub struct ReplaySender {
    sender: WebhookSender,
    events_per_second: u32,
}

/// The result of one body.
enum BodyResult {
    Delivered,
    /// The endpoint is not in the registry.
    Removed,
    /// The endpoint answered with a failure.
    Refused(String),
    /// The endpoint did not answer, or may not be called.
    Unanswered(String),
}

impl ReplaySender {
    /// A sender of at most so many events a second.
    pub fn new(sender: WebhookSender, events_per_second: u32) -> Self {
        Self { sender, events_per_second: events_per_second.max(1) }
    }

    /// Sends every letter that is to be sent, and sets its result. The letters of an endpoint follow each other.
    pub async fn send_all(&mut self, selected: &mut [SelectedLetter], progress: &dyn Fn(&str)) {
        let mut pending: Vec<&mut SelectedLetter> =
            selected.iter_mut().filter(|letter| letter.decision == Decision::Send).collect();
        for letters in pending.chunk_by_mut(|one, other| one.target == other.target) {
            let Some(target) = letters.first().and_then(|letter| letter.target.clone()) else { continue };
            progress(&format!("sending {} letters to {target}", letters.len()));
            self.send_to_endpoint(&target, letters).await;
        }
    }

    async fn send_to_endpoint(&self, target: &EndpointId, letters: &mut [&mut SelectedLetter]) {
        // Letters before `alone_until` are of a body that was refused: each is posted alone.
        let (mut from, mut alone_until, mut failed_alone) = (0, 0, 0);
        let mut given_up: Option<String> = None;
        while let Some(rest) = letters.get_mut(from..).filter(|rest| !rest.is_empty()) {
            let is_dissolved = from < alone_until;
            let len = if is_dissolved { 1 } else { body_len(rest).min(self.sender.batch_limit(target)) };
            let body = rest.split_at_mut(len).0;
            if let Some(why) = &given_up {
                set_result(body, &Decision::Failed(format!("not tried: the endpoint was given up: {why}")));
                from += len;
                continue;
            }
            let decision = match self.post_body(target, body).await {
                BodyResult::Refused(_) if len > 1 => {
                    alone_until = from + len;
                    continue;
                }
                BodyResult::Delivered => Decision::Delivered,
                BodyResult::Removed => Decision::Skip(SkipCause::NoEndpoint),
                BodyResult::Unanswered(why) if !is_dissolved => {
                    given_up = Some(why.clone());
                    Decision::Failed(why)
                }
                BodyResult::Refused(why) | BodyResult::Unanswered(why) => {
                    failed_alone += 1;
                    given_up = (failed_alone >= FAILED_EVENTS_MAX).then(|| why.clone());
                    Decision::Failed(why)
                }
            };
            if !matches!(decision, Decision::Failed(_)) {
                failed_alone = 0;
            }
            set_result(body, &decision);
            from += len;
        }
    }

    /// Posts one body until it is acknowledged or its attempts are used up.
    async fn post_body(&self, target: &EndpointId, letters: &[&mut SelectedLetter]) -> BodyResult {
        let deliveries: Vec<PendingDelivery> = letters.iter().filter_map(|letter| build_delivery(letter)).collect();
        let mut last = BodyResult::Unanswered("not sent".to_owned());
        for attempt in 1..=ATTEMPTS_MAX {
            let pace = Duration::from_secs(1) * u32::try_from(deliveries.len()).unwrap_or(1) / self.events_per_second;
            sleep(pace).await;
            let report = self.sender.send_batch(target, &deliveries).await;
            let why = report.failure.as_deref().unwrap_or("no answer").to_owned();
            match report.outcome {
                AttemptOutcome::Delivered => return BodyResult::Delivered,
                AttemptOutcome::Removed | AttemptOutcome::Disabled => return BodyResult::Removed,
                AttemptOutcome::Failed { answered, retry_after_ms } => {
                    last = if answered { BodyResult::Refused(why) } else { BodyResult::Unanswered(why) };
                    if attempt < ATTEMPTS_MAX {
                        let backoff = backoff_ms(attempt, ATTEMPT_BACKOFF_MAX_MS, rand::random());
                        sleep(Duration::from_millis(backoff.max(retry_after_ms.unwrap_or(0)))).await;
                    }
                }
            }
        }
        last
    }
}

/// Number of the first letters that share a body.
fn body_len(letters: &[&mut SelectedLetter]) -> usize {
    let mut bytes = 0;
    let fits = |letter: &&&mut SelectedLetter| {
        bytes += letter.letter.event.as_ref().map_or(0, |event| event.get().len());
        bytes <= BATCH_BYTES_MAX
    };
    letters.iter().take(BATCH_EVENTS_MAX).take_while(fits).count().max(1)
}

fn set_result(letters: &mut [&mut SelectedLetter], decision: &Decision) {
    for letter in letters {
        letter.decision = decision.clone();
    }
}

/// The delivery of a letter's event, of no shard.
fn build_delivery(letter: &SelectedLetter) -> Option<PendingDelivery> {
    let event = letter.event.clone()?;
    let outgoing = Arc::new(OutgoingEvent::new(event, letter.letter.time_ms.unwrap_or_default()));
    Some(PendingDelivery { hold: FOREIGN_SLOT, record: 0, since_ms: 0, outgoing })
}
