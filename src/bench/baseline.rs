//! The baseline that an edge is compared with: axum's WebSocket with a broadcast, and an echo, with nothing around them.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// Bounds the messages that a subscriber may lag behind.
const SUBSCRIBER_LAG_MAX: usize = 4_096;

/// Read buffer of a WebSocket, as large as the edge's.
const READ_BUFFER_BYTES: usize = 1_024;

/// Write buffer of a WebSocket, as large as the edge's.
const WRITE_BUFFER_BYTES: usize = 2_048;

/// Serves until the process ends: subscribers of `/ws` get the bodies of `/publish`, and the second address echoes.
///
/// # Errors
/// A listener cannot be bound to its address.
pub async fn serve(public: SocketAddr, echo: SocketAddr) -> io::Result<()> {
    let (sender, _) = broadcast::channel(SUBSCRIBER_LAG_MAX);
    let routes = Router::new()
        .route("/up", get(async || "up"))
        .route("/ws", get(upgrade_socket))
        .route("/publish", post(broadcast_body))
        .with_state(sender);
    let echo = TcpListener::bind(echo).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = echo.accept().await {
            tokio::spawn(echo_stream(stream));
        }
    });
    let listener = TcpListener::bind(public).await?.tap_io(|stream| {
        // The edge sets it too.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).await
}

async fn echo_stream(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

type TextSender = broadcast::Sender<Utf8Bytes>;

async fn broadcast_body(State(sender): State<TextSender>, body: String) {
    // Fails only without subscribers.
    let _ = sender.send(body.into());
}

async fn upgrade_socket(State(sender): State<TextSender>, upgrade: WebSocketUpgrade) -> Response {
    let receiver = sender.subscribe();
    let upgrade = upgrade.read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(WRITE_BUFFER_BYTES);
    upgrade.on_upgrade(move |socket| serve_subscriber(socket, receiver))
}

async fn serve_subscriber(mut socket: WebSocket, mut receiver: broadcast::Receiver<Utf8Bytes>) {
    loop {
        tokio::select! {
            message = receiver.recv() => {
                let Ok(message) = message else { return };
                if socket.send(Message::Text(message)).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => {
                if !matches!(message, Some(Ok(_))) {
                    return;
                }
            }
        }
    }
}
