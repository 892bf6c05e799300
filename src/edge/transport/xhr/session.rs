//! pusher-js's own HTTP fallbacks, `xhr_streaming` and `xhr_polling`: sessions that outlive their requests.
//!
//! In: receives, which carry frames to the client, and sends, which carry messages from it. Out: the same session and
//! connection that a WebSocket has. They look like SockJS and differ where it matters: an aborted receive does not end
//! the session, writing pauses where the client will abort to free its memory, and a ping is an empty array. Read from
//! pusher-js 8.6 `src/core/http`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tracing::Instrument;
use url::form_urlencoded;

use crate::edge::apps::client_address::Caller;
use crate::edge::apps::handshake::check_origin;
use crate::edge::close_reason::CloseReason;
use crate::edge::session::drain_signal::{CLOSE_LINGER_TIMEOUT, RECEIVER_GRACE};
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::{FrameReceiver, Session};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::http_session::drive_http_session;
use crate::edge::transport::inbox::{InboxError, InboxReceiver, InboxRequest, InboxSender, RequestId, open_inbox};
use crate::edge::transport::session_ownership::{HttpSessions, SessionClaim, SessionId, SessionName, SessionOwnership};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::Transport;
use crate::protocol::frame::code;

/// Bounds the time that a session lives without a receive.
pub const XHR_RECEIVER_GRACE: Duration = RECEIVER_GRACE;

/// HTTP sessions of a process.
pub const XHR_SESSIONS_MAX: usize = 50_000;

/// One session and the way to its connection.
struct XhrEntry {
    key: String,
    session: Arc<Session>,
    sends: InboxSender,
    /// Says that it is here.
    registration: Option<Arc<dyn SessionClaim>>,
}

/// The HTTP sessions of the process.
#[derive(Default)]
pub struct XhrSessions {
    entries: Mutex<HashMap<SessionId, XhrEntry>>,
}

/// The receiver that a request attached.
pub struct XhrReceiver {
    /// The receiver of its frames.
    pub frames: FrameReceiver,
    /// Whether the session is new, so that the answer begins with `o`.
    pub new: bool,
}

/// Why a request cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// The client may have no session. One answer says so, and nothing is stored for it: strangers could fill the
    /// table otherwise.
    Refused(CloseReason),
    /// The app does not let the page that asks connect.
    Forbidden,
    /// The session was in a process that is gone.
    Gone,
    /// There is no such session under this key.
    Unknown,
    /// There are as many sessions as may be, or the session does not keep up.
    Busy,
}

impl XhrSessions {
    /// The session of a receive, made if there is none.
    pub fn attach_receiver(
        self: &Arc<Self>,
        shared: &Arc<TransportContext>,
        id: SessionId,
        (key, query): (&str, &str),
        caller: &Caller,
        transport: Transport,
        standing: SessionOwnership,
    ) -> Result<XhrReceiver, SessionError> {
        Self::check_origin(shared, key, caller).map_err(SessionError::Refused)?;
        let number = parse_request_number(query);
        let mut entries = self.lock_entries();
        if let Some(entry) = entries.get(&id) {
            // A stranger learns nothing of a session under another key.
            if entry.key != key {
                return Err(SessionError::Unknown);
            }
            entry.sends.send_number(number);
            return Ok(XhrReceiver { frames: entry.session.attach_receiver(), new: false });
        }
        let registration = match standing {
            SessionOwnership::Unowned(registration) => registration,
            SessionOwnership::OwnerGone => return Err(SessionError::Gone),
            SessionOwnership::Relayed(_) => return Err(SessionError::Unknown),
        };
        if entries.len() >= XHR_SESSIONS_MAX {
            return Err(SessionError::Busy);
        }
        let (sends, inbox) = open_inbox();
        let place = shared.opener.open(key, query, caller, transport).map_err(SessionError::Refused)?;
        let session = place.session.clone();
        let outlet = session.attach_receiver();
        let span = place.span.clone();
        shared
            .opener
            .session_tasks
            .spawn(run_session(self.clone(), shared.clone(), place, id.clone(), inbox, number).instrument(span));
        entries.insert(id, XhrEntry { key: key.to_owned(), session, sends, registration });
        Ok(XhrReceiver { frames: outlet, new: true })
    }

    /// Whether the app of this key, if there is one, lets the page that asks connect: each request is a page's own.
    ///
    /// # Errors
    /// The close reason: the app does not allow the origin.
    pub fn check_origin(shared: &TransportContext, key: &str, caller: &Caller) -> Result<(), CloseReason> {
        let registry = shared.opener.apps.current();
        let Some(app) = registry.by_key(key) else { return Ok(()) };
        check_origin(app, caller.origin.as_deref())
            .inspect_err(|closing| shared.opener.count_refusal(closing, caller, (Some(key), None)))
    }

