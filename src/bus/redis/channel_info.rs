//! Channels in Redis beyond their membership: last events, subscription counts, and lists of channels.

use std::collections::BTreeSet;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::Value;
use fred::types::scan::Scanner;
use fred::types::scripts::Script;
use futures::StreamExt;

use super::super::reports::FrameTemplate;
use super::super::{
    BusError, CACHE_MISS_INTERVAL, ChannelInfo, ChannelKey, CountUpdate, LARGE_CHANNEL_COUNT_INTERVAL,
    LARGE_CHANNEL_THRESHOLD, LastEvent, LastEventLookup, TOMBSTONE_MAX_TTL, TOMBSTONE_MIN_TTL,
};
use super::channel_index;
use super::client::{PIPELINE_COMMANDS_MAX, evaluate_script, malformed_answer, parse_number, to_bus_error};
use super::keys::KeySpace;
use super::wire;
use crate::protocol::{AppId, ChannelName};

/// Index entries that one scan of a list returns.
const SCAN_PAGE_LEN: u32 = 1_000;

/// Last events, counts and lists of channels in one store.
pub(super) struct RedisChannels {
    client: Client,
    names: KeySpace,
    store_script: Script,
    lookup_script: Script,
    count_script: Script,
    inspect_script: Script,
}

impl RedisChannels {
    pub(super) fn new(client: Client, names: KeySpace) -> Self {
        Self {
            client,
            names,
            store_script: Script::from_lua(include_str!("cache_set.lua")),
            lookup_script: Script::from_lua(include_str!("cache_get.lua")),
            count_script: Script::from_lua(include_str!("claim_count_update.lua")),
            inspect_script: Script::from_lua(include_str!("channel_info.lua")),
        }
    }

    pub(super) async fn store_last_event(
        &self,
        subject: &ChannelKey,
        last: &LastEvent,
        ttl: Duration,
    ) -> Result<(), BusError> {
        let text = serde_json::to_string(last).map_err(|error| BusError::Unavailable(error.to_string()))?;
        self.run(&self.store_script, subject, ["last", "missed"], vec![text, ttl.as_secs().max(1).to_string()]).await?;
        Ok(())
    }

