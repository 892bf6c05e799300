//! The memory of a process whose clients declare more than they send.

use super::*;
use crate::processes::{Server, edge_environment};

/// Memory that a process has at its most, in KiB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn declared_lengths_take_no_more_memory_than_the_bounds_of_the_process() {
    const EACH: usize = 100;
    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), vec![app("1", true)]);
    let process = Server::start("edge", &edge_environment(apps.path(), &[])).await;
    let address = process.address("public");
    let mut first = Ws::open(address, "/app/key1?protocol=7").await;
    first.greeted().await;
    let before = peak(process.id());
    let (mut sockets, mut raws) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        let mut ws = Ws::open(address, "/app/key1?protocol=7").await;
        ws.greeted().await;
        // All that a message may have is declared, and not sent.
        ws.socket.get_mut().write_all(&frame(0x81, 128 << 10)).await.expect("written");
        sockets.push(ws);
        let mut ws = Ws::open(address, "/app/key1?protocol=7").await;
        ws.greeted().await;
        ws.socket.get_mut().write_all(&frame(0x81, GIGABYTE)).await.expect("written");
        assert_eq!(ws.closed().await, 1009);
        let half = head("GET /", &format!("x: {}\r\n", "y".repeat(60 << 10)));
        raws.push(RawClient::send(address, half.trim_end()).await);
        let fields = format!("content-length: {}\r\n", 1 << 20);
        raws.push(RawClient::send(address, head("POST /apps/1/events", &fields) + &"x".repeat(60 << 10)).await);
        let fields = format!("content-length: {GIGABYTE}\r\n");
        let mut huge = RawClient::send(address, head("POST /apps/1/events", &fields)).await;
        assert_eq!(huge.status().await, 413);
    }
    first.still_serves().await;
    let taken = peak(process.id()) - before;
    assert!(taken < 64 << 10, "{taken} KiB more for {EACH} of each");
    drop((sockets, raws, first));
    assert_eq!(process.terminate().await, Some(0));
}
