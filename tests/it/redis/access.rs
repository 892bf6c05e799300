//! TLS, users and settings of Redis: each fault is reported with its remedy.

use fred::interfaces::{ConfigInterface, KeysInterface};

use super::crash::a_process_dies;
use super::server::store_arguments;
use super::*;
use crate::certificates::Authority;

/// A server that shows a certificate for these names, and its port with TLS.
async fn start_server(authority: &Authority, names: &str) -> (Redis, u16) {
    let files = tempfile::tempdir().expect("a directory");
    let (certificate, key) = authority.sign(files.path(), "redis", names);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let (redis, [_, tls_port]) = Redis::start_with_ports(files, |[port, tls_port]: [u16; 2]| {
        let tls_port = tls_port.to_string();
        let tls = ["--tls-port", &tls_port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        store_arguments(port, &[&tls[..], &["--tls-auth-clients", "no", "--appendonly", "no"]].concat())
    })
    .await;
    (redis, tls_port)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_if_a_trusted_authority_signed_its_certificate() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (_redis, port) = start_server(&authority, "DNS:localhost,IP:127.0.0.1").await;
    let (_elsewhere, other_port) = start_server(&authority, "DNS:redis.example").await;
    let (text, others) = (authority.text(), other.text());
    let url = format!("rediss://localhost:{port}");
    // As a bundle, of which only one is needed.
    let both = format!("{others}{text}");
    let address = RedisAddress { url: &url, authorities: Some(&both) };
    let start = |process: &str| RedisBus::start(address, "uid-1", process, TIMING, CancellationToken::new());
    let (one, two) = (start("p1").expect("a bus"), start("p2").expect("a bus"));
    wait_until_available(&one).await;
    wait_until_available(&two).await;
    let (room, mut heard) = (subject("room"), two.take_incoming_frames().expect("an outlet"));
    one.join_channel(&room, &"1.1".into(), None).await.expect("joined");
    assert_eq!(two.inspect_channel(&room).await.map(|seen| seen.connections), Ok(1));
    let message = BroadcastFrame::new(room, "hello");
    let arrives = async {
        // The other may not listen yet.
        loop {
            one.publish_frame(message.clone()).await.expect("published");
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_millis(200), heard.recv()).await {
                break found;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_TIMEOUT, arrives).await.expect("a frame arrives over TLS in time");
    assert_eq!(found.frame, "hello");

    let elsewhere = format!("rediss://127.0.0.1:{other_port}");
    for (name, url, authorities, says) in [
        ("no authority of its own", &url, None, "caSecretRef"),
        ("another's", &url, Some(&others), "caSecretRef"),
        ("another name", &elsewhere, Some(&text), "it is for another name"),
    ] {
        let address = RedisAddress { url, authorities: authorities.map(String::as_str) };
        let refused = RedisBus::connect(address, "uid-1", "p3", CancellationToken::new()).await.err();
        let Some(BusError::Unusable(reason)) = refused else { panic!("{name}: {refused:?}") };
        assert!(reason.contains(says), "{name}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_user_with_the_documented_rights_suffices_and_a_denied_one_ends_the_start_with_the_reason() {
    let docs = include_str!("../../../docs/bus.md");
    let line = docs.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).expect("the rights are documented");
    let mut user: Vec<&str> = vec!["--user"];
    user.extend(line.split(' ').map(|word| if word == ">PASSWORD" { ">right" } else { word }));
    let options = [&["--appendonly", "no", "--requirepass", "other"], &user[..]].concat();
    let redis = Redis::start_with(tempfile::tempdir().expect("a directory"), &options).await;
    let url = |user: &str| format!("redis://{user}127.0.0.1:{}", redis.port);
    a_process_dies(&url("edge:right@")).await;
    for (user, says) in [("edge:wrong@", "this password"), ("", "wants a password")] {
        let refused = RedisBus::connect(&url(user), "uid-1", "p3", CancellationToken::new()).await.err();
        let Some(BusError::Unusable(reason)) = refused else { panic!("{user}: {refused:?}") };
        assert!(reason.contains(says), "{user}: {reason}");
    }
}

#[tokio::test]
async fn a_redis_that_evicts_keys_is_refused_at_the_start() {
    let redis = Redis::start().await;
    let bus = redis.bus("p1").await;
    let raw = redis.client().await;
    for (name, value) in [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru")] {
        raw.config_set(name, value).await.expect("set");
    }
    let error = RedisBus::connect(&redis.url(), "uid-1", "p2", CancellationToken::new()).await.err().expect("refused");
    assert!(matches!(&error, BusError::Unusable(reason) if reason.contains("noeviction")), "{error}");
    assert!(bus.is_available(), "a connected bus goes on");
}

#[tokio::test]
async fn a_key_of_another_type_and_a_full_redis_are_reported_and_lose_nothing() {
    let redis = Redis::start().await;
    let (bus, room, socket) = (redis.bus("p1").await, subject("room"), SocketId::from("1.1"));
    let raw = redis.client().await;
    raw.set::<(), _, _>("rt:{uid-1:1:room}:sockets", "foreign", None, None, false).await.expect("set");
    let error = bus.join_channel(&room, &socket, None).await.expect_err("refused").to_string();
    assert!(error.contains("a Redis of its own"), "{error}");
    let mut decided = bus.take_remote_transitions().expect("an outlet");
    raw.del::<(), _>("rt:{uid-1:1:room}:sockets").await.expect("removed");
    let found = collect_remote_transitions(&mut decided, 1).await;
    assert_eq!((&found[0].0, found[0].1.kind.name()), (&room, "channel_occupied"), "once the key has gone");
    raw.config_set("maxmemory", "1mb").await.expect("set");
    let error = bus.join_channel(&subject("other"), &socket, None).await.expect_err("refused").to_string();
    assert!(error.contains("Redis is full"), "{error}");
    raw.config_set("maxmemory", "0").await.expect("set");
    let found = collect_remote_transitions(&mut decided, 1).await;
    assert_eq!((found[0].0.channel.as_str(), found[0].1.kind.name()), ("other", "channel_occupied"));
}
