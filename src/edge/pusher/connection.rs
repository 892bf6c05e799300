//! The Pusher protocol of one client. Knows no transport: it reads messages and writes into a session's queue.

mod client_errors;
pub(crate) mod late;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use crate::bus::{BusError, ChannelKey, JoinLimits, JoinOutcome, LastEventLookup};
use crate::edge::apps::handshake::refusal_reason;
use crate::edge::apps::rate_limit::FixedWindow;
use crate::edge::close_reason::CloseReason;
use crate::edge::hub::connection_quota::QuotaSlot;
use crate::edge::hub::core::Hub;
use crate::edge::hub::subscribers::SubscriptionAnswer;
use crate::edge::hub::subscription_count;
use crate::edge::hub::user_presence::UserPresence;
use crate::edge::metrics::{RefusalReason, WaitResult};
use crate::edge::pusher::authorize::authorize_subscription;
use crate::edge::pusher::pace::ConnectionPace;
use crate::edge::pusher::pending_subscriptions::PendingQueue;
use crate::edge::pusher::sent_error::SentError;
use crate::edge::pusher::sign_in::{WATCHED_USERS_MAX, verify_sign_in};
use crate::edge::session::Session;
use crate::edge::session::liveness::LivenessStep;
use crate::protocol::connection_log::ConnectionEvent;
use crate::protocol::frame::{self, ClientMessage, PresenceMember, code};
use crate::protocol::record::{EventKind, LeaveCause};
use crate::protocol::registry::App;
use crate::protocol::{ChannelKind, ChannelName};

/// Channels that one connection may be in.
pub const CONNECTION_CHANNELS_MAX: usize = 2_048;

/// Longest name of an event, in characters, as Pusher documents it.
pub const EVENT_NAME_MAX_LEN: usize = 200;

/// The error for a client that exceeds its request rate.
const RATE_LIMIT_MESSAGE: &str = "too many subscriptions in a short time, try again later";

/// The error of a refused subscription, as a client receives it.
#[derive(Clone, Copy)]
struct SubscriptionError {
    /// Code of the error on the connection; `None` for a refusal that stays one, since some clients end the whole connection
    /// at a code. Trouble that passes has one.
    code: Option<u16>,
    /// Type of the error on the channel.
    kind: &'static str,
    /// HTTP status that the error on the channel carries.
    status: u16,
}

/// The error of a subscription whose signature or user is wrong.
const AUTH_ERROR: SubscriptionError = SubscriptionError { code: None, kind: "AuthError", status: 401 };

/// The error of a subscription for which there is no place.
const LIMIT_ERROR: SubscriptionError = SubscriptionError { code: None, kind: "LimitReached", status: 403 };

/// The protocol state of one client.
pub struct Connection {
    pub(super) shared: Arc<Hub>,
    pub(super) session: Arc<Session>,
    /// The subscribed channels, and the member on each.
    pub(super) channels: HashMap<ChannelName, Option<PresenceMember>>,
    /// The subscriptions that wait for the bus.
    pending: PendingQueue,
    /// The user, once it has signed in.
    user: Option<UserPresence>,
    /// Its place among the app's connections, where there may be so many only.
    quota_slot: Option<QuotaSlot>,
    pub(super) client_event_rate: FixedWindow,
    pace: ConnectionPace,
    /// Ends the session that shows no signature in time; gone once it has shown one.
    authorization_deadline: Option<AbortOnDropHandle<()>>,
}

