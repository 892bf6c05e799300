//! The id of the build that this process runs.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// As [`build_id`], off the threads that serve: the whole program is read once.
pub async fn read_build_id() -> &'static str {
    tokio::task::spawn_blocking(build_id).await.unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// A hash of the program's content, which distinguishes two builds of one release. Read once; if the program cannot be
/// read, its release is the id.
#[must_use]
pub fn build_id() -> &'static str {
    static BUILD_ID: OnceLock<String> = OnceLock::new();
    BUILD_ID.get_or_init(|| {
        let read = std::env::current_exe().and_then(std::fs::File::open).and_then(|mut file| {
            let mut hasher = Sha256::new();
            std::io::copy(&mut file, &mut hasher)?;
            Ok(hasher.finalize())
        });
        match read {
            Ok(digest) => hex::encode(digest.get(..8).unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "program not readable: using its release as the build id");
                env!("CARGO_PKG_VERSION").to_owned()
            }
        }
    })
}
