//! One stream of a cluster: it is created, adopted or observed, and brought to its settings by one call at a time.
//!
//! In: a client of the stream, the goal of the manifest, the known status, the time. Out: the status and the condition. No
//! more than one call of a reconcile changes anything; the next reconcile begins from what Kinesis describes.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use url::Url;

use super::reconcile_error::ReconcileError;
use super::status::ConditionUpdate;
use super::stream_ownership::{StreamClaim, StreamOwner};
use super::stream_plan::{LiveStream, StreamPlan, describe_change, plan_stream, record_change, shard_changes_left};
use crate::api::Reason;
use crate::api::cluster::{StreamManagement, StreamStatus};
use crate::desired::{StreamCapacity, StreamGoal};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, LiveCapacity, StreamChange, StreamSummary};
use crate::protocol::StreamName;

/// The texts in which the streams of a cluster differ.
pub struct StreamTexts {
    /// Condition with the state of the stream.
    pub condition: &'static str,
    /// Field of the manifest with its name.
    pub name_field: &'static str,
    /// Purpose of the stream, after its name; empty for the main stream.
    pub purpose: &'static str,
    /// Loss and remedy once a stream that existed is missing.
    pub loss: &'static str,
}

/// A stream of a cluster.
pub struct ManagedStream<'a> {
    /// The client of the stream.
    pub client: &'a KinesisClient,
    /// The texts in which it differs from the cluster's other stream.
    pub texts: &'static StreamTexts,
    /// The owner in its tags.
    pub owner: StreamOwner,
    /// The settings that it should have.
    pub goal: StreamGoal,
    /// Capacity with which it is created.
    pub created_capacity: StreamCapacity,
    /// Address of an emulator or VPC endpoint; `None` for that of AWS in the region.
    pub endpoint: Option<&'a str>,
    /// Whether changes are held back.
    pub is_suspended: bool,
    /// Refuses to write once another process may lead.
    pub ensure_leader: &'a (dyn Fn() -> Result<(), ReconcileError> + Send + Sync),
}

/// A change that is reported as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEvent {
    /// Reason of the Event.
    pub reason: &'static str,
    /// Action of the Event.
    pub action: &'static str,
    /// The change in one line.
    pub note: String,
}

/// The result of a reconcile of one stream.
pub struct StreamFinding {
    /// State of the stream.
    pub stream: StreamStatus,
    /// Content of the condition.
    pub update: ConditionUpdate,
    /// The error for which the reconcile is repeated with a back-off.
    pub error: Option<ReconcileError>,
    /// The change that was made.
    pub event: Option<StreamEvent>,
    /// Whether the stream is being changed, so that a next change can follow soon.
    pub in_progress: bool,
}

/// The state of a claim on a live stream.
enum ClaimStep {
    /// The cluster may use the stream.
    Held {
        /// Cluster id in the stream's records.
        cluster_id: String,
        /// Time of the adoption, RFC 3339.
        adopted_at: Option<String>,
    },
    /// The tags of the owner are read back by the next reconcile, or the cluster is suspended.
    Waiting { update: ConditionUpdate, event: Option<StreamEvent> },
}

impl StreamFinding {
    /// The finding of a reconcile that failed; the known state stays.
    #[must_use]
    pub fn of_error(condition: &'static str, stream: StreamStatus, error: ReconcileError) -> Self {
        let update = ConditionUpdate::of_error(condition, &error);
        Self { stream, update, error: Some(error), event: None, in_progress: false }
    }

    /// Whether the next reconcile has no step to take.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        (self.update.status == "True" && !self.in_progress) || self.update.reason == Reason::Suspended
    }
}

/// The known state of the stream of this name: none, if the known stream has another name.
pub fn keep_status(known: StreamStatus, name: &StreamName) -> StreamStatus {
    if known.name == name.as_str() {
        return known;
    }
    StreamStatus { name: name.to_string(), ..StreamStatus::default() }
}

