//! The proof of dead letters: a record that no dispatcher can parse is put into the stream, and its letter must come out of
//! the dead-letter stream.
//!
//! Once per fingerprint, and again for each requested proof. Attempts follow each other until a letter has come out, so that
//! a mended stream is noticed. A letter of any test record proves, since a dispatcher keeps its letters while they cannot
//! be written.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use ulid::Ulid;

use super::observe::PodObservation;
use crate::gate::DeadLetterProof;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, PutEntry, PutReceipt, ReadPosition, is_before};
use crate::process::clock;
use crate::protocol::admin::DispatcherFlow;
use crate::protocol::dead_letter::DeadLetter;
use crate::protocol::{ShardId, StreamName};

/// First words of a test record, for those who read the letters.
const TEST_RECORD_TEXT: &str = "realtime-operator: test of dead letters, no event: ";

/// Between two reads of one shard: it allows five a second over all its readers (API reference, `GetRecords`).
const LETTER_READ_INTERVAL: Duration = Duration::from_secs(1);

/// Between two test records while none has become a letter: each one stays unfinished in a shard with a bound.
const TEST_RECORD_INTERVAL: Duration = Duration::from_mins(5);

/// Delay after a failed call of the operator.
const FAILED_CALL_DELAY: Duration = Duration::from_secs(30);

/// Test records whose letters are recognised; the oldest are forgotten.
const TEST_RECORDS_MAX: usize = 16;

/// Margin before an attempt's start from which letters are read, since clocks differ.
const CLOCK_SKEW_MARGIN_MS: u64 = 5_000;

/// A record that no dispatcher can parse.
#[derive(Clone, Debug)]
struct TestRecord {
    data: Bytes,
    receipt: PutReceipt,
}

/// The result of one attempt.
#[derive(Debug)]
pub(super) struct LetterAttempt {
    /// The proof that the attempt belongs to.
    proof: u64,
    records: Vec<TestRecord>,
    outcome: Result<LetterOutcome, KinesisError>,
}

/// Findings of one attempt in the dead-letter stream.
#[derive(Debug)]
enum LetterOutcome {
    /// A letter of a test record was read.
    Written,
    /// Every shard was read, and no letter of a test record was in it.
    Missing,
    /// The dead-letter stream does not exist, says Kinesis.
    NoStream(KinesisError),
}

/// The proof under way.
#[derive(Default)]
pub(super) struct LetterProver {
    /// Counts proofs: the result of an attempt counts for its own alone.
    proof: u64,
    records: Vec<TestRecord>,
    last_put: Option<Instant>,
    /// The dispatchers that held the shards when the latest test record was put. One that ends, such as in a rollout, may have
    /// read the record before it, without a dead-letter stream.
    holders_at_put: BTreeMap<ShardId, String>,
    /// Start of the earliest attempt whose letters may not have been read, in ms since 1970.
    since_ms: u64,
    /// Time of the next attempt; `None` while one is under way, and when there is nothing to prove.
    next_attempt: Option<Instant>,
}

impl LetterProver {
    /// A proof that begins now, if the cluster keeps dead letters.
    pub fn restart(&self, is_kept: bool, now_ms: u64) -> Self {
        let next_attempt = is_kept.then(Instant::now);
        Self { proof: self.proof + 1, since_ms: now_ms, next_attempt, ..Self::default() }
    }

    /// Begins the next attempt, if it is due: puts a test record into `stream`, unless one was put lately, and awaits its
    /// letter in `letters`.
    pub fn begin_attempt(
        &mut self,
        (stream, letters): (KinesisClient, KinesisClient),
        observation: &PodObservation,
        timeout: Duration,
        now: Instant,
    ) -> Option<impl Future<Output = LetterAttempt> + Send + use<>> {
        self.next_attempt.take_if(|at| now >= *at)?;
        let puts = self.last_put.is_none_or(|at| now.duration_since(at) >= TEST_RECORD_INTERVAL);
        if puts {
            self.last_put = Some(now);
            self.holders_at_put = list_holders(observation);
        }
        let since_ms = std::mem::replace(&mut self.since_ms, clock::now_ms()).saturating_sub(CLOCK_SKEW_MARGIN_MS);
        let (proof, mut records) = (self.proof, self.records.clone());
        Some(async move {
            let outcome = async {
                if puts {
                    records.push(put_test_record(&stream).await?);
                }
                await_letter(&letters, &records, since_ms, timeout).await
            };
            let outcome = outcome.await;
            LetterAttempt { proof, records, outcome }
        })
    }

