//! Whether the stream is there when an edge starts.
//!
//! Missing rights stop the start: they do not heal by waiting. A missing stream may be on its way, so the edge starts
//! and looks again for a while. No answer says nothing about the stream, so the edge starts and its queue fills.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::edge::error::{StartError, StopError};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass};

/// Longest that the start waits for an answer.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a stream may be missing.
const MISSING_STREAM_GRACE: Duration = Duration::from_mins(2);

/// Time between two looks.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The result of the first look at the stream.
pub enum StreamCheck {
    /// The stream, or nothing that speaks against it.
    Stream,
    /// No stream of this name.
    Missing,
}

/// Looks once.
///
/// # Errors
/// The identity may not look at the stream.
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

/// Looks again until the stream is there.
///
/// # Errors
/// It was missing for as long as it may be.
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