impl Connection {
    /// Greets a client that was admitted, or ends its session when the app has no place left.
    pub async fn open(shared: Arc<Hub>, session: Arc<Session>) -> Self {
        let registry = shared.apps.current();
        let app = registry.by_id(&session.app);
        let counted = match app {
            Some(app) => QuotaSlot::acquire(&shared, &session, app).await,
            None => Ok(None),
        };
        let counted = match counted {
            Ok(counted) => {
                let seconds = u32::try_from(session.activity_timeout.as_secs()).unwrap_or(u32::MAX);
                session.push(frame::connection_established(session.socket.as_str(), seconds).into());
                counted
            }
            Err(closing) => {
                let reason = refusal_reason(&closing);
                shared.metrics.refusals.with_label(reason).inc();
                let error = SentError { reason, code: Some(closing.code), message: &closing.reason, channel: None };
                shared.log.write(|| error.log_entry(&session));
                session.push(frame::error_frame(Some(closing.code), &closing.reason).into());
                session.close(closing);
                None
            }
        };
        let deadline = app.and_then(|app| app.authorization_seconds).map(|seconds| {
            let (session, log) = (session.clone(), shared.log.clone());
            let late = shared.metrics.refusals.with_label(RefusalReason::AuthorizationLate);
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                late.inc();
                let told = format!("neither a sign-in nor a signed subscription came within {seconds} s");
                let (reason, code) = (RefusalReason::AuthorizationLate, Some(code::UNAUTHORIZED));
                log.write(|| SentError { reason, code, message: &told, channel: None }.log_entry(&session));
                session.push(frame::error_frame(Some(code::UNAUTHORIZED), &told).into());
                session.close(CloseReason::new(code::UNAUTHORIZED, told));
            }))
        });
        Self {
            shared,
            session,
            channels: HashMap::new(),
            pending: PendingQueue::default(),
            user: None,
            quota_slot: counted,
            client_event_rate: FixedWindow::default(),
            pace: ConnectionPace::default(),
            authorization_deadline: deadline,
        }
    }

    /// Acts on one message of the client. What a client seldom asks for is boxed, because the task of each idle client has
    /// room for the largest of all.
    pub async fn apply_message(&mut self, text: &str) {
        let registry = self.shared.apps.current();
        let Some(app) = registry.by_id(&self.session.app) else { return };
        let closing = self.session.close_reason();
        // Messages after the close are ignored, even if the close frame is still queued; except in a drain, where the
        // messages that the client had sent to others must not be lost.
        if closing.as_ref().is_some_and(|closing| !closing.drain) {
            return;
        }
        match ClientMessage::parse(text) {
            Ok(message) if closing.is_some() && !matches!(message, ClientMessage::ClientEvent { .. }) => {}
            Ok(ClientMessage::Ping) => {
                if self.pace.may_answer(&self.shared.metrics) {
                    self.session.push(frame::pong_frame().into());
                }
            }
            Ok(ClientMessage::Subscribe { channel, auth, channel_data }) => {
                Box::pin(self.subscribe(app, &channel, auth.as_deref(), channel_data.as_deref())).await;
            }
            Ok(ClientMessage::SignIn { auth, user_data }) => {
                Box::pin(self.sign_in(app, &auth, &user_data)).await;
            }
            Ok(ClientMessage::Unsubscribe { channel }) => Box::pin(self.unsubscribe(&channel)).await,
            Ok(ClientMessage::ClientEvent { event, channel, data }) => {
                if let Err(refusal) = self.publish_client_event(app, event, &channel, data).await
                    && self.pace.may_answer(&self.shared.metrics)
                {
                    self.send_refusal(refusal.reason, Some(code::CLIENT_EVENT_REFUSED), &refusal.message);
                }
            }
            Ok(ClientMessage::Other { event }) if self.pace.may_answer(&self.shared.metrics) => {
                let shown: String = event.chars().take(64).collect();
                self.send_refusal(
                    RefusalReason::UnknownEvent,
                    None,
                    &format!("the server has no answer to the event `{shown}`"),
                );
            }
            Err(error) if self.pace.may_answer(&self.shared.metrics) => {
                self.send_refusal(RefusalReason::NotAMessage, None, &error.to_string());
            }
            // A pong says nothing but that it came; the others exceed the rate of answers.
            Ok(ClientMessage::Pong | ClientMessage::Other { .. }) | Err(_) => {}
        }
    }

    /// A frame in a form that the protocol does not have.
    pub fn refuse_binary(&mut self) {
        if self.pace.may_answer(&self.shared.metrics) {
            self.send_refusal(RefusalReason::Binary, None, "binary frames are not supported: send text");
        }
    }

    /// Until when no message is to be read; `None` while the connection is not paused.
    pub fn paused_until(&self) -> Option<Instant> {
        self.pace.paused_until()
    }

    /// Ends the pause: messages are read again.
    pub fn end_pause(&mut self) {
        self.pace.end_pause();
    }

    /// Asks a silent client, or gives it up. Returns when to look again.
    pub fn check_liveness(&self) -> Option<Instant> {
        match self.session.next_liveness_step() {
            LivenessStep::Wait(until) => Some(until),
            LivenessStep::SendPing => {
                self.session.push(frame::ping_frame().into());
                match self.session.next_liveness_step() {
                    LivenessStep::Wait(until) => Some(until),
                    LivenessStep::SendPing | LivenessStep::GiveUp => None,
                }
            }
            LivenessStep::GiveUp => {
                self.session.close(CloseReason::new(code::PONG_MISSING, "the client did not answer a ping"));
                None
            }
        }
    }

    /// Leaves every channel: the client is gone.
    pub async fn tear_down(mut self) {
        self.shared
            .metrics
            .pending_subscription_outcomes
            .with_label(WaitResult::Left)
            .inc_by(u64::try_from(self.pending.len()).unwrap_or(u64::MAX));
        let drain = self.session.close_reason().is_some_and(|closing| closing.drain);
        for channel in std::mem::take(&mut self.channels).into_keys() {
            self.leave_channel(channel, drain.then_some(LeaveCause::Drain)).await;
        }
        if let Some(user) = self.user.take() {
            user.sign_out_after_grace(&self.shared, &self.session);
        }
        if let Some(counted) = self.quota_slot.take() {
            counted.release(&self.shared, &self.session).await;
        }
    }

    async fn sign_in(&mut self, app: &App, auth: &str, user_data: &str) {
        if let Err(reason) = self.pace.charge_request(self.session.source.as_deref(), &self.shared.metrics) {
            return self.send_refusal(reason, Some(code::OVER_CAPACITY), RATE_LIMIT_MESSAGE);
        }
        let user = match verify_sign_in(app, &self.session.socket, auth, user_data) {
            Ok(user) => user,
            Err(told) => return self.send_refusal(RefusalReason::SignIn, Some(code::UNAUTHORIZED), &told),
        };
        if let Some(known) = &self.user {
            if known.member.user_id == user.member.user_id {
                return self.session.push(frame::signin_success(user_data).into());
            }
            return self.send_refusal(
                RefusalReason::SignIn,
                Some(code::UNAUTHORIZED),
                "the connection has signed in as another user",
            );
        }
        let cut = user.is_watchlist_cut;
        match UserPresence::sign_in(&self.shared, &self.session, user, user_data).await {
            Ok(user) => {
                self.log_event(|| ConnectionEvent::SignedIn { user: user.member.user_id.clone() });
                (self.user, self.authorization_deadline) = (Some(user), None);
            }
            Err(error) => {
                tracing::debug!(%error, "a client could not sign in");
                return self.send_refusal(
                    RefusalReason::Bus,
                    Some(code::OVER_CAPACITY),
                    frame::BUS_UNAVAILABLE_MESSAGE,
                );
            }
        }
        if cut {
            let told =
                format!("a watchlist has at most {WATCHED_USERS_MAX} users; the first {WATCHED_USERS_MAX} are watched");
            self.send_refusal(RefusalReason::Watchlist, Some(code::WATCHLIST_CUT), &told);
        }
    }

    async fn subscribe(&mut self, app: &App, name: &str, auth: Option<&str>, channel_data: Option<&str>) {
        let channel = match ChannelName::parse_any(name) {
            Ok(channel) => channel,
            Err(error) => {
                return self.refuse_channel_name(name, &error.to_string());
            }
        };
        if let Err(reason) = self.pace.charge_request(self.session.source.as_deref(), &self.shared.metrics) {
            return self.refuse_subscription(
                reason,
                &channel,
                SubscriptionError { code: Some(code::OVER_CAPACITY), kind: "LimitReached", status: 429 },
                RATE_LIMIT_MESSAGE,
            );
        }
        if channel.kind() == ChannelKind::Internal {
            return self.subscribe_user_channel(channel);
        }
        let user = self.user.as_ref().map(|user| &user.member);
        let member = match authorize_subscription(app, &self.session.socket, &channel, auth, channel_data, user) {
            Ok(member) => member,
            Err(told) => {
                return self.refuse_subscription(RefusalReason::Signature, &channel, AUTH_ERROR, &told);
            }
        };
        let known = self.channels.contains_key(&channel);
        if !known && self.channels.len() + self.pending.len() >= CONNECTION_CHANNELS_MAX {
            let told = format!("a connection may be in {CONNECTION_CHANNELS_MAX} channels");
            return self.refuse_subscription(RefusalReason::Channels, &channel, LIMIT_ERROR, &told);
        }
        if let (Some(Some(known)), Some(asked)) = (self.channels.get(&channel), &member)
            && known.user_id != asked.user_id
        {
            let told = format!("the connection is in `{channel}` as another user: unsubscribe first");
            return self.refuse_subscription(RefusalReason::Signature, &channel, AUTH_ERROR, &told);
        }
        let subject = self.channel_key(&channel);
        if known {
            return self.resend_subscription(&subject).await;
        }
        if !self.shared.subscribers.has_room(&subject, app.limits.channels) {
            let told = "the app has all channels that it may have on this server";
            return self.refuse_subscription(RefusalReason::AppChannels, &channel, LIMIT_ERROR, told);
        }
        let Some(member) = member else {
            return match self.join_channel(&subject, None).await {
                Ok(joined) => self.complete_join(subject, None, joined).await,
                // Chat goes on within the process; the bus has noted who came, and decides later.
                Err(BusError::Unavailable(_)) => self.complete_join(subject, None, JoinOutcome::default()).await,
                Err(error) => self.abort_join(channel, &error).await,
            };
        };
        // Asked twice, it waits from now on.
        self.pending.remove(&channel);
        if !self.shared.bus.is_presence_ready() {
            return self.queue_subscription(&channel, member);
        }
        match self.join_channel(&subject, Some(&member)).await {
            Ok(joined) => self.complete_join(subject, Some(member), joined).await,
            Err(BusError::Unavailable(_)) => {
                self.leave_channel(channel.clone(), None).await;
                self.queue_subscription(&channel, member);
            }
            Err(error) => self.abort_join(channel, &error).await,
        }
    }

    async fn join_channel(
        &self,
        subject: &ChannelKey,
        member: Option<&PresenceMember>,
    ) -> Result<JoinOutcome, BusError> {
        self.shared.subscribers.begin_join(subject, &self.session);
        self.shared.join_channel(subject, &self.session.socket, member, self.join_limits()).await
    }

    /// The limits of the app as they are now.
    fn join_limits(&self) -> JoinLimits {
        let registry = self.shared.apps.current();
        let limits = registry.by_id(&self.session.app).map(|app| app.limits).unwrap_or_default();
        JoinLimits { members_max: limits.presence_members, connections_max: None }
    }

    async fn abort_join(&self, channel: ChannelName, error: &BusError) {
        self.refuse_join(&channel, error);
        // An answer that was lost may have been a yes.
        self.leave_channel(channel, None).await;
    }

    /// Subscribes to the server-to-user channel: only connections of that user may.
    fn subscribe_user_channel(&mut self, channel: ChannelName) {
        let user = self.user.as_ref().map(|user| user.member.user_id.as_str());
        if user.is_none() || channel.addressed_user() != user {
            let told = "this channel is for a user who has signed in";
            return self.refuse_subscription(RefusalReason::UserChannel, &channel, AUTH_ERROR, told);
        }
        let (subject, answer) = (self.channel_key(&channel), frame::subscription_succeeded(&channel, None));
        self.shared.subscribers.begin_join(&subject, &self.session);
        let answer = SubscriptionAnswer { frame: Some(answer.into()), ..SubscriptionAnswer::default() };
        self.shared.subscribers.complete_join(&subject, &self.session.socket, answer);
        self.log_event(|| ConnectionEvent::Subscribed { channel: channel.to_string() });
        self.channels.insert(channel, None);
    }

    async fn complete_join(&mut self, subject: ChannelKey, member: Option<PresenceMember>, joined: JoinOutcome) {
        let JoinOutcome { transitions, roster, order: roster_order } = joined;
        let frame = frame::subscription_succeeded(&subject.channel, member.is_some().then_some(&roster[..]));
        let mut added =
            transitions.iter().filter(|transition| matches!(transition.kind, EventKind::MemberAdded { .. }));
        let added = added.next().map(|transition| transition.order);
        self.shared.recorder.record_transitions(&subject, transitions);
        let last_event = self.last_event(&subject).await;
        let answer = SubscriptionAnswer { frame: Some(frame.into()), last_event, roster_order };
        self.shared.subscribers.complete_join(&subject, &self.session.socket, answer);
        self.log_event(|| ConnectionEvent::Subscribed { channel: subject.channel.to_string() });
        if subject.channel.needs_auth() {
            self.authorization_deadline = None;
        }
        self.channels.insert(subject.channel.clone(), member);
        subscription_count::update_subscription_count(&self.shared, &subject).await;
        if let Some(order) = added {
            self.shared.wait_reported(&subject, order).await;
        }
    }

    /// The last event of a cache channel for a new subscriber, or a cache miss. The app's backend receives the miss as a
    /// webhook, so that it can publish an event.
    async fn last_event(&self, subject: &ChannelKey) -> Option<Bytes> {
        if !subject.channel.is_cached() {
            return None;
        }
        match self.shared.last_event(subject).await {
            Ok(LastEventLookup::Found(last)) => {
                Some(frame::event_frame(&last.event, &subject.channel, &last.data, None).into())
            }
            Ok(LastEventLookup::Missing { report_miss: first }) => {
                if first {
                    self.shared.recorder.record_event(subject, EventKind::CacheMiss);
                }
                Some(frame::cache_miss(&subject.channel).into())
            }
            Err(error) => {
                tracing::debug!(%error, channel = %subject.channel, "a client comes without the last event");
                None
            }
        }
    }

    /// Answers a repeated subscription again, with the roster of the bus; nothing changes.
    async fn resend_subscription(&self, subject: &ChannelKey) {
        let member = self.channels.get(&subject.channel).cloned().flatten();
        match self.shared.join_channel(subject, &self.session.socket, member.as_ref(), self.join_limits()).await {
            Ok(joined) => {
                let roster = member.is_some().then_some(&joined.roster[..]);
                self.session.push(frame::subscription_succeeded(&subject.channel, roster).into());
                if let Some(last) = self.last_event(subject).await {
                    self.session.push(last);
                }
                self.shared.recorder.record_transitions(subject, joined.transitions);
            }
            Err(error) => self.refuse_join(&subject.channel, &error),
        }
    }

    async fn unsubscribe(&mut self, name: &str) {
        let Ok(channel) = ChannelName::parse_any(name) else { return };
        if self.pending.remove(&channel).is_some() {
            self.shared.metrics.pending_subscription_outcomes.with_label(WaitResult::Left).inc();
        }
        if self.channels.remove(&channel).is_some() {
            self.log_event(|| ConnectionEvent::Unsubscribed { channel: channel.to_string() });
            self.leave_channel(channel, None).await;
        }
    }

    async fn leave_channel(&self, channel: ChannelName, cause: Option<LeaveCause>) {
        let subject = self.channel_key(&channel);
        self.shared.subscribers.remove(&subject, &self.session.socket);
        if channel.kind() == ChannelKind::Internal {
            return;
        }
        let transitions = match self.shared.leave_channel(&subject, &self.session.socket, cause).await {
            Ok(transitions) => transitions,
            Err(error) => {
                tracing::debug!(%error, %channel, "a connection leaves later, once the bus answers");
                return;
            }
        };
        self.shared.recorder.record_transitions(&subject, transitions);
        subscription_count::update_subscription_count(&self.shared, &subject).await;
    }

    pub(super) fn channel_key(&self, channel: &ChannelName) -> ChannelKey {
        ChannelKey { app: self.session.app.clone(), channel: channel.clone() }
    }

    fn refuse_join(&self, channel: &ChannelName, error: &BusError) {
        match error {
            BusError::ChannelFull(_) | BusError::ConnectionLimit { .. } => {
                self.refuse_subscription(RefusalReason::PresenceFull, channel, LIMIT_ERROR, &error.to_string());
            }
            BusError::Unavailable(_) | BusError::Unusable(_) => {
                tracing::debug!(%error, %channel, "a client could not enter");
                let answer = SubscriptionError { code: Some(code::OVER_CAPACITY), kind: "Unavailable", status: 503 };
                self.refuse_subscription(RefusalReason::Bus, channel, answer, frame::BUS_UNAVAILABLE_MESSAGE);
            }
        }
    }

    /// Pusher answers with an error on the connection; clients that bind to the channel hear of it there only, so both
    /// are sent.
    fn refuse_subscription(&self, reason: RefusalReason, channel: &ChannelName, error: SubscriptionError, told: &str) {
        let SubscriptionError { code, kind, status } = error;
        self.send_error(&SentError { reason, code, message: told, channel: Some(channel.as_str()) });
        self.session.push(frame::subscription_error(channel.as_str(), kind, status, told).into());
    }
}
