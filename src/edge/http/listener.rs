//! The public listener: HTTP/1.1 with a timeout on every wait for a client.
//!
//! A request head must be complete in time, which also bounds idle connections; so must a body; and a client must keep
//! reading its response. Otherwise a stranger could hold thousands of connections open with one byte
//! per minute.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::apps::client_address;
use crate::edge::apps::client_address::{PeerAddress, TrustedProxies, is_source_address};
use crate::edge::http::bounded_body::bound_body;
use crate::edge::http::proxy_protocol::ProxyProtocol;
use crate::edge::http_api::auth::PrefixedPath;
use crate::edge::intake::byte_budget::{InputBudget, InputBudgetExceeded};
use crate::edge::intake::connection_input::ConnectionInput;
use crate::edge::session::socket_output::SocketOutput;
use crate::process::address_counts::{AddressCounts, AddressSlot};

/// Timeout of a request's head between servers, which also bounds their idle connections.
const RELAYED_HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Timeout of a header of the PROXY protocol, which a load balancer writes first.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Bytes of one read, less than hyper's first buffer of 8 KiB: a read that fills it doubles the buffer of its connection, up
/// to [`HEAD_BYTES_MAX`], and no budget counts it.
const READ_BYTES_MAX: u64 = (8 << 10) - 1;

/// Time after which a client repeats a request whose body did not fit into the budget.
const INPUT_RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Bounds the waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct ListenerTimeouts {
    /// Timeout of a request's head, and of an idle connection.
    pub head: Duration,
    /// Longest pause of a write.
    pub write: Duration,
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        Self { head: RELAYED_HEAD_TIMEOUT, write: WRITE_STALL_TIMEOUT }
    }
}

/// The limit on concurrent connections, with a counter of those beyond it, which are closed unread.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    /// The number of connections at a time.
    pub most: usize,
    /// Counts connections that were refused.
    pub refused: Counter,
}

/// The limit on concurrent connections from one address.
#[derive(Clone)]
pub struct AddressLimit {
    /// The number of connections at a time.
    pub most: usize,
    /// The connections of each address.
    pub counts: AddressCounts,
    /// Counts connections that were refused.
    pub refused: Counter,
}

/// The rules of a listener, beside its routes.
#[derive(Clone, Default)]
pub struct ListenerSettings {
    /// The bounds of waits for a client.
    pub timeouts: ListenerTimeouts,
    /// The limit on concurrent connections; without it the routes bound the number of clients.
    pub limit: Option<ConnectionLimit>,
    /// The limit on connections from one address; those of trusted proxies and private networks are not counted.
    pub address_limit: Option<AddressLimit>,
    /// Once cancelled, each answer closes its connection: a load balancer keeps a client on the pod of its open connection,
    /// whatever the answer says. Cancelled long before the listener stops, it leaves few idle connections to be closed then,
    /// when a request may be on its way.
    pub draining: CancellationToken,
    /// The rule for headers of the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Counts connections that were closed for their header of the PROXY protocol.
    pub headers_refused: Counter,
    /// The prefix that paths may have; empty for none.
    pub base_path: String,
    /// The byte budget for the messages of upgraded connections; `None` where none is upgraded.
    pub input: Option<Arc<InputBudget>>,
}

impl ListenerSettings {
    /// Takes the place of a connection among those of its address; `None` where they are not counted.
    fn take_address_slot(&self, client: PeerAddress) -> Result<Option<AddressSlot>, TooManyConnections> {
        let Some(limit) = &self.address_limit else { return Ok(None) };
        if !is_source_address(client.address, client.is_reported, &self.proxy_protocol.trusted) {
            return Ok(None);
        }
        limit.counts.take_slot(client.address, limit.most).map(Some).ok_or_else(|| {
            limit.refused.inc();
            TooManyConnections
        })
    }
}

/// An address has as many connections as it may have.
struct TooManyConnections;

