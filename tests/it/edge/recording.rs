//! The stream of events: its content and order, and an edge without Kinesis.

use super::*;

pub async fn start_stream() -> KinesisClient {
    start_kinesis("events", 1).await.1
}

/// Everything in the stream.
pub async fn read_events(client: &KinesisClient) -> Vec<RecordedEvent> {
    let mut events = Vec::new();
    for shard in client.list_shards().await.expect("shards") {
        let iterator = client.request_iterator(&shard.id, &ReadPosition::TrimHorizon).await.expect("an iterator");
        for read in client.read(&iterator, 1000).await.expect("a page").records {
            let record = StreamRecord::parse(&read.data).expect("a record");
            assert_eq!((record.edge.cluster.as_str(), record.edge.pod.as_str()), ("uid-1", "pod-1"));
            assert_eq!(read.partition_key, format!("{}/{}", record.app, record.channel));
            events.extend(record.events);
        }
    }
    events
}

#[tokio::test]
async fn the_events_of_webhooks_are_in_the_stream_in_order() {
    let stream = start_stream().await;
    let edge = start("websocket", MemoryBus::new(), Some(stream.clone())).await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    ann.subscribe("presence-room", Some("ann")).await;
    bob.subscribe("presence-room", Some("bob")).await;
    for n in 0..5 {
        ann.send(&client_event("presence-room", &json!({ "n": n }))).await;
    }
    for _ in 0..5 {
        bob.expect("client-said").await;
    }
    bob.socket.close(None).await.expect("closed");
    ann.expect("pusher_internal:member_added").await;
    ann.expect("pusher_internal:member_removed").await;
    edge.shutdown.cancel();
    assert_eq!(ann.closed().await, 4200);
    edge.stop().await;

    let events = read_events(&stream).await;
    let (state, clients): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.order.is_some());
    let recorded: Vec<_> = state.iter().map(|event| (event.kind.name(), event.order.map(|order| order.seq))).collect();
    let expected =
        ["channel_occupied", "member_added", "member_added", "member_removed", "member_removed", "channel_vacated"];
    assert_eq!(recorded, expected.into_iter().zip((1..).map(Some)).collect::<Vec<_>>());
    assert_eq!(state.iter().filter(|event| event.cause == Some(LeaveCause::Drain)).count(), 2, "ann's leave only");
    for (n, event) in (1..).zip(&clients) {
        let EventKind::ClientEvent { data, user_id, .. } = &event.kind else { panic!("{event:?}") };
        assert_eq!((event.n, data.as_str()), (Some(n), &*json!({ "n": n - 1 }).to_string()));
        assert_eq!(user_id.as_deref(), Some("ann"));
    }
    assert_eq!(clients.len(), 5);
}

#[tokio::test]
async fn without_kinesis_chat_continues_and_events_are_queued() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a listener").local_addr().expect("an address");
    let client = connect_kinesis(&format!("http://{closed}"), "events").await;
    let edge = start("websocket", MemoryBus::new(), Some(client)).await;
    let (mut one, mut two) = (edge.websocket().await, edge.websocket().await);
    one.subscribe("private-room", None).await;
    two.subscribe("private-room", None).await;
    one.send(&client_event("private-room", &json!(1))).await;
    two.expect("client-said").await;
    let flow = eventually("an error of Kinesis", async || edge.flow().await, |flow| flow.last_error.is_some()).await;
    assert_eq!((flow.state, flow.accepted, flow.acknowledged), (RecorderState::Kinesis, 2, 0));
    assert_eq!(flow.queued, 2);
    assert_eq!(edge.admin("/readyz").await.status(), 200, "clients are served");
    let metrics = edge.admin("/metrics").await.text().await.expect("a text");
    assert!(metrics.contains(r#"realtime_edge_connections{transport="websocket"} 2"#), "{metrics}");
}
