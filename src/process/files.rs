//! A directory of small files, read again when it changes, by which Secrets reach a running process.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Interval at which a directory is read: kubelet swaps mounted files without a signal.
const DIRECTORY_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The files of a directory by name.
pub type DirectorySnapshot = BTreeMap<String, Vec<u8>>;

/// Reads every `.json` file of a directory.
///
/// # Errors
/// The directory or a file cannot be read.
pub async fn read_directory(directory: &Path) -> io::Result<DirectorySnapshot> {
    let mut files = DirectorySnapshot::new();
    let mut entries = tokio::fs::read_dir(directory).await?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        // kubelet keeps the versions of a mount in directories that begin with two dots.
        if Path::new(&name).extension().is_some_and(|extension| extension == "json") {
            files.insert(name, tokio::fs::read(entry.path()).await?);
        }
    }
    Ok(files)
}

/// Publishes every new content of a directory until the token is cancelled. A directory that is unreadable for a while,
/// or has lost a file, changes nothing: the last content stays. The files of a mount never change their names, so a
/// missing one means a lost mount, and not an intention.
pub async fn watch_directory(
    directory: &Path,
    known: DirectorySnapshot,
    changes: watch::Sender<DirectorySnapshot>,
    shutdown: CancellationToken,
) {
    let mut known = known;
    let mut failing = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(DIRECTORY_POLL_INTERVAL) => {}
        }
        let read = read_directory(directory).await.and_then(|files| {
            match known.keys().find(|name| !files.contains_key(*name)) {
                Some(name) => Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing"))),
                None => Ok(files),
            }
        });
        match read {
            Ok(files) => {
                failing = false;
                if files != known {
                    known.clone_from(&files);
                    if changes.send(files).is_err() {
                        return;
                    }
                }
            }
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(directory = %directory.display(), %error, "directory not readable: keeping its last content");
            }
            Err(_) => {}
        }
    }
}

/// Parses every new content of a directory and puts it in force, until the token is cancelled. Content that cannot be
/// parsed changes nothing, because its users would lose what the last one holds: it is logged. `count_read` gets for
/// each new content whether it is in force.
pub async fn follow_directory<T, E: Display>(
    directory: &Path,
    known: DirectorySnapshot,
    parse: impl Fn(&DirectorySnapshot) -> Result<T, E>,
    current: &watch::Sender<Arc<T>>,
    count_read: impl Fn(bool),
    shutdown: CancellationToken,
) {
    let (sender, mut changes) = watch::channel(known.clone());
    let apply_changes = async {
        while changes.changed().await.is_ok() {
            let parsed = parse(&changes.borrow_and_update());
            count_read(parsed.is_ok());
            match parsed {
                Ok(value) => {
                    current.send_replace(Arc::new(value));
                    tracing::info!(directory = %directory.display(), "directory reloaded");
                }
                Err(error) => {
                    let directory = directory.display();
                    tracing::error!(%directory, %error, "directory invalid: keeping its last valid content");
                }
            }
        }
    };
    // The first future owns the sender, so the second ends with it.
    tokio::join!(watch_directory(directory, known, sender, shutdown), apply_changes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_published_and_other_files_are_ignored() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("a.json"), "[]").expect("written");
        std::fs::write(directory.path().join("b.txt"), "no").expect("written");
        let known = read_directory(directory.path()).await.expect("files");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a.json"]);
        let (sender, mut receiver) = watch::channel(known.clone());
        let shutdown = CancellationToken::new();
        let task = {
            let (path, shutdown) = (directory.path().to_owned(), shutdown.clone());
            tokio::spawn(async move { watch_directory(&path, known, sender, shutdown).await })
        };
        std::fs::write(directory.path().join("a.json"), "[1]").expect("written");
        tokio::time::timeout(Duration::from_secs(5), receiver.changed()).await.expect("in time").expect("a change");
        assert_eq!(receiver.borrow_and_update()["a.json"], b"[1]");
        std::fs::remove_file(directory.path().join("a.json")).expect("removed");
        std::fs::write(directory.path().join("c.json"), "[2]").expect("written");
        assert!(tokio::time::timeout(3 * DIRECTORY_POLL_INTERVAL, receiver.changed()).await.is_err(), "a lost mount");
        std::fs::write(directory.path().join("a.json"), "[3]").expect("written");
        tokio::time::timeout(Duration::from_secs(5), receiver.changed()).await.expect("in time").expect("a change");
        assert_eq!(receiver.borrow()["a.json"], b"[3]");
        shutdown.cancel();
        task.await.expect("ended");
    }

    #[tokio::test]
    async fn content_that_cannot_be_parsed_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |text: &str| std::fs::write(directory.path().join("a.json"), text).expect("written");
        write("1");
        let known = read_directory(directory.path()).await.expect("files");
        let current = watch::Sender::new(Arc::new(1));
        let (mut value, reads) = (current.subscribe(), watch::Sender::new(Vec::new()));
        let (mut read, shutdown) = (reads.subscribe(), CancellationToken::new());
        let task = {
            let (path, shutdown) = (directory.path().to_owned(), shutdown.clone());
            let parse = |files: &DirectorySnapshot| serde_json::from_slice::<u8>(&files["a.json"]);
            let count_read = move |applied| reads.send_modify(|reads| reads.push(applied));
            tokio::spawn(async move { follow_directory(&path, known, parse, &current, count_read, shutdown).await })
        };
        let limit = Duration::from_secs(5);
        write("no number");
        let reads = tokio::time::timeout(limit, read.wait_for(|reads| reads.len() == 1)).await.expect("in time");
        assert_eq!(*reads.expect("a read"), [false]);
        assert_eq!(**value.borrow(), 1, "the last valid content stays");
        write("2");
        tokio::time::timeout(limit, value.wait_for(|value| **value == 2)).await.expect("in time").expect("a value");
        assert_eq!(*read.borrow_and_update(), [false, true]);
        shutdown.cancel();
        task.await.expect("ended");
    }
}