    /// Adds the result of an attempt, and plans the next one unless a letter was read. Returns what is known now; `None` if
    /// the attempt says nothing new.
    pub fn add_attempt(
        &mut self,
        attempt: LetterAttempt,
        letters: &StreamName,
        observation: &PodObservation,
        waited: Duration,
    ) -> Option<DeadLetterProof> {
        if attempt.proof != self.proof {
            return None;
        }
        self.records = attempt.records;
        let surplus = self.records.len().saturating_sub(TEST_RECORDS_MAX);
        self.records.drain(..surplus);
        let (proof, delay) = match attempt.outcome {
            Ok(LetterOutcome::Missing) if self.is_handed_over(observation) => {
                self.last_put = None;
                (None, Duration::ZERO)
            }
            Ok(outcome) => (judge_outcome(&outcome, letters, self.records.last(), observation, waited), Duration::ZERO),
            Err(error) => {
                tracing::warn!(%error, "proof of dead letters failed: the operator's own call was refused");
                if self.records.is_empty() {
                    self.last_put = None;
                }
                (Some(DeadLetterProof::Unproven(error.to_string())), FAILED_CALL_DELAY)
            }
        };
        let is_over = proof == Some(DeadLetterProof::Proven);
        self.next_attempt = (!is_over).then(|| Instant::now() + delay);
        proof
    }

    /// Whether the shard of the latest test record has another holder than at the put, so that a missing letter says nothing of
    /// it.
    fn is_handed_over(&self, observation: &PodObservation) -> bool {
        let Some(record) = self.records.last() else { return false };
        let shard = &record.receipt.shard;
        let holder = observation.shard_holder(shard).map(|(pod, _)| pod);
        holder.is_some() && holder != self.holders_at_put.get(shard)
    }
}

/// The dispatcher that holds each shard.
fn list_holders(observation: &PodObservation) -> BTreeMap<ShardId, String> {
    let of_pod = |(pod, flow): (&String, &DispatcherFlow)| {
        flow.shards.keys().map(|shard| (shard.clone(), pod.clone())).collect::<Vec<_>>()
    };
    observation.dispatchers.iter().flat_map(of_pod).collect()
}

/// The proof that follows from an attempt; `None` if it says nothing, because no dispatcher has read the test record yet.
fn judge_outcome(
    outcome: &LetterOutcome,
    letters: &StreamName,
    record: Option<&TestRecord>,
    observation: &PodObservation,
    waited: Duration,
) -> Option<DeadLetterProof> {
    match outcome {
        LetterOutcome::Written => Some(DeadLetterProof::Proven),
        LetterOutcome::NoStream(error) => Some(DeadLetterProof::Broken(format!(
            "lost events are not kept: dead-letter stream {letters} does not exist ({error}); create it, or correct webhooks.deadLetter.name"
        ))),
        LetterOutcome::Missing => {
            let receipt = &record?.receipt;
            let (holder, flow) = observation.shard_holder(&receipt.shard)?;
            let read_to = flow.shards.get(&receipt.shard)?.read_to.as_deref()?;
            if is_before(read_to, &receipt.sequence) {
                return None;
            }
            let error = flow.last_error.as_ref().map_or_else(String::new, |error| format!("; it says: {error}"));
            Some(DeadLetterProof::Broken(format!(
                "lost events are not kept: {holder} read a test record that is no event, and no letter of it was in stream {letters} after {} s{error}; allow kinesis:PutRecords on {letters} to the dispatchers, and check its region and its throughput",
                waited.as_secs()
            )))
        }
    }
}

