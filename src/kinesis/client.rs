//! The client of one stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kinesis::Client as Sdk;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::primitives::{Blob, DateTime};
use aws_sdk_kinesis::types::{EncryptionType, PutRecordsRequestEntry, ShardIteratorType, StreamMode};
use aws_smithy_http_client::tls;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use bytes::Bytes;

use super::call_budget::CallBudget;
use super::call_metrics::{KinesisCallMetrics, KinesisOperation};
use super::error::{classify_code, explain_code, plain_code};
use super::{KinesisError, KinesisErrorClass, Shard};
use crate::protocol::{ShardId, StreamName};

/// Bounds one attempt. A shorter timeout would write batches twice: a put that was stored and whose answer came late
/// counts as failed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The source of the AWS credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsCredentials {
    /// The SDK's chain, which the configuration narrows to the one identity.
    Chain,
    /// A fixed access key.
    Static {
        /// The id of the access key.
        access_key_id: String,
        /// The secret of the access key.
        secret_access_key: String,
    },
}

/// The stream, its region and the credentials for it.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// Name of the stream.
    pub stream: StreamName,
    /// The region, always explicit.
    pub region: String,
    /// An address of Kinesis other than the region's own.
    pub endpoint: Option<String>,
    /// The source of the credentials.
    pub credentials: AwsCredentials,
}

/// A client of one stream. Cheap to clone; one attempt per call, 5 s at most.
#[derive(Clone, Debug)]
pub struct KinesisClient {
    pub(super) sdk: Sdk,
    pub(super) stream: StreamName,
    region: String,
    budgets: Arc<AccountBudgets>,
    metrics: Arc<KinesisCallMetrics>,
}

/// Budgets of the calls that AWS limits for the whole account.
#[derive(Debug)]
struct AccountBudgets {
    /// `DescribeStreamSummary`: AWS allows 20 a second (API reference).
    describe: CallBudget,
    /// `ListTagsForStream`: AWS allows 5 a second (API reference).
    tags: CallBudget,
    /// `ListShards`: AWS allows 1,000 a second and stream; the pace of one process that watches many streams.
    shards: CallBudget,
}

impl Default for AccountBudgets {
    /// Half of what AWS allows, since others use the account too.
    fn default() -> Self {
        Self {
            describe: CallBudget::per_second(10),
            tags: CallBudget::per_second(2),
            shards: CallBudget::per_second(100),
        }
    }
}

/// One record to put.
#[derive(Clone, Debug)]
pub struct PutEntry {
    /// The key that decides the shard.
    pub partition_key: String,
    /// The bytes of the record.
    pub data: Bytes,
}

/// The position of an accepted record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReceipt {
    /// The shard that stores the record.
    pub shard: ShardId,
    /// The record's sequence number in that shard.
    pub sequence: String,
}

/// The reason why one entry of a batch was refused while others were accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutRejection {
    /// The service's error code.
    pub code: String,
    /// Our own sentence for the code; the service's text can hold account ids.
    pub message: &'static str,
    /// The class of the error, by its remedy.
    pub class: KinesisErrorClass,
}

/// The position from which a shard is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPosition {
    /// The oldest record that is kept.
    TrimHorizon,
    /// After the newest record.
    Latest,
    /// At this sequence number.
    At(String),
    /// Just after this sequence number.
    After(String),
    /// The first record that arrived at or after this time, in ms since 1970.
    AtTime(u64),
}

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// Its sequence number, decimal text that grows within a shard.
    pub sequence: String,
    /// Time at which the stream accepted it, in ms since 1970.
    pub arrival_ms: u64,
    /// The key that decided its shard.
    pub partition_key: String,
    /// The bytes of the record.
    pub data: Bytes,
}

/// One answer of `GetRecords`.
#[derive(Clone, Debug)]
pub struct RecordPage {
    /// The records, oldest first.
    pub records: Vec<ReadRecord>,
    /// The next iterator; `None` at the end of a closed shard.
    pub next: Option<String>,
    /// Distance of the reader to the newest record, in ms.
    pub behind_ms: u64,
}

/// The description of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// The ARN of the stream.
    pub arn: String,
    /// The status, such as `ACTIVE` or `CREATING`.
    pub status: String,
    /// Creation time, in ms since 1970: the only property that distinguishes a stream from a later one of the same
    /// name.
    pub created_ms: u64,
    /// Capacity of the stream; `None` if the endpoint does not report it.
    pub capacity: Option<LiveCapacity>,
    /// Hours for which records are kept.
    pub retention_hours: u32,
    /// Open shards, in either mode.
    pub open_shards: u32,
    /// KMS key with which the stream is encrypted; `None` without encryption.
    pub encryption_key: Option<String>,
}

/// The capacity of a stream as Kinesis reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveCapacity {
    /// Kinesis scales the shards by load.
    OnDemand,
    /// The stream has this number of open shards until somebody changes it.
    Provisioned(u32),
}

