//! The app registry, read again whenever its files change.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::metrics::DispatcherMetrics;
use crate::process::files::{self, DirectorySnapshot};
use crate::protocol::registry::AppRegistry;

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
    let registry = AppRegistry::parse(&known).map_err(|error| unreadable(error.to_string()))?;
    let (current, receiver) = watch::channel(Arc::new(registry));
    let directory = directory.to_owned();
    tokio::spawn(async move {
        let parse = |files: &DirectorySnapshot| AppRegistry::parse(files);
        let count_read = |applied| metrics.count_registry_read(applied);
        files::follow_directory(&directory, known, parse, &current, count_read, shutdown).await;
    });
    Ok(receiver)
}