/// Puts a record that no release can parse.
async fn put_test_record(stream: &KinesisClient) -> Result<TestRecord, KinesisError> {
    let nonce = Ulid::new().to_string();
    let data = Bytes::from(format!("{TEST_RECORD_TEXT}{nonce}"));
    let failed = |code: String, message: String, class| KinesisError {
        operation: "PutRecords",
        stream: stream.stream().to_string(),
        region: stream.region().to_owned(),
        class,
        code,
        message,
    };
    let results = stream.put_records(&[PutEntry { partition_key: nonce, data: data.clone() }]).await?;
    match results.into_iter().next() {
        Some(Ok(receipt)) => Ok(TestRecord { data, receipt }),
        Some(Err(rejection)) => Err(failed(rejection.code, rejection.message.to_owned(), rejection.class)),
        None => Err(failed(String::new(), "the answer has no result".to_owned(), KinesisErrorClass::Transient)),
    }
}

/// Reads the dead-letter stream until it has a letter of a test record, or the time is over.
async fn await_letter(
    letters: &KinesisClient,
    records: &[TestRecord],
    since_ms: u64,
    timeout: Duration,
) -> Result<LetterOutcome, KinesisError> {
    let deadline = Instant::now() + timeout;
    let mut iterators = HashMap::new();
    loop {
        let round = Instant::now();
        let read = read_shards(letters, records, since_ms, &mut iterators).await;
        if let Ok(true) = read {
            return Ok(LetterOutcome::Written);
        }
        if read.is_err() {
            // A stream that was created again has other shards.
            iterators.clear();
        }
        if Instant::now() >= deadline {
            return match read {
                Ok(_) => Ok(LetterOutcome::Missing),
                Err(error) if error.class == KinesisErrorClass::NotFound => Ok(LetterOutcome::NoStream(error)),
                Err(error) => Err(error),
            };
        }
        tokio::time::sleep_until(round + LETTER_READ_INTERVAL).await;
    }
}

/// Reads a page of each shard; returns whether one of them has a letter of a test record.
async fn read_shards(
    letters: &KinesisClient,
    records: &[TestRecord],
    since_ms: u64,
    iterators: &mut HashMap<ShardId, Option<String>>,
) -> Result<bool, KinesisError> {
    if iterators.is_empty() {
        for shard in letters.list_shards().await? {
            let iterator = letters.request_iterator(&shard.id, &ReadPosition::AtTime(since_ms)).await?;
            iterators.insert(shard.id, Some(iterator));
        }
    }
    for iterator in iterators.values_mut() {
        let Some(current) = iterator else { continue };
        let page = letters.read(current, 1_000).await?;
        if page.records.iter().any(|letter| is_letter_of(&letter.data, records)) {
            return Ok(true);
        }
        *iterator = page.next;
    }
    Ok(false)
}

