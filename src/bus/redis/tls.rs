//! TLS to the store: the trusted authorities, and remedies for certificates that they have not signed.

use std::sync::Arc;

use fred::types::config::TlsConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Builds a TLS configuration that trusts these authorities only.
///
/// # Errors
/// The text has no usable certificate; the error says what to write.
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

/// Turns a certificate error into a remedy; `None` for errors that a retry can mend.
pub(super) fn explain_tls_error(error: &str) -> Option<String> {
    let (_, why) = error.split_once("InvalidCertificate(")?;
    let why = why.trim_end_matches([')', ' ', '}']);
    let remedy = if why.starts_with("UnknownIssuer") || why.starts_with("BadSignature") {
        "none of the known authorities has signed it; give its own as spec.bus.redis.caSecretRef (REALTIME_REDIS_CA)"
    } else if why.starts_with("NotValidForName") {
        "it is for another name; write one of its names in the address"
    } else if why.starts_with("Expired") {
        "it has expired; give Redis a new one"
    } else {
        "give Redis another"
    };
    Some(format!("the certificate of Redis is not trusted ({why}): {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_certificates_are_explained_and_other_errors_are_not() {
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
    fn a_text_without_authorities_is_refused_with_what_to_write() {
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, part) in [("", "has no certificate"), ("hello", "has no certificate"), (broken, "of no authority")] {
            let error = build_tls_config(text).err().unwrap_or_default();
            assert!(error.contains(part) && error.contains("in PEM form"), "{text}: {error}");
        }
    }
}
