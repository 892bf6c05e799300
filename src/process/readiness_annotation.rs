//! Whether this pod has been admitted by its annotation.
//!
//! In: the file in which kubelet keeps the pod's annotations, and the hash of the configuration that runs. Out: yes
//! once the annotation names exactly that hash. A container that restarts with the same configuration is admitted at
//! once, also while no operator runs; one with another configuration is not.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{ServerConfig, name};

/// The annotation that admits a pod, with the hash of its configuration.
pub const ADMITTED_ANNOTATION: &str = "realtime-operator.dev/admitted";

/// Interval at which the file is read: it is small and local, and every pod of a rollout waits for it.
const ANNOTATION_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Follows the admission of a process with this configuration, by the method that its variables choose.
#[must_use]
pub fn watch_admission(
    values: &ServerConfig,
    configuration: &str,
    shutdown: CancellationToken,
) -> watch::Receiver<bool> {
    match values.text(name::ADMISSION) {
        "none" => always_admitted(),
        _ => follow_annotation(values.text(name::ANNOTATIONS_PATH).into(), configuration.to_owned(), shutdown),
    }
}

/// Follows the file until the token is cancelled. An unreadable file changes nothing: the process stays admitted or not
/// admitted.
#[must_use]
pub fn follow_annotation(path: PathBuf, configuration: String, shutdown: CancellationToken) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut unreadable = false;
        loop {
            match tokio::fs::read_to_string(&path).await {
                Ok(text) => {
                    unreadable = false;
                    let admitted =
                        parse_annotation(&text, ADMITTED_ANNOTATION).is_some_and(|value| value == configuration);
                    sender.send_if_modified(|known| {
                        let changed = *known != admitted;
                        *known = admitted;
                        changed
                    });
                }
                Err(error) if !unreadable => {
                    unreadable = true;
                    tracing::warn!(path = %path.display(), %error, "pod annotations not readable: admission unchanged");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(ANNOTATION_POLL_INTERVAL) => {}
            }
        }
    });
    receiver
}

/// An admission that always holds.
#[must_use]
pub fn always_admitted() -> watch::Receiver<bool> {
    watch::channel(true).1
}

/// The value of one annotation: a line is `key="value"`, the value escaped as Go quotes a string.
fn parse_annotation(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_parsed_from_the_file() {
        for (name, text, expected) in [
            ("nothing", "", None),
            ("another annotation", "a/b=\"x\"\n", None),
            ("admitted", "a/b=\"x\"\nrealtime-operator.dev/admitted=\"1f\"\n", Some("1f")),
            ("a longer key", "realtime-operator.dev/admitted-before=\"1f\"", None),
            ("escaped", "realtime-operator.dev/admitted=\"a\\\"b\"", Some("a\"b")),
            ("cut short", "realtime-operator.dev/admitted=\"1", None),
        ] {
            assert_eq!(parse_annotation(text, ADMITTED_ANNOTATION).as_deref(), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn only_the_running_configuration_is_admitted_and_a_lost_file_revokes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, shutdown) = (directory.path().join("annotations"), CancellationToken::new());
        let mut admitted = follow_annotation(path.clone(), "1f".to_owned(), shutdown.clone());
        assert!(!*admitted.borrow());
        for (content, expected) in [("2e", false), ("1f", true), ("2e", false), ("1f", true)] {
            std::fs::write(&path, format!("{ADMITTED_ANNOTATION}=\"{content}\"\n")).expect("written");
            if *admitted.borrow() != expected {
                let change = tokio::time::timeout(Duration::from_secs(5), admitted.changed()).await;
                change.expect("in time").expect("followed");
            }
            assert_eq!(*admitted.borrow(), expected, "{content}");
        }
        std::fs::remove_file(&path).expect("removed");
        tokio::time::sleep(ANNOTATION_POLL_INTERVAL * 3).await;
        assert!(*admitted.borrow());
        shutdown.cancel();
    }
}
