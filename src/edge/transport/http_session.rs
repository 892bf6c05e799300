//! The loop of one session over HTTP, which outlives its requests: pusher-js's fallbacks and `SockJS`.
//!
//! In: the inbox of the session, and futures that resolve when its client receives no more. Out: the messages, applied
//! to the connection in the order in which the client sent them and each once. It must not know how a receive is
//! answered.

use futures::future::{BoxFuture, OptionFuture};
use tokio::time::{Instant, sleep_until};

use crate::edge::close_reason::CloseReason;
use crate::edge::pusher::connection::Connection;
use crate::edge::session::drain_signal::wait_in_flight_messages;
use crate::edge::session::registry::SessionGuard;
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::inbox::{InboxReceiver, InboxRequest};
use crate::edge::transport::reorder::{DuplicateFilter, ReorderBuffer};
use crate::edge::transport::session_timers::SessionTimers;
use crate::protocol::frame::code;

/// Serves one session until it is closed, and closes its inbox.
///
/// The session is closed once `detached` resolves: no receive is open, and none has been for the transport's grace
/// period. It is closed with the reason of `aborted` once that resolves: a receive was aborted on a transport where that
/// ends the session. In both cases the messages that arrived before are applied first. In a drain the loop goes on for the
/// messages that are still in flight.
pub async fn drive_http_session(
    shared: &TransportContext,
    guard: SessionGuard,
    (first, inbox): (Box<InboxRequest>, &mut InboxReceiver),
    detached: impl Future<Output = ()>,
    aborted: impl Future<Output = CloseReason>,
) {
    let session = guard.session.clone();
    let mut connection = Box::pin(Connection::open(shared.hub.clone(), session.clone())).await;
    let (mut order, mut duplicates) = (ReorderBuffer::default(), DuplicateFilter::default());
    duplicates.insert_if_new(first.mark.relay_number);
    let mut ready = order.push(first.mark.number, *first, Instant::now().into());
    let mut timers = SessionTimers::start(session.activity_timeout);
    tokio::pin!(detached, aborted);
    // There in a drain, in which messages may still be in flight.
    let mut in_flight = None::<BoxFuture<'_, ()>>;
    let ended = loop {
        apply_requests(&mut connection, std::mem::take(&mut ready)).await;
        let overdue: Option<Instant> = order.next_due().map(Into::into);
        tokio::select! {
            biased;
            () = session.close_requested(), if in_flight.is_none() => {
                if session.close_reason().is_none_or(|closing| !closing.drain) {
                    break None;
                }
                in_flight = Some(Box::pin(wait_in_flight_messages(&session)));
            }
            Some(()) = OptionFuture::from(in_flight.as_mut()), if in_flight.is_some() => break None,
            reason = &mut aborted => break Some(reason),
            // In a drain the messages that are in flight are applied at once.
            Some(request) = inbox.recv(), if in_flight.is_some() || connection.paused_until().is_none() => {
                if duplicates.insert_if_new(request.mark.relay_number) {
                    ready = order.push(request.mark.number, *request, Instant::now().into());
                } else {
                    shared.hub.metrics.sends_repeated.inc();
                }
            }
            () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                ready = order.release_overdue(Instant::now().into());
            }
            () = &mut detached, if in_flight.is_none() => {
                break Some(CloseReason::new(code::INACTIVE, "nobody received for too long"));
            }
            due = timers.next(&connection) => timers.apply(due, &mut connection).await,
        }
    };
    inbox.close();
    if let Some(reason) = ended {
        while let Ok(request) = inbox.try_recv() {
            if duplicates.insert_if_new(request.mark.relay_number) {
                ready.extend(order.push(request.mark.number, *request, Instant::now().into()));
            }
        }
        ready.extend(order.release_all());
        apply_requests(&mut connection, ready).await;
        session.close(reason);
    }
    Box::pin(connection.tear_down()).await;
    drop(guard);
}

async fn apply_requests(connection: &mut Connection, requests: Vec<InboxRequest>) {
    for request in requests {
        for message in &request.messages {
            connection.apply_message(message).await;
        }
    }
}
