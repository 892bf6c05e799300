//! The target of one session: a resolved address, its connection, and the URLs of its requests.

use std::net::SocketAddr;

use reqwest::Client as Http;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::link::{BrokenHop, STEP_TIMEOUT, shared_http_client};
use crate::api::Reason;
use crate::gate::Hop;
use crate::prober::client_address::{ClientAddress, DialTarget};

/// A connection of a client, with TLS or without.
pub(in crate::prober) type ClientStream = Either<TcpStream, TlsStream<TcpStream>>;

/// The target of one session, at one IP address: each zone of a load balancer has its own.
#[derive(Clone, Debug)]
pub(in crate::prober) struct SessionTarget {
    /// The name that messages use.
    pub name: String,
    /// Whether the target is a load balancer, behind which another cluster may answer.
    pub is_external: bool,
    socket: SocketAddr,
    address: ClientAddress,
}

fn unreachable_hop(detail: String) -> BrokenHop {
    BrokenHop::ambiguous(Hop::Connect, Reason::EdgeUnreachable, detail)
}

/// Resolves every IP address of an entrance, in a stable order.
pub(in crate::prober) async fn resolve_targets(
    name: &str,
    address: &ClientAddress,
    is_external: bool,
) -> Result<Vec<SessionTarget>, BrokenHop> {
    let mut sockets = match &address.target {
        DialTarget::Socket(socket) => vec![*socket],
        DialTarget::Name(host, port) => {
            let unresolved = |why: String| unreachable_hop(format!("the name of {name} does not resolve: {why}"));
            let found = timeout(STEP_TIMEOUT, lookup_host((host.as_str(), *port))).await;
            let found = found.map_err(|_| unresolved(format!("no answer in {} s", STEP_TIMEOUT.as_secs())))?;
            found.map_err(|error| unresolved(error.to_string()))?.collect()
        }
    };
    sockets.sort_unstable();
    sockets.dedup();
    if sockets.is_empty() {
        return Err(unreachable_hop(format!("the name of {name} has no address")));
    }
    let target = |socket| SessionTarget { name: name.to_owned(), is_external, socket, address: address.clone() };
    Ok(sockets.into_iter().map(target).collect())
}

impl SessionTarget {
    /// The target of a pod's own address.
    pub fn of_pod(name: &str, socket: SocketAddr) -> Self {
        Self { name: name.to_owned(), is_external: false, socket, address: ClientAddress::plain(socket) }
    }

    /// `HOST[:PORT]` of URLs: the public host, or the address.
    fn authority(&self) -> String {
        match &self.address.host {
            None => self.socket.to_string(),
            Some(host) => {
                let default_port = if self.address.tls.is_some() { 443 } else { 80 };
                let port = self.socket.port();
                if port == default_port { host.clone() } else { format!("{host}:{port}") }
            }
        }
    }

    /// URL of a path without its leading slash, for requests.
    pub fn http_url(&self, path: &str) -> String {
        let scheme = if self.address.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}/{path}", self.authority(), self.address.base_path)
    }

    /// URL of a path without its leading slash, for WebSocket.
    pub fn socket_url(&self, path: &str) -> String {
        let scheme = if self.address.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}{}/{path}", self.authority(), self.address.base_path)
    }

    /// The client of the session's requests: it dials the address, whatever the host's record says.
    pub fn http_client(&self) -> reqwest::Result<Http> {
        let Some(host) = &self.address.host else { return shared_http_client() };
        let builder = Http::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(STEP_TIMEOUT)
            .resolve(host, self.socket);
        match &self.address.tls {
            Some(trust) => builder.tls_backend_preconfigured((*trust.config()).clone()).build(),
            None => builder.build(),
        }
    }

    /// Opens a connection: the first hop of every transport, TLS included.
    pub async fn connect(&self) -> Result<ClientStream, BrokenHop> {
        let (name, socket, seconds) = (&self.name, self.socket, STEP_TIMEOUT.as_secs());
        let stream = timeout(STEP_TIMEOUT, TcpStream::connect(socket))
            .await
            .map_err(|_| unreachable_hop(format!("no connection to {name} at {socket} in {seconds} s")))?
            .map_err(|error| unreachable_hop(format!("no connection to {name} at {socket}: {error}")))?;
        let Some(trust) = &self.address.tls else { return Ok(Either::Left(stream)) };
        let host = self.address.host.clone().unwrap_or_else(|| socket.ip().to_string());
        let rejected = |detail| BrokenHop::ambiguous(Hop::Connect, Reason::HandshakeRejected, detail);
        let server = ServerName::try_from(host.clone())
            .map_err(|error| rejected(format!("{host} is no name for a certificate: {error}")))?;
        let connecting = TlsConnector::from(trust.config()).connect(server, stream);
        match timeout(STEP_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => Ok(Either::Right(stream)),
            Ok(Err(error)) => Err(classify_tls_error(name, socket, &host, &error)),
            Err(_) => Err(rejected(format!("{name} at {socket} did not complete the TLS handshake in {seconds} s"))),
        }
    }
}

