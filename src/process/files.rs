//! A directory of small files, read again when it changes, by which Secrets reach a running process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
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
}