/// Whether these bytes are the letter of a test record.
fn is_letter_of(bytes: &[u8], records: &[TestRecord]) -> bool {
    let raw = DeadLetter::parse(bytes).ok().and_then(|letter| letter.raw?.decode());
    raw.is_some_and(|raw| records.iter().any(|record| record.data == raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::admin::ShardFlow;
    use crate::protocol::dead_letter::{DEAD_LETTER_VERSION, LetterSource, RawContent};
    use crate::protocol::record::{RecordError, StreamRecord};

    fn test_record(nonce: &str) -> TestRecord {
        TestRecord {
            data: Bytes::from(format!("{TEST_RECORD_TEXT}{nonce}")),
            receipt: PutReceipt { shard: ShardId::from("s0"), sequence: "100".into() },
        }
    }

    fn letter(raw: Option<RawContent>) -> Vec<u8> {
        DeadLetter {
            v: DEAD_LETTER_VERSION,
            reason: "Poison".into(),
            detail: None,
            cluster: "u".into(),
            app: None,
            endpoint: None,
            attempts: 0,
            last_answer: None,
            source: LetterSource { stream: "s".into(), shard: "s0".into(), sequence: "100".into() },
            written_ms: 0,
            time_ms: None,
            event: None,
            raw,
        }
        .to_bytes()
    }

    #[test]
    fn a_test_record_is_poison_to_every_release_and_its_letter_is_recognised() {
        let (record, other) = (test_record("n1"), test_record("n2"));
        assert!(matches!(StreamRecord::parse(&record.data), Err(RecordError::Malformed(_))));
        let of = |data: &[u8]| letter(Some(RawContent::encode(data, data.len())));
        let records = [record.clone()];
        for (name, bytes, expected) in [
            ("its letter", of(&record.data), true),
            ("that of another", of(&other.data), false),
            ("a letter of an event", letter(None), false),
            ("no letter", record.data.to_vec(), false),
        ] {
            assert_eq!(is_letter_of(&bytes, &records), expected, "{name}");
        }
    }

    #[test]
    fn a_shard_that_changed_hands_gets_another_test_record() {
        let held_by = |pod: &str| {
            let flow = DispatcherFlow {
                shards: [(ShardId::from("s0"), ShardFlow { read_to: Some("100".into()), ..ShardFlow::default() })]
                    .into(),
                ..DispatcherFlow::default()
            };
            PodObservation { dispatchers: [(pod.to_owned(), flow)].into(), ..PodObservation::default() }
        };
        let letters = StreamName::from("letters");
        let mut prover = LetterProver::default().restart(true, 0);
        (prover.last_put, prover.holders_at_put) = (Some(Instant::now()), list_holders(&held_by("old")));
        let mut add = |pod: &str| {
            let (records, outcome) = (vec![test_record("n1")], Ok(LetterOutcome::Missing));
            let attempt = LetterAttempt { proof: prover.proof, records, outcome };
            let proof = prover.add_attempt(attempt, &letters, &held_by(pod), Duration::ZERO);
            (proof.is_some(), prover.last_put.is_some())
        };
        assert_eq!(add("old"), (true, true), "its holder keeps no letters");
        assert_eq!(add("new"), (false, false), "the former holder may have read it");
    }

    #[test]
    fn a_letter_is_missing_only_once_the_holder_of_the_shard_has_read_the_test_record() {
        let flow = |read_to: Option<&str>| {
            let shard = ShardFlow { read_to: read_to.map(str::to_owned), ..ShardFlow::default() };
            DispatcherFlow {
                shards: [(ShardId::from("s0"), shard)].into(),
                last_error: Some("DeadLetterUnavailable: denied".into()),
                ..DispatcherFlow::default()
            }
        };
        let observed = |flow: Option<DispatcherFlow>| PodObservation {
            dispatchers: flow.map(|flow| ("d-0".to_owned(), flow)).into_iter().collect(),
            ..PodObservation::default()
        };
        let letters = StreamName::from("letters");
        let record = test_record("n1");
        for (name, record, flow, part) in [
            ("no test record", None, Some(flow(Some("100"))), None),
            ("no holder", Some(&record), None, None),
            ("nothing read", Some(&record), Some(flow(None)), None),
            ("read up to before it", Some(&record), Some(flow(Some("99"))), None),
            ("read", Some(&record), Some(flow(Some("100"))), Some("d-0 read a test record")),
            ("read on", Some(&record), Some(flow(Some("1000"))), Some("it says: DeadLetterUnavailable: denied; allow")),
        ] {
            let observation = observed(flow);
            let waited = Duration::from_secs(30);
            let proof = judge_outcome(&LetterOutcome::Missing, &letters, record, &observation, waited);
            match (part, proof) {
                (None, None) => {}
                (Some(part), Some(DeadLetterProof::Broken(message))) => {
                    assert!(message.contains(part) && message.contains("stream letters"), "{name}: {message}");
                }
                (_, other) => panic!("{name}: {other:?}"),
            }
        }
        let written = judge_outcome(&LetterOutcome::Written, &letters, None, &observed(None), Duration::ZERO);
        assert_eq!(written, Some(DeadLetterProof::Proven));
    }
}