/// Pause of accepting when the system has no more sockets.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Serves until the token is cancelled, then finishes open requests; upgraded connections are not awaited.
pub async fn serve(listener: TcpListener, routes: Router, settings: ListenerSettings, stop: CancellationToken) {
    let settings = Arc::new(settings);
    let connections = TaskTracker::new();
    let places = settings.limit.as_ref().map(|limit| Arc::new(Semaphore::new(limit.most)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let place = places.clone().map(Semaphore::try_acquire_owned).transpose();
                let Ok(place) = place else {
                    if let Some(limit) = &settings.limit {
                        limit.refused.inc();
                    }
                    tracing::debug!(peer = %peer.ip(), "a connection too many was closed");
                    continue;
                };
                connections.spawn(serve_connection(
                    (socket, place),
                    peer.ip(),
                    routes.clone(),
                    settings.clone(),
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
    (mut socket, place): (TcpStream, Option<OwnedSemaphorePermit>),
    peer: IpAddr,
    routes: Router,
    settings: Arc<ListenerSettings>,
    stop: CancellationToken,
) {
    // Frames are small and each is sent at once.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a socket delays small frames");
    }
    let ListenerTimeouts { head, write } = settings.timeouts;
    let read = tokio::select! {
        () = stop.cancelled() => return,
        read = settings.proxy_protocol.read_header(&mut socket, peer, PROXY_HEADER_TIMEOUT) => read,
    };
    let (client, unread) = match read {
        Ok((client, unread)) => {
            let is_reported = client.to_canonical() != peer.to_canonical();
            (PeerAddress { address: client, is_reported }, Bytes::from(unread))
        }
        Err(error) => {
            settings.headers_refused.inc();
            tracing::debug!(%peer, ?error, "a connection without a valid PROXY header was closed");
            return;
        }
    };
    let Ok(slot) = settings.take_address_slot(client) else {
        tracing::debug!(client = %client.address, "a connection too many of one address was closed");
        return;
    };
    let input = settings.input.as_ref().map(|budget| Arc::new(ConnectionInput::new(budget.open_charge())));
    let (reader, writer) = socket.into_split();
    let output = Arc::new(SocketOutput::new(writer));
    let socket = ClientStream {
        reader: reader.take(READ_BYTES_MAX),
        output: output.clone(),
        unread,
        most: write,
        stalled: None,
        input: input.clone(),
        _held: (place, slot),
    };
    let routes = TowerToHyperService::new(routes);
    let open_answers = Arc::new(());
    let open_answer_count = Arc::downgrade(&open_answers);
    let (draining, base_path) = (settings.draining.clone(), settings.base_path.clone());
    let routes = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(output.clone());
        if let Some(input) = &input {
            request.extensions_mut().insert(input.clone());
        }
        strip_base_path(&mut request, &base_path);
        let (answer, draining, is_open) = (routes.call(request), draining.clone(), open_answers.clone());
        async move {
            let mut response = answer.await?;
            if draining.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| OpenAnswer { body, _is_open: is_open }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(socket), routes)
            .with_upgrades()
    );
    let (mut stops, mut drains) = (false, false);
    let ended = loop {
        tokio::select! {
            // First, so that an answer which ends in the drain closes its connection.
            biased;
            () = settings.draining.cancelled(), if !drains => {
                drains = true;
                // The head of this answer is written: its connection closes with its end. An idle connection is not closed
                // here, because a request may be on its way.
                if open_answer_count.strong_count() > 1 {
                    connection.as_mut().graceful_shutdown();
                }
            }
            ended = connection.as_mut() => break ended,
            // Last, and a turn later: a request that has arrived is read before its connection would be closed as idle.
            () = stop.cancelled().then(|()| yield_now()), if !stops => {
                stops = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Removes the prefix from a path that has it, and keeps the whole path for its signature.
fn strip_base_path<B>(request: &mut hyper::Request<B>, base_path: &str) {
    let uri = request.uri();
    let rest = uri.path_and_query().and_then(|whole| whole.as_str().strip_prefix(base_path));
    let Some(rest) = rest.filter(|rest| !base_path.is_empty() && rest.starts_with('/')) else { return };
    let (Ok(stripped), whole) = (rest.parse::<Uri>(), PrefixedPath(uri.path().to_owned())) else { return };
    *request.uri_mut() = stripped;
    request.extensions_mut().insert(whole);
}

/// The body of an answer, which counts as open until it is dropped.
struct OpenAnswer {
    body: Body,
    _is_open: Arc<()>,
}

impl HttpBody for OpenAnswer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's socket. The client must keep reading: a write that stalls for too long is an error. It must complete its
/// messages: a read beyond the byte budget is an error.
struct ClientStream {
    /// The read side, which reads so many bytes at once as its limit says.
    reader: Take<OwnedReadHalf>,
    output: Arc<SocketOutput>,
    /// Bytes that were read with the header of the PROXY protocol.
    unread: Bytes,
    most: Duration,
    /// The timer of a stalled write; most sockets never need it.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The bytes of an unfinished message, once the connection is upgraded.
    input: Option<Arc<ConnectionInput>>,
    /// The places of the connection, also after an upgrade.
    _held: (Option<OwnedSemaphorePermit>, Option<AddressSlot>),
}

impl ClientStream {
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

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        self.reader.set_limit(READ_BYTES_MAX);
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        let counted = self.input.as_ref().map_or(Ok(()), |input| input.add_read(read));
        Poll::Ready(counted.map_err(|exceeded| io::Error::new(io::ErrorKind::QuotaExceeded, exceeded)))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.output.poll_write(context, bytes);
        self.fail_if_stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.output.poll_write_vectored(context, parts);
        self.fail_if_stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.output.poll_flush(context);
        self.fail_if_stalled(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.output.poll_shutdown(context);
        self.fail_if_stalled(context, ended)
    }
}

/// The rules by which requests are screened.
#[derive(Clone)]
pub struct RequestScreen {
    /// Networks whose forwarded addresses are trusted.
    pub trusted: TrustedProxies,
    /// The byte budget for bodies.
    pub input: Arc<InputBudget>,
    /// Counts requests whose body did not fit into the budget.
    pub bodies_refused: Counter,
}

/// Screens every request before its route: headers that only servers of the cluster may send are removed, the client's
/// address is noted, and reading a body that does not arrive in time fails. A body that is declared larger than any route
/// reads is refused before it arrives, and so is a compressed one, whose size is unknown.
pub async fn screen_request(State(screen): State<RequestScreen>, mut request: Request, next: Next) -> Response {
    client_address::sanitize_request(&mut request, &screen.trusted);
    let length = request.body().size_hint().lower();
    if length > u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX) {
        return (StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES_MAX} bytes\n")).into_response();
    }
    if let Some(encoding) = find_content_encoding(&request) {
        let told = format!("the body is encoded as `{encoding}`: send it as it is, without Content-Encoding\n");
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, [(header::ACCEPT_ENCODING, "identity")], told).into_response();
    }
    run_with_bounded_body(&screen, request, next).await
}

/// The encoding of a body that is not sent as it is.
fn find_content_encoding(request: &Request) -> Option<String> {
    let encoding = request.headers().get(header::CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then(|| encoding.to_owned())
}

/// The same for requests that another server forwarded, which carry their client's address.
pub async fn bound_relayed_body(State(screen): State<RequestScreen>, request: Request, next: Next) -> Response {
    run_with_bounded_body(&screen, request, next).await
}

/// Bounds the time and the bytes of a body. Its bytes are charged until the request is answered; a body beyond the budget
/// is answered with 503, whatever its route makes of the failed read.
async fn run_with_bounded_body(screen: &RequestScreen, mut request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let charge = Arc::new(screen.input.open_charge());
    request.extensions_mut().insert(charge.clone());
    let body = charge.clone();
    let response = next.run(request.map(|whole| bound_body(whole, REQUEST_BODY_TIMEOUT, body))).await;
    if !charge.is_refused() {
        return response;
    }
    screen.bodies_refused.inc();
    let retry = [(header::RETRY_AFTER, INPUT_RETRY_AFTER_SECONDS)];
    (StatusCode::SERVICE_UNAVAILABLE, retry, format!("{InputBudgetExceeded}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use futures::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn a_prefix_is_removed_at_its_boundary_and_kept_for_the_signature() {
        for (base, uri, stripped) in [
            ("/ws", "/ws/app/key?protocol=7", Some("/app/key?protocol=7")),
            ("/a/b", "/a/b/apps/1/events?x=%2F", Some("/apps/1/events?x=%2F")),
            ("/ws", "/app/key", None),
            ("/ws", "/wss/app/key", None),
            ("/ws", "/ws", None),
            ("/ws", "/ws?x", None),
            ("", "/app/key", None),
        ] {
            let mut request = hyper::Request::get(uri).body(()).expect("a request");
            strip_base_path(&mut request, base);
            assert_eq!(request.uri().to_string(), stripped.unwrap_or(uri), "{base} {uri}");
            let whole = request.extensions().get::<PrefixedPath>().map(|path| path.0.clone());
            assert_eq!(whole.as_deref(), stripped.and(uri.split('?').next()), "{base} {uri}");
        }
    }

    /// Reads until the server closes the connection.
    async fn read_rest(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        timeout(TEST_TIMEOUT, socket.read_to_string(&mut text)).await.expect("in time").expect("read");
        text
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_request_is_given_up_and_others_are_served() {
        let short = Duration::from_millis(200);
        let in_time = move |request: Request, next: Next| {
            let charge = Arc::new(InputBudget::new(Arc::default()).open_charge());
            next.run(request.map(|body| bound_body(body, short, charge)))
        };
        let routes = Router::new()
            .route("/", get(async || "hello"))
            .route("/echo", post(async |body: Bytes| body))
            .layer(axum::middleware::from_fn(in_time));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let timeouts = ListenerTimeouts { head: short, write: WRITE_STALL_TIMEOUT };
        let settings = ListenerSettings { timeouts, ..ListenerSettings::default() };
        let served = tokio::spawn(serve(listener, routes, settings, stop.clone()));
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
        let limit = Some(ConnectionLimit { most: 2, refused: refused.clone() });
        let settings = ListenerSettings { limit, ..ListenerSettings::default() };
        let served = tokio::spawn(serve(listener, routes, settings, stop.clone()));
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
    async fn in_a_drain_every_answer_closes_its_connection_and_no_request_is_cut() {
        let finish = Arc::new(tokio::sync::Notify::new());
        let finished = finish.clone();
        let slow = async move || {
            let parts = stream::once(async { Ok::<_, Infallible>("begin ") });
            Body::from_stream(parts.chain(stream::once(async move {
                finished.notified().await;
                Ok("end")
            })))
        };
        let routes = Router::new().route("/", get(async || "hello")).route("/slow", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (stop, settings) = (CancellationToken::new(), ListenerSettings::default());
        let served = tokio::spawn(serve(listener, routes, settings.clone(), stop.clone()));
        let connect = async |path: &str| {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("written");
            let mut part = [0; 1_024];
            let read = timeout(TEST_TIMEOUT, socket.read(&mut part)).await.expect("in time").expect("read");
            (socket, String::from_utf8_lossy(&part[..read]).into_owned())
        };
        let (mut idle, answer) = connect("/").await;
        assert!(!answer.contains("connection: close"), "{answer}");
        let (mut streamed, answer) = connect("/slow").await;
        assert!(!answer.contains("connection: close"), "{answer}");
        settings.draining.cancel();
        finish.notify_one();
        assert!(read_rest(&mut streamed).await.contains("end"), "closed with the end of its answer");
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
        let answer = read_rest(&mut idle).await;
        assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");
        stop.cancel();
        timeout(TEST_TIMEOUT, served).await.expect("in time").expect("ended");
    }

    #[tokio::test]
    async fn a_request_that_arrived_before_the_stop_is_answered() {
        let routes = Router::new().route("/", get(async || "hello"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, routes, ListenerSettings::default(), stop.clone()));
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            socket.write_all(request).await.expect("written");
            let mut part = [0; 1_024];
            timeout(TEST_TIMEOUT, socket.read(&mut part)).await.expect("in time").expect("read");
            clients.push(socket);
        }
        // Without a turn for the server in between.
        for socket in &clients {
            assert_eq!(socket.try_write(request).expect("written"), request.len());
        }
        stop.cancel();
        for mut socket in clients {
            assert!(read_rest(&mut socket).await.ends_with("hello"));
        }
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
        let timeouts = ListenerTimeouts { head: TEST_TIMEOUT, write: Duration::from_millis(300) };
        let settings = ListenerSettings { timeouts, ..ListenerSettings::default() };
        let served = tokio::spawn(serve(listener, Router::new().route("/", get(endless)), settings, stop.clone()));
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
