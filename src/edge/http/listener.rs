//! The public listener: HTTP/1.1 with a timeout on every wait for a client.
//!
//! A request head must be complete in time, which also bounds idle connections; so must a body; and a client must keep
//! reading its response. Otherwise a stranger could hold thousands of connections open with one byte
//! per minute.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::apps::client_address;
use crate::edge::apps::client_address::{PeerAddress, TrustedProxies};

/// Timeout of a request's head. Longer than load balancers keep an idle connection (60 s by default): otherwise one of
/// them would send a request into a connection that is being closed.
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Timeout of a request's body, from its head on.
pub const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest pause of a write while the client does not read.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's head; hyper answers a larger one with 431.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Fields of a request's head, hyper's default. It answers more with 431.
pub const HEAD_FIELDS_MAX: usize = 100;

/// Bytes of the largest accepted body: an escaped event of the HTTP API with a hundred channels.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Bounds the waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct ListenerTimeouts {
    /// Timeout of a request's head.
    pub head: Duration,
    /// Longest pause of a write.
    pub write: Duration,
}

impl ListenerTimeouts {
    /// The timeouts of an edge.
    pub const DEFAULT: Self = Self { head: REQUEST_HEAD_TIMEOUT, write: WRITE_STALL_TIMEOUT };
}

/// The limit on concurrent connections, with a counter of those beyond it, which are closed unread.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    /// The number of connections at a time.
    pub most: usize,
    /// Counts connections that were refused.
    pub refused: Counter,
}

/// Pause of accepting when the system has no more sockets.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Serves until the token is cancelled, then finishes open requests; upgraded connections are not awaited. Without a
/// limit the routes bound the number of clients.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    patience: ListenerTimeouts,
    bound: Option<ConnectionLimit>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                if let Some(ConnectionLimit { most, refused }) = &bound
                    && connections.len() >= *most
                {
                    refused.inc();
                    tracing::debug!(peer = %peer.ip(), most, "a connection too many was closed");
                    continue;
                }
                connections.spawn(serve_connection(
                    socket,
                    PeerAddress(peer.ip()),
                    routes.clone(),
                    patience,
                    stop.clone(),
                ));
            }
            Err(error) if is_client_error(&error) => tracing::debug!(%error, "a client went before it was accepted"),
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted; trying again");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn is_client_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn serve_connection(
    socket: TcpStream,
    peer: PeerAddress,
    routes: Router,
    patience: ListenerTimeouts,
    stop: CancellationToken,
) {
    // Frames are small and each is sent at once.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a socket delays small frames");
    }
    let socket = WriteTimeoutStream { socket, most: patience.write, stalled: None };
    let routes = TowerToHyperService::new(routes);
    let routes = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), routes)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A socket whose client must keep reading: a write that stalls for too long is an error.
struct WriteTimeoutStream {
    socket: TcpStream,
    most: Duration,
    /// The timer of a stalled write; most sockets never need it.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeoutStream {
    fn fail_if_stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let most = self.most;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(most))).as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.fail_if_stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        self.fail_if_stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.fail_if_stalled(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Screens every request before its route: headers that only servers of the cluster may send are removed, the client's
/// address is noted, and reading a body that does not arrive in time fails. A body that is declared larger than any route
/// reads is refused before it arrives.
pub async fn screen_request(State(trusted): State<TrustedProxies>, mut request: Request, next: Next) -> Response {
    client_address::sanitize_request(&mut request, &trusted);
    let length = request.body().size_hint().lower();
    if length > u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX) {
        return (StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES_MAX} bytes\n")).into_response();
    }
    next.run(with_body_deadline(request, REQUEST_BODY_TIMEOUT)).await
}

/// The same for requests that another server forwarded, which carry their client's address.
pub async fn limit_body_time(request: Request, next: Next) -> Response {
    next.run(with_body_deadline(request, REQUEST_BODY_TIMEOUT)).await
}

