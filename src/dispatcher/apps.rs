//! The app registry, read anew when its files change.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::metrics::DispatcherMetrics;
use crate::process::files::{self, DirectorySnapshot};
use crate::protocol::registry::{AppRegistry, RegistryError};

/// The registry as it is now.
pub type RegistryReceiver = watch::Receiver<Arc<AppRegistry>>;

/// Reads the registry and follows its changes until the token ends it. New files that cannot be used change nothing:
/// losing an app means losing its webhooks.
///
/// # Errors
/// The first reading failed.
pub async fn follow_registry(
    directory: &Path,
    metrics: Arc<DispatcherMetrics>,
    shutdown: CancellationToken,
) -> Result<RegistryReceiver, StartError> {
    let unreadable = |message: String| StartError::Apps { directory: directory.display().to_string(), message };
    let known = files::read_directory(directory).await.map_err(|error| unreadable(error.to_string()))?;
    let registry = parse_registry(&known).map_err(|error| unreadable(error.to_string()))?;
    let (sender, receiver) = watch::channel(Arc::new(registry));
    let (told, mut changes) = watch::channel(known.clone());
    let directory = directory.to_owned();
    tokio::spawn(async move { files::watch_directory(&directory, known, told, shutdown).await });
    // Ends with the task above, which drops its end of the channel.
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let read = parse_registry(&changes.borrow_and_update());
            match read {
                Ok(registry) => {
                    tracing::info!(apps = registry.apps().count(), "the app registry has changed");
                    sender.send_replace(Arc::new(registry));
                    metrics.count_registry_read(true);
                }
                Err(error) => {
                    metrics.count_registry_read(false);
                    tracing::error!(%error, "the new app registry cannot be used; the old one stays");
                }
            }
        }
    });
    Ok(receiver)
}

fn parse_registry(files: &DirectorySnapshot) -> Result<AppRegistry, RegistryError> {
    AppRegistry::parse(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
}
