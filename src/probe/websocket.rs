//! The WebSocket client.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::ProbeApp;
use super::client::{Broken, Inbound, Outbound, QUEUE, STEP};
use crate::api::Reason;
use crate::gate::Hop;

pub(super) async fn open(
    pod: &str,
    address: SocketAddr,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<(Outbound, mpsc::Receiver<Inbound>, JoinHandle<()>), Broken> {
    let path = format!("app/{}?protocol=7&client=probe&version={}", app.key, env!("CARGO_PKG_VERSION"));
    let socket = upgrade(pod, address, &path, passed).await?;
    passed(Hop::Handshake);
    let plain = Framing { write: |message| message, read: |text| vec![Inbound::Message(text.to_owned())] };
    Ok(carry(socket, plain))
}

/// How messages stand on a socket.
#[derive(Clone, Copy)]
pub(super) struct Framing {
    /// What is sent for a message.
    pub write: fn(String) -> String,
    /// What arrived in a text.
    pub read: fn(&str) -> Vec<Inbound>,
}

/// A socket that was upgraded.
pub(super) type Socket = WebSocketStream<TcpStream>;

/// Connects and upgrades.
pub(super) async fn upgrade(
    pod: &str,
    address: SocketAddr,
    path: &str,
    passed: &mut impl FnMut(Hop),
) -> Result<Socket, Broken> {
    let stream = connect(pod, address).await?;
    passed(Hop::Connect);
    let url = format!("ws://{address}/{path}");
    let rejected = |detail| Broken::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let (socket, _) = timeout(STEP, tokio_tungstenite::client_async(url, stream))
        .await
        .map_err(|_| rejected(format!("{pod} did not answer the upgrade in {} s", STEP.as_secs())))?
        .map_err(|error| rejected(format!("{pod} refused the upgrade: {error}")))?;
    Ok(socket)
}

/// Carries messages both ways until one side goes.
pub(super) fn carry(socket: Socket, framing: Framing) -> (Outbound, mpsc::Receiver<Inbound>, JoinHandle<()>) {
    let (mut writer, mut reader) = socket.split();
    let (outbound, mut leaving) = mpsc::channel::<String>(QUEUE);
    let (arrived, inbound) = mpsc::channel(QUEUE);
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                frame = leaving.recv() => {
                    let Some(frame) = frame else {
                        // The client is gone; so may the server be.
                        let _ = writer.close().await;
                        return;
                    };
                    if writer.send(Message::text((framing.write)(frame))).await.is_err() {
                        return;
                    }
                }
                message = reader.next() => {
                    let inbound = match message {
                        Some(Ok(Message::Text(text))) => (framing.read)(&text),
                        Some(Ok(Message::Close(frame))) => {
                            vec![Inbound::Closed(frame.map(|frame| frame.to_string()).unwrap_or_default())]
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => vec![Inbound::Closed(error.to_string())],
                        None => return,
                    };
                    for inbound in inbound {
                        if arrived.send(inbound).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    });
    (Outbound::Websocket(outbound), inbound, task)
}

/// Opens a TCP connection: the first hop of every transport.
pub(super) async fn connect(pod: &str, address: SocketAddr) -> Result<TcpStream, Broken> {
    let unreachable = |detail| Broken::ambiguous(Hop::Connect, Reason::EdgeUnreachable, detail);
    timeout(STEP, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(format!("no connection to {pod} at {address} in {} s", STEP.as_secs())))?
        .map_err(|error| unreachable(format!("no connection to {pod} at {address}: {error}")))
}
