//! The private endpoints that webhooks may be sent to, and the networks that they may not be sent to, read again whenever
//! their file beside the registry changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::registry::{DENIED_PREFIX, ENDPOINTS_FILE};

/// Interval at which the file is read: kubelet swaps mounted files without a signal.
const ENDPOINTS_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reads the file once and applies it; returns its text. A file that is missing changes nothing.
pub async fn read_endpoints(directory: &Path, policy: &EgressPolicy) -> String {
    let text = tokio::fs::read_to_string(directory.join(ENDPOINTS_FILE)).await;
    text.inspect(|text| apply_lines(policy, text)).unwrap_or_default()
}

/// Reads the file and follows its changes until the token is cancelled. A file that is missing changes nothing.
pub async fn follow_endpoints(directory: &Path, policy: Arc<EgressPolicy>, shutdown: CancellationToken) {
    let mut known = read_endpoints(directory, &policy).await;
    let path = directory.join(ENDPOINTS_FILE);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(ENDPOINTS_POLL_INTERVAL) => {}
            }
            match tokio::fs::read_to_string(&path).await {
                Ok(text) if text != known => {
                    apply_lines(&policy, &text);
                    tracing::info!(endpoints = text.trim(), "allowed endpoints reloaded");
                    known = text;
                }
                Ok(_) | Err(_) => {}
            }
        }
    });
}

/// Applies the lines of the file. A denied network that cannot be parsed changes none of them: it would be allowed.
fn apply_lines(policy: &EgressPolicy, text: &str) {
    policy.set_listed(text.lines().filter(|line| !line.starts_with(DENIED_PREFIX)));
    let denied = text.lines().filter_map(|line| line.strip_prefix(DENIED_PREFIX)).map(str::trim);
    if let Err(error) = policy.set_denied(denied) {
        tracing::error!(error, "denied networks not reloaded: keeping the previous ones");
    }
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
        let pod = "2600:1f18:1:2::5".parse().expect("an address");
        let is_denied = || !policy.is_allowed(EgressClass::Public, pod);
        assert!(!is_denied());
        std::fs::write(&path, "receiver.b.svc:8090\ndeny 2600:1f18:1:2::/64\ndeny 11.0.0.0/8\n").expect("written");
        let denied = async {
            while !is_denied() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), denied).await.expect("in time");
        apply_lines(&policy, "receiver.b.svc:8090\ndeny rubbish\n");
        assert!(is_exempt("b") && is_denied(), "an invalid line keeps the former networks");
        std::fs::remove_file(&path).expect("removed");
        tokio::time::sleep(3 * ENDPOINTS_POLL_INTERVAL).await;
        assert!(is_exempt("b"));
        shutdown.cancel();
    }
}
