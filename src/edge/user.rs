//! A connection that has signed in: its user is online, and it is told of those whom it watches.
//!
//! The bus knows who is online by channels of the server's own: one for the connections of each user, so that the first
//! and the last are decided as they are for any channel; one for those who watch each user.

use std::sync::Arc;
use std::time::Duration;

use super::session::Session;
use super::shared::Shared;
use super::signin::User;
use crate::bus::{BusError, Subject, Transition};
use crate::protocol::frame::{self, Member};
use crate::protocol::record::EventKind;
use crate::protocol::{AppId, ChannelName, SocketId};

/// How long a connection that went still counts as its user's. Who loads a page anew, or is told to come back by a server
/// that goes away, is never offline: as long as webhooks wait before they tell of a leave.
pub const STAY: Duration = Duration::from_secs(3);

/// What a connection is once it has signed in.
pub struct SignedIn {
    /// The user, as shown on presence channels.
    pub member: Member,
    /// Where its connections are.
    home: Subject,
    /// Where it hears of those whom it watches.
    watched: Vec<Subject>,
}

impl SignedIn {
    /// Signs a session in, and tells it and those who watch its user.
    ///
    /// # Errors
    /// The bus does not answer; the session is not signed in.
    pub async fn enter(shared: &Shared, session: &Arc<Session>, user: User, user_data: &str) -> Result<Self, BusError> {
        let app = &session.app;
        let subject = |name: Option<ChannelName>| subject(app, name);
        // Its id was checked when it was read.
        let Some(home) = subject(ChannelName::signed_in(&user.member.user_id)) else {
            return Err(BusError::Unavailable("the user cannot be named".into()));
        };
        let watched = user.watchlist.iter().filter_map(|id| subject(ChannelName::watching(id))).collect();
        let signed_in = Self { member: user.member, home, watched };
        shared.channels.expect(&signed_in.home, session);
        match shared.join(&signed_in.home, &session.socket, None).await {
            Ok(joined) => {
                let told = frame::signin_success(user_data);
                shared.channels.admit(&signed_in.home, &session.socket, Some(told.into()), None);
                if changed(&joined.transitions, &EventKind::ChannelOccupied) {
                    signed_in.announce(shared, true).await;
                }
            }
            Err(error) => {
                // An answer that was lost may have been a yes.
                signed_in.remove(shared, session);
                signed_in.go(shared, &session.socket).await;
                return Err(error);
            }
        }
        signed_in.watch(shared, session, &user.watchlist).await;
        Ok(signed_in)
    }

    /// The connection goes; its user stays for a while.
    pub fn leave(self, shared: &Arc<Shared>, session: &Session) {
        self.remove(shared, session);
        let (shared, socket) = (shared.clone(), session.socket.clone());
        shared.stays.clone().spawn(async move {
            tokio::time::sleep(STAY).await;
            self.go(&shared, &socket).await;
        });
    }

    /// Nothing more is for this connection.
    fn remove(&self, shared: &Shared, session: &Session) {
        for subject in &self.watched {
            shared.channels.remove(subject, &session.socket);
        }
        shared.channels.remove(&self.home, &session.socket);
    }

    /// The connection does not count as its user's any more.
    async fn go(&self, shared: &Shared, socket: &SocketId) {
        match shared.leave(&self.home, socket, None).await {
            Ok(transitions) if changed(&transitions, &EventKind::ChannelVacated) => self.announce(shared, false).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a user signs out later, once the bus answers"),
        }
    }

    async fn announce(&self, shared: &Shared, online: bool) {
        announce(shared, &self.home.app, &self.member.user_id, online).await;
    }

    /// Tells who of the watched is here, and from then on who comes and goes.
    async fn watch(&self, shared: &Shared, session: &Arc<Session>, watchlist: &[String]) {
        if watchlist.is_empty() {
            return;
        }
        for subject in &self.watched {
            shared.channels.expect(subject, session);
        }
        let homes: Vec<Subject> =
            watchlist.iter().filter_map(|id| subject(&session.app, ChannelName::signed_in(id))).collect();
        match shared.occupied(&homes).await {
            Ok(here) => {
                let (mut online, mut offline) = (Vec::new(), Vec::new());
                for (id, here) in watchlist.iter().zip(here) {
                    if here { online.push(id.as_str()) } else { offline.push(id.as_str()) }
                }
                session.push(frame::watchlist(&online, &offline).into());
            }
            Err(error) => tracing::warn!(%error, "a client is not told who of its watchlist is online"),
        }
        for subject in &self.watched {
            shared.channels.admit(subject, &session.socket, None, None);
        }
    }
}

/// Tells those who watch a user.
pub async fn announce(shared: &Shared, app: &AppId, user: &str, online: bool) {
    let Some(watchers) = subject(app, ChannelName::watching(user)) else { return };
    let told = if online { frame::watchlist(&[user], &[]) } else { frame::watchlist(&[], &[user]) };
    shared.publish(watchers, told, None).await;
}

fn subject(app: &AppId, name: Option<ChannelName>) -> Option<Subject> {
    name.map(|channel| Subject { app: app.clone(), channel })
}

fn changed(transitions: &[Transition], kind: &EventKind) -> bool {
    transitions.iter().any(|transition| transition.kind == *kind)
}
