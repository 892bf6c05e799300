//! The attributes of channels in the HTTP API: names in, values out. Pure.

use serde_json::{Map, Value, json};

use crate::bus::ChannelInfo;
use crate::edge::http_api::refusal::{ApiRefusal, bad_request};
use crate::protocol::{ChannelKind, ChannelName};

/// The channel attributes that a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelAttributes {
    users: bool,
    connections: bool,
    last: bool,
}

impl ChannelAttributes {
    /// Parses a list of names joined by commas.
    pub fn parse(info: &str) -> Result<Self, ApiRefusal> {
        let mut attributes = Self::default();
        for name in info.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "user_count" => attributes.users = true,
                "subscription_count" => attributes.connections = true,
                "cache" => attributes.last = true,
                _ => return Err(bad_request("`info` may have user_count, subscription_count and cache in it")),
            }
        }
        Ok(attributes)
    }

    /// Checks that channels of this kind have all requested attributes.
    pub fn check_channel_kind(self, channel: &ChannelName) -> Result<(), ApiRefusal> {
        if self.users && channel.kind() != ChannelKind::Presence {
            return Err(bad_request("user_count is known of presence channels only"));
        }
        if self.last && !channel.is_cached() {
            return Err(bad_request("cache is known of cache channels only"));
        }
        Ok(())
    }

    /// Returns the values, without attributes that channels of this kind lack.
    pub fn values_for(self, channel: &ChannelName, seen: &ChannelInfo) -> Map<String, Value> {
        let mut values = Map::new();
        if self.users && channel.kind() == ChannelKind::Presence {
            values.insert("user_count".into(), seen.users.len().into());
        }
        if self.connections {
            values.insert("subscription_count".into(), seen.connections.into());
        }
        if let (true, Some((last, remaining))) = (self.last && channel.is_cached(), &seen.last) {
            values.insert("cache".into(), json!({ "data": last.data, "ttl": remaining.as_secs() }));
        }
        values
    }
}

/// The parameters of a channel list: the prefix of the names, and whether users are counted.
pub fn parse_list_query<'a>(prefix: Option<&'a str>, info: Option<&str>) -> Result<(&'a str, bool), ApiRefusal> {
    let prefix = prefix.unwrap_or_default();
    let attributes = ChannelAttributes::parse(info.unwrap_or_default())?;
    if attributes.connections || attributes.last {
        return Err(bad_request("a list of channels has user_count only; ask for one channel to know more"));
    }
    if attributes.users && !prefix.starts_with("presence-") {
        return Err(bad_request("user_count needs `filter_by_prefix` to begin with presence-"));
    }
    Ok((prefix, attributes.users))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::LastEvent;
    use std::time::Duration;

    #[test]
    fn a_table_of_lists() {
        for (name, prefix, info, expected) in [
            ("all", None, None, Some(("", false))),
            ("some", Some("news-"), None, Some(("news-", false))),
            ("with users", Some("presence-"), Some("user_count"), Some(("presence-", true))),
            ("users of others", Some("pres"), Some("user_count"), None),
            ("users of all", None, Some("user_count"), None),
            ("connections", Some("presence-"), Some("subscription_count"), None),
            ("anything", None, Some("members"), None),
        ] {
            assert_eq!(parse_list_query(prefix, info).ok(), expected, "{name}");
        }
    }

    #[test]
    fn a_table_of_channels() {
        let last = Some((LastEvent { event: "e".into(), data: "{}".into() }, Duration::from_millis(1999)));
        let seen = ChannelInfo { connections: 3, users: vec!["a".into(), "b".into()], last };
        for (channel, info, expected) in [
            ("room", "", Some(json!({}))),
            ("room", "subscription_count", Some(json!({ "subscription_count": 3 }))),
            ("room", "user_count", None),
            ("room", "cache", None),
            ("presence-a", "user_count, subscription_count", Some(json!({ "user_count": 2, "subscription_count": 3 }))),
            ("cache-a", "cache", Some(json!({ "cache": { "data": "{}", "ttl": 1 } }))),
            ("room", "else", None),
        ] {
            let channel = ChannelName::parse(channel).expect("a name");
            let found = ChannelAttributes::parse(info).and_then(|attributes| {
                attributes.check_channel_kind(&channel)?;
                Ok(Value::Object(attributes.values_for(&channel, &seen)))
            });
            assert_eq!(found.ok(), expected, "{channel} {info}");
        }
        let room = ChannelName::parse("room").expect("a name");
        let all = ChannelAttributes::parse("user_count,cache").expect("attributes");
        assert_eq!(all.values_for(&room, &seen), Map::new(), "what it does not have is left out");
    }
}
