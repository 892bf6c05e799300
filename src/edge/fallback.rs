//! pusher-js's own HTTP fallbacks, `xhr_streaming` and `xhr_polling`: sessions that outlive their requests.
//!
//! In: receives, which carry frames to the client, and sends, which carry messages from it. Out: the same session and
//! connection that a WebSocket has. They look like SockJS and differ where it matters: an aborted receive does not end
//! the session, writing pauses where the client will abort to free its memory, and a ping is an empty array. Read from
//! pusher-js 8.6 `src/core/http`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;
use url::form_urlencoded;

use super::admission::from_here;
use super::client::Caller;
use super::connection::Connection;
use super::drain::heard_out;
use super::inbox::{Mark, Sends, Sent, Unsent, inbox};
use super::liveness::ACTIVITY_TIMEOUT;
use super::order::{Copies, Order};
use super::peer::{Registration, Standing};
use super::session::{Closing, Outlet, Session};
use super::sessions::Place;
use super::shared::Shared;
use crate::protocol::Transport;
use crate::protocol::frame::code;

/// How long a session lives without a receive.
pub const GRACE: Duration = Duration::from_secs(5);

/// Longest that a session stays after its end for a client that holds a receive and does not read it.
const LINGER: Duration = Duration::from_secs(30);

/// HTTP sessions of a process.
pub const MAX_SESSIONS: usize = 50_000;

/// Longest part of a session's id. pusher-js uses up to three digits and eight letters.
pub const MAX_ID: usize = 64;

/// What the client chose to call its session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The first part.
    pub srv: String,
    /// The second part.
    pub session: String,
}

impl SessionId {
    /// Checks both parts: not empty, no dots, not long.
    pub fn parse(srv: String, session: String) -> Option<Self> {
        let valid = |part: &str| !part.is_empty() && part.len() <= MAX_ID && !part.contains('.');
        (valid(&srv) && valid(&session)).then_some(Self { srv, session })
    }
}

/// One session and the way to its connection.
struct Entry {
    key: String,
    session: Arc<Session>,
    sends: Sends,
    /// Says that it is here.
    registration: Option<Arc<Registration>>,
}

/// The HTTP sessions of the process.
#[derive(Default)]
pub struct Fallback {
    entries: Mutex<HashMap<SessionId, Entry>>,
}

/// What a receive found.
pub struct Receive {
    /// Where its frames come from.
    pub outlet: Outlet,
    /// Whether the session is new, so that the client is told `o`.
    pub new: bool,
}

/// Why a request cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// The client may have no session. It is told so in one answer, and nothing is kept of it: strangers could fill the
    /// table otherwise.
    Refused(Closing),
    /// The app does not let the page that asks connect.
    Forbidden,
    /// The session was in a process that is gone.
    Gone,
    /// There is no such session under this key.
    Unknown,
    /// There are as many sessions as may be, or the session does not keep up.
    Busy,
}

