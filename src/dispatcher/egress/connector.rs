//! Opens connections to endpoints of one egress class.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::phase::{AttemptPhase, PHASE_TIMEOUT};
use super::resolver::{NameResolver, ResolveFailure};
use crate::protocol::egress_policy::{EgressClass, EgressPolicy, EgressRefusal};

/// Time after which the next address of a name is tried beside the one before.
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(300);

/// The reason why no connection was opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// No address may be connected to.
    #[error(transparent)]
    Refused(#[from] EgressRefusal),
    /// The name has no address.
    #[error(transparent)]
    Unresolved(#[from] ResolveFailure),
    /// A phase failed with an error.
    #[error("{message}")]
    Failed {
        /// The phase that failed.
        phase: AttemptPhase,
        /// The error of the system or of TLS, with the phase if it is not clear.
        message: String,
    },
    /// A phase took too long.
    #[error("{0}: not within {limit} s", limit = PHASE_TIMEOUT.as_secs())]
    Timeout(AttemptPhase),
}

/// Parts of a connector that all egress classes share.
#[derive(Clone)]
pub struct ConnectorParts {
    /// Judges every address before a connection.
    pub policy: Arc<EgressPolicy>,
    /// Resolves names to addresses.
    pub resolver: Arc<NameResolver>,
    /// Sets up TLS on a connection.
    pub tls: TlsConnector,
    /// The address of this machine to connect from.
    pub source: Option<IpAddr>,
}

/// Opens connections to endpoints of one class.
#[derive(Clone)]
pub struct EgressConnector {
    /// The class, which decides what addresses are allowed.
    pub class: EgressClass,
    /// The parts that all classes share.
    pub parts: ConnectorParts,
}

impl Service<Uri> for EgressConnector {
    type Response = EgressConnection;
    type Error = ConnectFailure;
    type Future = BoxFuture<'static, Result<EgressConnection, ConnectFailure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await })
    }
}

impl EgressConnector {
    async fn connect(&self, uri: &Uri) -> Result<EgressConnection, ConnectFailure> {
        let is_tls = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addresses = self.find_addresses(host).await?;
        AttemptPhase::Connect.enter();
        let stream = limit_phase(AttemptPhase::Connect, connect_first(&addresses, port, self.parts.source)).await?;
        // Bodies are written at once; a delay for more bytes would only add to every attempt.
        let _ = stream.set_nodelay(true);
        if !is_tls {
            AttemptPhase::Head.enter();
            return Ok(EgressConnection(TokioIo::new(Box::new(stream))));
        }
        AttemptPhase::Tls.enter();
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned());
        let name = name
            .map_err(|error| ConnectFailure::Failed { phase: AttemptPhase::Tls, message: format!("TLS: {error}") })?;
        let stream = limit_phase(AttemptPhase::Tls, self.parts.tls.connect(name, stream)).await?;
        AttemptPhase::Head.enter();
        Ok(EgressConnection(TokioIo::new(Box::new(stream))))
    }

    /// Finds the addresses of a host that the policy allows. The connection uses these addresses, so that a name cannot change
    /// between check and use.
    async fn find_addresses(&self, host: &str) -> Result<Vec<IpAddr>, ConnectFailure> {
        let found: Arc<[IpAddr]> = if let Ok(literal) = host.parse::<IpAddr>() {
            [literal].into()
        } else {
            AttemptPhase::Resolve.enter();
            self.parts.resolver.resolve(host).await?
        };
        let judge = |address: &IpAddr| self.parts.policy.is_allowed(self.class, *address);
        let allowed: Vec<IpAddr> = found.iter().copied().filter(judge).collect();
        if allowed.is_empty() {
            return Err(self.parts.policy.describe_refusal(host, &found).into());
        }
        Ok(allowed)
    }
}

/// Bounds a phase by its time limit.
async fn limit_phase<T>(phase: AttemptPhase, work: impl Future<Output = io::Result<T>>) -> Result<T, ConnectFailure> {
    let done = timeout(PHASE_TIMEOUT, work).await.map_err(|_| ConnectFailure::Timeout(phase))?;
    done.map_err(|error| ConnectFailure::Failed { phase, message: describe_io(phase, &error) })
}

/// Describes an error without the error number of the operating system.
fn describe_io(phase: AttemptPhase, error: &io::Error) -> String {
    match (phase, error.kind()) {
        (AttemptPhase::Connect, io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        (AttemptPhase::Connect, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "no route to the host".to_owned()
        }
        (_, io::ErrorKind::ConnectionReset) => format!("{phase}: connection reset"),
        (_, io::ErrorKind::UnexpectedEof) => format!("{phase}: connection closed"),
        _ => format!("{phase}: {error}"),
    }
}

/// Connects to the first address that answers; each further one is tried a little later.
async fn connect_first(addresses: &[IpAddr], port: u16, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let mut attempts: FuturesUnordered<_> = (0_u32..)
        .zip(addresses)
        .map(|(place, address)| async move {
            sleep(NEXT_ADDRESS_DELAY * place).await;
            connect(SocketAddr::new(*address, port), source).await
        })
        .collect();
    let mut first_error = None;
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(stream) => return Ok(stream),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| io::Error::other("no address")))
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// A connection's bytes, encrypted or not.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection to an endpoint.
pub struct EgressConnection(TokioIo<Box<dyn ByteStream>>);

impl Connection for EgressConnection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for EgressConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, bytes)
    }
}

impl Write for EgressConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }
}
