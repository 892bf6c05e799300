//! The address of an entrance as a client dials it: of a pod, of a Service, or of a load balancer with host and TLS.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

/// The authorities whose certificates a journey accepts.
#[derive(Clone)]
pub struct TlsTrust(Arc<ClientConfig>);

impl TlsTrust {
    /// Trusts the authorities of the system, or those of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// The system has no authorities.
    pub fn of_system() -> Result<Self, rustls::Error> {
        static SHARED_TRUST: OnceLock<TlsTrust> = OnceLock::new();
        if let Some(trust) = SHARED_TRUST.get() {
            return Ok(trust.clone());
        }
        let made = Self(Arc::new(ClientConfig::builder().with_platform_verifier()?.with_no_client_auth()));
        Ok(SHARED_TRUST.get_or_init(|| made).clone())
    }

    /// The settings of a TLS connection.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl From<ClientConfig> for TlsTrust {
    fn from(config: ClientConfig) -> Self {
        Self(Arc::new(config))
    }
}

impl PartialEq for TlsTrust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for TlsTrust {}

impl fmt::Debug for TlsTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTrust")
    }
}

/// The destination of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A DNS name and a port: load balancers of AWS have names alone.
    Name(String, u16),
}

impl fmt::Display for DialTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => write!(f, "{socket}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// The address of an entrance, with host and TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// Destination of the connection; never the public host, whose record may lead elsewhere.
    pub target: DialTarget,
    /// Public host, for SNI and the header `Host`; `None` for the address itself.
    pub host: Option<String>,
    /// TLS with the host's certificate; `None` for plain HTTP.
    pub tls: Option<TlsTrust>,
    /// Prefix of every path, such as `/ws`; empty for none.
    pub base_path: String,
}

impl ClientAddress {
    /// The address of a pod or of a Service: plain HTTP without a host.
    #[must_use]
    pub fn plain(socket: SocketAddr) -> Self {
        Self { target: DialTarget::Socket(socket), host: None, tls: None, base_path: String::new() }
    }
}
