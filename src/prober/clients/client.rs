//! A client of one session, whatever the transport: connect, send, receive.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::link::{BrokenHop, FRAME_QUEUE_LEN, FrameSender, InboundFrame, STEP_TIMEOUT, SendError};
use super::target::SessionTarget;
use super::{sockjs, websocket};
use crate::api::Reason;
use crate::gate::Hop;
use crate::prober::ProbeApp;
use crate::protocol::frame::{self, PresenceMember, ServerMessage};
use crate::protocol::{ChannelName, Transport, signature};

/// Close code for a key that the server does not know (Pusher protocol, 4000-4099).
const UNKNOWN_KEY_CODE: u64 = 4001;

/// A session that has received its socket id.
pub(in crate::prober) struct ProbeClient {
    pod: String,
    outbound: FrameSender,
    inbound: mpsc::Receiver<InboundFrame>,
    /// Frames that were read while another was waited for.
    unread: VecDeque<ServerMessage>,
    socket_id: String,
    reader: JoinHandle<()>,
}

impl Drop for ProbeClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl ProbeClient {
    /// Connects and reports each hop to `passed`.
    pub async fn connect(
        target: &SessionTarget,
        transport: Transport,
        app: &ProbeApp,
        mut passed: impl FnMut(Hop),
    ) -> Result<Self, BrokenHop> {
        let pod = &target.name;
        let (outbound, inbound, reader) = match transport {
            Transport::Websocket => websocket::open(target, app, &mut passed).await?,
            Transport::SockjsWebsocket => sockjs::open_socket(target, app, &mut passed).await?,
            Transport::SockjsXhrStreaming | Transport::SockjsXhr | Transport::SockjsEventsource => {
                sockjs::open(target, transport, app, &mut passed).await?
            }
            Transport::XhrStreaming | Transport::XhrPolling => {
                super::fallback::open(target, transport, app, &mut passed).await?
            }
        };
        let (unread, socket_id) = (VecDeque::new(), String::new());
        let mut client = Self { pod: pod.to_owned(), outbound, inbound, unread, socket_id, reader };
        let refused = |detail| BrokenHop::ambiguous(Hop::Session, Reason::SessionRefused, detail);
        let established =
            client.next(Instant::now() + STEP_TIMEOUT).await.map_err(|error| refused(format!("{pod}: {error}")))?;
        match established.data["socket_id"].as_str() {
            Some(id) if established.event == "pusher:connection_established" => id.clone_into(&mut client.socket_id),
            _ => {
                let detail = format!("{pod} answered {} {}", established.event, established.data);
                // The key of the journeys' app is this cluster's alone.
                if target.is_external && established.data["code"].as_u64() == Some(UNKNOWN_KEY_CODE) {
                    let detail = format!("{detail}: another cluster answers there");
                    return Err(BrokenHop::decisive(Hop::Session, Reason::WrongCluster, detail));
                }
                return Err(BrokenHop::decisive(Hop::Session, Reason::SessionRefused, detail));
            }
        }
        passed(Hop::Session);
        Ok(client)
    }

    /// The session's public id.
    pub fn socket_id(&self) -> &str {
        &self.socket_id
    }

