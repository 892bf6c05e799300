//! A listener for few clients: it bounds its connections, those of each address, and their silence.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::process::address_counts::{AddressCounts, AddressSlot};

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenerBounds {
    /// Connections at a time.
    pub connections: usize,
    /// Connections of one address at a time.
    pub address_connections: usize,
    /// Longest silence of a connection.
    pub idle_timeout: Duration,
}

/// A listener that closes connections beyond its bounds unread.
pub struct BoundedListener {
    listener: TcpListener,
    bounds: ListenerBounds,
    places: Arc<Semaphore>,
    counts: AddressCounts,
}

impl BoundedListener {
    /// Bounds a listener that accepts already.
    pub fn new(listener: TcpListener, bounds: ListenerBounds) -> Self {
        let places = Arc::new(Semaphore::new(bounds.connections));
        Self { listener, bounds, places, counts: AddressCounts::default() }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            let (socket, peer) = Listener::accept(&mut self.listener).await;
            let slot = self.counts.take_slot(peer.ip(), self.bounds.address_connections);
            if let (Ok(place), Some(slot)) = (self.places.clone().try_acquire_owned(), slot) {
                let idle_timeout = self.bounds.idle_timeout;
                let idle = Box::pin(sleep(idle_timeout));
                return (BoundedStream { socket, idle, idle_timeout, _held: (place, slot) }, peer);
            }
            tracing::debug!(%peer, "a connection beyond the bounds of the listener was closed");
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends after a silence.
pub struct BoundedStream {
    socket: TcpStream,
    idle: Pin<Box<Sleep>>,
    idle_timeout: Duration,
    _held: (OwnedSemaphorePermit, AddressSlot),
}

impl BoundedStream {
    /// Starts the silence anew when something was read or written, and ends the connection when it is too long.
    fn fail_if_idle<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.idle.as_mut().reset(Instant::now() + self.idle_timeout);
            return done;
        }
        self.idle.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.fail_if_idle(context, read)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.fail_if_idle(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_address_has_so_many_connections_and_a_silent_one_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let bounds =
            ListenerBounds { connections: 8, address_connections: 2, idle_timeout: Duration::from_millis(500) };
        let routes = Router::new().route("/", get(async || "hello"));
        let served = tokio::spawn(async move { axum::serve(BoundedListener::new(listener, bounds), routes).await });
        let ask = async || {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            // A connection that is refused may be closed before this write.
            let _ = socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let mut part = [0; 1_024];
            let read = timeout(TEST_TIMEOUT, socket.read(&mut part)).await.expect("in time").unwrap_or(0);
            String::from_utf8_lossy(&part[..read]).contains("hello").then_some(socket)
        };
        let (mut first, second) = (ask().await.expect("served"), ask().await.expect("served"));
        let mut rest = Vec::new();
        let silent = async { first.read_to_end(&mut rest).await };
        timeout(TEST_TIMEOUT, silent).await.expect("a silent connection is ended").expect("closed");
        drop(second);
        let again = async { while ask().await.is_none() {} };
        timeout(TEST_TIMEOUT, again).await.expect("their places are free again");
        served.abort();
    }
}