/// A wrong certificate and a refusal are measured; a broken connection may be the network's.
fn classify_tls_error(name: &str, socket: SocketAddr, host: &str, error: &std::io::Error) -> BrokenHop {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(why)) => {
            let detail = format!("the certificate of {name} at {socket} is not accepted for {host}: {why}");
            BrokenHop::decisive(Hop::Connect, Reason::CertificateInvalid, detail)
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            let detail = format!("{name} at {socket} refused TLS for {host}: alert {alert:?}");
            BrokenHop::decisive(Hop::Connect, Reason::HandshakeRejected, detail)
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            let detail = format!("{name} at {socket} does not speak TLS");
            BrokenHop::decisive(Hop::Connect, Reason::HandshakeRejected, detail)
        }
        _ => {
            let detail = format!("{name} at {socket} broke the TLS handshake for {host}: {error}");
            BrokenHop::ambiguous(Hop::Connect, Reason::HandshakeRejected, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::client_address::TlsTrust;

    #[test]
    fn urls_have_the_public_host_and_the_prefix() {
        crate::process::install_tls();
        let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
        let trust = TlsTrust::from(config.with_no_client_auth());
        let socket = |port| SocketAddr::from(([198, 18, 0, 1], port));
        let target = |port, host: Option<&str>, tls: bool, base: &str| SessionTarget {
            name: "p".to_owned(),
            is_external: host.is_some(),
            socket: socket(port),
            address: ClientAddress {
                target: DialTarget::Socket(socket(port)),
                host: host.map(str::to_owned),
                tls: tls.then(|| trust.clone()),
                base_path: base.to_owned(),
            },
        };
        for (target, http, ws) in [
            (target(8080, None, false, ""), "http://198.18.0.1:8080/app/k", "ws://198.18.0.1:8080/app/k"),
            (target(443, Some("ws.test"), true, "/ws"), "https://ws.test/ws/app/k", "wss://ws.test/ws/app/k"),
            (target(80, Some("ws.test"), false, ""), "http://ws.test/app/k", "ws://ws.test/app/k"),
            (target(8443, Some("ws.test"), true, ""), "https://ws.test:8443/app/k", "wss://ws.test:8443/app/k"),
        ] {
            assert_eq!((target.http_url("app/k").as_str(), target.socket_url("app/k").as_str()), (http, ws));
        }
    }

    #[test]
    fn a_wrong_certificate_and_a_refusal_are_decisive() {
        use rustls::{AlertDescription, CertificateError, Error};
        let classify = |error: std::io::Error| {
            let broken = classify_tls_error("p", ([198, 18, 0, 1], 443).into(), "ws.test", &error);
            (broken.reason, broken.decisive, broken.hop)
        };
        let tls = |error: Error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        for (error, reason, decisive) in [
            (tls(Error::InvalidCertificate(CertificateError::NotValidForName)), Reason::CertificateInvalid, true),
            (tls(Error::InvalidCertificate(CertificateError::UnknownIssuer)), Reason::CertificateInvalid, true),
            (tls(Error::AlertReceived(AlertDescription::UnrecognisedName)), Reason::HandshakeRejected, true),
            (tls(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Reason::HandshakeRejected, true),
            (std::io::ErrorKind::UnexpectedEof.into(), Reason::HandshakeRejected, false),
        ] {
            assert_eq!(classify(error), (reason, decisive, Hop::Connect));
        }
    }
}
