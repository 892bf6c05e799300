//! Three edges behind a round-robin without keep-alive: each request of a session may reach any of them.

mod page;
mod pods;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use realtime_operator::bus::{RedisBus, SessionDirectory};
use realtime_operator::process::clock;
use realtime_operator::protocol::relay::{
    self, REFUSAL_HEADER, RELAY_HEADER, RELAY_SIGNATURE_HEADER, RelayHeader, RelayedRequest,
};
use reqwest::{Method, StatusCode};

use super::*;
use crate::processes::Server;
use crate::redis::server::{Redis, start_redis_cluster};
pub(super) use page::Page;
use page::once;
use pods::round_robin;
pub(super) use pods::{Cluster, SECRET, fast, start_processes};

/// Messages each way.
const MANY: usize = 1_000;

/// Time of a send, or of a sleep of 10 ms, from which the machine counts as stalled.
const STALL_MS: u64 = 250;

fn elapsed_ms(began: Instant) -> u64 {
    began.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
}

/// Keeps the longest time that a sleep of 10 ms took, without an end.
async fn watch_stalls(slowest_ms: Arc<AtomicU64>) {
    loop {
        let began = Instant::now();
        sleep(Duration::from_millis(10)).await;
        slowest_ms.fetch_max(elapsed_ms(began), Ordering::Relaxed);
    }
}

