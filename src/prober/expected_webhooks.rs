//! The webhooks that a journey must see: every kind, of its two channels. Pure.
//!
//! Only webhooks of the journey's own session are expected. Another pod records the events of the second session; that
//! pod's own journeys prove them.

use super::nonce::JourneyChannels;
use crate::protocol::ChannelName;
use crate::protocol::record::EventKind;

/// The client event of a journey.
pub(super) const CLIENT_EVENT_NAME: &str = "client-probe";

/// An event and the channel that it is about.
pub(super) type ExpectedWebhook<'a> = (EventKind, &'a ChannelName);

/// Webhooks of subscribing and sending. The second session joins only the presence channel, so the private channel's
/// count is exact and recorded by the journey's pod alone.
pub(super) fn webhooks_of_joining<'a>(channels: &'a JourneyChannels, socket_id: &str) -> Vec<ExpectedWebhook<'a>> {
    let sent = EventKind::ClientEvent {
        event: CLIENT_EVENT_NAME.to_owned(),
        data: channels.client_event_payload(),
        socket_id: socket_id.to_owned(),
        user_id: Some(channels.member_id()),
    };
    vec![
        (EventKind::ChannelOccupied, &channels.private),
        (EventKind::CacheMiss, &channels.private),
        (EventKind::SubscriptionCount { subscription_count: 1 }, &channels.private),
        (EventKind::ChannelOccupied, &channels.presence),
        (EventKind::MemberAdded { user_id: channels.member_id() }, &channels.presence),
        (sent, &channels.presence),
    ]
}

/// Returns the webhooks of unsubscribing.
pub(super) fn webhooks_of_leaving(channels: &JourneyChannels) -> Vec<ExpectedWebhook<'_>> {
    vec![
        (EventKind::SubscriptionCount { subscription_count: 0 }, &channels.private),
        (EventKind::ChannelVacated, &channels.private),
        (EventKind::MemberRemoved { user_id: channels.member_id() }, &channels.presence),
        (EventKind::ChannelVacated, &channels.presence),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::app::EventName;

    #[test]
    fn a_journey_expects_every_kind_that_a_webhook_may_carry() {
        let channels = JourneyChannels::new("n1").expect("channels");
        let expected = webhooks_of_joining(&channels, "1.2").into_iter().chain(webhooks_of_leaving(&channels));
        let expected: BTreeSet<&str> = expected.map(|(kind, _)| kind.name()).collect();
        assert_eq!(expected, BTreeSet::from(EventName::ALL.map(EventName::name)));
        assert!(channels.private.is_cached(), "or nothing is missed");
    }
}
