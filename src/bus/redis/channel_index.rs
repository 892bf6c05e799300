//! The indexes of a process's channels in the store: one of all of them, from which a sweeper finds them if the process
//! dies, and one for each app, from which the channels of the app are listed.
//!
//! Processes of release 0.1.0 know the first alone: they do not write the others, and leave them behind when they sweep a
//! process. So the indexes of apps expire unless they are refreshed, and a process has a mark while they are complete,
//! which expires before them. Without the mark, its channels are listed from the first index.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{KeysInterface, SetsInterface};
use fred::types::Expiration;

use super::super::{BusError, ChannelKey};
use super::client::{PIPELINE_COMMANDS_MAX, to_bus_error, whole_seconds};
use super::keys::{self, KeySpace};
use crate::protocol::{AppId, ChannelKind};

/// Expiry of an index of one app after its last refresh, and after its last new channel.
const APP_INDEX_TTL: Duration = Duration::from_hours(1);

/// Expiry of the mark that a process's indexes of apps are complete; shorter than [`APP_INDEX_TTL`].
const APP_INDEX_MARK_TTL: Duration = Duration::from_mins(30);

/// Time between two refreshes of a process's indexes of apps.
pub(super) const APP_INDEX_REFRESH_INTERVAL: Duration = Duration::from_mins(10);

/// Whether the channel can be listed: those of the server's own cannot.
pub(super) fn is_listed(subject: &ChannelKey) -> bool {
    subject.channel.kind() != ChannelKind::Internal
}

/// Adds a channel to the indexes of a process. Its app's comes first: the mark promises that it is complete.
pub(super) async fn add_channel(
    client: &Client,
    names: &KeySpace,
    process: &str,
    subject: &ChannelKey,
) -> Result<(), BusError> {
    let pipeline = client.pipeline();
    if is_listed(subject) {
        let key = names.app_index_key(process, &subject.app);
        pipeline.sadd::<(), _, _>(&key, subject.channel.as_str()).await.map_err(to_bus_error)?;
        pipeline.expire::<(), _>(&key, whole_seconds(APP_INDEX_TTL), None).await.map_err(to_bus_error)?;
    }
    let entry = keys::index_entry(subject);
    pipeline.sadd::<(), _, _>(names.channel_index_key(process), entry).await.map_err(to_bus_error)?;
    pipeline.all::<Vec<u64>>().await.map_err(to_bus_error)?;
    Ok(())
}

/// Removes channels from the indexes of a process, and entries that another program wrote.
pub(super) async fn remove_channels(
    client: &Client,
    names: &KeySpace,
    process: &str,
    (subjects, foreign): (&[ChannelKey], Vec<String>),
) -> Result<(), BusError> {
    let entries: Vec<String> = subjects.iter().map(keys::index_entry).chain(foreign).collect();
    if entries.is_empty() {
        return Ok(());
    }
    let mut by_app = BTreeMap::<&AppId, Vec<&str>>::new();
    for subject in subjects.iter().filter(|subject| is_listed(subject)) {
        by_app.entry(&subject.app).or_default().push(subject.channel.as_str());
    }
    let pipeline = client.pipeline();
    for (app, channels) in by_app {
        pipeline.srem::<(), _, _>(names.app_index_key(process, app), channels).await.map_err(to_bus_error)?;
    }
    pipeline.srem::<(), _, _>(names.channel_index_key(process), entries).await.map_err(to_bus_error)?;
    pipeline.all::<Vec<u64>>().await.map_err(to_bus_error)?;
    Ok(())
}

/// Refreshes the indexes of these apps, and then the mark that they are complete.
pub(super) async fn refresh_app_indexes(
    client: &Client,
    names: &KeySpace,
    process: &str,
    apps: &[AppId],
) -> Result<(), BusError> {
    for part in apps.chunks(PIPELINE_COMMANDS_MAX) {
        let pipeline = client.pipeline();
        for app in part {
            let key = names.app_index_key(process, app);
            pipeline.expire::<(), _>(key, whole_seconds(APP_INDEX_TTL), None).await.map_err(to_bus_error)?;
        }
        pipeline.all::<Vec<u64>>().await.map_err(to_bus_error)?;
    }
    let expiration = Some(Expiration::EX(whole_seconds(APP_INDEX_MARK_TTL)));
    client.set::<(), _, _>(names.app_index_mark_key(process), 1, expiration, None, false).await.map_err(to_bus_error)
}

/// Whether the indexes of apps of each of these processes are complete.
pub(super) async fn are_marked(client: &Client, names: &KeySpace, processes: &[String]) -> Result<Vec<bool>, BusError> {
    let mut marks = Vec::with_capacity(processes.len());
    for part in processes.chunks(PIPELINE_COMMANDS_MAX) {
        let pipeline = client.pipeline();
        for process in part {
            pipeline.exists::<(), _>(names.app_index_mark_key(process)).await.map_err(to_bus_error)?;
        }
        marks.extend(pipeline.all::<Vec<u64>>().await.map_err(to_bus_error)?);
    }
    Ok(marks.into_iter().map(|mark| mark > 0).collect())
}