fn with_body_deadline(request: Request, within: Duration) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    let deadline = Instant::now() + within;
    request.map(|body| {
        let parts = stream::unfold(Some(body.into_data_stream()), move |body| async move {
            let mut body = body?;
            let part: Result<Bytes, axum::BoxError> = match timeout_at(deadline, body.next()).await {
                Ok(part) => part?.map_err(Into::into),
                Err(_) => return Some((Err(io::Error::from(io::ErrorKind::TimedOut).into()), None)),
            };
            Some((part, Some(body)))
        });
        Body::from_stream(parts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// Reads until the server closes the connection.
    async fn read_rest(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        timeout(TEST_TIMEOUT, socket.read_to_string(&mut text)).await.expect("in time").expect("read");
        text
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_request_is_given_up_and_others_are_served() {
        let short = Duration::from_millis(200);
        let in_time = move |request: Request, next: Next| next.run(with_body_deadline(request, short));
        let routes = Router::new()
            .route("/", get(async || "hello"))
            .route("/echo", post(async |body: Bytes| body))
            .layer(axum::middleware::from_fn(in_time));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let patience = ListenerTimeouts { head: short, write: WRITE_STALL_TIMEOUT };
        let served = tokio::spawn(serve(listener, routes, patience, None, stop.clone()));
        let connect = async |text: &str| {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            socket.write_all(text.as_bytes()).await.expect("written");
            socket
        };
        let mut half = connect("GET / HTTP/1.1\r\nHo").await;
        let mut silent = connect("").await;
        let body = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
        let mut slow = connect(&format!("{body}he")).await;
        let mut whole = connect(&format!("{body}helloGET / HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(!read_rest(&mut half).await.contains("hello"));
        assert_eq!(read_rest(&mut silent).await, "");
        assert!(read_rest(&mut slow).await.starts_with("HTTP/1.1 400"));
        // Both requests are answered; the connection closes when nothing follows.
        assert_eq!(read_rest(&mut whole).await.matches("hello").count(), 2);
        stop.cancel();
        timeout(TEST_TIMEOUT, served).await.expect("in time").expect("ended");
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_and_counted_until_another_has_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (stop, refused) = (CancellationToken::new(), Counter::default());
        let routes = Router::new().route("/", get(async || "hello"));
        let bound = ConnectionLimit { most: 2, refused: refused.clone() };
        let served = tokio::spawn(serve(listener, routes, ListenerTimeouts::DEFAULT, Some(bound), stop.clone()));
        let ask = async |socket: &mut TcpStream| {
            // A closed connection may be closed before this write.
            let _ = socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let mut part = [0; 1_024];
            let read = timeout(TEST_TIMEOUT, socket.read(&mut part)).await.expect("in time").unwrap_or(0);
            String::from_utf8_lossy(&part[..read]).contains("hello")
        };
        let connect = async || TcpStream::connect(address).await.expect("connected");
        let (mut first, mut second) = (connect().await, connect().await);
        assert!(ask(&mut first).await && ask(&mut second).await);
        assert!(!ask(&mut connect().await).await);
        assert_eq!(refused.get(), 1);
        drop(first);
        let again = async { while !ask(&mut connect().await).await {} };
        timeout(TEST_TIMEOUT, again).await.expect("one is served again");
        assert!(ask(&mut second).await, "who was there before is served on");
        drop(second);
        stop.cancel();
        timeout(TEST_TIMEOUT, served).await.expect("in time").expect("ended");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_given_up() {
        struct DropNotice(tokio::sync::mpsc::Sender<()>);
        impl Drop for DropNotice {
            fn drop(&mut self) {
                let _ = self.0.try_send(());
            }
        }
        let (sender, mut dropped) = tokio::sync::mpsc::channel(1);
        let endless = async move || {
            let told = DropNotice(sender.clone());
            let part = Bytes::from(vec![b'x'; 64 << 10]);
            Body::from_stream(stream::repeat_with(move || {
                let _kept = &told;
                Ok::<_, io::Error>(part.clone())
            }))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let patience = ListenerTimeouts { head: TEST_TIMEOUT, write: Duration::from_millis(300) };
        let served =
            tokio::spawn(serve(listener, Router::new().route("/", get(endless)), patience, None, stop.clone()));
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
        let mut some = vec![0; 1 << 20];
        client.read_exact(&mut some).await.expect("read");
        assert!(dropped.try_recv().is_err(), "as long as it reads, it is answered");
        timeout(TEST_TIMEOUT, dropped.recv()).await.expect("the answer is dropped in time").expect("told");
        stop.cancel();
        timeout(TEST_TIMEOUT, served).await.expect("in time").expect("ended");
    }
}
