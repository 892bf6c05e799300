//! Owners of sessions that do not answer: stopped for a while, or there and silent.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;

use fred::interfaces::{ClientLike, HashesInterface};
use realtime_operator::bus::{RedisBus, RelayPeer, SessionDirectory};
use realtime_operator::protocol::relay::{RELAY_HEADER, RelayHeader};
use reqwest::StatusCode;

use super::relay::{Cluster, Page, start_processes};
use super::*;
use crate::processes::Server;
use crate::redis::server::Redis;

/// Longer than a request waits for an owner, which is 6 s, twice.
const LONG: Duration = Duration::from_mins(1);

fn signal(server: &Server, name: &str) {
    let sent = Command::new("kill").args([name, &server.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

/// Stops a process, and waits until none of its threads runs any more.
async fn stop(server: &Server) {
    signal(server, "-STOP");
    let threads = std::path::PathBuf::from(format!("/proc/{}/task", server.id()));
    let states = async || -> Vec<Option<char>> {
        let states = std::fs::read_dir(&threads).expect("a process").map(|thread| {
            let stat = std::fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            // After the name, which stands in brackets and may hold anything.
            stat.rsplit_once(") ")?.1.chars().next()
        });
        states.collect()
    };
    let is_stopped = |states: &Vec<Option<char>>| states.iter().all(|state| *state == Some('T'));
    eventually("stopped threads only", states, is_stopped).await;
}

/// Three processes, of which the first is stopped right after its heartbeat, so that its lease of 10 s
/// holds as long as it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_briefly_stopped_owner_receives_a_send_once_and_clients_of_a_long_stopped_owner_reconnect_elsewhere() {
    let redis = Redis::start().await;
    let (servers, public, _apps) = start_processes(&redis).await;
    let config = fred::types::config::Config::from_url(&redis.url()).expect("an address");
    let raw = fred::types::Builder::from_config(config).build().expect("a client");
    raw.init().await.expect("a connection");
    // The first has the address that ends in 1.
    let beat = async || {
        let peers: BTreeMap<String, String> = raw.hgetall("rt:u:peers").await.expect("read");
        peers.into_values().find(|peer| peer.ends_with(" 127.0.0.1"))
    };
    let after_a_beat = async || {
        let before = beat().await;
        eventually("a heartbeat of the first", &beat, |beat| *beat != before).await;
    };

    // The watcher is elsewhere; the session is at the first, and speaks and hears through the second. They poll: what was
    // on its way in a stream that its client gave up is lost.
    let watcher = Page::new("xhr_polling", public[2], "watcher");
    let mut watching = watcher.listen(public[2]);
    let socket = watching.socket().await;
    assert_eq!(watcher.send(&subscribe(&socket, "private-up", None)).await, StatusCode::NO_CONTENT);
    watching.subscribed().await;
    let page = Page::new("xhr_polling", public[1], "session");
    let mut heard = page.listen(public[0]);
    let socket = heard.socket().await;
    assert_eq!(page.send(&subscribe(&socket, "private-up", None)).await, StatusCode::NO_CONTENT);
    heard.subscribed().await;

    after_a_beat().await;
    stop(&servers[0]).await;
    let stopped = Instant::now();
    let sending = tokio::spawn(page.send(&client_event("private-up", &json!({ "n": 1 }))));
    // The first try ends after 6 s.
    tokio::time::sleep(Duration::from_millis(6_700).saturating_sub(stopped.elapsed())).await;
    signal(&servers[0], "-CONT");
    let sent = within(LONG, "an answer to the send", sending).await.expect("sent");
    assert_eq!(sent, StatusCode::NO_CONTENT, "the second try arrived");
    assert_eq!(page.send(&client_event("private-up", &json!({ "n": 2 }))).await, StatusCode::NO_CONTENT);
    for n in [1, 2] {
        let said = watching.message().await;
        assert_eq!(said["data"].as_str().map(str::to_owned), Some(json!({ "n": n }).to_string()), "each once");
    }

    after_a_beat().await;
    stop(&servers[0]).await;
    let sending = tokio::spawn(page.send(&client_event("private-up", &json!({ "n": 3 }))));
    let end = loop {
        match within(LONG, "a close frame", heard.frames.recv()).await.expect("a frame") {
            FallbackFrame::Close(code, _) => break code,
            FallbackFrame::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end, 4200, "its process is taken for gone");
    assert_eq!(within(LONG, "an answer to the send", sending).await.expect("sent"), StatusCode::NOT_FOUND);
    let again = Page::new("xhr_polling", public[1], "again");
    again.listen(public[1]).socket().await;
    // Nothing that it does once it goes on again reaches the client that came back.
    signal(&servers[0], "-CONT");
}

/// A process that takes requests and never answers, while it tells the others that it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_its_owner_does_not_answer_is_tried_twice_under_one_number_and_then_ends_the_session() {
    let redis = Redis::start().await;
    let pods = Cluster::start(&redis).await;
    let bus = RedisBus::connect(&redis.url(), "uid-1", "test", CancellationToken::new()).await.expect("a bus");
    let silent = RelayPeer { process: "silent".to_owned(), address: Ipv4Addr::new(127, 0, 0, 9).into() };
    let listener = TcpListener::bind((silent.address, pods.peers[0].port())).await.expect("a listener");
    bus.send_heartbeat(&silent).await.expect("alive");
    assert_eq!(bus.claim_session("p.7.session", &silent.process).await, Ok(None));
    let said = tokio::spawn(async move {
        let mut said = Vec::new();
        while said.len() < 2 {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                let mut part = [0; 4_096];
                let read = tokio::io::AsyncReadExt::read(&mut socket, &mut part).await.expect("read");
                text.push_str(std::str::from_utf8(&part[..read]).expect("text"));
            }
            said.push((socket, text));
        }
        said.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    });
    let page = Page::new("xhr_polling", pods.pods[0].running.public, "session");
    let sending = tokio::spawn(page.send(&json!({ "event": "pusher:ping", "data": {} })));
    // It tells that it is there all the while, and hears in the end what became of its session.
    let losers = async {
        loop {
            let alive = bus.send_heartbeat(&silent).await.expect("alive");
            if !alive.sessions_with_lost_sends.is_empty() {
                break alive.sessions_with_lost_sends;
            }
            sleep(Duration::from_millis(500)).await;
        }
    };
    assert_eq!(within(LONG, "the report of a lost send", losers).await, ["p.7.session"]);
    assert_eq!(sending.await.expect("sent"), StatusCode::NOT_FOUND);
    let said = within(LONG, "two tries", said).await.expect("no panic");
    let header = format!("{RELAY_HEADER}: ");
    let handed = |text: &String| RelayHeader::parse(text.lines().find_map(|line| line.strip_prefix(&header))?);
    let handed: Vec<RelayHeader> = said.iter().map(|text| handed(text).expect("signed")).collect();
    assert_eq!(handed[0].number, handed[1].number, "the owner would know them as one");
    assert_ne!(handed[0].nonce, handed[1].nonce, "none is a replay of the other");

    // An owner ends a session with a lost send, wherever the message was lost.
    let page = Page::new("xhr_polling", pods.pods[1].running.public, "other");
    let mut heard = page.listen(pods.pods[1].running.public);
    heard.socket().await;
    bus.report_lost_send("p.7.other", &pods.pods[1].running.process).await.expect("reported");
    assert!(matches!(heard.frame().await, FallbackFrame::Close(4200, _)));
}