impl ManagedStream<'_> {
    /// Makes the next step: creates the stream, adopts it, or changes one setting; or finds that there is none to make.
    pub async fn reconcile(&self, known: StreamStatus, now: Timestamp) -> StreamFinding {
        let condition = self.texts.condition;
        match self.client.describe_stream().await {
            Ok(summary) => self.reconcile_live(known, &summary, now).await,
            Err(error) if error.class != KinesisErrorClass::NotFound => {
                StreamFinding::of_error(condition, known, error.into())
            }
            Err(error) => match self.create_missing(&known, &error).await {
                Ok((cluster_id, update, event)) => {
                    let stream = StreamStatus { cluster_id, ..known };
                    StreamFinding { stream, update, error: None, event, in_progress: true }
                }
                Err(error) => StreamFinding::of_error(condition, known, error),
            },
        }
    }

    /// Creates a stream that does not exist, if the manifest lets the operator create it. Returns the cluster id of its
    /// records.
    async fn create_missing(
        &self,
        known: &StreamStatus,
        missing: &KinesisError,
    ) -> Result<(String, ConditionUpdate, Option<StreamEvent>), ReconcileError> {
        if !known.arn.is_empty() {
            let message = format!("{missing}. It existed before, and {}", self.texts.loss);
            return Err(ReconcileError::transient(Reason::StreamMissing, message));
        }
        if matches!(self.goal.management, StreamManagement::Adopt | StreamManagement::Observe) {
            let message = format!(
                "{missing}, and webhooks.stream.management does not let the operator create it: create it where the others are defined, correct {} or aws.region, or write management: AdoptOrCreate",
                self.texts.name_field
            );
            return Err(ReconcileError::transient(Reason::StreamMissing, message));
        }
        if self.is_suspended {
            let message = format!("suspended: stream {} does not exist and is not created", known.name);
            let update = ConditionUpdate::new(self.texts.condition, "False", Reason::Suspended, message);
            return Ok((known.cluster_id.clone(), update, None));
        }
        (self.ensure_leader)()?;
        let capacity = match self.created_capacity {
            StreamCapacity::OnDemand => LiveCapacity::OnDemand,
            StreamCapacity::Provisioned(shards) => LiveCapacity::Provisioned(shards),
        };
        let mut event = None;
        // A stream that is created and then not written into the status is found again by these tags.
        match self.client.create_stream(capacity, &self.owner.build_tags()).await {
            Ok(()) => {
                let note = format!("stream {}{} was created", known.name, self.texts.purpose);
                event = Some(StreamEvent { reason: "StreamCreated", action: "Create", note });
            }
            // The stream exists by now, or the answer to an earlier call was lost: the next reconcile describes it.
            Err(error) if error.class == KinesisErrorClass::Busy => {}
            Err(error) if error.is_quota() => {
                let message = format!(
                    "{error}. The creation is tried again; delete a stream that nobody needs, or have the quota of the account raised"
                );
                return Err(ReconcileError::transient(Reason::WaitingForQuota, message));
            }
            Err(error) => return Err(explain_create_failure(error, self.created_capacity)),
        }
        let message = format!("stream {} is being created", known.name);
        let update = ConditionUpdate::new(self.texts.condition, "False", Reason::StreamCreating, message);
        Ok((self.owner.uid.clone(), update, event))
    }

    async fn reconcile_live(&self, mut known: StreamStatus, summary: &StreamSummary, now: Timestamp) -> StreamFinding {
        let condition = self.texts.condition;
        if let Err(error) = self.ensure_usable(summary) {
            known.status.clone_from(&summary.status);
            return StreamFinding::of_error(condition, known, error);
        }
        let created_ms = i64::try_from(summary.created_ms).unwrap_or(i64::MAX);
        let is_claimed = known.arn == summary.arn && known.created_ms == created_ms;
        let needs_tags = !self.goal.tags.is_empty() || !known.written_tags.is_empty();
        let mut tags = BTreeMap::new();
        if !is_claimed || needs_tags {
            tags = match self.client.list_tags().await {
                Ok(tags) => tags,
                Err(error) => return StreamFinding::of_error(condition, known, error.into()),
            };
        }
        if !is_claimed {
            match self.claim(&tags, summary, now).await {
                Ok(ClaimStep::Held { cluster_id, adopted_at }) => {
                    known.cluster_id = cluster_id;
                    // A stream that replaced the known one is read from the first adoption: nothing in it was read before.
                    known.adopted_at = known.adopted_at.or(adopted_at);
                    (known.arn, known.created_ms) = (summary.arn.clone(), created_ms);
                }
                Ok(ClaimStep::Waiting { update, event }) => {
                    let in_progress = update.reason != Reason::Suspended;
                    return StreamFinding { stream: known, update, error: None, event, in_progress };
                }
                Err(error) => return StreamFinding::of_error(condition, known, error),
            }
        }
        describe_live(&mut known, summary);
        let plan = plan_stream(&self.goal, &LiveStream { summary, tags: &tags }, &known, now);
        let finding = self.change_setting(known, summary, plan, now).await;
        let left = matches!(summary.capacity, Some(LiveCapacity::Provisioned(_)))
            .then(|| shard_changes_left(&finding.stream, now));
        StreamFinding { stream: StreamStatus { shard_changes_left_24h: left, ..finding.stream }, ..finding }
    }

    /// Refuses a stream that is being deleted, or that is not where the manifest says.
    fn ensure_usable(&self, summary: &StreamSummary) -> Result<(), ReconcileError> {
        let name = self.client.stream();
        if summary.status == "DELETING" {
            let message = format!(
                "stream {name} is being deleted, with all its records: it was not changed. Find out who deletes it; once it is gone, create it again, or write another {}",
                self.texts.name_field
            );
            return Err(ReconcileError::transient(Reason::StreamDeleting, message));
        }
        let region = summary.arn.split(':').nth(3).unwrap_or_default();
        if region != self.client.region() && is_endpoint_of_aws(self.endpoint) {
            let message = format!(
                "stream {name} is in region {region}, and aws.region is {}: it was not changed. Correct aws.endpointURL, or move to a cluster with the other region",
                self.client.region()
            );
            return Err(ReconcileError::terminal(Reason::StreamInvalid, message));
        }
        Ok(())
    }

    /// Claims the stream by its tags, and adopts one without an owner if the manifest says so.
    async fn claim(
        &self,
        tags: &BTreeMap<String, String>,
        summary: &StreamSummary,
        now: Timestamp,
    ) -> Result<ClaimStep, ReconcileError> {
        let name = self.client.stream();
        let adoption = match self.owner.claim(tags, self.goal.management, (name, self.texts.name_field), now)? {
            StreamClaim::Held { cluster_id, adopted_at } => {
                return Ok(ClaimStep::Held { cluster_id, adopted_at });
            }
            StreamClaim::Adoptable(adoption) => adoption,
        };
        if self.is_suspended {
            let message = format!("suspended: stream {name} exists and is not adopted");
            let update = ConditionUpdate::new(self.texts.condition, "False", Reason::Suspended, message);
            return Ok(ClaimStep::Waiting { update, event: None });
        }
        (self.ensure_leader)()?;
        let result = self.client.change_stream(&summary.arn, &StreamChange::AddTags(adoption)).await;
        let event = match result {
            Ok(()) => Some(StreamEvent {
                reason: "StreamAdopted",
                action: "Adopt",
                note: format!(
                    "stream {name}{} was adopted: its tags name this cluster as the owner",
                    self.texts.purpose
                ),
            }),
            Err(error) if error.class == KinesisErrorClass::Busy => None,
            Err(error) => return Err(error.into()),
        };
        let message = format!("stream {name} is being adopted");
        let update = ConditionUpdate::new(self.texts.condition, "False", Reason::StreamCreating, message);
        Ok(ClaimStep::Waiting { update, event })
    }

    /// Makes the planned change, and reports the state of the stream.
    async fn change_setting(
        &self,
        mut known: StreamStatus,
        summary: &StreamSummary,
        mut plan: StreamPlan,
        now: Timestamp,
    ) -> StreamFinding {
        let condition = self.texts.condition;
        known.pending_steps.clone_from(&plan.pending);
        let is_active = summary.status == "ACTIVE";
        let mut event = None;
        let change = plan.next.clone().filter(|_| is_active && !self.is_suspended);
        if let Some(change) = change {
            let made = match (self.ensure_leader)() {
                Ok(()) => self.client.change_stream(&summary.arn, &change).await,
                Err(error) => return StreamFinding::of_error(condition, known, error),
            };
            match made {
                Ok(()) => {
                    record_change(&mut known, &change, now);
                    let note = format!("stream {}: {}", known.name, describe_change(&change));
                    event = Some(StreamEvent { reason: "StreamChanged", action: change.operation().api_name(), note });
                }
                // Another change is in progress: the next reconcile describes the stream.
                Err(error) if error.class == KinesisErrorClass::Busy => {}
                Err(error) if error.is_quota() => {
                    (plan.next, plan.waits_for_quota) = (None, true);
                    known.pending_steps.push(format!("{error}; it is tried again"));
                }
                Err(error) => return StreamFinding::of_error(condition, known, explain_change_failure(error, &change)),
            }
        }
        let is_ready = is_active || summary.status == "UPDATING";
        let mut message = format!("stream {} is {}", known.name, summary.status);
        if !known.pending_steps.is_empty() {
            message = format!("{message}; pending: {}", known.pending_steps.join("; "));
        }
        let (ready, reason) = if is_ready { ("True", plan.reason()) } else { ("False", Reason::StreamCreating) };
        let update = ConditionUpdate::new(condition, ready, reason, message);
        let in_progress = !is_active || (plan.next.is_some() && !self.is_suspended);
        StreamFinding { stream: known, update, error: None, event, in_progress }
    }
}

