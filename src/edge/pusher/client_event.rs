//! Client events: one client publishes to the others of a private or presence channel.

use std::time::Instant;

use crate::edge::metrics::RefusalReason;
use crate::edge::pusher::connection::{Connection, EVENT_NAME_MAX_LEN};
use crate::protocol::frame;
use crate::protocol::record::EventKind;
use crate::protocol::registry::App;
use crate::protocol::{ChannelKind, ChannelName};

/// The refusal of a client event.
pub(crate) struct ClientEventRefusal {
    /// Reason of the refusal in the metrics.
    pub(crate) reason: RefusalReason,
    /// Text that the client receives.
    pub(crate) message: String,
}

impl ClientEventRefusal {
    fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Connection {
    /// Publishes an event of this client to the other subscribers of a channel.
    ///
    /// # Errors
    /// The refusal: the app, the channel or a limit does not allow the event.
    pub(crate) async fn publish_client_event(
        &mut self,
        app: &App,
        event: String,
        name: &str,
        data: String,
    ) -> Result<(), ClientEventRefusal> {
        if !app.client_events {
            return Err(ClientEventRefusal::new(
                RefusalReason::ClientEventsOff,
                "client events are not enabled for this app",
            ));
        }
        let channel = ChannelName::parse(name)
            .map_err(|error| ClientEventRefusal::new(RefusalReason::ChannelName, error.to_string()))?;
        if channel.kind() == ChannelKind::Public {
            return Err(ClientEventRefusal::new(
                RefusalReason::PublicChannel,
                "client events need a private or presence channel",
            ));
        }
        let Some(member) = self.channels.get(&channel) else {
            return Err(ClientEventRefusal::new(
                RefusalReason::NotSubscribed,
                format!("subscribe to `{channel}` before sending to it"),
            ));
        };
        if event.chars().count() > EVENT_NAME_MAX_LEN {
            return Err(ClientEventRefusal::new(
                RefusalReason::EventName,
                format!("the event's name is longer than {EVENT_NAME_MAX_LEN} characters"),
            ));
        }
        let most = app.limits.message_bytes;
        if data.len() > most {
            let told = format!("the event has {} bytes of data, at most {most} are allowed", data.len());
            return Err(ClientEventRefusal::new(RefusalReason::TooLarge, told));
        }
        let limit = app.limits.client_events_per_second;
        if !self.client_event_rate.try_take(limit, Instant::now()) {
            return Err(ClientEventRefusal::new(
                RefusalReason::ClientEventRate,
                format!("more than {limit} client events in a second"),
            ));
        }
        let user_id = member.as_ref().map(|member| member.user_id.clone());
        let told = frame::event_frame(&event, &channel, &data, user_id.as_deref());
        let subject = self.channel_key(&channel);
        let socket = &self.session.socket;
        self.shared.metrics.client_events.inc();
        self.session.app_counts.client_events.inc();
        let recorded = EventKind::ClientEvent { event, data, socket_id: socket.to_string(), user_id };
        self.shared.recorder.record_event(&subject, recorded);
        self.shared.publish_frame(subject, told, Some(socket.clone())).await;
        Ok(())
    }
}
