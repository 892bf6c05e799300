//! The outcome of the first contact with the store, and the connection errors that decide it early.

use fred::error::Error;
use fred::types::config::Server;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::tls::explain_tls_error;

/// Sends the outcome of the first contact: `None` until there is one, then success or why the store cannot be a bus.
pub(super) type FirstSyncSender = watch::Sender<Option<Result<(), String>>>;

/// Sets the outcome unless there is one already.
pub(super) fn report_first_sync(first_sync: &FirstSyncSender, outcome: Result<(), String>) {
    first_sync.send_if_modified(|first_sync| first_sync.is_none() && first_sync.replace(outcome).is_none());
}

/// Logs each TLS and authentication error once, and ends the wait for the first contact: a retry cannot mend them.
pub(super) async fn watch_connection_errors(
    mut errors: broadcast::Receiver<(Error, Option<Server>)>,
    first_sync: FirstSyncSender,
    shutdown: CancellationToken,
) {
    let mut logged = None;
    loop {
        let error = tokio::select! {
            () = shutdown.cancelled() => return,
            error = errors.recv() => error,
        };
        let found = match error {
            Ok((error, _)) => explain_tls_error(error.details()).or_else(|| explain_auth_error(error.details())),
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if let Some(reason) = found.filter(|found| logged.as_ref() != Some(found)) {
            tracing::error!("{reason}");
            report_first_sync(&first_sync, Err(reason.clone()));
            logged = Some(reason);
        }
    }
}

/// Turns an authentication error of the store into a remedy; `None` for other errors.
fn explain_auth_error(error: &str) -> Option<String> {
    let remedy = match error.split([' ', ':']).next()? {
        "WRONGPASS" => {
            "it does not know this user with this password; correct the address in the Secret (REALTIME_REDIS_URL)"
        }
        "NOAUTH" => "it wants a password; write `redis://USER:PASSWORD@HOST` into the Secret (REALTIME_REDIS_URL)",
        _ => return None,
    };
    Some(format!("Redis refused the credentials: {remedy} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_credentials_are_explained_and_other_errors_are_not() {
        for (error, part) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", Some("this password")),
            ("NOAUTH Authentication required.", Some("wants a password")),
            ("OOM command not allowed", None),
            ("", None),
        ] {
            let found = explain_auth_error(error);
            assert_eq!(
                found.as_ref().map(|found| found.contains(part.unwrap_or("?"))),
                part.map(|_| true),
                "{error}: {found:?}"
            );
        }
    }
}
