//! The online state of users: a connection that has signed in, and the watchlist that it receives.
//!
//! The bus knows who is online by channels of the server's own: one for the connections of each user, so that the first
//! and the last are decided as they are for any channel; one for the watchers of each user, to whom the bus reports both.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{BusError, ChannelKey, JoinLimits};
use crate::edge::hub::core::Hub;
use crate::edge::hub::subscribers::SubscriptionAnswer;
use crate::edge::session::Session;
use crate::protocol::frame::{self, PresenceMember};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Bounds the time that a closed connection still counts as its user's. A user that reloads a page, or reconnects because
/// a server drains, is never offline. It equals the delay of the webhooks that report a leave.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(3);

/// A user as its app's backend signed it.
#[derive(Debug, PartialEq)]
pub struct SignedInUser {
    /// The id, and the info that presence channels show.
    pub member: PresenceMember,
    /// The users whose online state this user's connections receive.
    pub watchlist: Vec<String>,
    /// Whether the list was longer than the limit and was cut.
    pub is_watchlist_cut: bool,
}

/// The user of a connection that has signed in.
pub struct UserPresence {
    /// The user, as shown on presence channels.
    pub member: PresenceMember,
    /// The internal channel of the user's connections.
    signed_in_channel: ChannelKey,
    /// The internal channels of the watched users.
    watched_channels: Vec<ChannelKey>,
}

impl UserPresence {
    /// Signs a session in, and answers it.
    ///
    /// # Errors
    /// The bus does not answer; the session is not signed in.
    pub async fn sign_in(
        shared: &Hub,
        session: &Arc<Session>,
        user: SignedInUser,
        user_data: &str,
    ) -> Result<Self, BusError> {
        let app = &session.app;
        let subject = |name: Option<ChannelName>| user_channel_key(app, name);
        // The id was validated when it was parsed.
        let Some(home) = subject(ChannelName::signed_in(&user.member.user_id)) else {
            return Err(BusError::Unavailable("the user cannot be named".into()));
        };
        let watched = user.watchlist.iter().filter_map(|id| subject(ChannelName::watchers_of(id))).collect();
        let signed_in = Self { member: user.member, signed_in_channel: home, watched_channels: watched };
        shared.subscribers.begin_join(&signed_in.signed_in_channel, session);
        match shared.join_channel(&signed_in.signed_in_channel, &session.socket, None, JoinLimits::default()).await {
            Ok(joined) => {
                // The bus reports to the watchers that the user is online.
                joined.transitions.acknowledge_all();
                let frame = Some(frame::signin_success(user_data).into());
                let answer = SubscriptionAnswer { frame, ..SubscriptionAnswer::default() };
                shared.subscribers.complete_join(&signed_in.signed_in_channel, &session.socket, answer);
            }
            Err(error) => {
                // A lost answer may have been a success.
                signed_in.remove_subscriptions(shared, session);
                signed_in.sign_out(shared, &session.socket).await;
                return Err(error);
            }
        }
        signed_in.subscribe_watchlist(shared, session, &user.watchlist).await;
        Ok(signed_in)
    }

    /// Unsubscribes a closing connection; its user stays online for the grace period.
    pub fn sign_out_after_grace(self, shared: &Arc<Hub>, session: &Session) {
        self.remove_subscriptions(shared, session);
        let (shared, socket) = (shared.clone(), session.socket.clone());
        shared.offline_grace_tasks.clone().spawn(async move {
            tokio::time::sleep(OFFLINE_GRACE).await;
            self.sign_out(&shared, &socket).await;
        });
    }

    /// Removes the connection from all of its internal channels.
    fn remove_subscriptions(&self, shared: &Hub, session: &Session) {
        for subject in &self.watched_channels {
            shared.subscribers.remove(subject, &session.socket);
        }
        shared.subscribers.remove(&self.signed_in_channel, &session.socket);
    }

    /// Leaves the user's channel; the last connection to leave makes the user offline.
    async fn sign_out(&self, shared: &Hub, socket: &SocketId) {
        match shared.leave_channel(&self.signed_in_channel, socket, None).await {
            Ok(transitions) => drop(transitions.acknowledge_all()),
            Err(error) => tracing::debug!(%error, "sign-out deferred until the bus answers"),
        }
    }

    /// Sends the online state of the watched users, and each later change.
    async fn subscribe_watchlist(&self, shared: &Hub, session: &Arc<Session>, watchlist: &[String]) {
        if watchlist.is_empty() {
            return;
        }
        for subject in &self.watched_channels {
            shared.subscribers.begin_join(subject, session);
        }
        let homes: Vec<ChannelKey> =
            watchlist.iter().filter_map(|id| user_channel_key(&session.app, ChannelName::signed_in(id))).collect();
        match shared.are_occupied(&homes).await {
            Ok(here) => {
                let (mut online, mut offline) = (Vec::new(), Vec::new());
                for (id, here) in watchlist.iter().zip(here) {
                    if here { online.push(id.as_str()) } else { offline.push(id.as_str()) }
                }
                session.push(frame::watchlist_events(&online, &offline).into());
            }
            Err(error) => tracing::debug!(%error, "watchlist state not sent to a client"),
        }
        for subject in &self.watched_channels {
            shared.subscribers.complete_join(subject, &session.socket, SubscriptionAnswer::default());
        }
    }
}

fn user_channel_key(app: &AppId, name: Option<ChannelName>) -> Option<ChannelKey> {
    name.map(|channel| ChannelKey { app: app.clone(), channel })
}
