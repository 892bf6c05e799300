//! Messages in flight, in both directions, when a client or its server closes.

use tokio::net::TcpSocket;
use tokio_tungstenite::client_async;

use super::*;

/// Client events that a client sends right before it goes.
const LAST_EVENTS: u64 = 3;

/// Channels of a client that does not read.
const UNREAD_CHANNELS: usize = 50;

/// A client whose kernel keeps little of what it does not read.
pub async fn connect_narrow(edge: &Edge) -> Ws {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
    let stream = socket.connect(edge.running.public).await.expect("connected");
    // Otherwise its kernel keeps small messages back, and drops them with the connection.
    stream.set_nodelay(true).expect("no delay");
    let stream = MaybeTlsStream::Plain(stream);
    let (wire, _) = client_async("ws://edge/app/key1?protocol=7", stream).await.expect("a socket");
    let mut ws = Ws { socket: Wire::new(wire), id: String::new() };
    ws.greeted().await;
    ws
}

/// Subscribes to many channels, so that one publish is many events.
pub async fn subscribe_to_many(ws: &mut Ws) -> Vec<String> {
    let channels: Vec<String> = (0..UNREAD_CHANNELS).map(|n| format!("private-{n}")).collect();
    for channel in &channels {
        ws.subscribe(channel, None).await;
    }
    channels
}

pub async fn publish_to_all(edge: &Edge, channels: &[String], bytes: usize) {
    let body = json!({ "name": "news", "data": "x".repeat(bytes), "channels": channels });
    assert_eq!(edge.publish("1", &body).await.status(), 200);
}

#[tokio::test]
async fn client_events_sent_right_before_a_client_goes_are_delivered() {
    let edge = alone("websocket").await;
    let mut watcher = edge.websocket().await;
    watcher.subscribe("private-room", None).await;
    for round in 0..5 {
        for way in ["closes", "is cut", "is cut with unread frames"] {
            let mut ws = connect_narrow(&edge).await;
            ws.subscribe("private-room", None).await;
            if way == "is cut with unread frames" {
                let channels = subscribe_to_many(&mut ws).await;
                for _ in 0..8 {
                    publish_to_all(&edge, &channels, 5_000).await;
                }
            }
            for n in 0..LAST_EVENTS {
                ws.send(&client_event("private-room", &json!(n))).await;
            }
            if way == "closes" {
                ws.socket.close(None).await.expect("closed");
            }
            drop(ws);
            for n in 0..LAST_EVENTS {
                let heard = watcher.message(&format!("event {n} of a client that {way}, round {round}")).await;
                assert_eq!((heard.event.as_str(), &heard.data), ("client-said", &json!(n)), "{way}");
            }
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn events_that_were_queued_before_a_drain_arrive_at_a_client_that_is_seconds_behind() {
    let edge = alone("websocket").await;
    let mut ws = connect_narrow(&edge).await;
    let channels = subscribe_to_many(&mut ws).await;
    let rounds = 13;
    for _ in 0..rounds {
        publish_to_all(&edge, &channels, 5_500).await;
    }
    edge.shutdown.cancel();
    sleep(Duration::from_secs(2)).await;
    for n in 0..rounds * UNREAD_CHANNELS {
        assert_eq!(ws.message(&format!("event {n}")).await.event, "news", "{n}");
    }
    assert_eq!(ws.closed().await, 4200);
    edge.stop().await;
}
