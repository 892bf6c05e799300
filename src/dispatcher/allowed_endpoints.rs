//! The private endpoints that webhooks may be sent to, read again whenever their file beside the registry changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::registry::ENDPOINTS_FILE;

/// Interval at which the file is read: kubelet swaps mounted files without a signal.
const ENDPOINTS_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reads the file and follows its changes until the token is cancelled. A file that is missing changes nothing.
pub async fn follow_endpoints(directory: &Path, policy: Arc<EgressPolicy>, shutdown: CancellationToken) {
    let path = directory.join(ENDPOINTS_FILE);
    let mut known = String::new();
    if let Ok(text) = tokio::fs::read_to_string(&path).await {
        policy.set_listed(text.lines());
        known = text;
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(ENDPOINTS_POLL_INTERVAL) => {}
            }
            match tokio::fs::read_to_string(&path).await {
                Ok(text) if text != known => {
                    policy.set_listed(text.lines());
                    tracing::info!(endpoints = text.trim(), "allowed endpoints reloaded");
                    known = text;
                }
                Ok(_) | Err(_) => {}
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::egress_policy::EgressClass;

    #[tokio::test]
    async fn a_changed_file_changes_the_policy_and_a_missing_one_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(ENDPOINTS_FILE);
        std::fs::write(&path, "receiver.a.svc:8090\n").expect("written");
        let (policy, shutdown) = (Arc::new(EgressPolicy::default()), CancellationToken::new());
        follow_endpoints(directory.path(), policy.clone(), shutdown.clone()).await;
        let is_exempt = |namespace: &str| {
            let url = format!("http://receiver.{namespace}.svc:8090/webhooks").parse().expect("a URL");
            policy.classify_url(&url) == Ok(EgressClass::Exempt)
        };
        assert!(is_exempt("a") && !is_exempt("b"));
        std::fs::write(&path, "receiver.b.svc:8090\n").expect("written");
        let moved = async {
            while !is_exempt("b") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), moved).await.expect("in time");
        assert!(!is_exempt("a"), "the former address is refused");
        std::fs::remove_file(&path).expect("removed");
        tokio::time::sleep(3 * ENDPOINTS_POLL_INTERVAL).await;
        assert!(is_exempt("b"));
        shutdown.cancel();
    }
}
