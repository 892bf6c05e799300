//! Two clusters that share a Redis, with the same apps and channels: neither hears of the other.

use super::relay::{Cluster, Page, SECRET, fast};
use super::*;
use crate::redis::server::Redis;

const USER: &str = "7";

impl Edge {
    /// A request of the app's backend that succeeds.
    pub(super) async fn backend(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = self.request(method, path, body).await;
        assert_eq!(answer.status(), 200, "{path}");
        serde_json::from_str(&answer.text().await.expect("a text")).expect("json")
    }

    /// A request of the app's backend.
    pub(super) async fn request(&self, method: &str, path: &str, body: &str) -> reqwest::Response {
        let path = format!("/apps/1{path}");
        let now = realtime_operator::process::clock::now_ms() / 1000;
        let query = rest::signed_query("key1", &Secret::new("secret1"), (method, &path), body.as_bytes(), now);
        let url = url::Url::parse_with_params(&self.url(&path), query).expect("a url");
        let method = method.parse().expect("a method");
        self.http.request(method, url).body(body.to_owned()).send().await.expect("an answer")
    }

    pub(super) async fn signed_in(&self) -> Ws {
        let mut ws = self.websocket().await;
        let data = json!({ "id": USER }).to_string();
        let message = signature::user_message(&ws.id, &data);
        let auth = format!("key1:{}", signature::sign_message(&Secret::new("secret1"), message.as_bytes()));
        ws.send(&json!({ "event": "pusher:signin", "data": { "auth": auth, "user_data": data } })).await;
        ws.expect("pusher:signin_success").await;
        let own = json!({ "channel": format!("#server-to-user-{USER}") });
        ws.send(&json!({ "event": "pusher:subscribe", "data": own })).await;
        ws.expect(SUBSCRIBED).await;
        ws
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_on_one_redis_do_not_hear_of_each_other() {
    let redis = Redis::start().await;
    let url = redis.url();
    // A younger store is not believed yet.
    redis.aged(6).await;
    // The first has two pods, so that what must not cross is seen to arrive where it should.
    let (ours, theirs) = tokio::join!(
        Cluster::with(&url, ("uid-1".into(), "edge"), &[SECRET; 2]),
        Cluster::with(&url, ("uid-2".into(), "edge"), &[SECRET; 1]),
    );
    let (one, two, stranger) = (&ours.pods[0], &ours.pods[1], &theirs.pods[0]);
    assert_eq!(fast().id.as_str(), "1", "all have the same app");

    // Occupancy and presence.
    let (mut here, mut there, mut strange) = (one.websocket().await, two.websocket().await, stranger.websocket().await);
    here.subscribe("presence-room", Some("here")).await;
    let roster = there.subscribe("presence-room", Some("there")).await;
    assert_eq!(roster["presence"]["count"], 2);
    here.expect("pusher_internal:member_added").await;
    let roster = strange.subscribe("presence-room", Some("strange")).await;
    assert_eq!(roster["presence"]["ids"], json!(["strange"]));
    here.subscribe("only-ours", None).await;
    let channels = |answer: &Value| {
        let mut names: Vec<String> = answer["channels"].as_object().expect("channels").keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(channels(&two.backend("GET", "/channels", "").await), ["only-ours", "presence-room"]);
    assert_eq!(channels(&stranger.backend("GET", "/channels", "").await), ["presence-room"]);
    let users = stranger.backend("GET", "/channels/presence-room/users", "").await;
    assert_eq!(users["users"], json!([{ "id": "strange" }]));

    // Frames.
    assert_eq!(two.publish("1", &json!({ "name": "e", "channel": "presence-room", "data": "x" })).await.status(), 200);
    here.expect("e").await;
    // The other member may be announced before it.
    while there.next().await.event != "e" {}
    strange.still_serves().await;

    // Events of a user, and the end of its connections.
    let (mut mine, mut not_mine) = (one.signed_in().await, stranger.signed_in().await);
    let event = json!({ "name": "greeting", "channels": ["#server-to-user-7"], "data": "x" });
    two.backend("POST", "/events", &event.to_string()).await;
    mine.expect("greeting").await;
    not_mine.still_serves().await;
    two.backend("POST", "/users/7/terminate_connections", "").await;
    mine.expect("pusher:error").await;
    assert_eq!(mine.closed().await, 4009);
    not_mine.still_serves().await;
    strange.still_serves().await;

    // Sessions: the same id is another's in the other cluster.
    let page = Page::new("xhr_polling", one.running.public, "session");
    let other = Page::new("xhr_polling", stranger.running.public, "session");
    let (mut first, mut second) = (page.listen(two.running.public), other.listen(stranger.running.public));
    let (socket, others) = (first.socket().await, second.socket().await);
    assert_ne!(socket, others);
    for (page, heard) in [(&page, &mut first), (&other, &mut second)] {
        assert_eq!(page.send(&json!({ "event": "pusher:ping", "data": {} })).await, 204);
        assert_eq!(heard.message().await["event"], "pusher:pong");
    }
    assert!(ours.sum("realtime_edge_requests_relayed_total").await > 0, "within a cluster it is handed on");
    assert_eq!(theirs.sum("realtime_edge_requests_relayed_total").await, 0);

    // Every edge stands still for longer than its lease.
    stop_runtime(Duration::from_secs(12)).await;

    // A client that leaves is announced in its own cluster only.
    here.socket.close(None).await.expect("closed");
    there.expect("pusher_internal:member_removed").await;
    strange.still_serves().await;
    assert_eq!(channels(&stranger.backend("GET", "/channels", "").await), ["presence-room"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_counts_the_leases_that_it_lost() {
    let redis = Redis::start().await;
    let cluster = Cluster::with(&redis.url(), ("uid-1".into(), "edge"), &[SECRET; 1]).await;
    let lost = async || cluster.sum("realtime_edge_bus_leases_lost_total").await;
    assert_eq!(lost().await, 0);
    // As if the process had been silent for long.
    redis.command(&["zadd", "rt:{uid-1}:leases", "1", "p0"]);
    eventually("the count of a lost lease", &lost, |lost| *lost == 1).await;
}

/// Stops every worker of the runtime, and so every edge of this test, at the same time.
async fn stop_runtime(duration: Duration) {
    let workers = tokio::runtime::Handle::current().metrics().num_workers();
    let all_stopped = Arc::new(std::sync::Barrier::new(workers));
    let stopped: Vec<_> = (0..workers)
        .map(|_| {
            let all_stopped = all_stopped.clone();
            tokio::spawn(async move {
                all_stopped.wait();
                std::thread::sleep(duration);
            })
        })
        .collect();
    for task in stopped {
        task.await.expect("stopped");
    }
}
