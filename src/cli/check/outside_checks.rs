//! Checks of Redis and Kinesis, from this machine.

use std::time::Duration;

use tokio::time::timeout;

use super::{CheckResult, CheckState};
use crate::bus::{BusError, RedisAddress, check_store};
use crate::cli::iam::{PermissionHolder, StreamPurpose, list_operations};
use crate::desired::{SecretTexts, ValidCluster};
use crate::kinesis::{AwsCredentials, KinesisClient, KinesisError, KinesisErrorClass, StreamSettings, StreamSummary};
use crate::operator::build_stream_settings;

/// Bounds the search for credentials and the answer of Kinesis.
const KINESIS_TIMEOUT: Duration = Duration::from_secs(20);
/// Connects to Redis by the address in the Secret.
pub async fn check_redis(cluster: &ValidCluster, secrets: &SecretTexts) -> CheckResult {
    let text = |name: &str, key: &str| secrets.get(name).and_then(|texts| texts.get(key)).map(String::as_str);
    let Some(url) = text(&cluster.redis.url.name, &cluster.redis.url.key) else {
        return CheckResult::skipped("redis", "the Secret with its address is missing");
    };
    let authorities = cluster.redis.ca.as_ref().and_then(|ca| text(&ca.name, &ca.key));
    match check_store(RedisAddress { url, authorities }).await {
        Ok(()) => CheckResult::passed("redis", "answers, and can be a bus"),
        Err(BusError::Unusable(reason)) => {
            CheckResult::new("redis", CheckState::Missing, reason, "correct the address in the Secret, or Redis itself")
        }
        Err(error @ (BusError::Unavailable(_) | BusError::ChannelFull(_) | BusError::ConnectionLimit { .. })) => {
            let remedy =
                "nothing, if only pods of the cluster can reach it; otherwise correct the address in the Secret";
            CheckResult::new("redis", CheckState::Warning, format!("not reachable from here: {error}"), remedy)
        }
    }
}

/// Describes the dead-letter stream, and names the permissions that it needs.
pub async fn check_dead_letters(cluster: &ValidCluster, secrets: &SecretTexts) -> Option<CheckResult> {
    const CHECK: &str = "dead-letter";
    let name = cluster.dispatcher().and_then(|_| cluster.stream.dead_letter_name())?;
    let settings = match build_stream_settings(&cluster.stream, secrets) {
        Ok(settings) => StreamSettings { stream: name.clone(), ..settings },
        Err(secret) => return Some(skip_without_keys(CHECK, secret)),
    };
    let permissions = format!(
        "it needs {} for the operator, {} for the dispatcher, and {} for realtime replay, each on {name}; realtime iam prints the policies",
        list_actions(cluster, &[PermissionHolder::Operator, PermissionHolder::OperatorLetterProof]),
        list_actions(cluster, &[PermissionHolder::Dispatcher]),
        list_actions(cluster, &[PermissionHolder::Replay]),
    );
    Some(match describe_stream(&settings).await {
        Ok(Ok(summary)) => CheckResult::passed(CHECK, format!("stream {name} is {}; {permissions}", summary.status)),
        Ok(Err(error)) if error.class == KinesisErrorClass::NotFound => {
            CheckResult::passed(CHECK, format!("stream {name} does not exist, the operator creates it; {permissions}"))
        }
        Ok(Err(error)) => CheckResult::new(CHECK, CheckState::Warning, error.to_string(), permissions),
        Err(message) => CheckResult::new(CHECK, CheckState::Warning, message, permissions),
    })
}

/// Lists the actions of one identity, which is these holders, on the dead-letter stream.
fn list_actions(cluster: &ValidCluster, holders: &[PermissionHolder]) -> String {
    let list = |holder: &PermissionHolder| list_operations(*holder, StreamPurpose::DeadLetters, &cluster.stream.goal);
    let operations = holders.iter().flat_map(list);
    let actions: Vec<String> = operations.map(|operation| format!("kinesis:{}", operation.api_name())).collect();
    actions.join(", ")
}

/// Describes the stream, with the static keys of the cluster, or with the credentials of this machine.
pub async fn check_kinesis(cluster: &ValidCluster, secrets: &SecretTexts) -> CheckResult {
    const CHECK: &str = "kinesis";
    if cluster.dispatcher().is_none() {
        return CheckResult::skipped(CHECK, "webhooks are off");
    }
    let settings = match build_stream_settings(&cluster.stream, secrets) {
        Ok(settings) => settings,
        Err(secret) => return skip_without_keys(CHECK, secret),
    };
    let (identity, state) = match settings.credentials {
        AwsCredentials::Static { .. } => ("the keys of the cluster", CheckState::Missing),
        AwsCredentials::Chain => ("the credentials of this machine", CheckState::Warning),
    };
    let name = &cluster.stream.name;
    match describe_stream(&settings).await {
        Ok(Ok(summary)) => CheckResult::passed(CHECK, format!("stream {name} is {} by {identity}", summary.status)),
        Ok(Err(error)) if error.class == KinesisErrorClass::NotFound => {
            let message = format!("answers {identity}; stream {name} does not exist, the operator creates it");
            CheckResult::passed(CHECK, message)
        }
        Ok(Err(error)) if error.class == KinesisErrorClass::Denied => {
            let remedy = format!("permit {} on the stream to the identity that the operator uses", error.operation);
            CheckResult::new(CHECK, state, format!("{error} (asked with {identity})"), remedy)
        }
        Ok(Err(error)) if error.class == KinesisErrorClass::Invalid => {
            let remedy = "correct spec.webhooks.stream, or spec.aws.endpointURL";
            CheckResult::new(CHECK, CheckState::Missing, error.to_string(), remedy)
        }
        Ok(Err(error)) => {
            let remedy =
                "nothing, if only pods of the cluster can reach it; otherwise correct spec.aws.region or endpointURL";
            CheckResult::new(CHECK, CheckState::Warning, format!("not reachable from here: {error}"), remedy)
        }
        Err(message) => {
            let remedy = "check the region and the credentials of this machine";
            CheckResult::new(CHECK, CheckState::Warning, message, remedy)
        }
    }
}

/// Describes a stream. The outer error is a message about the timeout.
async fn describe_stream(settings: &StreamSettings) -> Result<Result<StreamSummary, KinesisError>, String> {
    let described = async { KinesisClient::connect(settings).await.describe_stream().await };
    let late = || format!("no credentials or no answer in {} s", KINESIS_TIMEOUT.as_secs());
    timeout(KINESIS_TIMEOUT, described).await.map_err(|_| late())
}

fn skip_without_keys(check: &'static str, secret: &str) -> CheckResult {
    CheckResult::skipped(check, format!("the Secret {secret} with the access keys is missing"))
}
