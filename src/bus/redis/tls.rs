//! Who believes whom: whose certificates are believed over TLS, and what is said when the store shows none of them, or does
//! not believe this process.

use std::sync::Arc;

use fred::error::Error;
use fred::types::config::{Server, TlsConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::lease::FirstSyncSender;

/// Believes these authorities, and no other.
///
/// # Errors
/// What is wrong with them.
pub(super) fn build_tls_config(authorities: &str) -> Result<TlsConfig, String> {
    let wrong = |what: String| format!("REALTIME_REDIS_CA {what}: give the CA's certificates in PEM form");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|error| wrong(format!("cannot be read ({error})")))?;
        roots.add(certificate).map_err(|error| wrong(format!("has a certificate of no authority ({error})")))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    Ok(config.into())
}

/// Says once why one does not believe the other, and lets nobody wait for a first answer.
pub(super) async fn watch_connection_errors(
    mut errors: broadcast::Receiver<(Error, Option<Server>)>,
    first: FirstSyncSender,
    shutdown: CancellationToken,
) {
    let mut said = None;
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
        if let Some(reason) = found.filter(|found| said.as_ref() != Some(found)) {
            tracing::error!("{reason}");
            first.send_if_modified(|first| first.is_none() && first.replace(Err(reason.clone())).is_none());
            said = Some(reason);
        }
    }
}

/// Why a connection came to nothing, if it is for a reason that trying again does not mend.
fn explain_tls_error(error: &str) -> Option<String> {
    let (_, why) = error.split_once("InvalidCertificate(")?;
    let why = why.trim_end_matches([')', ' ', '}']);
    let told = if why.starts_with("UnknownIssuer") || why.starts_with("BadSignature") {
        "none of the known authorities has signed it; give its own as spec.bus.redis.caSecretRef (REALTIME_REDIS_CA)"
    } else if why.starts_with("NotValidForName") {
        "it is for another name; write one of its names in the address"
    } else if why.starts_with("Expired") {
        "it has expired; give Redis a new one"
    } else {
        "give Redis another"
    };
    Some(format!("the certificate of Redis is not believed ({why}): {told}"))
}

/// Why the store does not let this process in, as it says itself.
fn explain_auth_error(error: &str) -> Option<String> {
    let told = match error.split([' ', ':']).next()? {
        "WRONGPASS" => {
            "it does not know this user with this password; correct the address in the Secret (REALTIME_REDIS_URL)"
        }
        "NOAUTH" => "it wants a password; write `redis://USER:PASSWORD@HOST` into the Secret (REALTIME_REDIS_URL)",
        _ => return None,
    };
    Some(format!("Redis lets nobody in: {told} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_certificates_that_are_not_believed() {
        for (error, says) in [
            ("Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }", Some("caSecretRef")),
            ("Custom { kind: InvalidData, error: InvalidCertificate(NotValidForName) }", Some("for another name")),
            (
                "Custom { kind: InvalidData, error: InvalidCertificate(NotValidForNameContext { expected: x }) }",
                Some("for another name"),
            ),
            ("Custom { kind: InvalidData, error: InvalidCertificate(ExpiredContext { time: 1 }) }", Some("expired")),
            ("Custom { kind: InvalidData, error: InvalidCertificate(Revoked) }", Some("(Revoked)")),
            ("Os { code: 111, kind: ConnectionRefused }", None),
        ] {
            let found = explain_tls_error(error);
            match says {
                Some(says) => assert!(found.as_ref().is_some_and(|found| found.contains(says)), "{error}: {found:?}"),
                None => assert_eq!(found, None, "{error}"),
            }
        }
    }

    #[test]
    fn a_table_of_stores_that_let_nobody_in() {
        for (error, says) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", Some("this password")),
            ("NOAUTH Authentication required.", Some("wants a password")),
            ("OOM command not allowed", None),
            ("", None),
        ] {
            let found = explain_auth_error(error);
            assert_eq!(
                found.as_ref().map(|found| found.contains(says.unwrap_or("?"))),
                says.map(|_| true),
                "{error}: {found:?}"
            );
        }
    }

    #[test]
    fn what_is_no_authority_is_refused_with_what_to_write() {
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, part) in [("", "has no certificate"), ("hello", "has no certificate"), (broken, "of no authority")] {
            let told = build_tls_config(text).err().unwrap_or_default();
            assert!(told.contains(part) && told.contains("in PEM form"), "{text}: {told}");
        }
    }
}
