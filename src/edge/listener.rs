//! The public listener: HTTP/1.1, and an end to every wait for a client that does not speak.
//!
//! A head must be complete in time, which also bounds how long a connection without a request is kept; so must a body.
//! Without this, a stranger could hold thousands of connections with a byte every minute.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::{StreamExt, stream};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest for a request's head. Longer than load balancers keep an idle connection (60 s by default), or one of them
/// would send a request into a connection that is being closed.
pub const HEAD: Duration = Duration::from_secs(75);

/// Longest for a request's body, from its head on.
pub const BODY: Duration = Duration::from_secs(15);

/// How long accepting pauses when the system has no more sockets.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves until the token ends it, then finishes open requests; upgraded connections are not waited for.
pub async fn serve(listener: TcpListener, routes: Router, head: Duration, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                connections.spawn(connection(socket, routes.clone(), head, stop.clone()));
            }
            Err(error) if is_the_clients(&error) => tracing::debug!(%error, "a client went before it was accepted"),
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(socket: TcpStream, routes: Router, head: Duration, stop: CancellationToken) {
    // Frames are small and each waits for nothing.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a socket delays small frames");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes))
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

/// Gives a request's body up that does not arrive in time: whoever reads it is told of an error.
pub async fn body_in_time(request: Request, next: Next) -> Response {
    next.run(bounded(request, BODY)).await
}

fn bounded(request: Request, within: Duration) -> Request {
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

    const PATIENCE: Duration = Duration::from_secs(20);

    /// What is read until the server closes the connection.
    async fn rest(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut text)).await.expect("in time").expect("read");
        text
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_request_is_given_up_and_others_are_served() {
        let short = Duration::from_millis(200);
        let in_time = move |request: Request, next: Next| next.run(bounded(request, short));
        let routes = Router::new()
            .route("/", get(async || "hello"))
            .route("/echo", post(async |body: Bytes| body))
            .layer(axum::middleware::from_fn(in_time));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, routes, short, stop.clone()));
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
        assert!(!rest(&mut half).await.contains("hello"));
        assert_eq!(rest(&mut silent).await, "");
        assert!(rest(&mut slow).await.starts_with("HTTP/1.1 400"));
        // Both requests are answered; the connection goes when nothing follows.
        assert_eq!(rest(&mut whole).await.matches("hello").count(), 2);
        stop.cancel();
        timeout(PATIENCE, served).await.expect("in time").expect("ended");
    }
}
