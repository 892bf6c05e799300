//! The limit of an app's connections over several edges: exact for those who come at once, and temporary while
//! connections of a killed edge still count.

use futures::future::join_all;

use super::*;

const LIMIT: u64 = 50;

/// A connection that was greeted, or the code by which it was closed.
async fn connect(address: SocketAddr) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, u16> {
    let url = format!("ws://{address}/app/key?protocol=7");
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("a socket");
    loop {
        match timeout(CROWD_TIMEOUT, socket.next()).await.expect("in time").expect("a message").expect("no error") {
            Message::Text(text) if text.contains("pusher:connection_established") => return Ok(socket),
            Message::Close(frame) => return Err(frame.expect("a code").code.into()),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_is_exact_and_those_of_a_killed_edge_refuse_nobody_for_good() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let mut app = build_registry_app("http://127.0.0.1:9/unused");
    app.limits.connections = Some(LIMIT);
    let started = Instant::now();
    let mut pods = Pods::start_with_app(&redis, app).await;
    let address = |pods: &Pods, pod: usize| pods.edges[pod].address("public");
    let counted = || redis.command(&["hlen", "rt:{u:1:#connections}:sockets"]).trim().to_owned();
    let mut first = join_all((0..40).map(|n| connect(address(&pods, n % 2)))).await;
    assert!(first.iter().all(Result::is_ok), "40 of {LIMIT}");

    let more = join_all((0..40).map(|n| connect(address(&pods, n % 3)))).await;
    let refused: Vec<u16> = more.iter().filter_map(|outcome| outcome.as_ref().err().copied()).collect();
    assert_eq!((refused.len(), counted().as_str()), (30, "50"), "exactly ten more; refused with {refused:?}");
    assert!(refused.iter().all(|code| *code == 4004), "{refused:?}");
    drop(more);
    let free = || async { counted() };
    crate::waiting::eventually("places that are free again", free, |count| count == "40").await;

    // Nobody sweeps whose contact with the bus is young.
    tokio::time::sleep_until(started + Duration::from_secs(17)).await;
    let killed = pods.edges.remove(0);
    first.truncate(40);
    drop(killed);
    let returned = join_all((0..20).map(|_| connect(address(&pods, 1)))).await;
    let refused: Vec<u16> = returned.iter().filter_map(|outcome| outcome.as_ref().err().copied()).collect();
    assert_eq!(refused, [4100; 10], "ten places were free, and nobody is told to stay away");
    let swept = || async { counted() };
    crate::waiting::eventually("the end of the sweep", swept, |count| count == "30").await;
    let again = join_all((0..10).map(|_| connect(address(&pods, 1)))).await;
    assert!(again.iter().all(Result::is_ok), "all 40 are back");
}
