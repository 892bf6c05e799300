//! What Redis knows of channels beyond who enters and leaves: their last event, their count, and which there are.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::scan::ScanType;
use fred::types::scripts::Script;

use super::super::{BusError, COUNT_EVERY, Count, KEPT, Last, MANY, MISSED, Recalled, Seen, Subject};
use super::{TOMBSTONE_SECONDS, garbled};
use crate::protocol::{AppId, ChannelName};

/// Keys looked at in one step of a list.
const PAGE: u32 = 1_000;

/// Commands sent in one go.
const PIPELINE: usize = 500;

/// The scripts and the names of their keys.
pub(super) struct Rooms {
    client: Client,
    cluster: String,
    keep: Script,
    recall: Script,
    count: Script,
    look: Script,
}

impl Rooms {
    pub(super) fn new(client: Client, cluster: String) -> Self {
        Self {
            client,
            cluster,
            keep: Script::from_lua(include_str!("keep.lua")),
            recall: Script::from_lua(include_str!("recall.lua")),
            count: Script::from_lua(include_str!("count.lua")),
            look: Script::from_lua(include_str!("look.lua")),
        }
    }

    pub(super) async fn keep(&self, subject: &Subject, last: &Last) -> Result<(), BusError> {
        let text = serde_json::to_string(last).map_err(|error| BusError::Unavailable(error.to_string()))?;
        self.run(&self.keep, subject, ["last", "missed"], vec![text, KEPT.as_secs().to_string()]).await?;
        Ok(())
    }

    pub(super) async fn recall(&self, subject: &Subject) -> Result<Recalled, BusError> {
        let answer = self.run(&self.recall, subject, ["last", "missed"], vec![MISSED.as_millis().to_string()]).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["kept", last] => Ok(Recalled::Kept(serde_json::from_str(last).map_err(|_| garbled())?)),
            ["first"] => Ok(Recalled::Missing { first: true }),
            ["missing"] => Ok(Recalled::Missing { first: false }),
            _ => Err(garbled()),
        }
    }

    pub(super) async fn count(&self, subject: &Subject) -> Result<Count, BusError> {
        let arguments = vec![MANY.to_string(), COUNT_EVERY.as_millis().to_string(), TOMBSTONE_SECONDS.to_string()];
        let answer = self.run(&self.count, subject, ["sockets", "told"], arguments).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["tell", count] => Ok(Count::Tell(number(count)?)),
            ["later", ms] => Ok(Count::Later(Duration::from_millis(number(ms)?))),
            ["told"] => Ok(Count::Told),
            _ => Err(garbled()),
        }
    }

    pub(super) async fn look(&self, subject: &Subject) -> Result<Seen, BusError> {
        let answer = self.run(&self.look, subject, ["sockets", "users", "last"], Vec::new()).await?;
        let [_, connections, last, remaining, users @ ..] = &answer[..] else { return Err(garbled()) };
        let last: Option<Last> = match last.as_str() {
            "" => None,
            text => Some(serde_json::from_str(text).map_err(|_| garbled())?),
        };
        // A negative time is that of a key that went between the two questions.
        let remaining = Duration::from_millis(remaining.parse::<i64>().map_err(|_| garbled())?.try_into().unwrap_or(0));
        let mut users = users.to_vec();
        users.sort();
        Ok(Seen { connections: number(connections)?, users, last: last.map(|last| (last, remaining)) })
    }

    pub(super) async fn occupied(&self, subjects: &[Subject]) -> Result<Vec<bool>, BusError> {
        let keys: Vec<String> = subjects.iter().map(|subject| self.key(subject, "sockets")).collect();
        Ok(self.lengths(&keys).await?.into_iter().map(|length| length > 0).collect())
    }

    /// Walks over the keys: an index of its own would be another key to write on every first and last subscription,
    /// in another slot, and so never quite right.
    pub(super) async fn list(&self, app: &AppId, prefix: &str) -> Result<Vec<(ChannelName, u64)>, BusError> {
        let before = format!("rt:{{{}:{app}:", self.cluster);
        let after = "}:sockets";
        let pattern = format!("{before}{prefix}*{after}");
        let (mut cursor, mut names) = ("0".to_owned(), std::collections::BTreeSet::new());
        loop {
            let page = self.client.scan_page::<(String, Vec<String>), _, _>(
                cursor,
                pattern.clone(),
                Some(PAGE),
                Some(ScanType::Hash),
            );
            let (next, keys) = page.await.map_err(unavailable)?;
            let name = |key: &String| key.strip_prefix(&before)?.strip_suffix(after).map(str::to_owned);
            // The server's own have names that no client can ask for.
            names.extend(keys.iter().filter_map(name).filter_map(|name| ChannelName::parse(&name).ok()));
            if next == "0" {
                break;
            }
            cursor = next;
        }
        let key = |name: &ChannelName| format!("{before}{name}}}:users");
        let users = self.lengths(&names.iter().map(key).collect::<Vec<_>>()).await?;
        Ok(names.into_iter().zip(users).collect())
    }

    async fn lengths(&self, keys: &[String]) -> Result<Vec<u64>, BusError> {
        let mut lengths = Vec::with_capacity(keys.len());
        for part in keys.chunks(PIPELINE) {
            let pipeline = self.client.pipeline();
            for key in part {
                pipeline.hlen::<(), _>(key.as_str()).await.map_err(unavailable)?;
            }
            lengths.extend(pipeline.all::<Vec<u64>>().await.map_err(unavailable)?);
        }
        Ok(lengths)
    }

    fn key(&self, subject: &Subject, part: &str) -> String {
        format!("rt:{{{}:{}:{}}}:{part}", self.cluster, subject.app, subject.channel)
    }

    async fn run<const N: usize>(
        &self,
        script: &Script,
        subject: &Subject,
        parts: [&str; N],
        arguments: Vec<String>,
    ) -> Result<Vec<String>, BusError> {
        let keys: Vec<String> = parts.iter().map(|part| self.key(subject, part)).collect();
        script.evalsha_with_reload(&self.client, keys, arguments).await.map_err(unavailable)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn unavailable(error: fred::error::Error) -> BusError {
    BusError::Unavailable(error.to_string())
}

fn number(text: &str) -> Result<u64, BusError> {
    text.parse().map_err(|_| garbled())
}
