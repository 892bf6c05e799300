//! Whether the stream is there when an edge starts.
//!
//! Missing rights stop the start: they do not heal by waiting. A missing stream may be on its way, so the edge starts
//! and looks again for a while. No answer says nothing about the stream, so the edge starts and its queue fills.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{StartError, StopError};
use crate::kinesis::{Class, Client, KinesisError};

/// Longest that the start waits for an answer.
const FIRST: Duration = Duration::from_secs(3);

/// How long a stream may be missing.
const PATIENCE: Duration = Duration::from_mins(2);

/// Time between two looks.
const AGAIN: Duration = Duration::from_secs(2);

/// What the first look found.
pub enum Found {
    /// The stream, or nothing that speaks against it.
    Stream,
    /// No stream of this name.
    Missing,
}

/// Looks once.
///
/// # Errors
/// The identity may not look at the stream.
pub async fn first(client: &Client) -> Result<Found, StartError> {
    match timeout(FIRST, client.summary()).await {
        Ok(Ok(summary)) => {
            tracing::info!(stream = %summary.arn, status = %summary.status, "the stream is there");
            Ok(Found::Stream)
        }
        Ok(Err(error)) if error.class == Class::Denied => Err(StartError::StreamDenied(error)),
        Ok(Err(error)) if error.class == Class::NotFound => {
            tracing::warn!(%error, "the stream is not there; looking again for two minutes");
            Ok(Found::Missing)
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the stream cannot be looked at; starting without it, events wait");
            Ok(Found::Stream)
        }
        Err(_) => {
            tracing::warn!(stream = %client.stream(), "Kinesis does not answer; starting without it, events wait");
            Ok(Found::Stream)
        }
    }
}

/// Looks again until the stream is there.
///
/// # Errors
/// It was missing for as long as it may be.
pub async fn appears(client: Client) -> Result<(), StopError> {
    let until = Instant::now() + PATIENCE;
    loop {
        sleep(AGAIN).await;
        let missing: KinesisError = match client.summary().await {
            Err(error) if error.class == Class::NotFound => error,
            _ => return Ok(()),
        };
        if Instant::now() >= until {
            return Err(StopError::StreamMissing(missing));
        }
    }
}
