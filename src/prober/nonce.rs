//! Nonces that send a journey's record to a chosen shard.

use crate::kinesis::Shard;
use crate::protocol::record::{hash_key, partition_key};
use crate::protocol::{AppId, ChannelName, ShardId};

/// Most tries for one shard: a shard that holds a thousandth of the keys is missed once in e^10.
const CHOICE_ATTEMPTS_MAX: usize = 10_000;

/// Prefix of the nonce in the names of a journey's channels.
const NONCE_PREFIX: &str = "-probe-";

/// Whether a channel has the name of a journey's channel.
pub(super) fn is_journey_channel(channel: &ChannelName) -> bool {
    nonce_of(channel).is_some()
}

/// The nonce in the name of a journey's channel.
pub(super) fn nonce_of(channel: &ChannelName) -> Option<&str> {
    channel.as_str().split_once(NONCE_PREFIX).map(|(_, nonce)| nonce)
}

/// The two channels of a journey.
#[derive(Clone, Debug)]
pub(super) struct JourneyChannels {
    /// The nonce that both channel names contain.
    pub nonce: String,
    /// `private-cache-probe-…`: nothing is ever published in it, so that it misses its last event and none is kept for it.
    pub private: ChannelName,
    /// The presence channel, `presence-probe-…`.
    pub presence: ChannelName,
    /// Bytes by which the payload of each event is longer than needed.
    pub padding_bytes: usize,
}

impl JourneyChannels {
    /// The channels of a nonce; `None` if it is no part of a channel's name.
    pub fn new(nonce: &str) -> Option<Self> {
        let name = |kind: &str| ChannelName::parse(&format!("{kind}{NONCE_PREFIX}{nonce}")).ok();
        let (private, presence) = (name("private-cache")?, name("presence")?);
        Some(Self { nonce: nonce.to_owned(), private, presence, padding_bytes: 0 })
    }

    /// As whom the journey's own session is in the presence channel.
    pub fn member_id(&self) -> String {
        format!("member-{}", self.nonce)
    }

    /// As whom a second session is there.
    pub fn witness_id(&self) -> String {
        format!("witness-{}", self.nonce)
    }

    /// The payload of the client event.
    pub fn client_event_payload(&self) -> String {
        match self.padding_bytes {
            0 => format!("{{\"nonce\":\"{}\"}}", self.nonce),
            bytes => format!("{{\"nonce\":\"{}\",\"padding\":\"{}\"}}", self.nonce, "x".repeat(bytes)),
        }
    }

    /// The shard where records of a channel go.
    pub fn shard_of<'a>(app: &AppId, channel: &ChannelName, shards: &'a [Shard]) -> Option<&'a ShardId> {
        let hash = hash_key(&partition_key(app, channel));
        shards.iter().find(|shard| shard.has_hash_key(hash)).map(|shard| &shard.id)
    }
}

/// Channels whose private one falls into `wanted`, out of the nonces that `next` gives.
pub(super) fn choose_channels(
    app: &AppId,
    wanted: &ShardId,
    shards: &[Shard],
    mut next: impl FnMut() -> String,
) -> Option<JourneyChannels> {
    (0..CHOICE_ATTEMPTS_MAX)
        .filter_map(|_| JourneyChannels::new(&next()))
        .find(|channels| JourneyChannels::shard_of(app, &channels.private, shards) == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_can_be_chosen() {
        let quarter = u128::MAX / 4 + 1;
        let shards: Vec<Shard> = (0..4_u128)
            .map(|n| Shard {
                id: format!("s{n}").into(),
                start: n * quarter,
                end: (n * quarter) + (quarter - 1),
                parents: vec![],
                open: true,
            })
            .collect();
        assert!(crate::kinesis::covers_all(&shards));
        let mut n = 0;
        for shard in &shards {
            let channels = choose_channels(&"1".into(), &shard.id, &shards, || {
                n += 1;
                format!("n{n}")
            });
            let channels = channels.expect("a nonce");
            assert_eq!(JourneyChannels::shard_of(&"1".into(), &channels.private, &shards), Some(&shard.id));
        }
        assert!(choose_channels(&"1".into(), &"elsewhere".into(), &shards, || "a".into()).is_none());
    }
}
