//! A stream that the operator creates for a cluster, or adopts if this cluster created it before.

use kube::ResourceExt;
use kube::runtime::events::EventType;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::status::ConditionUpdate;
use super::stream_ownership::{build_owner_tags, claim_stream};
use crate::api::cluster::StreamStatus;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::StreamCapacity;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, StreamSummary};
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
pub struct OwnedStream<'a> {
    pub context: &'a ControllerContext,
    pub cluster: &'a RealtimeCluster,
    pub client: &'a KinesisClient,
    pub texts: &'static StreamTexts,
    /// Capacity with which it is created.
    pub capacity: StreamCapacity,
    /// Hours to which a shorter retention is raised; `None` leaves it as it is.
    pub retention_hours: Option<u32>,
}

/// The result of a reconcile of one stream.
pub struct StreamFinding {
    /// State of the stream.
    pub stream: StreamStatus,
    /// Content of the condition.
    pub update: ConditionUpdate,
    /// The error for which the reconcile is repeated with a back-off.
    pub error: Option<ReconcileError>,
}

impl StreamFinding {
    /// The finding of a reconcile; an error keeps the known state.
    pub fn of_result(
        condition: &'static str,
        known: StreamStatus,
        result: Result<(StreamStatus, ConditionUpdate), ReconcileError>,
    ) -> Self {
        match result {
            Ok((stream, update)) => Self { stream, update, error: None },
            Err(error) => {
                Self { stream: known, update: ConditionUpdate::of_error(condition, &error), error: Some(error) }
            }
        }
    }

    /// Whether the next reconcile has no step to take.
    pub fn is_settled(&self) -> bool {
        self.update.status == "True" || self.update.reason == Reason::Suspended
    }
}

/// The known state of the stream of this name: none, if the known stream has another name.
pub fn keep_status(known: StreamStatus, name: &StreamName) -> StreamStatus {
    if known.name == name.as_str() {
        return known;
    }
    StreamStatus { name: name.to_string(), ..StreamStatus::default() }
}

impl OwnedStream<'_> {
    /// Creates the stream, or adopts it. `find_pending_steps` lists the settings of the manifest that the operator does not
    /// change on a live stream.
    ///
    /// # Errors
    /// The stream cannot be created, adopted or described, or it existed before and is missing.
    pub async fn reconcile(
        &self,
        known: StreamStatus,
        find_pending_steps: impl FnOnce(&StreamSummary) -> Vec<String>,
    ) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
        match self.client.describe_stream().await {
            Ok(summary) => {
                let pending_steps = find_pending_steps(&summary);
                self.adopt(known, summary, pending_steps).await
            }
            Err(error) if error.class != KinesisErrorClass::NotFound => Err(error.into()),
            Err(error) if !known.arn.is_empty() => {
                let message = format!("{error}. It existed before, and {}", self.texts.loss);
                Err(ReconcileError::transient(Reason::StreamMissing, message))
            }
            Err(_) if self.cluster.spec.suspend => {
                let message = format!("suspended: stream {} does not exist and is not created", known.name);
                Ok((known, ConditionUpdate::new(self.texts.condition, "False", Reason::Suspended, message)))
            }
            Err(_) => self.create(known).await,
        }
    }

    async fn create(&self, known: StreamStatus) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
        self.context.ensure_leader()?;
        let shards = match self.capacity {
            StreamCapacity::OnDemand => None,
            StreamCapacity::Provisioned(shards) => Some(i32::try_from(shards).unwrap_or(i32::MAX)),
        };
        // A stream that is created and then not written into the status is adopted by these tags.
        let known = StreamStatus { cluster_id: self.cluster.uid().unwrap_or_default(), ..known };
        let tags = build_owner_tags(self.context, self.cluster, &known.cluster_id);
        match self.client.create_stream(shards, &tags).await {
            Ok(()) => {
                let note = format!("stream {}{} was created", known.name, self.texts.purpose);
                self.context.publish_event(self.cluster, EventType::Normal, "StreamCreated", "Create", note).await;
            }
            // The stream exists by now, or the answer to an earlier call was lost: the next reconcile describes it.
            Err(error) if error.class == KinesisErrorClass::Busy => {}
            Err(error) => return Err(explain_create_failure(error, self.capacity)),
        }
        let message = format!("stream {} is being created", known.name);
        Ok((known, ConditionUpdate::new(self.texts.condition, "False", Reason::StreamCreating, message)))
    }

    async fn adopt(
        &self,
        known: StreamStatus,
        summary: StreamSummary,
        pending_steps: Vec<String>,
    ) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
        let created_ms = i64::try_from(summary.created_ms).unwrap_or(i64::MAX);
        let cluster_id = if known.arn == summary.arn && known.created_ms == created_ms {
            known.cluster_id
        } else {
            claim_stream(self.context, self.cluster, self.client, self.texts.name_field).await?
        };
        let is_ready = summary.status == "ACTIVE" || summary.status == "UPDATING";
        if is_ready {
            self.raise_retention(summary.retention_hours).await?;
        }
        let mut message = format!("stream {} is {}", known.name, summary.status);
        if !pending_steps.is_empty() {
            message = format!("{message}; pending: {}", pending_steps.join("; "));
        }
        let (ready, reason) = if is_ready { ("True", Reason::StreamActive) } else { ("False", Reason::StreamCreating) };
        let (name, arn, status) = (known.name, summary.arn, summary.status);
        let stream = StreamStatus { name, cluster_id, arn, status, created_ms, pending_steps };
        Ok((stream, ConditionUpdate::new(self.texts.condition, ready, reason, message)))
    }

    async fn raise_retention(&self, live_hours: u32) -> Result<(), ReconcileError> {
        let Some(wanted) = self.retention_hours.filter(|wanted| live_hours < *wanted && !self.cluster.spec.suspend)
        else {
            return Ok(());
        };
        self.context.ensure_leader()?;
        match self.client.increase_retention(wanted).await {
            // Another change of the stream is in progress: the next reconcile tries again.
            Err(error) if error.class == KinesisErrorClass::Busy => Ok(()),
            result => Ok(result?),
        }
    }
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
}
