//! Names of the Redis keys. All begin with `rt:` and the cluster or its group, so that two clusters can share one store.
//! Keys of one script share a hash tag, and so a slot.

use super::super::{BusScope, ChannelKey};
use crate::protocol::{AppId, ChannelName};

/// Key names of one cluster in one store.
#[derive(Clone, Debug)]
pub(super) struct KeySpace {
    /// Identifies the realtime cluster in the names of keys that other clusters of its group do not use.
    cluster: String,
    /// Identifies the group in the names of keys that its clusters share; a cluster without a group is its own.
    pub group: String,
    /// Whether the store is a Redis cluster, in which one script cannot use the keys of two channels.
    pub clustered: bool,
}

impl KeySpace {
    pub fn new<'a>(scope: impl Into<BusScope<'a>>, clustered: bool) -> Self {
        let scope = scope.into();
        Self { cluster: scope.cluster.to_owned(), group: scope.shared_key(), clustered }
    }

    /// Several keys of one channel.
    pub fn redis_keys<const N: usize>(&self, subject: &ChannelKey, parts: [&str; N]) -> Vec<String> {
        parts.map(|part| self.redis_key(subject, part)).into()
    }

    /// One key of one channel.
    pub fn redis_key(&self, subject: &ChannelKey, part: &str) -> String {
        format!("rt:{{{}:{}:{}}}:{part}", self.group, subject.app, subject.channel)
    }

    /// Expiry of each process's lease, in ms of the store's clock.
    pub fn leases_key(&self) -> String {
        format!("rt:{{{}}}:leases", self.group)
    }

    /// Incarnation of the store's data: another after each loss.
    pub fn incarnation_key(&self) -> String {
        format!("rt:{{{}}}:incarnation", self.group)
    }

    /// Index of the channels in which a process has connections or unacknowledged events.
    pub fn channel_index_key(&self, process: &str) -> String {
        format!("rt:{{{}:{process}}}:channels", self.group)
    }

    /// Index of an app's channels in which a process has connections or unacknowledged events.
    pub fn app_index_key(&self, process: &str, app: &AppId) -> String {
        format!("rt:{{{}:{process}}}:channels:{app}", self.group)
    }

    /// Mark of a process whose indexes of apps are complete.
    pub fn app_index_mark_key(&self, process: &str) -> String {
        format!("rt:{{{}:{process}}}:indexed", self.group)
    }

    /// Claim of the process that sweeps a dead one.
    pub fn sweep_claim_key(&self, process: &str) -> String {
        format!("rt:{{{}:{process}}}:sweeper", self.group)
    }

    /// Relay address of each live process of this cluster: processes of another one are not dialled.
    pub fn peers_key(&self) -> String {
        format!("rt:{}:peers", self.cluster)
    }

    /// Load of each live process of this cluster.
    pub fn loads_key(&self) -> String {
        format!("rt:{}:loads", self.cluster)
    }

    /// Process that owns a session. The group shares it, so that the session of another cluster is known as one.
    pub fn session_owner_key(&self, session: &str) -> String {
        format!("rt:{}:session:{session}", self.group)
    }

    /// Sessions of a process that lost a client's message.
    pub fn lost_sends_key(&self, process: &str) -> String {
        format!("rt:{}:losers:{process}", self.cluster)
    }

    /// Terminations of users' connections, for processes whose subscription is interrupted.
    pub fn terminations_key(&self) -> String {
        format!("rt:{}:terminations", self.group)
    }

    /// Publish/subscribe channel of the frames.
    pub fn frames_channel(&self) -> String {
        format!("rt:{}:frames", self.group)
    }

    /// Publish/subscribe channel on which a process confirms its own subscription.
    pub fn confirmation_channel(&self, process: &str) -> String {
        format!("rt:{}:confirm:{process}", self.group)
    }
}

/// Formats a channel as an entry of an index.
pub(super) fn index_entry(subject: &ChannelKey) -> String {
    format!("{}/{}", subject.app, subject.channel)
}

/// Parses an entry of an index; `None` when another program wrote it.
pub(super) fn parse_index_entry(entry: &str) -> Option<ChannelKey> {
    let (app, channel) = entry.split_once('/')?;
    Some(ChannelKey { app: app.into(), channel: ChannelName::parse_any(channel).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_entry_round_trips_and_others_are_ignored() {
        for name in ["a", "presence-b"].map(ChannelName::parse) {
            let known = ChannelKey { app: "1".into(), channel: name.expect("a name") };
            assert_eq!(parse_index_entry(&index_entry(&known)), Some(known));
        }
        let own = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("u/é}").expect("a name") };
        assert_eq!(parse_index_entry(&index_entry(&own)), Some(own));
        for bad in ["", "1", "1/", "1/b d"] {
            assert_eq!(parse_index_entry(bad), None, "{bad}");
        }
    }
}
