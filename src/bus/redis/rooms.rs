//! What Redis knows of channels beyond who enters and leaves: their last event, their count, and which there are.

use std::collections::BTreeSet;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::Value;
use fred::types::scan::Scanner;
use fred::types::scripts::Script;
use futures::StreamExt;

use super::super::{BusError, COUNT_EVERY, Count, KEPT, Last, MANY, MISSED, Recalled, Seen, Subject};
use super::TOMBSTONE_SECONDS;
use super::names::{self, Names};
use super::store::{PIPELINE, evaluate, garbled, number, unavailable};
use crate::protocol::{AppId, ChannelKind, ChannelName};

/// Keys looked at in one step of a list.
const PAGE: u32 = 1_000;

/// The scripts and the names of their keys.
pub(super) struct Rooms {
    client: Client,
    names: Names,
    keep: Script,
    recall: Script,
    count: Script,
    look: Script,
}

impl Rooms {
    pub(super) fn new(client: Client, names: Names) -> Self {
        Self {
            client,
            names,
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
        let keys: Vec<String> = subjects.iter().map(|subject| self.names.key(subject, "sockets")).collect();
        Ok(self.lengths(&keys).await?.into_iter().map(|length| length > 0).collect())
    }

    /// Every process keeps a list of the channels in which it has someone; together they are all there are.
    pub(super) async fn list(&self, app: &AppId, prefix: &str) -> Result<Vec<(ChannelName, u64)>, BusError> {
        let processes: Vec<String> =
            self.client.zrange(self.names.leases(), 0, -1, None, false, None, false).await.map_err(unavailable)?;
        let mut found = BTreeSet::new();
        for process in processes {
            let pages = self.client.sscan(self.names.index(&process), format!("{app}/{prefix}*"), Some(PAGE));
            let mut pages = std::pin::pin!(pages);
            while let Some(page) = pages.next().await {
                let mut page = page.map_err(unavailable)?;
                let entries = page.take_results().unwrap_or_default().into_iter().filter_map(Value::into_string);
                let subjects = entries.filter_map(|entry| names::subject(&entry));
                found.extend(subjects.filter(|subject| subject.channel.kind() != ChannelKind::Internal));
                page.next();
            }
        }
        let found: Vec<Subject> = found.into_iter().collect();
        let keys = |part| found.iter().map(|subject| self.names.key(subject, part)).collect::<Vec<_>>();
        let (sockets, users) = (self.lengths(&keys("sockets")).await?, self.lengths(&keys("users")).await?);
        let counted = found.into_iter().zip(sockets).zip(users);
        // A list is written before the first comes, and corrected after the last has gone.
        Ok(counted
            .filter(|((_, sockets), _)| *sockets > 0)
            .map(|((subject, _), users)| (subject.channel, users))
            .collect())
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

    async fn run<const N: usize>(
        &self,
        script: &Script,
        subject: &Subject,
        parts: [&str; N],
        arguments: Vec<String>,
    ) -> Result<Vec<String>, BusError> {
        evaluate(&self.client, script, self.names.channel(subject, parts), arguments).await.map_err(unavailable)
    }
}