    pub(super) async fn look_up_last_event(&self, subject: &ChannelKey) -> Result<LastEventLookup, BusError> {
        let answer = self
            .run(&self.lookup_script, subject, ["last", "missed"], vec![CACHE_MISS_INTERVAL.as_millis().to_string()])
            .await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["kept", last] => Ok(LastEventLookup::Found(serde_json::from_str(last).map_err(|_| malformed_answer())?)),
            ["first"] => Ok(LastEventLookup::Missing { report_miss: true }),
            ["missing"] => Ok(LastEventLookup::Missing { report_miss: false }),
            _ => Err(malformed_answer()),
        }
    }

    pub(super) async fn claim_count_update(&self, subject: &ChannelKey) -> Result<CountUpdate, BusError> {
        let FrameTemplate { start, end } = FrameTemplate::around_count(&subject.channel);
        let arguments = vec![
            LARGE_CHANNEL_THRESHOLD.to_string(),
            LARGE_CHANNEL_COUNT_INTERVAL.as_millis().to_string(),
            format!("{} {}", TOMBSTONE_MAX_TTL.as_secs(), TOMBSTONE_MIN_TTL.as_secs()),
            self.names.frames_channel(),
            format!("{}}}\n{start}", wire::script_header_start(subject, None)?),
            end,
        ];
        let answer = self.run(&self.count_script, subject, ["sockets", "told"], arguments).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["tell", count] => Ok(CountUpdate::Published(parse_number(count)?)),
            ["later", ms] => Ok(CountUpdate::RetryAfter(Duration::from_millis(parse_number(ms)?))),
            ["told"] => Ok(CountUpdate::Unchanged),
            _ => Err(malformed_answer()),
        }
    }

    pub(super) async fn inspect_channel(&self, subject: &ChannelKey) -> Result<ChannelInfo, BusError> {
        let answer = self.run(&self.inspect_script, subject, ["sockets", "users", "last"], Vec::new()).await?;
        let [_, connections, last, remaining, users @ ..] = &answer[..] else { return Err(malformed_answer()) };
        let last: Option<LastEvent> = match last.as_str() {
            "" => None,
            text => Some(serde_json::from_str(text).map_err(|_| malformed_answer())?),
        };
        // PTTL is negative when the key expired between GET and PTTL.
        let remaining =
            Duration::from_millis(remaining.parse::<i64>().map_err(|_| malformed_answer())?.try_into().unwrap_or(0));
        let mut users = users.to_vec();
        users.sort();
        Ok(ChannelInfo { connections: parse_number(connections)?, users, last: last.map(|last| (last, remaining)) })
    }

    pub(super) async fn are_occupied(&self, subjects: &[ChannelKey]) -> Result<Vec<bool>, BusError> {
        let keys: Vec<String> = subjects.iter().map(|subject| self.names.redis_key(subject, "sockets")).collect();
        Ok(self.hash_lengths(&keys).await?.into_iter().map(|length| length > 0).collect())
    }

    /// Lists an app's occupied channels from the indexes of all processes, which together hold every occupied channel: from
    /// that of the app, or from the whole one of a process of release 0.1.0.
    pub(super) async fn list_channels(&self, app: &AppId, prefix: &str) -> Result<Vec<(ChannelName, u64)>, BusError> {
        let processes: Vec<String> =
            self.client.zrange(self.names.leases_key(), 0, -1, None, false, None, false).await.map_err(to_bus_error)?;
        let marked = channel_index::are_marked(&self.client, &self.names, &processes).await?;
        let mut found = BTreeSet::new();
        for (process, is_marked) in processes.into_iter().zip(marked) {
            let (index, start) = if is_marked {
                (self.names.app_index_key(&process, app), String::new())
            } else {
                (self.names.channel_index_key(&process), format!("{app}/"))
            };
            let pages = self.client.sscan(index, format!("{start}{prefix}*"), Some(SCAN_PAGE_LEN));
            let mut pages = std::pin::pin!(pages);
            while let Some(page) = pages.next().await {
                let mut page = page.map_err(to_bus_error)?;
                let entries = page.take_results().unwrap_or_default().into_iter().filter_map(Value::into_string);
                let channels = entries.filter_map(|entry| ChannelName::parse_any(entry.strip_prefix(&start)?).ok());
                let subjects = channels.map(|channel| ChannelKey { app: app.clone(), channel });
                found.extend(subjects.filter(channel_index::is_listed));
                page.next();
            }
        }
        let found: Vec<ChannelKey> = found.into_iter().collect();
        let keys = |part| found.iter().map(|subject| self.names.redis_key(subject, part)).collect::<Vec<_>>();
        let (sockets, users) = (self.hash_lengths(&keys("sockets")).await?, self.hash_lengths(&keys("users")).await?);
        let counted = found.into_iter().zip(sockets).zip(users);
        // An index has a channel before the first connection joins and after the last has left.
        Ok(counted
            .filter(|((_, sockets), _)| *sockets > 0)
            .map(|((subject, _), users)| (subject.channel, users))
            .collect())
    }

    async fn hash_lengths(&self, keys: &[String]) -> Result<Vec<u64>, BusError> {
        let mut lengths = Vec::with_capacity(keys.len());
        for part in keys.chunks(PIPELINE_COMMANDS_MAX) {
            let pipeline = self.client.pipeline();
            for key in part {
                pipeline.hlen::<(), _>(key.as_str()).await.map_err(to_bus_error)?;
            }
            lengths.extend(pipeline.all::<Vec<u64>>().await.map_err(to_bus_error)?);
        }
        Ok(lengths)
    }

    async fn run<const N: usize>(
        &self,
        script: &Script,
        subject: &ChannelKey,
        parts: [&str; N],
        arguments: Vec<String>,
    ) -> Result<Vec<String>, BusError> {
        evaluate_script(&self.client, script, self.names.redis_keys(subject, parts), arguments)
            .await
            .map_err(to_bus_error)
    }
}
