//! Sessions between their requests: who receives, what was sent, and how long each is kept.
//!
//! A session lives from its first receive. Its app is known only once its first message has named it; until then it has
//! no place among the open sessions. It has one receiver at a time: a second one is turned away, one that is aborted
//! ends the session, and without any it ends after a while.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use crate::edge::apps::client_address::Caller;
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::RefusalReason;
use crate::edge::session::drain_signal::{CLOSE_LINGER_TIMEOUT, DrainSignal};
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::{ByteBudget, FrameReceiver, OutgoingItem, Session, SessionOrigin};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::http_session::drive_http_session;
use crate::edge::transport::inbox::{InboxError, InboxReceiver, InboxRequest, InboxSender, RequestId, open_inbox};
use crate::edge::transport::session_ownership::{HttpSessions, SessionClaim, SessionName, SessionOwnership};
use crate::edge::transport::xhr::session::SessionError;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::{self, code};
use crate::protocol::sockjs::first_message;
use crate::protocol::{AppId, Transport};

/// How long a session lives without a receiver, and how long its close frame is served.
pub const SOCKJS_RECEIVER_GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to name its app.
pub const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Sessions of a process, those without an app too.
pub const SOCKJS_SESSIONS_MAX: usize = 50_000;

/// The close frame of a session whose receiver was cut, as `SockJS` defines it.
const INTERRUPTED_CLOSE: (u16, &str) = (1002, "Connection interrupted");

/// The sessions of the process.
#[derive(Default)]
pub struct SockjsSessions {
    entries: Mutex<HashMap<String, Arc<SockjsEntry>>>,
}

/// One session and its state.
struct SockjsEntry {
    status: watch::Sender<EntryStatus>,
    sends: InboxSender,
    /// Says that it is here.
    _registration: Option<Arc<dyn SessionClaim>>,
}

#[derive(Clone)]
struct EntryStatus {
    /// Whether someone receives, and since when it is so.
    receiving: bool,
    since: Instant,
    /// A receiver was cut.
    aborted: bool,
    /// There once the app is known, or refused.
    session: Option<Arc<Session>>,
}

/// The outcome of a receive.
pub enum ReceiveOutcome {
    /// It is the session's receiver.
    Receiver(SockjsReceiver),
    /// Another receiver is attached already.
    Busy,
    /// The session was in a process that is gone.
    Gone,
}

impl SockjsSessions {
    /// Whether there is a session of this id.
    pub fn has_id(&self, id: &str) -> bool {
        self.lock_entries().contains_key(id)
    }

    /// The receiver of a session, which is made if there is none.
    pub fn attach_receiver(
        self: &Arc<Self>,
        shared: &Arc<TransportContext>,
        id: &str,
        transport: Transport,
        standing: SessionOwnership,
    ) -> Result<ReceiveOutcome, SessionError> {
        let receiver = |entry: Arc<SockjsEntry>, new| {
            let (sessions, shared, id) = (self.clone(), shared.clone(), id.to_owned());
            ReceiveOutcome::Receiver(SockjsReceiver {
                sessions,
                shared,
                id,
                entry,
                new,
                frames: None,
                is_finished: false,
            })
        };
        let mut entries = self.lock_entries();
        if let Some(entry) = entries.get(id) {
            let free = entry.status.send_if_modified(|status| {
                let free = !status.receiving;
                status.receiving = true;
                free
            });
            return Ok(if free { receiver(entry.clone(), false) } else { ReceiveOutcome::Busy });
        }
        let registration = match standing {
            SessionOwnership::Unowned(registration) => registration,
            SessionOwnership::OwnerGone => return Ok(ReceiveOutcome::Gone),
            SessionOwnership::Relayed(_) => return Err(SessionError::Unknown),
        };
        if entries.len() >= SOCKJS_SESSIONS_MAX {
            return Err(SessionError::Busy);
        }
        let (sends, inbox) = open_inbox();
        let status = EntryStatus { receiving: true, since: Instant::now(), aborted: false, session: None };
        let entry = Arc::new(SockjsEntry { status: watch::Sender::new(status), sends, _registration: registration });
        entries.insert(id.to_owned(), entry.clone());
        shared.opener.session_tasks.spawn(run_session(
            self.clone(),
            shared.clone(),
            id.to_owned(),
            entry.clone(),
            transport,
            inbox,
        ));
        Ok(receiver(entry, true))
    }

