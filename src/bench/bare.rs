//! What an edge is compared with: axum's WebSocket and a broadcast, and an echo, with nothing around them.

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

/// Messages that a subscriber may be behind.
const BEHIND: usize = 4_096;

/// As the edge has it.
const READ_BUFFER: usize = 4_096;

/// As the edge has it.
const WRITE_BUFFER: usize = 2_048;

/// Serves both until the process ends: `/ws` gets what `/publish` is given, and the second address echoes.
///
/// # Errors
/// An address cannot be listened on.
pub async fn serve(public: SocketAddr, echo: SocketAddr) -> io::Result<()> {
    let (sender, _) = broadcast::channel(BEHIND);
    let routes = Router::new()
        .route("/up", get(async || "up"))
        .route("/ws", get(upgrade))
        .route("/publish", post(publish))
        .with_state(sender);
    let echo = TcpListener::bind(echo).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = echo.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    let listener = TcpListener::bind(public).await?.tap_io(|stream| {
        // As the edge does.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).await
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

type Sender = broadcast::Sender<Utf8Bytes>;

async fn publish(State(sender): State<Sender>, body: String) {
    // Without subscribers it goes nowhere.
    let _ = sender.send(body.into());
}

async fn upgrade(State(sender): State<Sender>, upgrade: WebSocketUpgrade) -> Response {
    let receiver = sender.subscribe();
    let upgrade = upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(WRITE_BUFFER);
    upgrade.on_upgrade(move |socket| subscriber(socket, receiver))
}

async fn subscriber(mut socket: WebSocket, mut receiver: broadcast::Receiver<Utf8Bytes>) {
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
