//! The inbox of one session over HTTP, whose sends may arrive faster than the session handles them.
//!
//! In: the messages of one request. Out: the same, in the order of arrival, to the one task that acts on them. The
//! queue is bounded in requests and in bytes; a request that finds it full waits for a while and is then dropped, and its
//! session is closed, because clients do not read the answer to a send.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::edge::apps::client_address::Caller;

/// Bounds the sends that wait for one session.
pub const INBOX_REQUESTS_MAX: usize = 64;

/// Bounds the bytes of messages that wait for one session, with the overhead of each.
pub const INBOX_BYTES_MAX: u32 = 512 << 10;

/// Bounds the time that a send waits for room in the queue.
pub const INBOX_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The receiving half of an inbox, for the session. Requests are boxed: a channel reserves 32 of its items at once, and
/// those of an idle session would be 6 KiB.
pub type InboxReceiver = mpsc::Receiver<Box<InboxRequest>>;

/// The sending half of an inbox, for requests.
#[derive(Clone)]
pub struct InboxSender {
    sender: mpsc::Sender<Box<InboxRequest>>,
    room: Arc<Semaphore>,
}

/// The messages of one request, and the room that they hold until handled.
pub struct InboxRequest {
    /// The messages; empty when the request carried only its number.
    pub messages: Vec<String>,
    /// The sender of the messages, where that matters.
    pub caller: Option<Caller>,
    /// The ids by which duplicates are found.
    pub mark: RequestId,
    _room: Option<OwnedSemaphorePermit>,
}

/// The ids of a request, by which its order and duplicates are found.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestId {
    /// The client's own number.
    pub number: Option<u64>,
    /// The id of a relayed request, the same when it is relayed again.
    pub relay_number: Option<u128>,
}

impl InboxRequest {
    /// Creates a request without messages.
    pub fn without_messages(number: Option<u64>) -> Box<Self> {
        Box::new(Self { messages: vec![], caller: None, mark: RequestId { number, relay_number: None }, _room: None })
    }
}

/// The reason for which messages do not reach their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboxError {
    /// The session has ended already.
    Closed,
    /// The session has not kept up.
    Timeout,
}

/// Creates an inbox: the half for requests and the half for the session.
pub fn open_inbox() -> (InboxSender, InboxReceiver) {
    let (sender, receiver) = mpsc::channel(INBOX_REQUESTS_MAX);
    let room = Arc::new(Semaphore::new(INBOX_BYTES_MAX.try_into().unwrap_or(Semaphore::MAX_PERMITS)));
    (InboxSender { sender, room }, receiver)
}

impl InboxSender {
    /// Queues messages for the session. Messages larger than the whole bound wait until the queue is empty.
    ///
    /// # Errors
    /// The session has ended, or did not make room in time.
    pub async fn send(&self, messages: Vec<String>, mark: RequestId) -> Result<(), InboxError> {
        self.send_from(messages, None, mark).await
    }

    /// Queues the number of a request without messages. If the queue is full, no request waits for this number either.
    pub fn send_number(&self, number: Option<u64>) {
        let _ = self.sender.try_send(InboxRequest::without_messages(number));
    }

    /// Queues messages together with their caller.
    ///
    /// # Errors
    /// The session has ended, or did not make room in time.
    pub async fn send_from(
        &self,
        messages: Vec<String>,
        caller: Option<Caller>,
        mark: RequestId,
    ) -> Result<(), InboxError> {
        let bytes: usize = messages.iter().map(|message| message.len() + size_of::<String>()).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(INBOX_BYTES_MAX);
        let sent = async {
            let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| InboxError::Closed)?;
            let request = Box::new(InboxRequest { messages, caller, mark, _room: Some(room) });
            self.sender.send(request).await.map_err(|_| InboxError::Closed)
        };
        timeout(INBOX_SEND_TIMEOUT, sent).await.unwrap_or(Err(InboxError::Timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::task::unconstrained;

    /// Requests that find room at once, up to the limit.
    fn count_fitting(messages: &[String]) -> usize {
        let (sends, _receiver) = open_inbox();
        let send = || unconstrained(sends.send(messages.to_vec(), RequestId::default())).now_or_never();
        (0..INBOX_REQUESTS_MAX).take_while(|_| send() == Some(Ok(()))).count()
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_requests_and_in_bytes() {
        assert_eq!(count_fitting(&["x".to_owned()]), INBOX_REQUESTS_MAX);
        assert_eq!(count_fitting(&["x".repeat(100 << 10)]), 5);
        assert_eq!(count_fitting(&["x".repeat(600 << 10)]), 1, "larger than all the room, and alone");
        assert_eq!(count_fitting(&vec![String::new(); 10_000]), 2, "empty messages take room too");
    }

    #[tokio::test]
    async fn a_send_waits_for_room_and_not_for_ever() {
        let (sends, mut receiver) = open_inbox();
        let half = || vec!["x".repeat(300 << 10)];
        assert_eq!(sends.send(half(), RequestId::default()).await, Ok(()));
        let taken = async { receiver.recv().await.map(|sent| sent.messages.len()) };
        assert_eq!(
            tokio::join!(sends.send(half(), RequestId::default()), taken),
            (Ok(()), Some(1)),
            "the first one made room"
        );
        assert_eq!(sends.send(half(), RequestId::default()).await, Err(InboxError::Timeout));
        receiver.close();
        assert!(receiver.recv().await.is_some());
        assert_eq!(sends.send(half(), RequestId::default()).await, Err(InboxError::Closed));
    }
}
