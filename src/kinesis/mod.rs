//! The Kinesis client: put, list shards, read, create, change.
//!
//! In: a region, a stream's name and the source of credentials. Out: plain values, and errors that are classed by their
//! remedy. One attempt per call: the caller retries, because a silent retry within this room could write a batch twice
//! or reorder it.
//!
//! This room must not know Kubernetes, nor the content of a record.

mod call_budget;
mod call_metrics;
mod client;
mod connections;
mod error;
mod shard;
mod stream_change;

pub use call_metrics::{KinesisCallMetrics, KinesisOperation};
pub use client::{
    AwsCredentials, KinesisClient, LiveCapacity, PutEntry, PutReceipt, PutRejection, ReadPosition, ReadRecord,
    RecordPage, StreamSettings, StreamSummary,
};
pub use connections::KinesisConnections;
pub use error::{KinesisError, KinesisErrorClass};
pub use shard::{Shard, covers_all, is_before};
pub use stream_change::StreamChange;
