//! Sessions between their requests: who receives, what was sent, and how long each is kept.
//!
//! A session lives from its first receive. Its app is known only once its first message has named it; until then it has
//! no place among the open sessions. It has one receiver at a time: a second one is turned away, one that is aborted
//! ends the session, and without any it ends after a while.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use super::super::client::Caller;
use super::super::connection::Connection;
use super::super::drain::heard_out;
use super::super::fallback::Unserved;
use super::super::inbox::{Mark, Sends, Sent, Unsent, inbox};
use super::super::liveness::ACTIVITY_TIMEOUT;
use super::super::order::Copies;
use super::super::peer::{Registration, Standing};
use super::super::session::{Budget, Closing, Outgoing, Outlet, Session};
use super::super::sessions::Place;
use super::super::shared::Shared;
use crate::protocol::frame::{self, code};
use crate::protocol::sockjs::first_message;
use crate::protocol::{AppId, Transport};

/// How long a session lives without a receiver, and how long its close frame is served.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to name its app.
pub const INTRODUCTION: Duration = Duration::from_secs(30);

/// Longest that a session stays after its end for a client that keeps asking.
const LINGER: Duration = Duration::from_secs(30);

/// Sessions of a process, those without an app too.
pub const MAX_SESSIONS: usize = 50_000;

/// What `SockJS` says of a session whose receiver was cut.
const INTERRUPTED: (u16, &str) = (1002, "Connection interrupted");

/// The sessions of the process.
#[derive(Default)]
pub struct SockJs {
    entries: Mutex<HashMap<String, Arc<Entry>>>,
}

/// One session.
struct Entry {
    status: watch::Sender<Status>,
    sends: Sends,
    /// Says that it is here.
    _registration: Option<Arc<Registration>>,
}

#[derive(Clone)]
struct Status {
    /// Whether someone receives, and since when it is so.
    receiving: bool,
    since: Instant,
    /// A receiver was cut.
    aborted: bool,
    /// There once the app is known, or refused.
    session: Option<Arc<Session>>,
}

/// What a receive found.
pub enum Receive {
    /// It is the session's receiver.
    Receiver(Receiver),
    /// Another one is.
    Busy,
    /// The session was in a process that is gone.
    Gone,
}

impl SockJs {
    /// The receiver of a session, which is made if there is none.
    pub fn receive(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        id: &str,
        transport: Transport,
        standing: Standing,
    ) -> Result<Receive, Unserved> {
        let receiver = |entry: Arc<Entry>, new| {
            let (sessions, shared, id) = (self.clone(), shared.clone(), id.to_owned());
            Receive::Receiver(Receiver { sessions, shared, id, entry, new, outlet: None, over: false })
        };
        let mut entries = self.lock();
        if let Some(entry) = entries.get(id) {
            let free = entry.status.send_if_modified(|status| {
                let free = !status.receiving;
                status.receiving = true;
                free
            });
            return Ok(if free { receiver(entry.clone(), false) } else { Receive::Busy });
        }
        let registration = match standing {
            Standing::Open(registration) => registration,
            Standing::Gone => return Ok(Receive::Gone),
            Standing::Handed(_) => return Err(Unserved::Unknown),
        };
        if entries.len() >= MAX_SESSIONS {
            return Err(Unserved::Busy);
        }
        let (sends, inbox) = inbox();
        let status = Status { receiving: true, since: Instant::now(), aborted: false, session: None };
        let entry = Arc::new(Entry { status: watch::Sender::new(status), sends, _registration: registration });
        entries.insert(id.to_owned(), entry.clone());
        shared.tasks.spawn(live(self.clone(), shared.clone(), id.to_owned(), entry.clone(), transport, inbox));
        Ok(receiver(entry, true))
    }

    /// Hands messages to a session, in the order of arrival. What comes after its end goes nowhere.
    pub async fn send(
        &self,
        shared: &Shared,
        id: &str,
        messages: Vec<String>,
        (caller, mark): (Caller, Mark),
    ) -> Result<(), Unserved> {
        let entry = self.lock().get(id).cloned().ok_or(Unserved::Unknown)?;
        let session = entry.status.borrow().session.clone();
        if let Some(session) = &session {
            session.heard();
        }
        if messages.is_empty() {
            return Ok(());
        }
        match entry.sends.send_from(messages, Some(caller), mark).await {
            Ok(()) => Ok(()),
            Err(Unsent::Over) => {
                shared.metrics.refused("session_over").inc();
                Ok(())
            }
            Err(Unsent::Late) => {
                if let Some(session) = session {
                    session.close(Closing::new(code::RECONNECT, "a message was lost, come back at once"));
                }
                Err(Unserved::Busy)
            }
        }
    }