    /// Subscribes with a signature, on a presence channel as `user`, and returns the channel's members.
    pub async fn subscribe(
        &mut self,
        app: &ProbeApp,
        channel: &ChannelName,
        user: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<String>, BrokenHop> {
        let data = user.map(|user| serde_json::json!({ "user_id": user, "user_info": {} }).to_string());
        let message = signature::channel_message(&self.socket_id, channel.as_str(), data.as_deref());
        let auth = format!("{}:{}", app.key, signature::sign_message(&app.secret, message.as_bytes()));
        let frame = serde_json::json!({
            "event": "pusher:subscribe",
            "data": { "channel": channel, "auth": auth, "channel_data": data },
        });
        let hop = (Hop::Subscribe, Reason::SubscribeRejected);
        self.send(&frame.to_string(), hop).await?;
        let answer = self
            .wait_for_event(deadline, hop, |message| {
                message.event == "pusher_internal:subscription_succeeded"
                    && message.channel.as_deref() == Some(channel.as_str())
            })
            .await
            .map_err(|error| {
                if [frame::BUS_UNAVAILABLE_MESSAGE, frame::SUBSCRIPTION_QUEUED_MESSAGE]
                    .iter()
                    .any(|told| error.detail.contains(told))
                {
                    BrokenHop { hop: Hop::FanOut, reason: Reason::FanoutBroken, ..error }
                } else {
                    error
                }
            })?;
        let ids = answer.data["presence"]["ids"].as_array();
        Ok(ids.into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect())
    }

    /// Leaves a channel. There is no answer to wait for.
    pub async fn unsubscribe(&mut self, channel: &ChannelName) -> Result<(), BrokenHop> {
        let frame = serde_json::json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } });
        self.send(&frame.to_string(), (Hop::Farewell, Reason::VacatedMissing)).await
    }

    /// Sends a client event.
    pub async fn send_client_event(&mut self, channel: &ChannelName, event: &str, data: &str) -> Result<(), BrokenHop> {
        let frame = serde_json::json!({ "event": event, "channel": channel, "data": data });
        self.send(&frame.to_string(), (Hop::Publish, Reason::PublishRejected)).await
    }

    async fn send(&mut self, frame: &str, (hop, reason): (Hop, Reason)) -> Result<(), BrokenHop> {
        match &self.outbound {
            FrameSender::Websocket(sender) => sender
                .send(frame.to_owned())
                .await
                .map_err(|_| BrokenHop::ambiguous(hop, reason, format!("{} closed the connection", self.pod))),
            FrameSender::Http(session) => match session.send(frame).await {
                Ok(()) => Ok(()),
                Err(SendError::UnknownSession) => {
                    let detail = format!("a send did not find its session at {}", self.pod);
                    Err(BrokenHop::decisive(hop, Reason::AffinityBroken, detail))
                }
                Err(SendError::Refused(status)) => {
                    let detail = format!("{} refused a send with status {status}", self.pod);
                    Err(BrokenHop::decisive(hop, reason, detail))
                }
                Err(SendError::Other(error)) => {
                    Err(BrokenHop::ambiguous(hop, reason, format!("a send to {} failed: {error}", self.pod)))
                }
            },
        }
    }

    /// Waits for a matching frame and keeps the others. An error frame of the server ends the wait.
    pub async fn wait_for_event(
        &mut self,
        deadline: Instant,
        (hop, reason): (Hop, Reason),
        wanted: impl Fn(&ServerMessage) -> bool,
    ) -> Result<ServerMessage, BrokenHop> {
        if let Some(at) = self.unread.iter().position(&wanted)
            && let Some(message) = self.unread.remove(at)
        {
            return Ok(message);
        }
        loop {
            match self.next(deadline).await {
                Ok(message) if wanted(&message) => return Ok(message),
                Ok(message) if ["pusher:error", "pusher:subscription_error"].contains(&message.event.as_str()) => {
                    let detail = format!("{} answered {}: {}", self.pod, message.event, message.data);
                    return Err(BrokenHop::decisive(hop, reason, detail));
                }
                Ok(message) => {
                    if self.unread.len() == FRAME_QUEUE_LEN {
                        self.unread.pop_front();
                    }
                    self.unread.push_back(message);
                }
                Err(error) => return Err(BrokenHop::ambiguous(hop, reason, format!("{}: {error}", self.pod))),
            }
        }
    }

    async fn next(&mut self, deadline: Instant) -> Result<ServerMessage, String> {
        match timeout_at(deadline, self.inbound.recv()).await {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(None) => Err("the connection ended".to_owned()),
            Ok(Some(InboundFrame::Closed(why))) => Err(format!("the connection was closed: {why}")),
            Ok(Some(InboundFrame::Message(text))) => {
                ServerMessage::parse(&text).map_err(|error| format!("sent no message: {error}"))
            }
        }
    }
}

/// Whether a roster names a user.
pub(in crate::prober) fn is_member_added_for(message: &ServerMessage, user: &str) -> bool {
    message.event == "pusher_internal:member_added"
        && PresenceMember::parse(&message.data.to_string()).is_some_and(|member| member.user_id == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bus_that_is_away_is_told_by_a_presence_channel_whether_it_refuses_or_lets_wait() {
        let app = ProbeApp { id: "1".into(), key: "k".into(), secret: crate::protocol::Secret::new("s") };
        let channel = ChannelName::parse("presence-a").expect("a name");
        for (code, told, reason) in [
            (Some(4100), frame::BUS_UNAVAILABLE_MESSAGE, Reason::FanoutBroken),
            (Some(4100), frame::SUBSCRIPTION_QUEUED_MESSAGE, Reason::FanoutBroken),
            (None, "invalid signature", Reason::SubscribeRejected),
        ] {
            let (sender, _sent) = mpsc::channel(8);
            let (told_sender, inbound) = mpsc::channel(8);
            let reader = tokio::spawn(async {});
            let (unread, socket_id) = (VecDeque::new(), "1.2".to_owned());
            let outbound = FrameSender::Websocket(sender);
            let mut client = ProbeClient { pod: "p".to_owned(), outbound, inbound, unread, socket_id, reader };
            told_sender.send(InboundFrame::Message(frame::error_frame(code, told))).await.expect("room");
            let deadline = Instant::now() + STEP_TIMEOUT;
            let broken = client.subscribe(&app, &channel, Some("u"), deadline).await.expect_err("refused");
            assert_eq!(broken.reason, reason, "{told}");
        }
    }

    #[test]
    fn an_unknown_session_is_no_proof_where_a_pod_may_have_gone() {
        let broken = |reason| BrokenHop::decisive(Hop::Publish, reason, String::new());
        for (name, broken, may_have_gone, proves) in [
            ("an unknown session at its own pod", broken(Reason::AffinityBroken), false, true),
            ("an unknown session of a pod that may have gone", broken(Reason::AffinityBroken), true, false),
            ("a refusal by a pod that may have gone", broken(Reason::PublishRejected), true, true),
            ("silence", BrokenHop::ambiguous(Hop::Publish, Reason::AffinityBroken, String::new()), false, false),
        ] {
            assert_eq!(broken.is_proof_of_fault(may_have_gone), proves, "{name}");
        }
    }
}
