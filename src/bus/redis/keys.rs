//! The names of the keys. All begin with `rt:` and the cluster, so that two clusters can share one store. What one
//! script touches shares a hash tag, and so a slot.

use super::super::ChannelKey;
use crate::protocol::ChannelName;

/// The cluster, and how its store is laid out.
#[derive(Clone, Debug)]
pub(super) struct KeySpace {
    /// The cluster.
    pub cluster: String,
    /// Whether the store is a cluster itself, in which keys of two channels never meet in one script.
    pub clustered: bool,
}

impl KeySpace {
    /// Some keys of a channel.
    pub fn redis_keys<const N: usize>(&self, subject: &ChannelKey, parts: [&str; N]) -> Vec<String> {
        parts.map(|part| self.redis_key(subject, part)).into()
    }

    /// One key of a channel.
    pub fn redis_key(&self, subject: &ChannelKey, part: &str) -> String {
        format!("rt:{{{}:{}:{}}}:{part}", self.cluster, subject.app, subject.channel)
    }

    /// Until when each process lives, in ms of the store's time.
    pub fn leases_key(&self) -> String {
        format!("rt:{{{}}}:leases", self.cluster)
    }

    /// What tells one life of the store's memory from the next.
    pub fn incarnation_key(&self) -> String {
        format!("rt:{{{}}}:incarnation", self.cluster)
    }

    /// The channels in which a process has someone, or of which it has something to tell.
    pub fn channel_index_key(&self, process: &str) -> String {
        format!("rt:{{{}:{process}}}:channels", self.cluster)
    }

    /// Who sweeps after a process.
    pub fn sweep_claim_key(&self, process: &str) -> String {
        format!("rt:{{{}:{process}}}:sweeper", self.cluster)
    }

    /// Where each process is asked for the sessions that it has.
    pub fn peers_key(&self) -> String {
        format!("rt:{}:peers", self.cluster)
    }

    /// Who has a session.
    pub fn session_owner_key(&self, session: &str) -> String {
        format!("rt:{}:session:{session}", self.cluster)
    }

    /// The sessions of a process that lost a message.
    pub fn lost_sends_key(&self, process: &str) -> String {
        format!("rt:{}:losers:{process}", self.cluster)
    }

    /// Where frames are published.
    pub fn frames_channel(&self) -> String {
        format!("rt:{}:frames", self.cluster)
    }
}

/// A channel as it stands in an index.
pub(super) fn index_entry(subject: &ChannelKey) -> String {
    format!("{}/{}", subject.app, subject.channel)
}

/// The channel that stands in an index; `None` when another program wrote it.
pub(super) fn parse_index_entry(entry: &str) -> Option<ChannelKey> {
    let (app, channel) = entry.split_once('/')?;
    Some(ChannelKey { app: app.into(), channel: ChannelName::parse_any(channel).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_index_names_its_channel() {
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
