//! Messages that wait for one session over HTTP, whose sends come faster than the session acts on them.
//!
//! In: the messages of one request. Out: the same, in the order of arrival, to the one task that acts on them. What
//! waits is bounded in requests and in bytes; a request that finds no room waits for a while and is then lost, and its
//! session with it, because clients do not look at the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::client::Caller;

/// Sends that wait for one session.
pub const MAX_SENDS: usize = 64;

/// Bytes of messages that wait for one session, with what each of them takes besides its text.
pub const MAX_SEND_BYTES: u32 = 512 << 10;

/// How long a send waits for room.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The end for the requests.
#[derive(Clone)]
pub struct Sends {
    sender: mpsc::Sender<Sent>,
    room: Arc<Semaphore>,
}

/// The messages of one request, and the room that they take while they wait.
pub struct Sent {
    /// None when the request had only its number to tell.
    pub messages: Vec<String>,
    /// Who sent them, where that matters.
    pub caller: Option<Caller>,
    /// What tells the request from others.
    pub mark: Mark,
    _room: Option<OwnedSemaphorePermit>,
}

/// What tells a request from others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// The client's own number.
    pub number: Option<u64>,
    /// The id of one that another process handed here, the same when it is handed again.
    pub handed: Option<u128>,
}

impl Sent {
    /// A request without messages.
    pub fn nothing(number: Option<u64>) -> Self {
        Self { messages: vec![], caller: None, mark: Mark { number, handed: None }, _room: None }
    }
}

/// Why messages do not reach their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// It has ended.
    Over,
    /// It has not kept up.
    Late,
}

/// An empty inbox: the end for the requests and the one for the session.
pub fn inbox() -> (Sends, mpsc::Receiver<Sent>) {
    let (sender, receiver) = mpsc::channel(MAX_SENDS);
    let room = Arc::new(Semaphore::new(MAX_SEND_BYTES.try_into().unwrap_or(Semaphore::MAX_PERMITS)));
    (Sends { sender, room }, receiver)
}

impl Sends {
    /// Hands messages to the session. Those that are larger than all the room wait until they are alone.
    ///
    /// # Errors
    /// The session has ended, or found no time for them.
    pub async fn send(&self, messages: Vec<String>, mark: Mark) -> Result<(), Unsent> {
        self.send_from(messages, None, mark).await
    }

    /// Tells the number of a request without messages. Where there is no room for it, nothing waits for it either.
    pub fn pass(&self, number: Option<u64>) {
        let _ = self.sender.try_send(Sent::nothing(number));
    }

    /// The same, and says who sent them.
    ///
    /// # Errors
    /// The session has ended, or found no time for them.
    pub async fn send_from(&self, messages: Vec<String>, caller: Option<Caller>, mark: Mark) -> Result<(), Unsent> {
        let bytes: usize = messages.iter().map(|message| message.len() + size_of::<String>()).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_SEND_BYTES);
        let sent = async {
            let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| Unsent::Over)?;
            self.sender.send(Sent { messages, caller, mark, _room: Some(room) }).await.map_err(|_| Unsent::Over)
        };
        timeout(SEND_TIMEOUT, sent).await.unwrap_or(Err(Unsent::Late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::task::unconstrained;

    /// Requests that find room at once, of as many as may wait.
    fn fit(messages: &[String]) -> usize {
        let (sends, _receiver) = inbox();
        let send = || unconstrained(sends.send(messages.to_vec(), Mark::default())).now_or_never();
        (0..MAX_SENDS).take_while(|_| send() == Some(Ok(()))).count()
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_requests_and_in_bytes() {
        assert_eq!(fit(&["x".to_owned()]), MAX_SENDS);
        assert_eq!(fit(&["x".repeat(100 << 10)]), 5);
        assert_eq!(fit(&["x".repeat(600 << 10)]), 1, "larger than all the room, and alone");
        assert_eq!(fit(&vec![String::new(); 10_000]), 2, "empty messages take room too");
    }

    #[tokio::test]
    async fn a_send_waits_for_room_and_not_for_ever() {
        let (sends, mut receiver) = inbox();
        let half = || vec!["x".repeat(300 << 10)];
        assert_eq!(sends.send(half(), Mark::default()).await, Ok(()));
        let taken = async { receiver.recv().await.map(|sent| sent.messages.len()) };
        assert_eq!(
            tokio::join!(sends.send(half(), Mark::default()), taken),
            (Ok(()), Some(1)),
            "the first one made room"
        );
        assert_eq!(sends.send(half(), Mark::default()).await, Err(Unsent::Late));
        receiver.close();
        assert!(receiver.recv().await.is_some());
        assert_eq!(sends.send(half(), Mark::default()).await, Err(Unsent::Over));
    }
}
