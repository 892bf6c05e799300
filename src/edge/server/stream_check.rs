//! Checks the stream when an edge starts.
//!
//! Missing permissions stop the start: waiting does not help. A missing stream may be about to be created, so the edge
//! starts and checks again for a while. Without an answer the edge starts too, and its queue fills.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::edge::error::{StartError, StopError};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass};

/// Timeout of the first check.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time for which a stream may be missing.
const MISSING_STREAM_GRACE: Duration = Duration::from_mins(2);

/// Interval of checks for a missing stream.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The result of the first look at the stream.
pub enum StreamCheck {
    /// The stream exists, or nothing indicates otherwise.
    Stream,
    /// No stream has this name.
    Missing,
}

/// Checks the stream once.
///
/// # Errors
/// The identity may not describe the stream.
pub async fn check_stream(client: &KinesisClient) -> Result<StreamCheck, StartError> {
    match timeout(FIRST_CHECK_TIMEOUT, client.describe_stream()).await {
        Ok(Ok(summary)) => {
            tracing::info!(stream = %summary.arn, status = %summary.status, "the stream is there");
            Ok(StreamCheck::Stream)
        }
        Ok(Err(error)) if error.class == KinesisErrorClass::Denied => Err(StartError::StreamDenied(error)),
        Ok(Err(error)) if error.class == KinesisErrorClass::NotFound => {
            tracing::warn!(%error, "the stream is not there; looking again for two minutes");
            Ok(StreamCheck::Missing)
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the stream cannot be looked at; starting without it, events wait");
            Ok(StreamCheck::Stream)
        }
        Err(_) => {
            tracing::warn!(stream = %client.stream(), "Kinesis does not answer; starting without it, events wait");
            Ok(StreamCheck::Stream)
        }
    }
}

/// Checks again until the stream exists.
///
/// # Errors
/// The stream was missing for too long.
pub async fn wait_for_stream(client: KinesisClient) -> Result<(), StopError> {
    let until = Instant::now() + MISSING_STREAM_GRACE;
    loop {
        sleep(CHECK_INTERVAL).await;
        let missing: KinesisError = match client.describe_stream().await {
            Err(error) if error.class == KinesisErrorClass::NotFound => error,
            _ => return Ok(()),
        };
        if Instant::now() >= until {
            return Err(StopError::StreamMissing(missing));
        }
    }
}
