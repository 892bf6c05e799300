//! The connection log: while an admin reads it, connects, refusals, subscriptions and closes are copied to the reader.
//!
//! In: entries of sessions. Out: a bounded queue for each reader. Nobody reading, an entry is never built.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};

/// Readers that an edge serves at once.
pub const READERS_MAX: usize = 8;

/// Entries that wait for one reader; those beyond are dropped and counted to it.
pub const QUEUED_ENTRIES_MAX: usize = 1_024;

/// The readers of the connection log.
#[derive(Default)]
pub struct ConnectionLog {
    readers: Mutex<Vec<ReaderQueue>>,
    reader_count: AtomicUsize,
    next_number: AtomicU64,
}

struct ReaderQueue {
    number: u64,
    app: Option<AppId>,
    entries: mpsc::Sender<ConnectionLogEntry>,
    missed: Arc<AtomicU64>,
}

/// One reader of the log. Dropping it ends the copies.
pub struct LogReader {
    log: Arc<ConnectionLog>,
    number: u64,
    entries: mpsc::Receiver<ConnectionLogEntry>,
    missed: Arc<AtomicU64>,
}

impl ConnectionLog {
    /// Adds a reader of one app's entries, or of all; `None` while [`READERS_MAX`] readers are there.
    pub fn add_reader(self: &Arc<Self>, app: Option<AppId>) -> Option<LogReader> {
        let (sender, entries) = mpsc::channel(QUEUED_ENTRIES_MAX);
        let (number, missed) = (self.next_number.fetch_add(1, Ordering::Relaxed), Arc::new(AtomicU64::new(0)));
        let mut readers = lock_unpoisoned(&self.readers);
        if readers.len() >= READERS_MAX {
            return None;
        }
        readers.push(ReaderQueue { number, app, entries: sender, missed: missed.clone() });
        self.reader_count.store(readers.len(), Ordering::Relaxed);
        Some(LogReader { log: self.clone(), number, entries, missed })
    }

    /// Writes an entry, which is built only if somebody reads.
    pub fn write(&self, build: impl FnOnce() -> ConnectionLogEntry) {
        if self.reader_count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let entry = build();
        for reader in lock_unpoisoned(&self.readers).iter() {
            let is_wanted = reader.app.is_none() || reader.app == entry.app;
            if is_wanted && matches!(reader.entries.try_send(entry.clone()), Err(TrySendError::Full(_))) {
                reader.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn remove_reader(&self, number: u64) {
        let mut readers = lock_unpoisoned(&self.readers);
        readers.retain(|reader| reader.number != number);
        self.reader_count.store(readers.len(), Ordering::Relaxed);
    }
}

impl LogReader {
    /// Waits for the next entry. After those that were queued, it reports the number of those that were dropped.
    pub async fn next(&mut self) -> Option<ConnectionLogEntry> {
        match self.entries.try_recv() {
            Ok(entry) => return Some(entry),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        match self.missed.swap(0, Ordering::Relaxed) {
            0 => self.entries.recv().await,
            entries => Some(ConnectionLogEntry {
                time_ms: clock::now_ms(),
                app: None,
                socket: None,
                transport: None,
                event: ConnectionEvent::Missed { entries },
            }),
        }
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.log.remove_reader(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(app: &str, channel: usize) -> ConnectionLogEntry {
        let event = ConnectionEvent::Subscribed { channel: channel.to_string() };
        ConnectionLogEntry { time_ms: 0, app: Some(app.into()), socket: None, transport: None, event }
    }

    #[tokio::test]
    async fn a_reader_receives_its_app_and_the_number_of_dropped_entries() {
        let log = Arc::new(ConnectionLog::default());
        log.write(|| unreachable!("nobody reads"));
        let (mut one, mut all) =
            (log.add_reader(Some("1".into())).expect("place"), log.add_reader(None).expect("place"));
        log.write(|| entry("2", 0));
        for channel in 0..QUEUED_ENTRIES_MAX + 3 {
            log.write(|| entry("1", channel));
        }
        assert_eq!(all.next().await, Some(entry("2", 0)));
        for channel in 0..QUEUED_ENTRIES_MAX {
            assert_eq!(one.next().await, Some(entry("1", channel)));
        }
        let missed = one.next().await.expect("an entry").event;
        assert_eq!(missed, ConnectionEvent::Missed { entries: 3 });
    }

    #[test]
    fn readers_are_bounded_and_leave_when_dropped() {
        let log = Arc::new(ConnectionLog::default());
        let readers: Vec<_> = (0..READERS_MAX).filter_map(|_| log.add_reader(None)).collect();
        assert_eq!(readers.len(), READERS_MAX);
        assert!(log.add_reader(None).is_none());
        drop(readers);
        log.write(|| unreachable!("nobody reads any more"));
        assert!(log.add_reader(None).is_some());
    }
}
