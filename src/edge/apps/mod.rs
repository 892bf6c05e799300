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
use crate::protocol::registry::{AppRegistry, RegistryError};

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
        let registry = parse_registry(&files)?;
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
        let (sender, mut receiver) = watch::channel(DirectorySnapshot::new());
        let watching = files::watch_directory(&directory, known, sender, stop.clone());
        let applying = async {
            while receiver.changed().await.is_ok() {
                let files = receiver.borrow_and_update().clone();
                match parse_registry(&files) {
                    Ok(registry) => {
                        tracing::info!(apps = registry.apps().count(), "the app registry changed");
                        self.current.send_replace(Arc::new(registry));
                        metrics.count_registry_read(true);
                    }
                    Err(error) => {
                        metrics.count_registry_read(false);
                        tracing::error!(%error, "the app registry is broken; the one before stays in force");
                    }
                }
            }
        };
        tokio::select! { () = watching => {}, () = applying => {} }
    }
}

fn parse_registry(files: &DirectorySnapshot) -> Result<AppRegistry, RegistryError> {
    AppRegistry::parse(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
}