    /// Queues messages for a session, in the order of arrival. Messages after its end are dropped.
    pub async fn send(
        &self,
        shared: &TransportContext,
        id: &str,
        messages: Vec<String>,
        (caller, mark): (Caller, RequestId),
    ) -> Result<(), SessionError> {
        let entry = self.lock_entries().get(id).cloned().ok_or(SessionError::Unknown)?;
        let session = entry.status.borrow().session.clone();
        if let Some(session) = &session {
            session.note_activity();
        }
        if messages.is_empty() {
            return Ok(());
        }
        match entry.sends.send_from(messages, Some(caller), mark).await {
            Ok(()) => Ok(()),
            Err(InboxError::Closed) => {
                shared.hub.metrics.refusals.with_label(RefusalReason::SessionOver).inc();
                Ok(())
            }
            Err(InboxError::Timeout) => {
                if let Some(session) = session {
                    session.close(CloseReason::new(code::RECONNECT, "a message was lost, come back at once"));
                }
                Err(SessionError::Busy)
            }
        }
    }

    /// Forgets a session, if the name is still its own.
    fn remove_session(&self, id: &str, entry: &Arc<SockjsEntry>) {
        if let Slot::Occupied(slot) = self.lock_entries().entry(id.to_owned())
            && Arc::ptr_eq(slot.get(), entry)
        {
            slot.remove();
        }
    }

    fn lock_entries(&self) -> MutexGuard<'_, HashMap<String, Arc<SockjsEntry>>> {
        lock_unpoisoned(&self.entries)
    }
}

impl HttpSessions for SockjsSessions {
    fn has_session(&self, name: &SessionName) -> bool {
        matches!(name, SessionName::SockJs(id) if self.lock_entries().contains_key(id))
    }

    fn close_session(&self, name: &SessionName, reason: CloseReason) {
        let SessionName::SockJs(id) = name else { return };
        let session = self.lock_entries().get(id).and_then(|entry| entry.status.borrow().session.clone());
        if let Some(session) = session {
            session.close(reason);
        }
    }
}

impl SockjsEntry {
    /// Resolves once nobody has received for the grace.
    async fn detached_for_grace(&self) {
        let mut status = self.status.subscribe();
        loop {
            let Some(since) = wait_for_status(&mut status, |status| (!status.receiving).then_some(status.since)).await
            else {
                return;
            };
            sleep_until(since + SOCKJS_RECEIVER_GRACE).await;
            let now = self.status.borrow();
            if !now.receiving && now.since == since {
                return;
            }
        }
    }

    /// Resolves once a receiver was cut.
    async fn wait_aborted(&self) {
        wait_for_status(&mut self.status.subscribe(), |status| status.aborted.then_some(())).await;
    }

    /// From now on this is what the receivers get.
    fn set_session(&self, session: Arc<Session>) {
        self.status.send_modify(|status| status.session = Some(session));
    }

    fn release_receiver(&self, aborted: bool) {
        self.status.send_modify(|status| {
            status.receiving = false;
            status.since = Instant::now();
            status.aborted |= aborted;
        });
    }
}

/// A session that only says why there is none.
fn open_refused_session(shared: &TransportContext, transport: Transport, closing: &CloseReason) -> Arc<Session> {
    let origin = SessionOrigin { socket: String::new().into(), app: AppId::from(""), transport, source: None };
    // It is closed before any silence.
    let session = Session::new(origin, Duration::MAX, ByteBudget::default(), shared.hub.metrics.clone());
    session.push(frame::error_frame(Some(closing.code), &closing.reason).into());
    session.close(closing.clone());
    session
}

/// Resolves with what `look` finds, looking again after every change.
async fn wait_for_status<T>(
    status: &mut watch::Receiver<EntryStatus>,
    look: impl Fn(&EntryStatus) -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(found) = look(&status.borrow_and_update()) {
            return Some(found);
        }
        status.changed().await.ok()?;
    }
}

/// The one that receives. Dropping it before its answer is [`over`](Self::finish) is an abort.
pub struct SockjsReceiver {
    sessions: Arc<SockjsSessions>,
    shared: Arc<TransportContext>,
    id: String,
    entry: Arc<SockjsEntry>,
    /// Whether the session is new, so that the answer begins with `o`.
    pub new: bool,
    frames: Option<FrameReceiver>,
    is_finished: bool,
}