impl KinesisClient {
    /// Builds a client. Sends no request yet.
    pub async fn connect(settings: &StreamSettings) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(2))
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(ATTEMPT_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .region(Region::new(settings.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts);
        if let AwsCredentials::Static { access_key_id, secret_access_key } = &settings.credentials {
            loader = loader.credentials_provider(aws_credential_types::Credentials::new(
                access_key_id,
                secret_access_key,
                None,
                None,
                "configuration",
            ));
        }
        if let Some(endpoint) = &settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let sdk = Sdk::new(&loader.load().await);
        let (stream, region) = (settings.stream.clone(), settings.region.clone());
        Self { sdk, stream, region, budgets: Arc::default(), metrics: Arc::default() }
    }

    /// A client that counts its calls in these metrics.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<KinesisCallMetrics>) -> Self {
        Self { metrics, ..self }
    }

    /// A client of another stream that shares connections, credentials and budgets with this one.
    #[must_use]
    pub fn of_stream(&self, stream: StreamName) -> Self {
        Self { stream, ..self.clone() }
    }

    /// Name of the client's stream.
    #[must_use]
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// The region of the stream.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Puts a batch; the answer has one result per entry, in order. At most 500 entries and 10 MiB (API reference,
    /// `PutRecords`).
    ///
    /// # Errors
    /// The whole call failed; after a timeout, records may be stored all the same.
    pub async fn put_records(
        &self,
        entries: &[PutEntry],
    ) -> Result<Vec<Result<PutReceipt, PutRejection>>, KinesisError> {
        let operation = KinesisOperation::PutRecords;
        let mut request = self.sdk.put_records().stream_name(self.stream.as_str());
        for entry in entries {
            let entry = PutRecordsRequestEntry::builder()
                .partition_key(&entry.partition_key)
                .data(Blob::new(entry.data.as_ref()))
                .build()
                .map_err(|error| self.malformed_answer(operation, &error.to_string()))?;
            request = request.records(entry);
        }
        let answer = self.call(operation, request.send()).await?;
        let results: Vec<Result<PutReceipt, PutRejection>> = answer
            .records
            .into_iter()
            .map(|result| match (result.shard_id, result.sequence_number, result.error_code) {
                (Some(shard), Some(sequence), None) => Ok(PutReceipt { shard: ShardId(shard), sequence }),
                (_, _, code) => Err(PutRejection {
                    class: classify_code(code.as_deref()),
                    message: explain_code(plain_code(code.as_deref())),
                    code: plain_code(code.as_deref()).unwrap_or("no code").to_owned(),
                }),
            })
            .collect();
        if results.len() == entries.len() {
            Ok(results)
        } else {
            Err(self.malformed_answer(operation, &format!("{} results for {} records", results.len(), entries.len())))
        }
    }

    /// Lists every shard that still holds records, closed ones too.
    ///
    /// # Errors
    /// The call to Kinesis failed.
    pub async fn list_shards(&self) -> Result<Vec<Shard>, KinesisError> {
        let operation = KinesisOperation::ListShards;
        self.wait_for_budget(operation, &self.budgets.shards).await?;
        let mut shards = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let request = match &token {
                Some(token) => self.sdk.list_shards().next_token(token),
                None => self.sdk.list_shards().stream_name(self.stream.as_str()),
            };
            let answer = self.call(operation, request.send()).await?;
            for shard in answer.shards.unwrap_or_default() {
                let range = shard.hash_key_range.as_ref();
                let key = |text: Option<&String>| text.and_then(|text| text.parse::<u128>().ok());
                let (Some(start), Some(end)) =
                    (key(range.map(|range| &range.starting_hash_key)), key(range.map(|range| &range.ending_hash_key)))
                else {
                    return Err(
                        self.malformed_answer(operation, &format!("shard {} has no hash key range", shard.shard_id))
                    );
                };
                let ended = shard.sequence_number_range.is_some_and(|range| range.ending_sequence_number.is_some());
                let parents = shard.parent_shard_id.into_iter().chain(shard.adjacent_parent_shard_id);
                let parents = parents.map(ShardId).collect();
                shards.push(Shard { id: ShardId(shard.shard_id), start, end, parents, open: !ended });
            }
            token = answer.next_token;
            if token.is_none() {
                return Ok(shards);
            }
        }
    }

    /// Requests an iterator, which lives for five minutes.
    ///
    /// # Errors
    /// The call to Kinesis failed.
    pub async fn request_iterator(&self, shard: &ShardId, position: &ReadPosition) -> Result<String, KinesisError> {
        let operation = KinesisOperation::GetShardIterator;
        let request = self.sdk.get_shard_iterator().stream_name(self.stream.as_str()).shard_id(shard.as_str());
        let request = match position {
            ReadPosition::TrimHorizon => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            ReadPosition::Latest => request.shard_iterator_type(ShardIteratorType::Latest),
            ReadPosition::At(sequence) => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(sequence)
            }
            ReadPosition::After(sequence) => {
                request.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(sequence)
            }
            ReadPosition::AtTime(ms) => request
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(DateTime::from_millis(i64::try_from(*ms).unwrap_or(i64::MAX))),
        };
        let answer = self.call(operation, request.send()).await?;
        answer.shard_iterator.ok_or_else(|| self.malformed_answer(operation, "no iterator in the answer"))
    }

    /// Reads the next page. A shard allows five reads a second over all its readers.
    ///
    /// # Errors
    /// The call failed; [`KinesisErrorClass::Expired`] requires a new iterator.
    pub async fn read(&self, iterator: &str, limit: i32) -> Result<RecordPage, KinesisError> {
        let request = self.sdk.get_records().shard_iterator(iterator).limit(limit);
        let answer = self.call(KinesisOperation::GetRecords, request.send()).await?;
        let records = answer
            .records
            .into_iter()
            .map(|record| ReadRecord {
                sequence: record.sequence_number,
                arrival_ms: record.approximate_arrival_timestamp.as_ref().map_or(0, unix_millis),
                partition_key: record.partition_key.unwrap_or_default(),
                data: Bytes::from(record.data.into_inner()),
            })
            .collect();
        let behind_ms = answer.millis_behind_latest.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
        Ok(RecordPage { records, next: answer.next_shard_iterator, behind_ms })
    }

    /// Describes the stream: ARN, status, creation time and capacity.
    ///
    /// # Errors
    /// The call failed; [`KinesisErrorClass::NotFound`] when there is no such stream.
    pub async fn describe_stream(&self) -> Result<StreamSummary, KinesisError> {
        let operation = KinesisOperation::DescribeStreamSummary;
        self.wait_for_budget(operation, &self.budgets.describe).await?;
        let request = self.sdk.describe_stream_summary().stream_name(self.stream.as_str());
        let answer = self.call(operation, request.send()).await?;
        let found = answer
            .stream_description_summary
            .ok_or_else(|| self.malformed_answer(operation, "no description in the answer"))?;
        let mode = found.stream_mode_details.map(|details| details.stream_mode);
        let capacity = match mode {
            Some(StreamMode::OnDemand) => Some(LiveCapacity::OnDemand),
            Some(StreamMode::Provisioned) => u32::try_from(found.open_shard_count).ok().map(LiveCapacity::Provisioned),
            _ => None,
        };
        let is_encrypted = found.encryption_type == Some(EncryptionType::Kms);
        Ok(StreamSummary {
            capacity,
            open_shards: u32::try_from(found.open_shard_count).unwrap_or(0),
            encryption_key: is_encrypted.then(|| found.key_id.unwrap_or_default()),
            retention_hours: u32::try_from(found.retention_period_hours).unwrap_or(0),
            arn: found.stream_arn,
            status: found.stream_status.as_str().to_owned(),
            created_ms: unix_millis(&found.stream_creation_timestamp),
        })
    }

    /// Lists the tags of the stream.
    ///
    /// # Errors
    /// The call to Kinesis failed.
    pub async fn list_tags(&self) -> Result<BTreeMap<String, String>, KinesisError> {
        let operation = KinesisOperation::ListTagsForStream;
        self.wait_for_budget(operation, &self.budgets.tags).await?;
        let mut tags = BTreeMap::new();
        loop {
            let last = tags.keys().next_back().cloned();
            let request = self.sdk.list_tags_for_stream().stream_name(self.stream.as_str());
            let request = request.set_exclusive_start_tag_key(last);
            let answer = self.call(operation, request.send()).await?;
            let before = tags.len();
            tags.extend(answer.tags.into_iter().map(|tag| (tag.key, tag.value.unwrap_or_default())));
            if !answer.has_more_tags || tags.len() == before {
                return Ok(tags);
            }
        }
    }

    /// Waits for the answer of a call, and counts it.
    pub(super) async fn call<T, E, R>(
        &self,
        operation: KinesisOperation,
        request: impl Future<Output = Result<T, aws_sdk_kinesis::error::SdkError<E, R>>>,
    ) -> Result<T, KinesisError>
    where
        E: aws_sdk_kinesis::error::ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let began = Instant::now();
        let answer = request.await;
        let answer =
            answer.map_err(|error| KinesisError::new(operation.api_name(), self.stream.as_str(), &self.region, &error));
        self.metrics.count_call(operation, &answer, began.elapsed());
        answer
    }

    async fn wait_for_budget(&self, operation: KinesisOperation, budget: &CallBudget) -> Result<(), KinesisError> {
        if budget.wait().await {
            return Ok(());
        }
        Err(KinesisError {
            operation: operation.api_name(),
            stream: self.stream.to_string(),
            region: self.region.clone(),
            class: KinesisErrorClass::Throttled,
            code: String::new(),
            message: "not sent: too many calls of this kind wait for this account".to_owned(),
        })
    }

    pub(super) fn malformed_answer(&self, operation: KinesisOperation, message: &str) -> KinesisError {
        KinesisError {
            operation: operation.api_name(),
            stream: self.stream.to_string(),
            region: self.region.clone(),
            // An answer that cannot be used counts as none.
            class: KinesisErrorClass::Transient,
            code: String::new(),
            message: message.to_owned(),
        }
    }
}

fn unix_millis(time: &DateTime) -> u64 {
    time.to_millis().ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}
