//! The Pusher protocol of one client. Knows no transport: it reads messages and writes into a session's queue.

mod late;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::admission::word;
use super::counts;
use super::liveness::{ACTIVITY_TIMEOUT, Step};
use super::quota::Counted;
use super::rate::{Bucket, Rate};
use super::session::{Closing, Session};
use super::shared::Shared;
use super::signin::{MAX_WATCHED, sign_in};
use super::subscribe::authorize;
use super::user::SignedIn;
use super::waiting::Waiting;
use crate::bus::{BusError, Joined, Recalled, Subject, Transition};
use crate::protocol::frame::{self, ClientMessage, Member, code};
use crate::protocol::record::{Cause, EventKind};
use crate::protocol::registry::App;
use crate::protocol::{ChannelKind, ChannelName};

/// Channels that one connection may be in.
pub const MAX_CHANNELS: usize = 2_048;

/// Subscriptions and sign-ins that one connection may ask for at once. A client that comes back asks for all its
/// channels at once.
pub const ASKS: u32 = 4_096;

/// Subscriptions and sign-ins that one connection may ask for in a second, once it has asked for [`ASKS`]. One that
/// comes and goes without end would keep the bus busy for all.
pub const ASKS_PER_SECOND: u32 = 100;

/// Longest name of an event, in characters, as Pusher documents it.
pub const MAX_EVENT_NAME: usize = 200;

/// What a client is told that asks without end.
const TOO_OFTEN: &str = "too many subscriptions in a short time, try again later";

/// One client.
pub struct Connection {
    shared: Arc<Shared>,
    session: Arc<Session>,
    /// Where it is, and as whom.
    channels: HashMap<ChannelName, Option<Member>>,
    /// Where it will be once the bus is back.
    waiting: Waiting,
    /// Who it is, once it has signed in.
    user: Option<SignedIn>,
    /// Its place among the app's connections, where there may be so many only.
    counted: Option<Counted>,
    rate: Rate,
    asks: Bucket,
    /// Ends the session that shows no signature in time; gone once it has shown one.
    deadline: Option<AbortOnDropHandle<()>>,
}