/// A thousand messages each way while every request reaches another edge.
async fn thousands(transport: &'static str, redis_dies: bool) {
    let redis = Redis::start().await;
    let pods = Cluster::start(&redis).await;
    // The watcher sits where the session will be, so that what is lost is lost between client and session.
    let owner = pods.pods[1].running.public;
    let watcher = Page::new("xhr_streaming", owner, "watcher");
    let mut watching = watcher.listen(owner);
    let socket = watching.socket().await;
    assert_eq!(watcher.send(&subscribe(&socket, "private-up", None)).await, StatusCode::NO_CONTENT);
    watching.subscribed().await;

    let page = Page::new(transport, pods.entry, "session");
    let mut heard = page.listen(owner);
    let socket = heard.socket().await;
    for channel in ["private-up", "down"] {
        assert_eq!(page.send(&subscribe(&socket, channel, None)).await, StatusCode::NO_CONTENT);
        heard.subscribed().await;
    }

    let slowest_ms = Arc::new(AtomicU64::new(0));
    let up = async {
        let mut sends = tokio::task::JoinSet::new();
        for n in 0..MANY {
            let (send, slowest_ms) = (page.send(&client_event("private-up", &json!({ "n": n }))), slowest_ms.clone());
            sends.spawn(async move {
                let began = Instant::now();
                let status = send.await;
                // Without Redis the search for the owner takes time on every machine.
                if !redis_dies {
                    slowest_ms.fetch_max(elapsed_ms(began), Ordering::Relaxed);
                }
                status
            });
            while sends.len() >= 8 {
                let status = sends.join_next().await.expect("a send").expect("sent");
                assert_eq!(status, StatusCode::NO_CONTENT);
            }
        }
        while let Some(status) = sends.join_next().await {
            assert_eq!(status.expect("sent"), StatusCode::NO_CONTENT);
        }
    };
    let arrives = async {
        let mut numbers = Vec::new();
        for _ in 0..MANY {
            let message = watching.message().await;
            let data: Value = serde_json::from_str(message["data"].as_str().expect("data")).expect("json");
            assert_eq!(message["event"], "client-said");
            numbers.push(data["n"].as_u64().expect("a number"));
        }
        numbers
    };
    let ticker = tokio::spawn(watch_stalls(slowest_ms.clone()));
    // 3 KiB each: pusher-js opens the stream again about every 80 of them.
    let filling = "x".repeat(3 << 10);
    let down = async {
        for n in 0..MANY {
            let body = json!({ "name": "e", "channel": "down", "data": format!("{n} {filling}") });
            // While Redis is away only this pod has it, which the backend learns.
            let status = pods.pods[1].publish("1", &body).await.status();
            assert!(status == StatusCode::OK || redis_dies && status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        }
    };
    let comes = async {
        for n in 0..MANY {
            let message = heard.message().await;
            let data = message["data"].as_str().expect("data").split_once(' ').expect("a number").0;
            assert_eq!((message["event"].as_str(), data), (Some("e"), n.to_string().as_str()));
        }
    };
    let dies = async {
        if !redis_dies {
            return redis;
        }
        sleep(Duration::from_millis(500)).await;
        let redis = redis.kill();
        sleep(Duration::from_secs(2)).await;
        redis.replace().await
    };
    let all = async { tokio::join!(up, arrives, down, comes, dies) };
    let ((), mut numbers, (), (), _redis) = within(Duration::from_mins(2), "all messages", all).await;
    ticker.abort();
    // An edge waits half a second for a request that others have overtaken; on a machine that stalls for that long one
    // may come later, and each message must still arrive once.
    let slowest_ms = slowest_ms.load(Ordering::Relaxed);
    if slowest_ms >= STALL_MS {
        println!("the order is not compared: something took {slowest_ms} ms");
        numbers.sort_unstable();
    }
    assert_eq!(numbers, (0..u64::try_from(MANY).expect("small")).collect::<Vec<_>>());
    let again = heard.opened_again.load(Ordering::Relaxed);
    assert!(again >= 10, "opened again {again} times");
    let relayed = pods.sum("realtime_edge_requests_relayed_total").await;
    assert!(relayed > 500, "two of three requests come to another edge: {relayed} were handed on");
    assert_eq!(
        pods.sum("realtime_edge_connections_opened_total{transport=\"xhr_streaming\"}").await
            + pods.sum("realtime_edge_connections_opened_total{transport=\"xhr_polling\"}").await,
        2,
        "one session each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_each_way_arrive_once_and_in_order_over_streams() {
    thousands("xhr_streaming", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_each_way_arrive_once_and_in_order_over_polls() {
    thousands("xhr_polling", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_find_their_session_while_redis_is_unavailable_and_after_it_lost_its_data() {
    thousands("xhr_streaming", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_find_their_session_while_redis_is_unavailable_and_after_it_lost_its_data() {
    thousands("xhr_polling", true).await;
}

/// One session in one pod, asked for through another: what the other's answer to a poll and to a send is.
async fn asked_for(pods: &Cluster, owner: usize, asked: usize) -> (StatusCode, String, StatusCode) {
    static SESSIONS: AtomicUsize = AtomicUsize::new(0);
    let session = format!("of{}", SESSIONS.fetch_add(1, Ordering::Relaxed));
    let address = |n: usize| pods.pods[n].running.public;
    let page = Page::new("xhr_polling", address(asked), &session);
    let http = once();
    let opened = http.post(page.at(address(owner)).url("xhr")).send().await.expect("an answer");
    assert_eq!(opened.text().await.expect("a text"), "o\n");
    let sent = page.send(&json!({ "event": "pusher:ping", "data": {} })).await;
    let answer = http.post(page.url("xhr")).send().await.expect("an answer");
    (answer.status(), answer.text().await.expect("a text"), sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peer_secret_is_rotated_while_sessions_are_relayed() {
    let redis = Redis::start().await;
    // As they stand beside each other while pods are replaced, twice: the new one is believed before anyone signs with
    // it, and the old one until nobody does. The last two have nothing in common.
    let pods = Cluster::with(&redis.url(), ("uid-1".into(), "sockjs"), &["old", "old,new", "new,old", "new"]).await;
    for (owner, asked, believed) in [
        (0, 1, true),
        (1, 0, true),
        (1, 2, true),
        (2, 1, true),
        (2, 3, true),
        (3, 2, true),
        (0, 2, false),
        (3, 1, false),
        (0, 3, false),
        (3, 0, false),
    ] {
        let (status, text, sent) = asked_for(&pods, owner, asked).await;
        if believed {
            assert_eq!(status, StatusCode::OK, "{owner} {asked}");
            assert!(text.contains("pusher:connection_established"), "{owner} {asked}: {text}");
            assert_eq!(sent, StatusCode::NO_CONTENT, "{owner} {asked}");
        } else {
            // The owner has the session: it is trouble, and the session is not gone.
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{owner} {asked}: {text}");
            assert_eq!(sent, StatusCode::SERVICE_UNAVAILABLE, "{owner} {asked}");
        }
    }
    for (owner, refuses) in [(0, true), (1, false), (2, false), (3, true)] {
        let metric = "realtime_edge_relay_refusals_total{reason=\"forged\"}";
        assert_eq!(pods.pods[owner].metric(metric).await > 0, refuses, "{owner}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_found_through_a_redis_cluster() {
    let (_nodes, url) = start_redis_cluster().await;
    let pods = Cluster::with(&url, ("uid-1".into(), "sockjs"), &[SECRET; 3]).await;
    // Their keys are in all of its slots.
    for n in 0..12 {
        let (owner, asked) = (n % 3, (n + 1 + n / 3 % 2) % 3);
        let (status, text, sent) = asked_for(&pods, owner, asked).await;
        assert_eq!((status, sent), (StatusCode::OK, StatusCode::NO_CONTENT), "{owner} {asked}: {text}");
        assert!(text.contains("pusher:connection_established"), "{owner} {asked}: {text}");
    }
    assert!(pods.sum("realtime_edge_requests_relayed_total").await >= 24);
    let bus = RedisBus::connect(&url, "uid-1", "test", CancellationToken::new()).await.expect("a bus");
    assert_eq!(bus.claim_session("p.7.dead", "a process that died").await, Ok(None));
    let answer = once().post(format!("http://{}/pusher/app/key1/7/dead/xhr", pods.entry)).send().await;
    let text = answer.expect("an answer").text().await.expect("a text");
    assert!(text.starts_with("c[4200,"), "{text}");
    // A lost send is reported through a key of its own.
    bus.report_lost_send("p.7.other", &pods.pods[1].running.process).await.expect("reported");
}

/// The introduction of a session of `SockJS`.
const INTRODUCTION: &str = "{\"path\":\"/app/key1?protocol=7&client=js&version=8.6.0\"}";

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_sockjs_are_found_on_every_transport() {
    let redis = Redis::start().await;
    let pods = Cluster::start(&redis).await;
    let http = once();
    for (n, (method, receive, send)) in [
        (Method::POST, "xhr_streaming", "xhr_send"),
        (Method::GET, "eventsource", "xhr_send"),
        (Method::GET, "htmlfile?c=cb", "xhr_send"),
        (Method::POST, "xhr", "xhr_send"),
        (Method::GET, "jsonp?c=cb", "jsonp_send"),
    ]
    .into_iter()
    .enumerate()
    {
        let url = |what: &str| format!("http://{}/pusher/0/session{n}/{what}", pods.entry);
        let polls = receive == "xhr" || receive.starts_with("jsonp");
        let mut answer = http.request(method.clone(), url(receive)).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{receive}");
        let mut text = String::new();
        while !["o\n", "data: o", "\"o\""].iter().any(|open| text.contains(open)) {
            let part = within(WAIT_TIMEOUT, receive, answer.chunk()).await.expect("a part").expect("more");
            text.push_str(std::str::from_utf8(&part).expect("text"));
        }
        // Three, so that some come to an edge that does not have the session.
        for message in
            [INTRODUCTION, "{\"event\":\"pusher:ping\",\"data\":{}}", "{\"event\":\"pusher:ping\",\"data\":{}}"]
        {
            let body = json!([message]).to_string();
            let sent = http.post(url(send)).header("content-type", "text/plain").body(body).send().await.expect("sent");
            assert!(sent.status().is_success(), "{receive}: {}", sent.status());
        }
        let mut pongs = 0;
        let all = async {
            while pongs < 2 {
                if polls {
                    answer = http.request(method.clone(), url(receive)).send().await.expect("an answer");
                    assert_eq!(answer.status(), StatusCode::OK, "{receive}");
                }
                let part = answer.chunk().await.expect("a part").expect("more");
                pongs += std::str::from_utf8(&part).expect("text").matches("pusher:pong").count();
            }
        };
        let all = timeout(WAIT_TIMEOUT, all).await;
        assert!(all.is_ok(), "{receive}: two pongs wanted, {pongs} came within {WAIT_TIMEOUT:?}");
    }
    assert!(pods.sum("realtime_edge_requests_relayed_total").await > 5);
    let sent = http.post(format!("http://{}/pusher/0/nobody/xhr_send", pods.entry)).body("[\"x\"]").send().await;
    assert_eq!(sent.expect("an answer").status(), StatusCode::NOT_FOUND);
}

/// Whether this machine has a TCP connection to an IPv4 address.
fn is_connected_to(address: SocketAddr) -> bool {
    let SocketAddr::V4(address) = address else { return false };
    let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("the table of connections");
    // Columns: number, local address, remote address, state; 01 is established.
    table.lines().any(|row| row.split_whitespace().skip(2).take(2).eq([remote.as_str(), "01"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_ends_hands_on_the_answers_to_polls_of_other_edges_sessions() {
    let redis = Redis::start().await;
    let mut pods = Cluster::start(&redis).await;
    let ending = pods.pods.remove(0);
    let (owner, peer) = (&pods.pods[0], pods.peers[1]);
    let page = Page::new("xhr_polling", owner.running.public, "session");
    let mut heard = page.listen(owner.running.public);
    let socket = heard.socket().await;
    assert_eq!(page.send(&subscribe(&socket, "news", None)).await, StatusCode::NO_CONTENT);
    heard.subscribed().await;
    // The client's next poll goes to the other edge.
    drop(heard);
    let poll = once().post(page.at(ending.running.public).url("xhr"));
    let poll = tokio::spawn(async move { poll.send().await?.error_for_status()?.text().await });
    eventually("a poll at the owner", async || is_connected_to(peer), |connected| *connected).await;
    ending.shutdown.cancel();
    let progress = async || ending.admin("/drain").await.text().await.unwrap_or_default();
    eventually("the end of the drain", progress, |text| text.contains("\"drained\"")).await;
    let sent = owner.publish("1", &json!({ "name": "e", "channel": "news", "data": "late" })).await;
    assert_eq!(sent.status(), StatusCode::OK);
    let text = within(WAIT_TIMEOUT, "the answer to the poll", poll).await.expect("a task").expect("an answer");
    assert!(text.contains("late"), "{text}");
    within(WAIT_TIMEOUT, "the end of the edge", ending.running.wait_stopped()).await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_whose_stream_an_ending_edge_relays_are_asked_to_reconnect() {
    let redis = Redis::start().await;
    let mut pods = Cluster::start(&redis).await;
    let (ending, owner) = (pods.pods.remove(0), pods.pods[0].running.public);
    let page = Page::new("xhr_streaming", ending.running.public, "session");
    let mut heard = page.listen(owner);
    let socket = heard.socket().await;
    assert_eq!(page.send(&subscribe(&socket, "news", None)).await, StatusCode::NO_CONTENT);
    heard.subscribed().await;
    assert!(ending.metric("realtime_edge_requests_relayed_total").await > 0, "the stream is relayed");
    ending.stop().await;
    let closed = async {
        loop {
            if let FallbackFrame::Close(code, reason) = heard.frame().await {
                return (code, reason);
            }
        }
    };
    let (code, reason) = within(WAIT_TIMEOUT, "a close frame", closed).await;
    assert_eq!(code, 4200, "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_for_a_dead_owner_asks_to_reconnect_and_a_send_answers_404() {
    let redis = Redis::start().await;
    let pods = Cluster::start(&redis).await;
    let bus = RedisBus::connect(&redis.url(), "uid-1", "test", CancellationToken::new()).await.expect("a bus");
    for session in ["p.7.dead", "s.dead"] {
        assert_eq!(bus.claim_session(session, "a process that died").await, Ok(None));
    }
    let http = once();
    let closed = "c[4200,\"the server that had this session is gone, come back at once\"]";
    for (method, path, expected) in [
        (Method::POST, "app/key1/7/dead/xhr_streaming?protocol=7", format!("{closed}\n")),
        (Method::POST, "app/key1/7/dead/xhr?protocol=7", format!("{closed}\n")),
        (Method::POST, "7/dead/xhr", format!("{closed}\n")),
        (Method::POST, "7/dead/xhr_streaming", format!("{}\n{closed}\n", "h".repeat(2_048))),
        (Method::GET, "7/dead/eventsource", format!("\r\ndata: {closed}\r\n\r\n")),
    ] {
        let url = format!("http://{}/pusher/{path}", pods.entry);
        let answer = http.request(method, url).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.text().await.expect("a text"), expected, "{path}");
    }
    for path in ["app/key1/7/dead/xhr_send", "7/dead/xhr_send"] {
        let url = format!("http://{}/pusher/{path}", pods.entry);
        let answer = http.post(url).body("[\"x\"]").send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_requests_without_a_valid_signature_are_refused_and_counted() {
    let redis = Redis::start().await;
    let pods = Cluster::start(&redis).await;
    let (pod, peer) = (&pods.pods[0], pods.peers[0]);
    let page = Page::new("xhr_polling", pod.running.public, "session");
    let mut heard = page.listen(pod.running.public);
    heard.socket().await;

    let http = once();
    let path = "/pusher/app/key1/7/session/xhr_send";
    let handed = |nonce: u128| RelayHeader {
        hops: 1,
        target: pod.running.process.clone(),
        time_ms: clock::now_ms(),
        nonce,
        number: nonce,
        body: relay::hash_body(b"[]"),
        client: "192.0.2.1".parse().expect("an address"),
    };
    let at = async |address: SocketAddr, path: &str, handed: &RelayHeader, secret: &str, body: &'static str| {
        let text = handed.encode();
        let signature =
            relay::sign_request(&Secret::new(secret), RelayedRequest { method: "POST", path, query: "" }, &text);
        let request = http
            .post(format!("http://{address}{path}"))
            .header(RELAY_HEADER, text)
            .header(RELAY_SIGNATURE_HEADER, signature);
        let answer = request.body(body).send().await.expect("an answer");
        let refused = answer.headers().get(REFUSAL_HEADER).map(|word| word.to_str().expect("text").to_owned());
        (answer.status().as_u16(), refused.unwrap_or_default())
    };
    let refused = |status: u16, reason: &str| (status, reason.to_owned());

    assert_eq!(at(peer, path, &handed(1), SECRET, "[]").await, refused(204, ""), "as an edge would");
    assert_eq!(at(peer, path, &handed(1), SECRET, "[]").await, refused(403, "replayed"));
    assert_eq!(at(peer, path, &handed(2), "guessed", "[]").await, refused(403, "forged"));
    assert_eq!(at(peer, path, &handed(3), SECRET, "[\"x\"]").await, refused(403, "forged"), "another body");
    let old = RelayHeader { time_ms: clock::now_ms() - 31_000, ..handed(4) };
    assert_eq!(at(peer, path, &old, SECRET, "[]").await, refused(403, "expired"));
    let text = old.encode();
    let request = RelayedRequest { method: "POST", path, query: "" };
    let signature = relay::sign_request(&Secret::new(SECRET), request, &text);
    let request = http.post(format!("http://{peer}{path}")).header(RELAY_HEADER, text);
    let answer = request.header(RELAY_SIGNATURE_HEADER, signature).body("[]").send().await.expect("an answer");
    let clock: u64 = answer.headers()[relay::CLOCK_HEADER].to_str().expect("text").parse().expect("a time");
    assert!(clock.abs_diff(clock::now_ms()) < 10_000, "the owner names its time");
    let twice = RelayHeader { hops: 2, ..handed(5) };
    assert_eq!(at(peer, path, &twice, SECRET, "[]").await, refused(403, "two_hops"));
    assert_eq!(at(pods.peers[1], path, &handed(6), SECRET, "[]").await, refused(421, "wrong_target"));
    for (nonce, elsewhere) in
        (7..).zip(["/apps/1/events", "/pusher/info", "/metrics", "/app/key1", "/pusher/websocket"])
    {
        let found = at(peer, elsewhere, &handed(nonce), SECRET, "[]").await;
        assert_eq!(found, refused(404, "not_a_session"), "{elsewhere}");
    }
    let nobodys = "/pusher/app/key1/7/nobody/xhr";
    assert_eq!(at(peer, nobodys, &handed(20), SECRET, "[]").await, refused(404, "unknown"), "nothing is opened for it");
    let bare = http.post(format!("http://{peer}{path}")).body("[]").send().await.expect("an answer");
    assert_eq!(bare.status(), StatusCode::FORBIDDEN);
    // Where clients come in, nobody is believed: what is said there is not heard, and the request is one like any other.
    let public = at(pod.running.public, nobodys, &handed(21), SECRET, "[]").await;
    assert_eq!(public, refused(200, ""));
    let answer = http.post(format!("http://{}{nobodys}?protocol=7", pods.entry)).send().await.expect("an answer");
    assert!(answer.status().is_success(), "a session was opened for a client, as for any other");

    for (reason, count) in
        [("forged", 3), ("replayed", 1), ("expired", 2), ("two_hops", 1), ("not_a_session", 5), ("public_port", 1)]
    {
        let metric = format!("realtime_edge_relay_refusals_total{{reason=\"{reason}\"}}");
        assert_eq!(pod.metric(&metric).await, count, "{reason}");
    }
    let wrong = "realtime_edge_relay_refusals_total{reason=\"wrong_target\"}";
    assert_eq!(pods.pods[1].metric(wrong).await, 1);
}

/// Three processes, of which one is killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_a_killed_owner_is_closed_within_two_seconds_and_reconnects() {
    let redis = Redis::start().await;
    let (mut servers, mut public, _apps) = start_processes(&redis).await;
    let owner = public.remove(0);
    let entry = round_robin(public.clone()).await;
    let streaming = Page::new("xhr_streaming", entry, "streaming");
    let polling = Page::new("xhr_polling", entry, "polling");
    let mut heard = [streaming.listen(owner), polling.listen(owner)];
    for heard in &mut heard {
        heard.socket().await;
    }
    // Until both receive through another edge.
    for page in [&streaming, &polling] {
        assert_eq!(page.send(&json!({ "event": "pusher:ping", "data": {} })).await, StatusCode::NO_CONTENT);
    }
    for heard in &mut heard {
        assert_eq!(heard.message().await["event"], "pusher:pong");
        heard.wait_until_reopened().await;
    }
    sleep(Duration::from_millis(300)).await;
    let killing = Instant::now();
    drop(servers.remove(0));
    let killed = Instant::now();
    for (heard, page) in heard.iter_mut().zip([&streaming, &polling]) {
        let end = loop {
            match heard.frame().await {
                FallbackFrame::Heartbeat => {}
                frame => break frame,
            }
        };
        assert!(matches!(end, FallbackFrame::Close(4200, _)), "{}: {end:?}", page.transport);
        // Or it could reach the dying process, whose listener the kernel closes last.
        assert!(killing.elapsed() >= Duration::from_millis(250), "{}: {:?}", page.transport, killing.elapsed());
        // As pusher-js does then: at once, and as a new session.
        let again = Page::new(page.transport, entry, &format!("again{}", page.transport));
        again.listen(public[0]).socket().await;
        assert!(killed.elapsed() < Duration::from_secs(2), "{}: {:?}", page.transport, killed.elapsed());
    }
}
