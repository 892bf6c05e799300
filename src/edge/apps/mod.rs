//! The app registry of a running edge: read at the start, read again when its files change.

pub(crate) mod client_address;
pub(crate) mod handshake;
pub(crate) mod rate_limit;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::edge::error::StartError;
use crate::edge::metrics::EdgeMetrics;
use crate::process::files::{self, DirectorySnapshot};
use crate::protocol::registry::AppRegistry;

/// The registry that is in force.
pub struct RegistryWatcher {
    current: watch::Sender<Arc<AppRegistry>>,
}

impl RegistryWatcher {
    /// Reads the registry for the first time.
    ///
    /// # Errors
    /// The directory cannot be read, or a file is broken: an edge without apps would refuse every client.
    pub async fn load(directory: PathBuf) -> Result<(Arc<Self>, DirectorySnapshot), StartError> {
        let files = files::read_directory(&directory)
            .await
            .map_err(|error| StartError::AppsUnreadable { directory: directory.clone(), error: error.to_string() })?;
        let registry = AppRegistry::parse(&files)?;
        tracing::info!(apps = registry.apps().count(), directory = %directory.display(), "the app registry was read");
        Ok((Arc::new(Self { current: watch::Sender::new(Arc::new(registry)) }), files))
    }

    /// The registry as it is now.
    pub fn current(&self) -> Arc<AppRegistry> {
        self.current.borrow().clone()
    }

    /// Follows the registry: each change of the files that is applied.
    pub fn subscribe(&self) -> watch::Receiver<Arc<AppRegistry>> {
        self.current.subscribe()
    }

    /// Follows the files until the token is cancelled. Sessions read the registry anew with each message, and the session
    /// registry follows [`Self::subscribe`]. A broken file changes nothing: it is logged and counted.
    pub async fn follow_files(
        self: Arc<Self>,
        directory: PathBuf,
        known: DirectorySnapshot,
        metrics: Arc<EdgeMetrics>,
        stop: CancellationToken,
    ) {
        let parse = |files: &DirectorySnapshot| AppRegistry::parse(files);
        let count_read = |applied| metrics.count_registry_read(applied);
        files::follow_directory(&directory, known, parse, &self.current, count_read, stop).await;
    }
}
