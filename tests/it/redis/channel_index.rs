//! The indexes from which the channels of an app are listed.

use super::*;

/// So long that the process keeps its name on a busy machine.
const STEADY_TIMING: BusTiming = BusTiming {
    lease_ttl: Duration::from_secs(30),
    renew_interval: Duration::from_millis(200),
    settling_period: Duration::from_millis(100),
    sweep_grace: Duration::from_mins(1),
};

const MARK: &str = "rt:{uid-1:p1}:indexed";

const INDEX_OF_APP: &str = "rt:{uid-1:p1}:channels:1";

/// Channels of another app, ten times what one scan of an index returns.
const FOREIGN_CHANNELS: &str = "for n = 1, 10000 do redis.call('sadd', KEYS[1], '2/room-' .. n) end";

/// The channels of app 1, and the scans that the list needs.
async fn list(redis: &Redis, bus: &RedisBus) -> (Vec<String>, u64) {
    redis.command(&["config", "resetstat"]);
    let channels = bus.list_channels(&"1".into(), "").await.expect("channels");
    let stats = redis.command(&["info", "commandstats"]);
    let scans = stats.split_once("cmdstat_sscan:calls=").and_then(|(_, rest)| rest.split(',').next());
    (
        channels.into_iter().map(|(name, _)| name.to_string()).collect(),
        scans.map_or(0, |n| n.parse().expect("a number")),
    )
}

#[tokio::test]
async fn the_channels_of_an_app_are_listed_without_a_look_at_those_of_others() {
    let redis = Redis::start().await;
    let bus = RedisBus::start(&redis.url(), "uid-1", "p1", STEADY_TIMING, CancellationToken::new()).expect("a bus");
    // Transitions of joins before the bus has settled come from here.
    let mut decided = bus.take_remote_transitions().expect("an outlet");
    tokio::spawn(async move {
        while let Some(found) = decided.recv().await {
            found.transitions.acknowledge_all();
        }
    });
    wait_until_available(&bus).await;
    redis.answers_with(&["exists", MARK], "1").await;
    let socket = SocketId::from_random(1, 1);
    let own = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("ann").expect("a name") };
    for subject in [&subject("room"), &subject("news"), &own] {
        bus.join_channel(subject, &socket, None).await.expect("joined").transitions.acknowledge_all();
    }
    redis.command(&["eval", FOREIGN_CHANNELS, "1", "rt:{uid-1:p1}:channels"]);
    assert_eq!(list(&redis, &bus).await, (vec!["news".to_owned(), "room".to_owned()], 1));
    assert_eq!(redis.command(&["scard", INDEX_OF_APP]).trim(), "2", "users that signed in are not listed");
    let ttl: u64 = redis.command(&["ttl", INDEX_OF_APP]).trim().parse().expect("an expiry");
    let mark_ttl: u64 = redis.command(&["ttl", MARK]).trim().parse().expect("an expiry");
    assert!(mark_ttl + 600 < ttl, "the mark expires before the index: {mark_ttl} s and {ttl} s");

    bus.leave_channel(&subject("news"), &socket, None).await.expect("left").acknowledge_all();
    let members = async || redis.command(&["smembers", INDEX_OF_APP]).trim().to_owned();
    eventually("the index without the channel", members, |members| members == "room").await;

    // As a process of release 0.1.0 is.
    redis.command(&["del", MARK, INDEX_OF_APP]);
    let (channels, scans) = list(&redis, &bus).await;
    assert!(channels == ["room"] && scans >= 10, "{channels:?} in {scans} scans");
}

#[tokio::test]
async fn nothing_is_left_of_the_indexes_of_a_swept_process() {
    let redis = Redis::start().await;
    let death = CancellationToken::new();
    let (dying, one) = (redis.bus_until("p0", death.clone()).await, redis.bus("p1").await);
    for app in ["1", "2"] {
        let room = ChannelKey { app: app.into(), ..subject("room") };
        dying.join_channel(&room, &SocketId::from_random(1, 1), None).await.expect("joined");
    }
    assert_eq!(list(&redis, &one).await.0, ["room"]);
    death.cancel();
    let left = async || redis.command(&["keys", "rt:{uid-1:p0*"]).trim().to_owned();
    eventually("no key of the dead process", left, String::is_empty).await;
    assert_eq!(list(&redis, &one).await.0, [""; 0]);
}