    /// Hands messages to a session, which acts on them in the order of the client's numbers. An empty list is a ping.
    pub async fn send(
        &self,
        id: &SessionId,
        key: &str,
        messages: Vec<String>,
        mark: RequestId,
    ) -> Result<(), SessionError> {
        let (session, sends) = {
            let entries = self.lock_entries();
            let entry = entries.get(id).filter(|entry| entry.key == key).ok_or(SessionError::Unknown)?;
            (entry.session.clone(), entry.sends.clone())
        };
        session.note_activity();
        if messages.is_empty() {
            session.answer_ping();
            sends.send_number(mark.number);
            return Ok(());
        }
        sends.send(messages, mark).await.map_err(|unsent| match unsent {
            InboxError::Closed => SessionError::Unknown,
            InboxError::Timeout => {
                // pusher-js does not look at the answer, so a lost send must end the session.
                session.close(CloseReason::new(code::RECONNECT, "a message was lost, come back at once"));
                SessionError::Busy
            }
        })
    }

    /// How many there are.
    pub fn open_count(&self) -> usize {
        self.lock_entries().len()
    }

    fn lock_entries(&self) -> MutexGuard<'_, HashMap<SessionId, XhrEntry>> {
        lock_unpoisoned(&self.entries)
    }
}

impl HttpSessions for XhrSessions {
    fn has_session(&self, name: &SessionName) -> bool {
        matches!(name, SessionName::Pusher(id) if self.lock_entries().contains_key(id))
    }

    fn close_session(&self, name: &SessionName, reason: CloseReason) {
        let SessionName::Pusher(id) = name else { return };
        if let Some(entry) = self.lock_entries().get(id) {
            entry.session.close(reason);
        }
    }
}

/// The number that pusher-js gives each request of a page.
pub fn parse_request_number(query: &str) -> Option<u64> {
    form_urlencoded::parse(query.as_bytes()).find_map(|(name, value)| (name == "n").then(|| value.parse().ok())?)
}

/// The life of one session: messages in the order in which they were sent, until it is ended or left alone.
async fn run_session(
    fallback: Arc<XhrSessions>,
    shared: Arc<TransportContext>,
    place: SessionGuard,
    id: SessionId,
    mut inbox: InboxReceiver,
    first: Option<u64>,
) {
    let session = place.session.clone();
    let first = InboxRequest::without_messages(first);
    let detached = session.detached_for(XHR_RECEIVER_GRACE);
    // An aborted receive does not end the session.
    drive_http_session(&shared, place, (first, &mut inbox), detached, std::future::pending()).await;
    linger_after_close(fallback, session, id).await;
}

/// Keeps a closed session until its close frame is delivered, or its client does not ask or does not read.
async fn linger_after_close(fallback: Arc<XhrSessions>, session: Arc<Session>, id: SessionId) {
    let abandoned = session.detached_for(XHR_RECEIVER_GRACE);
    let is_delivered = tokio::select! {
        () = session.close_delivered() => true,
        () = abandoned => false,
        () = tokio::time::sleep(CLOSE_LINGER_TIMEOUT) => false,
    };
    let entry = fallback.lock_entries().remove(&id);
    if let (false, Some(registration)) = (is_delivered, entry.and_then(|entry| entry.registration)) {
        // Whoever asks next, wherever, hears that it is gone.
        registration.disarm_release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::session::OutgoingItem;
    use crate::edge::session::tests::test_session;
    use axum::response::IntoResponse;

    #[tokio::test]
    async fn a_session_that_does_not_keep_up_with_its_sends_is_ended_and_the_send_is_told() {
        let (fallback, session, (sends, _inbox)) = (XhrSessions::default(), test_session(), open_inbox());
        let outlet = session.attach_receiver();
        let id = SessionId::parse("7".into(), "s".into()).expect("an id");
        fallback
            .lock_entries()
            .insert(id.clone(), XhrEntry { key: "k".into(), session: session.clone(), sends, registration: None });
        // Nobody acts on them; 512 KiB may wait.
        let large = || vec!["x".repeat(200 << 10)];
        for _ in 0..2 {
            assert_eq!(fallback.send(&id, "k", large(), RequestId::default()).await, Ok(()));
        }
        assert_eq!(session.close_reason(), None);
        let lost = fallback.send(&id, "k", large(), RequestId::default()).await;
        assert_eq!(lost, Err(SessionError::Busy));
        assert_eq!(SessionError::Busy.into_response().status(), 503);
        assert!(matches!(outlet.next(100).await, OutgoingItem::Close(CloseReason { code: code::RECONNECT, .. })));
    }
}
