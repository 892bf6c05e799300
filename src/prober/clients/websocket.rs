//! The client of the WebSocket transport.

use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::link::{BrokenHop, FRAME_QUEUE_LEN, FrameSender, InboundFrame, STEP_TIMEOUT};
use super::target::{ClientStream, SessionTarget};
use crate::api::Reason;
use crate::gate::Hop;
use crate::prober::ProbeApp;

pub(in crate::prober) async fn open(
    target: &SessionTarget,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<(FrameSender, mpsc::Receiver<InboundFrame>, JoinHandle<()>), BrokenHop> {
    let path = format!("app/{}?protocol=7&client=probe&version={}", app.key, env!("CARGO_PKG_VERSION"));
    let socket = upgrade_request(target, &path, passed).await?;
    passed(Hop::Handshake);
    let plain = SocketFraming { write: |message| message, read: |text| vec![InboundFrame::Message(text.to_owned())] };
    Ok(pump_frames(socket, plain))
}

/// The framing of messages on a socket.
#[derive(Clone, Copy)]
pub(in crate::prober) struct SocketFraming {
    /// Encodes an outgoing message as socket text.
    pub write: fn(String) -> String,
    /// Decodes the messages of an incoming text.
    pub read: fn(&str) -> Vec<InboundFrame>,
}

/// A socket that was upgraded.
pub(in crate::prober) type ClientSocket = WebSocketStream<ClientStream>;

/// Connects and upgrades to a WebSocket.
pub(in crate::prober) async fn upgrade_request(
    target: &SessionTarget,
    path: &str,
    passed: &mut impl FnMut(Hop),
) -> Result<ClientSocket, BrokenHop> {
    let stream = target.connect().await?;
    passed(Hop::Connect);
    let (pod, url) = (&target.name, target.socket_url(path));
    let rejected = |detail| BrokenHop::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let (socket, _) = timeout(STEP_TIMEOUT, tokio_tungstenite::client_async(url, stream))
        .await
        .map_err(|_| rejected(format!("{pod} did not answer the upgrade in {} s", STEP_TIMEOUT.as_secs())))?
        .map_err(|error| rejected(format!("{pod} refused the upgrade: {error}")))?;
    Ok(socket)
}

/// Carries messages both ways until one side goes.
pub(in crate::prober) fn pump_frames(
    socket: ClientSocket,
    framing: SocketFraming,
) -> (FrameSender, mpsc::Receiver<InboundFrame>, JoinHandle<()>) {
    let (mut writer, mut reader) = socket.split();
    let (outbound, mut leaving) = mpsc::channel::<String>(FRAME_QUEUE_LEN);
    let (arrived, inbound) = mpsc::channel(FRAME_QUEUE_LEN);
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
                            vec![InboundFrame::Closed(frame.map(|frame| frame.to_string()).unwrap_or_default())]
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => vec![InboundFrame::Closed(error.to_string())],
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
    (FrameSender::Websocket(outbound), inbound, task)
}
