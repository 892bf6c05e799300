//! The WebSocket client.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
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
    let stream = connect(pod, address).await?;
    passed(Hop::Connect);
    let url = format!("ws://{address}/app/{}?protocol=7&client=probe&version={}", app.key, env!("CARGO_PKG_VERSION"));
    let rejected = |detail| Broken::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let (socket, _) = timeout(STEP, tokio_tungstenite::client_async(url, stream))
        .await
        .map_err(|_| rejected(format!("{pod} did not answer the upgrade in {} s", STEP.as_secs())))?
        .map_err(|error| rejected(format!("{pod} refused the upgrade: {error}")))?;
    passed(Hop::Handshake);
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
                    if writer.send(Message::text(frame)).await.is_err() {
                        return;
                    }
                }
                message = reader.next() => {
                    let inbound = match message {
                        Some(Ok(Message::Text(text))) => Inbound::Message(text.as_str().to_owned()),
                        Some(Ok(Message::Close(frame))) => {
                            Inbound::Closed(frame.map(|frame| frame.to_string()).unwrap_or_default())
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => Inbound::Closed(error.to_string()),
                        None => return,
                    };
                    if arrived.send(inbound).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok((Outbound::Websocket(outbound), inbound, task))
}

/// Opens a TCP connection: the first hop of every transport.
pub(super) async fn connect(pod: &str, address: SocketAddr) -> Result<TcpStream, Broken> {
    let unreachable = |detail| Broken::ambiguous(Hop::Connect, Reason::EdgeUnreachable, detail);
    timeout(STEP, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(format!("no connection to {pod} at {address} in {} s", STEP.as_secs())))?
        .map_err(|error| unreachable(format!("no connection to {pod} at {address}: {error}")))
}