impl Connection {
    /// Greets a client that was admitted, or ends its session when the app has no place left.
    pub async fn open(shared: Arc<Shared>, session: Arc<Session>) -> Self {
        let registry = shared.apps.current();
        let app = registry.app(&session.app);
        let counted = match app {
            Some(app) => Counted::enter(&shared, &session, app).await,
            None => Ok(None),
        };
        let counted = match counted {
            Ok(counted) => {
                let seconds = u32::try_from(ACTIVITY_TIMEOUT.as_secs()).unwrap_or(u32::MAX);
                session.push(frame::connection_established(session.socket.as_str(), seconds).into());
                counted
            }
            Err(closing) => {
                shared.metrics.refused(word(&closing)).inc();
                session.push(frame::error(Some(closing.code), &closing.reason).into());
                session.close(closing);
                None
            }
        };
        let deadline = app.and_then(|app| app.authorization_seconds).map(|seconds| {
            let (session, late) = (session.clone(), shared.metrics.refused("authorization_late"));
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                late.inc();
                let told = format!("neither a sign-in nor a signed subscription came within {seconds} s");
                session.push(frame::error(Some(code::UNAUTHORIZED), &told).into());
                session.close(Closing::new(code::UNAUTHORIZED, told));
            }))
        });
        Self {
            shared,
            session,
            channels: HashMap::new(),
            waiting: Waiting::default(),
            user: None,
            counted,
            rate: Rate::default(),
            asks: Bucket::new(ASKS, ASKS_PER_SECOND),
            deadline,
        }
    }

    /// Acts on one message of the client.
    pub async fn handle(&mut self, text: &str) {
        let registry = self.shared.apps.current();
        let Some(app) = registry.app(&self.session.app) else { return };
        let closing = self.session.closing();
        // What a client says after its end is not heard, though it may not have been told yet; unless it is the server
        // that goes: what was sent to others must not be lost with it.
        if closing.as_ref().is_some_and(|closing| !closing.drain) {
            return;
        }
        match ClientMessage::parse(text) {
            Ok(message) if closing.is_some() && !matches!(message, ClientMessage::ClientEvent { .. }) => {}
            Ok(ClientMessage::Ping) => self.session.push(frame::pong().into()),
            // That it came was all that it had to say.
            Ok(ClientMessage::Pong) => {}
            Ok(ClientMessage::Subscribe { channel, auth, channel_data }) => {
                self.subscribe(app, &channel, auth.as_deref(), channel_data.as_deref()).await;
            }
            Ok(ClientMessage::SignIn { auth, user_data }) => self.sign_in(app, &auth, &user_data).await,
            Ok(ClientMessage::Unsubscribe { channel }) => self.unsubscribe(&channel).await,
            Ok(ClientMessage::ClientEvent { event, channel, data }) => {
                if let Err((reason, told)) = self.client_event(app, event, &channel, data).await {
                    self.refuse(reason, Some(code::CLIENT_EVENT_REFUSED), &told);
                }
            }
            Ok(ClientMessage::Other { event }) => {
                let shown: String = event.chars().take(64).collect();
                self.refuse("unknown_event", None, &format!("the server has no answer to the event `{shown}`"));
            }
            Err(error) => self.refuse("not_a_message", None, &error.to_string()),
        }
    }

    /// A frame in a form that the protocol does not have.
    pub fn refuse_binary(&self) {
        self.refuse("binary", None, "binary frames are not supported: send text");
    }

    /// Asks a silent client, or gives it up. Returns when to look again.
    pub fn check(&self) -> Option<Instant> {
        match self.session.liveness() {
            Step::Wait(until) => Some(until),
            Step::Ask => {
                self.session.push(frame::ping().into());
                match self.session.liveness() {
                    Step::Wait(until) => Some(until),
                    Step::Ask | Step::GiveUp => None,
                }
            }
            Step::GiveUp => {
                self.session.close(Closing::new(code::PONG_MISSING, "the client did not answer a ping"));
                None
            }
        }
    }

    /// Leaves every channel: the client is gone.
    pub async fn leave(mut self) {
        self.shared.metrics.waited("left").inc_by(u64::try_from(self.waiting.len()).unwrap_or(u64::MAX));
        let drain = self.session.closing().is_some_and(|closing| closing.drain);
        for (channel, member) in std::mem::take(&mut self.channels) {
            self.exit(channel, member.as_ref(), drain.then_some(Cause::Drain)).await;
        }
        if let Some(user) = self.user.take() {
            user.leave(&self.shared, &self.session);
        }
        if let Some(counted) = self.counted.take() {
            counted.leave(&self.shared, &self.session).await;
        }
    }

    async fn sign_in(&mut self, app: &App, auth: &str, user_data: &str) {
        if !self.asks.take(Instant::now()) {
            return self.refuse("asks", Some(code::OVER_CAPACITY), TOO_OFTEN);
        }
        let user = match sign_in(app, &self.session.socket, auth, user_data) {
            Ok(user) => user,
            Err(told) => return self.refuse("signin", Some(code::UNAUTHORIZED), &told),
        };
        if let Some(known) = &self.user {
            if known.member.user_id == user.member.user_id {
                return self.session.push(frame::signin_success(user_data).into());
            }
            return self.refuse("signin", Some(code::UNAUTHORIZED), "the connection has signed in as another user");
        }
        let cut = user.cut;
        match SignedIn::enter(&self.shared, &self.session, user, user_data).await {
            Ok(user) => (self.user, self.deadline) = (Some(user), None),
            Err(error) => {
                tracing::warn!(%error, "a client could not sign in");
                return self.refuse("bus", Some(code::OVER_CAPACITY), frame::BUS_AWAY);
            }
        }
        if cut {
            let told = format!("a watchlist has at most {MAX_WATCHED} users; the first {MAX_WATCHED} are watched");
            self.refuse("watchlist", Some(code::WATCHLIST_CUT), &told);
        }
    }

    async fn subscribe(&mut self, app: &App, name: &str, auth: Option<&str>, channel_data: Option<&str>) {
        let channel = match ChannelName::parse_any(name) {
            Ok(channel) => channel,
            Err(error) => {
                // Only what could be a channel's name is repeated to the client.
                return self.refuse("channel_name", None, &error.to_string());
            }
        };
        if !self.asks.take(Instant::now()) {
            return self.refuse_subscription("asks", &channel, (code::OVER_CAPACITY, "LimitReached", 429), TOO_OFTEN);
        }
        if channel.kind() == ChannelKind::Internal {
            return self.subscribe_own(channel);
        }
        let user = self.user.as_ref().map(|user| &user.member);
        let member = match authorize(app, &self.session.socket, &channel, auth, channel_data, user) {
            Ok(member) => member,
            Err(told) => {
                return self.refuse_subscription("signature", &channel, (code::UNAUTHORIZED, "AuthError", 401), &told);
            }
        };
        let known = self.channels.contains_key(&channel);
        if !known && self.channels.len() + self.waiting.len() >= MAX_CHANNELS {
            let told = format!("a connection may be in {MAX_CHANNELS} channels");
            return self.refuse_subscription("channels", &channel, (code::OVER_CAPACITY, "LimitReached", 403), &told);
        }
        let subject = self.subject(&channel);
        if known {
            return self.admitted_again(&subject).await;
        }
        let Some(member) = member else {
            return match self.join(&subject, None).await {
                Ok(joined) => self.enter(subject, None, joined).await,
                // Chat goes on within the process; the bus has noted who came, and decides later.
                Err(BusError::Unavailable(_)) => self.enter(subject, None, Joined::default()).await,
                Err(error) => self.turn_away(channel, None, &error).await,
            };
        };
        // Asked twice, it waits from now on.
        self.waiting.remove(&channel);
        if !self.shared.bus.knows() {
            return self.wait(&channel, member);
        }
        match self.join(&subject, Some(&member)).await {
            Ok(joined) => self.enter(subject, Some(member), joined).await,
            Err(BusError::Unavailable(_)) => {
                self.exit(channel.clone(), Some(&member), None).await;
                self.wait(&channel, member);
            }
            Err(error) => self.turn_away(channel, Some(&member), &error).await,
        }
    }

    async fn join(&self, subject: &Subject, member: Option<&Member>) -> Result<Joined, BusError> {
        self.shared.channels.expect(subject, &self.session);
        self.shared.join(subject, &self.session.socket, member).await
    }

    async fn turn_away(&self, channel: ChannelName, member: Option<&Member>, error: &BusError) {
        self.refuse_join(&channel, error);
        // An answer that was lost may have been a yes.
        self.exit(channel, member, None).await;
    }

    /// What the server tells a user, on whichever connection: only the user's own may hear it.
    fn subscribe_own(&mut self, channel: ChannelName) {
        let user = self.user.as_ref().map(|user| user.member.user_id.as_str());
        if user.is_none() || channel.addressee() != user {
            let told = "this channel is for a user who has signed in";
            return self.refuse_subscription("own", &channel, (code::UNAUTHORIZED, "AuthError", 401), told);
        }
        let (subject, answer) = (self.subject(&channel), frame::subscription_succeeded(&channel, None));
        self.shared.channels.expect(&subject, &self.session);
        self.shared.channels.admit(&subject, &self.session.socket, Some(answer.into()), None);
        self.channels.insert(channel, None);
    }

    async fn enter(&mut self, subject: Subject, member: Option<Member>, joined: Joined) {
        let Joined { transitions, roster } = joined;
        let answer = frame::subscription_succeeded(&subject.channel, member.is_some().then_some(&roster[..]));
        let added = transitions.iter().any(|transition| matches!(transition.kind, EventKind::MemberAdded { .. }));
        self.shared.recorder.transitions(&subject, transitions);
        let last = self.last_event(&subject).await;
        self.shared.channels.admit(&subject, &self.session.socket, Some(answer.into()), last);
        if subject.channel.needs_auth() {
            self.deadline = None;
        }
        self.channels.insert(subject.channel.clone(), member.clone());
        counts::changed(&self.shared, &subject).await;
        if let (Some(member), true) = (&member, added) {
            let told = frame::member_added(&subject.channel, member);
            self.shared.publish(subject, told, Some(self.session.socket.clone())).await;
        }
    }

    /// What a client that comes to a channel is told of before: its last event, or that there is none. The app's
    /// backend hears of the latter by a webhook, so that it can publish one.
    async fn last_event(&self, subject: &Subject) -> Option<Bytes> {
        if !subject.channel.caches() {
            return None;
        }
        match self.shared.recall(subject).await {
            Ok(Recalled::Kept(last)) => Some(frame::event(&last.event, &subject.channel, &last.data, None).into()),
            Ok(Recalled::Missing { first }) => {
                if first {
                    self.shared.recorder.noticed(subject, EventKind::CacheMiss);
                }
                Some(frame::cache_miss(&subject.channel).into())
            }
            Err(error) => {
                tracing::warn!(%error, channel = %subject.channel, "a client comes without the last event");
                None
            }
        }
    }

    /// A client that asks twice is told again; the bus says who is there, and nothing changes.
    async fn admitted_again(&self, subject: &Subject) {
        let member = self.channels.get(&subject.channel).cloned().flatten();
        match self.shared.join(subject, &self.session.socket, member.as_ref()).await {
            Ok(joined) => {
                let roster = member.is_some().then_some(&joined.roster[..]);
                self.session.push(frame::subscription_succeeded(&subject.channel, roster).into());
                if let Some(last) = self.last_event(subject).await {
                    self.session.push(last);
                }
                self.shared.recorder.transitions(subject, joined.transitions);
            }
            Err(error) => self.refuse_join(&subject.channel, &error),
        }
    }

    async fn unsubscribe(&mut self, name: &str) {
        let Ok(channel) = ChannelName::parse_any(name) else { return };
        if self.waiting.remove(&channel).is_some() {
            self.shared.metrics.waited("left").inc();
        }
        if let Some(member) = self.channels.remove(&channel) {
            self.exit(channel, member.as_ref(), None).await;
        }
    }

    async fn exit(&self, channel: ChannelName, member: Option<&Member>, cause: Option<Cause>) {
        let subject = self.subject(&channel);
        self.shared.channels.remove(&subject, &self.session.socket);
        if channel.kind() == ChannelKind::Internal {
            return;
        }
        let transitions: Vec<Transition> = match self.shared.leave(&subject, &self.session.socket, cause).await {
            Ok(transitions) => transitions,
            Err(error) => {
                tracing::debug!(%error, %channel, "a connection leaves later, once the bus answers");
                return;
            }
        };
        let removed = transitions.iter().any(|transition| matches!(transition.kind, EventKind::MemberRemoved { .. }));
        self.shared.recorder.transitions(&subject, transitions);
        counts::changed(&self.shared, &subject).await;
        if let (Some(member), true) = (member, removed) {
            let told = frame::member_removed(&channel, &member.user_id);
            self.shared.publish(subject, told, None).await;
        }
    }

    async fn client_event(
        &mut self,
        app: &App,
        event: String,
        name: &str,
        data: String,
    ) -> Result<(), (&'static str, String)> {
        if !app.client_events {
            return Err(("client_events_off", "client events are not enabled for this app".into()));
        }
        let channel = ChannelName::parse(name).map_err(|error| ("channel_name", error.to_string()))?;
        if channel.kind() == ChannelKind::Public {
            return Err(("public_channel", "client events need a private or presence channel".into()));
        }
        let Some(member) = self.channels.get(&channel) else {
            return Err(("not_subscribed", format!("subscribe to `{channel}` before sending to it")));
        };
        if event.chars().count() > MAX_EVENT_NAME {
            return Err(("event_name", format!("the event's name is longer than {MAX_EVENT_NAME} characters")));
        }
        let most = app.limits.message_bytes;
        if data.len() > most {
            let told = format!("the event has {} bytes of data, at most {most} are allowed", data.len());
            return Err(("too_large", told));
        }
        let limit = app.limits.client_events_per_second;
        if !self.rate.take(limit, Instant::now()) {
            return Err(("rate", format!("more than {limit} client events in a second")));
        }
        let user_id = member.as_ref().map(|member| member.user_id.clone());
        let told = frame::event(&event, &channel, &data, user_id.as_deref());
        let subject = self.subject(&channel);
        let socket = &self.session.socket;
        self.shared.metrics.client_events.inc();
        let recorded = EventKind::ClientEvent { event, data, socket_id: socket.to_string(), user_id };
        self.shared.recorder.noticed(&subject, recorded);
        self.shared.publish(subject, told, Some(socket.clone())).await;
        Ok(())
    }

    fn subject(&self, channel: &ChannelName) -> Subject {
        Subject { app: self.session.app.clone(), channel: channel.clone() }
    }

    fn refuse_join(&self, channel: &ChannelName, error: &BusError) {
        match error {
            BusError::Full(_) => {
                let answer = (code::OVER_CAPACITY, "LimitReached", 403);
                self.refuse_subscription("presence_full", channel, answer, &error.to_string());
            }
            BusError::Unavailable(_) | BusError::Unfit(_) => {
                tracing::warn!(%error, %channel, "a client could not enter");
                let answer = (code::OVER_CAPACITY, "Unavailable", 503);
                self.refuse_subscription("bus", channel, answer, frame::BUS_AWAY);
            }
        }
    }

    /// Pusher answers with an error on the connection; clients that bind to the channel hear of it there only, so both
    /// are sent.
    fn refuse_subscription(
        &self,
        reason: &'static str,
        channel: &ChannelName,
        (code, kind, status): (u16, &str, u16),
        told: &str,
    ) {
        self.refuse(reason, Some(code), told);
        self.session.push(frame::subscription_error(channel.as_str(), kind, status, told).into());
    }

    fn refuse(&self, reason: &'static str, code: Option<u16>, told: &str) {
        self.shared.metrics.refused(reason).inc();
        self.session.push(frame::error(code, told).into());
    }
}
