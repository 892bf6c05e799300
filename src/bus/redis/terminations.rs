//! Terminations of users' connections, which must not be lost: neither while the store is unavailable, nor while the
//! subscription of another process is interrupted.
//!
//! In: a termination. Out: the same on every process, if only once the store answers again; or an error, so that the
//! caller learns that other processes do not have it yet.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::types::scripts::Script;
use tokio::sync::Notify;

use super::super::BusError;
use super::client::{evaluate_script, malformed_answer, parse_number, to_bus_error, unavailable_error};
use super::keys::KeySpace;
use crate::process::locks::lock_unpoisoned;

/// TTL of a termination in the store, and in a process that could not publish it.
const TERMINATION_TTL: Duration = Duration::from_mins(10);

/// Bounds the terminations that are kept, in the store and in a process.
const KEPT_TERMINATIONS_MAX: usize = 1_000;

/// Interval at which kept terminations are tried while the store is unavailable.
const KEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The terminations of one cluster.
pub(super) struct Terminations {
    client: Client,
    names: KeySpace,
    publish_script: Script,
    since_script: Script,
    /// Messages that the store did not take, and their times.
    kept: Mutex<VecDeque<(String, Instant)>>,
    has_kept: Notify,
}

impl Terminations {
    pub(super) fn new(client: Client, names: KeySpace) -> Self {
        Self {
            client,
            names,
            publish_script: Script::from_lua(include_str!("terminate.lua")),
            since_script: Script::from_lua(include_str!("terminations_since.lua")),
            kept: Mutex::default(),
            has_kept: Notify::new(),
        }
    }

    /// Publishes a termination. If that fails, it is published once the store answers.
    pub(super) async fn publish(&self, message: String, is_available: bool) -> Result<(), BusError> {
        let published = if is_available { self.try_publish(&message).await } else { Err(unavailable_error()) };
        if published.is_err() {
            let mut kept = lock_unpoisoned(&self.kept);
            if kept.len() >= KEPT_TERMINATIONS_MAX {
                kept.pop_front();
                tracing::warn!("termination dropped: too many wait for the bus");
            }
            kept.push_back((message, Instant::now()));
            self.has_kept.notify_one();
        }
        published
    }

    async fn try_publish(&self, message: &str) -> Result<(), BusError> {
        let arguments = vec![
            message.to_owned(),
            self.names.frames_channel(),
            TERMINATION_TTL.as_millis().to_string(),
            KEPT_TERMINATIONS_MAX.to_string(),
        ];
        let keys = vec![self.names.terminations_key()];
        evaluate_script(&self.client, &self.publish_script, keys, arguments).await.map(|_| ()).map_err(to_bus_error)
    }

    /// Publishes kept terminations whenever the store answers.
    pub(super) async fn run_kept(&self, is_available: impl Fn() -> bool) {
        loop {
            let oldest = lock_unpoisoned(&self.kept).front().cloned();
            match oldest {
                None => self.has_kept.notified().await,
                Some((message, at)) => {
                    let is_over = at.elapsed() > TERMINATION_TTL;
                    if is_over || (is_available() && self.try_publish(&message).await.is_ok()) {
                        lock_unpoisoned(&self.kept).pop_front();
                    } else {
                        tokio::time::sleep(KEPT_RETRY_INTERVAL).await;
                    }
                }
            }
        }
    }

    /// Returns the messages of the latest while, each with its age.
    pub(super) async fn since(&self, age: Duration) -> Result<Vec<(Duration, Bytes)>, BusError> {
        let arguments = vec![age.as_millis().to_string()];
        let keys = vec![self.names.terminations_key()];
        let answer = evaluate_script(&self.client, &self.since_script, keys, arguments).await.map_err(to_bus_error)?;
        let entry = |pair: &[String]| {
            let age = Duration::from_millis(parse_number(&pair[0])?);
            Ok((age, Bytes::from(pair[1].clone())))
        };
        if answer.len() % 2 != 0 {
            return Err(malformed_answer());
        }
        answer.chunks_exact(2).map(entry).collect()
    }
}