    /// Whether it is here.
    pub fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Ends a session, if it is here.
    pub fn close(&self, id: &str, closing: Closing) {
        let session = self.lock().get(id).and_then(|entry| entry.status.borrow().session.clone());
        if let Some(session) = session {
            session.close(closing);
        }
    }

    /// Forgets a session, if the name is still its own.
    fn forget(&self, id: &str, entry: &Arc<Entry>) {
        if let Slot::Occupied(slot) = self.lock().entry(id.to_owned())
            && Arc::ptr_eq(slot.get(), entry)
        {
            slot.remove();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Resolves once nobody has received for the grace.
    async fn abandoned(&self) {
        let mut status = self.status.subscribe();
        loop {
            let Some(since) = found(&mut status, |status| (!status.receiving).then_some(status.since)).await else {
                return;
            };
            sleep_until(since + GRACE).await;
            let now = self.status.borrow();
            if !now.receiving && now.since == since {
                return;
            }
        }
    }

    /// Resolves once a receiver was cut.
    async fn aborted(&self) {
        found(&mut self.status.subscribe(), |status| status.aborted.then_some(())).await;
    }

    /// From now on this is what the receivers get.
    fn opened(&self, session: Arc<Session>) {
        self.status.send_modify(|status| status.session = Some(session));
    }

    fn released(&self, aborted: bool) {
        self.status.send_modify(|status| {
            status.receiving = false;
            status.since = Instant::now();
            status.aborted |= aborted;
        });
    }
}

/// A session that only says why there is none.
pub fn refused(shared: &Shared, transport: Transport, closing: &Closing) -> Arc<Session> {
    let (socket, app) = (String::new().into(), AppId::from(""));
    let session = Session::new(socket, app, transport, Budget::default(), shared.metrics.clone());
    session.push(frame::error(Some(closing.code), &closing.reason).into());
    session.close(closing.clone());
    session
}

/// Resolves with what `look` finds, looking again after every change.
async fn found<T>(status: &mut watch::Receiver<Status>, look: impl Fn(&Status) -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = look(&status.borrow_and_update()) {
            return Some(found);
        }
        status.changed().await.ok()?;
    }
}

/// The one that receives. Dropping it before its answer is [`over`](Self::finish) is an abort.
pub struct Receiver {
    sessions: Arc<SockJs>,
    shared: Arc<Shared>,
    id: String,
    entry: Arc<Entry>,
    /// Whether the session is new, so that the client is told `o`.
    pub new: bool,
    outlet: Option<Outlet>,
    over: bool,
}

impl Receiver {
    /// What to write next: frames up to about `most` bytes. Nothing is taken unless it resolves.
    pub async fn next(&mut self, most: usize) -> Outgoing {
        let outlet = match self.outlet.take() {
            Some(outlet) => outlet,
            None => match found(&mut self.entry.status.subscribe(), |status| status.session.clone()).await {
                Some(session) => session.attach(),
                None => return Outgoing::Replaced,
            },
        };
        self.outlet.insert(outlet).next(most).await
    }