/// Writes the description of a stream into its status.
fn describe_live(known: &mut StreamStatus, summary: &StreamSummary) {
    known.status.clone_from(&summary.status);
    known.mode = match summary.capacity {
        Some(LiveCapacity::OnDemand) => "OnDemand".to_owned(),
        Some(LiveCapacity::Provisioned(_)) => "Provisioned".to_owned(),
        None => String::new(),
    };
    known.shards = Some(summary.open_shards);
    known.retention_hours = Some(summary.retention_hours);
    known.encryption_key = summary.encryption_key.clone().unwrap_or_default();
}

/// Whether requests go to AWS, whose ARNs name the region that answered; an emulator may name any.
fn is_endpoint_of_aws(endpoint: Option<&str>) -> bool {
    let Some(endpoint) = endpoint else { return true };
    let url = Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

/// Adds a hint to a refused creation: Kinesis supports both modes, an emulator may not.
fn explain_create_failure(error: KinesisError, capacity: StreamCapacity) -> ReconcileError {
    let error = ReconcileError::from(error);
    if error.reason != Reason::StreamInvalid || capacity != StreamCapacity::OnDemand {
        return error;
    }
    let message = format!(
        "{}. If the endpoint does not support on-demand streams, write mode: Provisioned and shards in webhooks.stream",
        error.message
    );
    ReconcileError { message, ..error }
}

/// Adds the setting to a refused change, and the remedy if it is the key.
fn explain_change_failure(error: KinesisError, change: &StreamChange) -> ReconcileError {
    let error = ReconcileError::from(error);
    let remedy = match (error.reason, change) {
        (Reason::StreamKeyUnusable, StreamChange::Encrypt(key)) => {
            format!(": encryption.kmsKey is {key}; write a key that exists and is enabled in the region of the stream")
        }
        _ => format!(", while {}", describe_change(change)),
    };
    ReconcileError { message: format!("{}{remedy}", error.message), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_on_demand_stream_is_reported_with_the_setting_to_write() {
        let error = |class, code: &str| KinesisError {
            operation: "CreateStream",
            stream: "s".to_owned(),
            region: "eu-west-1".to_owned(),
            class,
            code: format!("{code}: "),
            message: "ShardCount is required".to_owned(),
        };
        let answer = "CreateStream on stream s in eu-west-1: ValidationException: ShardCount is required";
        let hint = ". If the endpoint does not support on-demand streams, write mode: Provisioned and shards in webhooks.stream";
        let invalid = || error(KinesisErrorClass::Invalid, "ValidationException");
        for (name, error, mode, reason, terminal, message) in [
            ("on demand", invalid(), StreamCapacity::OnDemand, Reason::StreamInvalid, true, format!("{answer}{hint}")),
            ("provisioned", invalid(), StreamCapacity::Provisioned(1), Reason::StreamInvalid, true, answer.to_owned()),
            (
                "a failure of another kind",
                error(KinesisErrorClass::Transient, "InternalFailure"),
                StreamCapacity::OnDemand,
                Reason::StreamUnreachable,
                false,
                answer.replace("ValidationException", "InternalFailure"),
            ),
        ] {
            let error = explain_create_failure(error, mode);
            assert_eq!((error.reason, error.terminal, error.message), (reason, terminal, message), "{name}");
        }
    }

    #[test]
    fn the_region_of_an_arn_counts_at_endpoints_of_aws_alone() {
        for (endpoint, expected) in [
            (None, true),
            (Some("https://vpce-1.kinesis.eu-west-1.vpce.amazonaws.com"), true),
            (Some("https://kinesis.cn-north-1.amazonaws.com.cn"), true),
            (Some("http://kinesis.test.svc:4567"), false),
            (Some("https://amazonaws.com.test"), false),
        ] {
            assert_eq!(is_endpoint_of_aws(endpoint), expected, "{endpoint:?}");
        }
    }
}
