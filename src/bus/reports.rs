//! The frames by which a bus reports its own decisions to subscribers: members that join and leave, users that go online
//! and offline, and counts.
//!
//! The bus publishes them in the step that decides, so that every process receives them in the order of the decisions.
//! A frame that was published after its decision could overtake a later one, and a roster would stay wrong.

use super::ChannelKey;
use crate::protocol::frame::{self, PresenceMember};
use crate::protocol::record::EventKind;
use crate::protocol::{ChannelKind, ChannelName};

/// Returns the channel whose subscribers learn of a channel's transitions; `None` when nobody does.
pub(super) fn report_channel(subject: &ChannelKey) -> Option<ChannelKey> {
    match subject.channel.kind() {
        ChannelKind::Presence => Some(subject.clone()),
        ChannelKind::Internal => {
            let channel = ChannelName::watchers_of(subject.channel.signed_in_user()?)?;
            Some(ChannelKey { app: subject.app.clone(), channel })
        }
        _ => None,
    }
}

/// Returns the frame that reports a transition; `member` is the one that joined or left, if any did.
pub(super) fn report_frame(subject: &ChannelKey, kind: &EventKind, member: Option<&PresenceMember>) -> Option<String> {
    let user = subject.channel.signed_in_user();
    match kind {
        EventKind::ChannelOccupied => user.map(|user| frame::watchlist_events(&[user], &[])),
        EventKind::ChannelVacated => user.map(|user| frame::watchlist_events(&[], &[user])),
        EventKind::MemberAdded { .. } => member.map(|member| frame::member_added(&subject.channel, member)),
        EventKind::MemberRemoved { user_id } => Some(frame::member_removed(&subject.channel, user_id)),
        _ => None,
    }
}

/// The text of a frame before and after a part that a script fills in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameTemplate {
    /// Text before the part.
    pub start: String,
    /// Text after the part.
    pub end: String,
}

impl FrameTemplate {
    /// The frame of an event, around its data as a JSON text.
    pub(super) fn around_data(event: &str, channel: &ChannelName) -> Self {
        // No name has a control character.
        Self::split(&frame::event_frame(event, channel, "\u{1}", None), "\"\\u0001\"")
    }

    /// The frame of a subscription count, around the number.
    pub(super) fn around_count(channel: &ChannelName) -> Self {
        Self::split(&frame::subscription_count(channel, u64::MAX), &u64::MAX.to_string())
    }

    /// Splits at the last occurrence: the data of a frame follow its channel.
    fn split(frame: &str, part: &str) -> Self {
        let (start, end) = frame.rsplit_once(part).unwrap_or((frame, ""));
        Self { start: start.to_owned(), end: end.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_with_its_part_is_the_frame() {
        let channel = ChannelName::parse("presence-18446744073709551615").expect("a name");
        let member = PresenceMember { user_id: "\"é".into(), user_info: serde_json::json!({ "a": "/" }) };
        let data = serde_json::to_string(&member).expect("json");
        let FrameTemplate { start, end } = FrameTemplate::around_data(frame::MEMBER_ADDED_EVENT, &channel);
        let filled = format!("{start}{}{end}", serde_json::to_string(&data).expect("json"));
        assert_eq!(filled, frame::member_added(&channel, &member));
        let FrameTemplate { start, end } = FrameTemplate::around_count(&channel);
        assert_eq!(format!("{start}7{end}"), frame::subscription_count(&channel, 7));
    }

    #[test]
    fn subscribers_of_a_presence_channel_and_watchers_of_a_user_receive_reports() {
        let key = |channel| ChannelKey { app: "1".into(), channel };
        let parse = |name| key(ChannelName::parse(name).expect("a name"));
        assert_eq!(report_channel(&parse("presence-a")), Some(parse("presence-a")));
        assert_eq!(report_channel(&parse("private-a")), None);
        assert_eq!(report_channel(&key(ChannelName::all_connections())), None);
        let home = key(ChannelName::signed_in("u").expect("a name"));
        assert_eq!(report_channel(&home), ChannelName::watchers_of("u").map(key));
        let online = report_frame(&home, &EventKind::ChannelOccupied, None);
        assert_eq!(online, Some(frame::watchlist_events(&["u"], &[])));
        assert_eq!(report_frame(&parse("private-a"), &EventKind::ChannelOccupied, None), None);
    }
}
