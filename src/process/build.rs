//! Which build this process runs.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// As [`id`], off the threads that serve: the program is read whole, once.
pub async fn read_build_id() -> &'static str {
    tokio::task::spawn_blocking(build_id).await.unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// Names the program by its content, so that two builds of one release are told apart. Read once; where the program
/// cannot be read, its release must do.
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
                tracing::warn!(%error, "the program cannot be read; its release stands for its build");
                env!("CARGO_PKG_VERSION").to_owned()
            }
        }
    })
}
