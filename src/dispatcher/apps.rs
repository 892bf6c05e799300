//! The app registry, read again whenever its files change.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::metrics::DispatcherMetrics;
use crate::process::files::{self, DirectorySnapshot};
use crate::protocol::registry::{AppRegistry, RegistryError};

/// The app registry that is in force now, as a watch.
pub type RegistryReceiver = watch::Receiver<Arc<AppRegistry>>;

/// Reads the registry and follows its changes until the token is cancelled. Invalid new files change nothing, because
/// losing an app means losing its webhooks.
///
/// # Errors
/// The first read failed.
pub async fn follow_registry(
    directory: &Path,
    metrics: Arc<DispatcherMetrics>,
    shutdown: CancellationToken,
) -> Result<RegistryReceiver, StartError> {
    let unreadable = |message: String| StartError::Apps { directory: directory.display().to_string(), message };
    let known = files::read_directory(directory).await.map_err(|error| unreadable(error.to_string()))?;
    let registry = parse_registry(&known).map_err(|error| unreadable(error.to_string()))?;
    let (sender, receiver) = watch::channel(Arc::new(registry));
    let (snapshots, mut changes) = watch::channel(known.clone());
    let directory = directory.to_owned();
    tokio::spawn(async move { files::watch_directory(&directory, known, snapshots, shutdown).await });
    // This task ends with the one above, which drops the sender of the channel.
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let read = parse_registry(&changes.borrow_and_update());
            match read {
                Ok(registry) => {
                    tracing::info!(apps = registry.apps().count(), "app registry reloaded");
                    sender.send_replace(Arc::new(registry));
                    metrics.count_registry_read(true);
                }
                Err(error) => {
                    metrics.count_registry_read(false);
                    tracing::error!(%error, "app registry invalid: keeping the previous one");
                }
            }
        }
    });
    Ok(receiver)
}

fn parse_registry(files: &DirectorySnapshot) -> Result<AppRegistry, RegistryError> {
    AppRegistry::parse(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
}