    /// The answer ends as it should: the session waits for the next one.
    pub fn finish(&mut self) {
        self.over = true;
        self.outlet = None;
        self.entry.released(false);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.shared.metrics.receivers_cut.inc();
        // At once, so that whoever asks next gets a session of its own.
        self.sessions.forget(&self.id, &self.entry);
        self.entry.released(true);
    }
}

/// The life of one session.
async fn live(
    sessions: Arc<SockJs>,
    shared: Arc<Shared>,
    id: String,
    entry: Arc<Entry>,
    transport: Transport,
    mut inbox: mpsc::Receiver<Sent>,
) {
    let mut copies = Copies::default();
    let introduced = tokio::select! {
        biased;
        () = entry.aborted() => None,
        introduced = introduced(&shared, transport, &mut inbox, &mut copies) => Some(introduced),
        () = entry.abandoned() => None,
    };
    let session = match introduced {
        None => None,
        Some(Ok((place, messages))) => {
            let session = place.session.clone();
            let span = place.span.clone();
            entry.opened(session.clone());
            serve(&shared, &entry, place, messages, &mut inbox, &mut copies).instrument(span).await;
            Some(session)
        }
        Some(Err(closing)) => {
            let session = refused(&shared, transport, &closing);
            entry.opened(session.clone());
            Some(session)
        }
    };
    inbox.close();
    if let Some(session) = session {
        linger(&shared, &entry, &session).await;
    }
    sessions.forget(&id, &entry);
}

/// Waits for the first message and opens the session that it asks for, with the messages that came with it.
async fn introduced(
    shared: &Shared,
    transport: Transport,
    inbox: &mut mpsc::Receiver<Sent>,
    copies: &mut Copies,
) -> Result<(Place, Vec<String>), Closing> {
    tokio::select! {
        biased;
        Some(mut sent) = inbox.recv() => {
            copies.first(sent.mark.handed);
            let first = sent.messages.remove(0);
            let Some(caller) = sent.caller.take() else { return Err(not_introduced()) };
            Ok((admitted(shared, &first, &caller, transport)?, sent.messages))
        }
        () = shared.draining.cancelled() => Err(shared.draining.closing()),
        () = sleep(INTRODUCTION) => Err(not_introduced()),
    }
}

/// The end of a session that never says which app it is for.
pub fn not_introduced() -> Closing {
    Closing::new(code::INACTIVE, "the first message, with the path of an app, did not come")
}

/// Opens the session that a first message asks for.
///
/// # Errors
/// What the client is told.
pub fn admitted(shared: &Shared, first: &str, caller: &Caller, transport: Transport) -> Result<Place, Closing> {
    let Some((key, query)) = first_message(first) else {
        let told = "the first message must be {\"path\":\"/app/KEY?protocol=7\"}";
        let closing = Closing::new(code::PATH_UNKNOWN, told);
        shared.refused(&closing, caller);
        return Err(closing);
    };
    shared.open(&key, &query, caller, transport)
}

/// Messages in the order in which they came, until the session is ended, left alone or cut.
async fn serve(
    shared: &Arc<Shared>,
    entry: &Entry,
    place: Place,
    first: Vec<String>,
    inbox: &mut mpsc::Receiver<Sent>,
    copies: &mut Copies,
) {
    let session = &place.session.clone();
    let mut connection = Connection::open(shared.clone(), session.clone()).await;
    for message in first {
        connection.handle(&message).await;
    }
    let mut look = Instant::now() + ACTIVITY_TIMEOUT;
    let (abandoned, aborted) = (entry.abandoned(), entry.aborted());
    let heard_out = heard_out(session.told());
    tokio::pin!(abandoned, aborted, heard_out);
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            () = session.closed(), if !leaving => {
                leaving = session.closing().is_some_and(|closing| closing.drain);
                if !leaving {
                    break;
                }
            }
            () = &mut heard_out, if leaving => break,
            () = &mut aborted => {
                let (code, reason) = INTERRUPTED;
                session.close(Closing::new(code, reason));
                if leaving {
                    break;
                }
            }
            Some(sent) = inbox.recv() => {
                if !copies.first(sent.mark.handed) {
                    shared.metrics.sends_repeated.inc();
                    continue;
                }
                for message in &sent.messages {
                    connection.handle(message).await;
                }
            }
            () = &mut abandoned, if !leaving => {
                session.close(Closing::new(code::INACTIVE, "nobody received for too long"));
            }
            () = connection.waits() => connection.look_again().await,
            () = sleep_until(look) => {
                look = connection.check().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
            }
        }
    }
    connection.leave().await;
    drop(place);
}

/// Keeps a session that has ended, so that its client is told each time it asks.
async fn linger(shared: &Shared, entry: &Entry, session: &Session) {
    let told_on_the_way_out = async {
        shared.draining.cancelled().await;
        session.told().await;
    };
    tokio::select! {
        () = entry.aborted() => {}
        () = entry.abandoned() => {}
        () = told_on_the_way_out => {}
        () = sleep(LINGER) => {}
    }
}