impl Fallback {
    /// The session of a receive, made if there is none.
    pub fn receive(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        id: SessionId,
        (key, query): (&str, &str),
        caller: &Caller,
        transport: Transport,
        standing: Standing,
    ) -> Result<Receive, Unserved> {
        Self::from_here(shared, key, caller).map_err(Unserved::Refused)?;
        let number = number(query);
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&id) {
            // A stranger learns nothing of a session under another key.
            if entry.key != key {
                return Err(Unserved::Unknown);
            }
            entry.sends.pass(number);
            return Ok(Receive { outlet: entry.session.attach(), new: false });
        }
        let registration = match standing {
            Standing::Open(registration) => registration,
            Standing::Gone => return Err(Unserved::Gone),
            Standing::Handed(_) => return Err(Unserved::Unknown),
        };
        if entries.len() >= MAX_SESSIONS {
            return Err(Unserved::Busy);
        }
        let (sends, inbox) = inbox();
        let place = shared.open(key, query, caller, transport).map_err(Unserved::Refused)?;
        let session = place.session.clone();
        let outlet = session.attach();
        let span = place.span.clone();
        shared.tasks.spawn(serve(self.clone(), shared.clone(), place, id.clone(), inbox, number).instrument(span));
        entries.insert(id, Entry { key: key.to_owned(), session, sends, registration });
        Ok(Receive { outlet, new: true })
    }

    /// Whether the app of this key, if there is one, lets the page that asks connect: each request is a page's own.
    ///
    /// # Errors
    /// What the client is told.
    pub fn from_here(shared: &Shared, key: &str, caller: &Caller) -> Result<(), Closing> {
        let registry = shared.apps.current();
        let Some(app) = registry.by_key(key) else { return Ok(()) };
        from_here(app, caller.origin.as_deref()).inspect_err(|closing| shared.refused(closing, caller))
    }

    /// Hands messages to a session, which acts on them in the order of the client's numbers. An empty list is a ping.
    pub async fn send(&self, id: &SessionId, key: &str, messages: Vec<String>, mark: Mark) -> Result<(), Unserved> {
        let (session, sends) = {
            let entries = self.lock();
            let entry = entries.get(id).filter(|entry| entry.key == key).ok_or(Unserved::Unknown)?;
            (entry.session.clone(), entry.sends.clone())
        };
        session.heard();
        if messages.is_empty() {
            session.echo();
            sends.pass(mark.number);
            return Ok(());
        }
        sends.send(messages, mark).await.map_err(|unsent| match unsent {
            Unsent::Over => Unserved::Unknown,
            Unsent::Late => {
                // pusher-js does not look at the answer, so a lost send must end the session.
                session.close(Closing::new(code::RECONNECT, "a message was lost, come back at once"));
                Unserved::Busy
            }
        })
    }

    /// Whether it is here.
    pub fn has(&self, id: &SessionId) -> bool {
        self.lock().contains_key(id)
    }

    /// Ends a session, if it is here.
    pub fn close(&self, id: &SessionId, closing: Closing) {
        if let Some(entry) = self.lock().get(id) {
            entry.session.close(closing);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number that pusher-js gives each request of a page.
pub fn number(query: &str) -> Option<u64> {
    form_urlencoded::parse(query.as_bytes()).find_map(|(name, value)| (name == "n").then(|| value.parse().ok())?)
}

/// The life of one session: messages in the order in which they were sent, until it is ended or left alone.
async fn serve(
    fallback: Arc<Fallback>,
    shared: Arc<Shared>,
    place: Place,
    id: SessionId,
    mut inbox: mpsc::Receiver<Sent>,
    first: Option<u64>,
) {
    let session = &place.session.clone();
    let metrics = shared.metrics.clone();
    let mut connection = Connection::open(shared, session.clone()).await;
    let (mut order, mut copies) = (Order::default(), Copies::default());
    order.arrive(first, Sent::nothing(first), Instant::now().into());
    let mut look = Instant::now() + ACTIVITY_TIMEOUT;
    let (abandoned, heard_out) = (session.abandoned(GRACE), heard_out(session.told()));
    tokio::pin!(abandoned, heard_out);
    let mut leaving = false;
    loop {
        let due = order.due();
        let ready = tokio::select! {
            biased;
            () = session.closed(), if !leaving => {
                leaving = session.closing().is_some_and(|closing| closing.drain);
                if !leaving {
                    break;
                }
                vec![]
            }
            () = &mut heard_out, if leaving => break,
            Some(sent) = inbox.recv() => {
                if copies.first(sent.mark.handed) {
                    order.arrive(sent.mark.number, sent, Instant::now().into())
                } else {
                    metrics.sends_repeated.inc();
                    vec![]
                }
            }
            () = sleep_until(due.map_or(look, Into::into)), if due.is_some() => order.overdue(Instant::now().into()),
            () = &mut abandoned, if !leaving => {
                session.close(Closing::new(code::INACTIVE, "nobody received for too long"));
                vec![]
            }
            () = connection.waits() => {
                connection.look_again().await;
                vec![]
            }
            () = sleep_until(look) => {
                look = connection.check().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
                vec![]
            }
        };
        for message in ready.iter().flat_map(|sent| &sent.messages) {
            connection.handle(message).await;
        }
    }
    inbox.close();
    connection.leave().await;
    drop(place);
    linger(fallback, session.clone(), id).await;
}

/// Keeps a session that has ended until its client was told, does not ask, or does not read.
async fn linger(fallback: Arc<Fallback>, session: Arc<Session>, id: SessionId) {
    let abandoned = session.abandoned(GRACE);
    let told = tokio::select! {
        () = session.told() => true,
        () = abandoned => false,
        () = tokio::time::sleep(LINGER) => false,
    };
    let entry = fallback.lock().remove(&id);
    if let (false, Some(registration)) = (told, entry.and_then(|entry| entry.registration)) {
        // Whoever asks next, wherever, hears that it is gone.
        registration.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::{Outgoing, tests::session};
    use super::*;
    use axum::response::IntoResponse;

    #[tokio::test]
    async fn a_session_that_does_not_keep_up_with_its_sends_is_ended_and_the_send_is_told() {
        let (fallback, session, (sends, _inbox)) = (Fallback::default(), session(), inbox());
        let outlet = session.attach();
        let id = SessionId::parse("7".into(), "s".into()).expect("an id");
        fallback
            .lock()
            .insert(id.clone(), Entry { key: "k".into(), session: session.clone(), sends, registration: None });
        // Nobody acts on them; 512 KiB may wait.
        let large = || vec!["x".repeat(200 << 10)];
        for _ in 0..2 {
            assert_eq!(fallback.send(&id, "k", large(), Mark::default()).await, Ok(()));
        }
        assert_eq!(session.closing(), None);
        let lost = fallback.send(&id, "k", large(), Mark::default()).await;
        assert_eq!(lost, Err(Unserved::Busy));
        assert_eq!(Unserved::Busy.into_response().status(), 503);
        assert!(matches!(outlet.next(100).await, Outgoing::Close(Closing { code: code::RECONNECT, .. })));
    }
}