impl SockjsReceiver {
    /// The next item: frames up to about `most` bytes. Nothing is taken unless it resolves.
    pub async fn next(&mut self, most: usize) -> OutgoingItem {
        let outlet = match self.frames.take() {
            Some(outlet) => outlet,
            None => match wait_for_status(&mut self.entry.status.subscribe(), |status| status.session.clone()).await {
                Some(session) => session.attach_receiver(),
                None => return OutgoingItem::Replaced,
            },
        };
        self.frames.insert(outlet).next(most).await
    }

    /// The answer ends as it should: the session waits for the next one.
    pub fn finish(&mut self) {
        self.is_finished = true;
        self.frames = None;
        self.entry.release_receiver(false);
    }
}

impl Drop for SockjsReceiver {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        self.shared.hub.metrics.receivers_cut.inc();
        // At once, so that whoever asks next gets a session of its own.
        self.sessions.remove_session(&self.id, &self.entry);
        self.entry.release_receiver(true);
    }
}

/// The life of one session.
async fn run_session(
    sessions: Arc<SockjsSessions>,
    shared: Arc<TransportContext>,
    id: String,
    entry: Arc<SockjsEntry>,
    transport: Transport,
    mut inbox: InboxReceiver,
) {
    let introduced = tokio::select! {
        biased;
        () = entry.wait_aborted() => None,
        introduced = receive_introduction(&shared, transport, &mut inbox) => Some(introduced),
        () = entry.detached_for_grace() => None,
    };
    let session = match introduced {
        None => None,
        Some(Ok((guard, rest))) => {
            let session = guard.session.clone();
            let span = guard.span.clone();
            entry.set_session(session.clone());
            let aborted = async {
                entry.wait_aborted().await;
                let (code, reason) = INTERRUPTED_CLOSE;
                CloseReason::new(code, reason)
            };
            let detached = entry.detached_for_grace();
            drive_http_session(&shared, guard, (rest, &mut inbox), detached, aborted).instrument(span).await;
            Some(session)
        }
        Some(Err(closing)) => {
            let session = open_refused_session(&shared, transport, &closing);
            entry.set_session(session.clone());
            Some(session)
        }
    };
    inbox.close();
    if let Some(session) = session {
        linger_after_close(&shared, &entry, &session).await;
    }
    sessions.remove_session(&id, &entry);
}

/// Waits for the first message and opens the session that it asks for, with the messages that came with it.
async fn receive_introduction(
    shared: &TransportContext,
    transport: Transport,
    inbox: &mut InboxReceiver,
) -> Result<(SessionGuard, Box<InboxRequest>), CloseReason> {
    tokio::select! {
        biased;
        Some(mut sent) = inbox.recv() => {
            let first = sent.messages.remove(0);
            let Some(caller) = sent.caller.take() else { return Err(introduction_missing()) };
            Ok((open_requested_session(shared, &first, &caller, transport)?, sent))
        }
        () = shared.opener.draining.wait_started() => Err(DrainSignal::newcomer_close_reason()),
        () = sleep(INTRODUCTION_TIMEOUT) => Err(introduction_missing()),
    }
}

/// The end of a session that never says which app it is for.
pub fn introduction_missing() -> CloseReason {
    CloseReason::new(code::INACTIVE, "the first message, with the path of an app, did not come")
}

/// Opens the session that a first message asks for.
///
/// # Errors
/// The close reason of a client that may have no session.
pub fn open_requested_session(
    shared: &TransportContext,
    first: &str,
    caller: &Caller,
    transport: Transport,
) -> Result<SessionGuard, CloseReason> {
    let Some((key, query)) = first_message(first) else {
        let told = "the first message must be {\"path\":\"/app/KEY?protocol=7\"}";
        let closing = CloseReason::new(code::PATH_UNKNOWN, told);
        shared.opener.count_refusal(&closing, caller, (None, Some(transport)));
        return Err(closing);
    };
    shared.opener.open(&key, &query, caller, transport)
}

/// Keeps a closed session, so that each later request of its client receives the close frame.
async fn linger_after_close(shared: &TransportContext, entry: &SockjsEntry, session: &Session) {
    let told_on_the_way_out = async {
        shared.opener.draining.wait_started().await;
        session.close_delivered().await;
    };
    tokio::select! {
        () = entry.wait_aborted() => {}
        () = entry.detached_for_grace() => {}
        () = told_on_the_way_out => {}
        () = sleep(CLOSE_LINGER_TIMEOUT) => {}
    }
}
