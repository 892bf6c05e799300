//! Kinesis as the rest of the project sees it: put, list shards, read, create.
//!
//! In: a region, a stream's name and where credentials come from. Out: plain values, and errors that are classed by
//! what to do about them. One attempt per call: whoever calls retries, because a retry that this room made in silence
//! could write a batch twice or reorder it.
//!
//! This room must not know Kubernetes, nor what is in a record.

mod client;
mod error;
mod shard;

pub use client::{
    AwsCredentials, KinesisClient, PutEntry, PutReceipt, PutRejection, ReadPosition, ReadRecord, RecordPage,
    StreamSettings, StreamSummary,
};
pub use error::{KinesisError, KinesisErrorClass};
pub use shard::{Shard, covers_all, is_before};
