//! Keys that a bus stores in Redis, and frames that it sends through it.

use super::*;

/// Replaces values that differ from run to run: times of the store and values derived from them.
fn normalise(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in text.chars().chain(std::iter::once('\n')) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out.push_str(if digits.len() >= 10 { "<N>" } else { &digits });
        digits.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn redis_cli(redis: &Redis, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &redis.port.to_string(), "--no-raw"]).args(arguments).output();
    String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
}

/// The lengths of the words of a text.
fn words(text: &str) -> String {
    text.split_whitespace().map(|word| format!("<{} characters>", word.len())).collect::<Vec<_>>().join(" ")
}

/// Every key with its type and content, times replaced.
fn dump(redis: &Redis) -> String {
    let keys = Command::new("redis-cli").args(["-p", &redis.port.to_string(), "--scan"]).output().expect("redis-cli");
    let mut keys: Vec<String> = String::from_utf8_lossy(&keys.stdout).lines().map(str::to_owned).collect();
    keys.sort();
    let mut text = String::new();
    for key in keys {
        let kind = redis_cli(redis, &["type", &key]).trim().to_owned();
        let content = match kind.as_str() {
            "hash" => redis_cli(redis, &["hgetall", &key]),
            "set" => redis_cli(redis, &["sort", &key, "alpha"]),
            "zset" => redis_cli(redis, &["zrange", &key, "0", "-1", "withscores"]),
            "list" => redis_cli(redis, &["lrange", &key, "0", "-1"]),
            // Random: the form is what counts.
            _ if key.ends_with("incarnation") => words(&redis_cli(redis, &["get", &key])),
            _ => redis_cli(redis, &["get", &key]),
        };
        let expires = redis_cli(redis, &["pttl", &key]).trim() != "(integer) -1";
        writeln!(text, "{key} {kind} expires={expires}\n{}", content.trim_end()).expect("written");
    }
    normalise(&text)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keys_and_frames() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let mut listener = command_bound_to_test("redis-cli")
        .args(["-p", &redis.port.to_string(), "--no-raw", "subscribe", "rt:uid-1:frames"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli");
    let timing = BusTiming {
        lease_ttl: Duration::from_secs(30),
        renew_interval: Duration::from_millis(200),
        settling_period: Duration::from_millis(100),
        sweep_grace: Duration::from_mins(1),
    };
    let bus = RedisBus::start(&redis.url(), "uid-1", "p1", timing, CancellationToken::new()).expect("a bus");
    let key = |name: &str| ChannelKey { app: "17".into(), channel: channel(name) };
    wait_until_available(&bus).await;
    redis.answers_with(&["exists", "rt:{uid-1:p1}:indexed"], "1").await;
    let (socket, member) = (
        SocketId::from("1.1"),
        PresenceMember { user_id: "user-1".into(), user_info: serde_json::json!({ "name": "\"é\"" }) },
    );
    bus.join_channel(&key("room"), &socket, None).await.expect("joined");
    bus.join_channel(&key("presence-room"), &socket, Some(&member)).await.expect("joined");
    bus.join_channel(&key("left"), &socket, None).await.expect("joined");
    let _unrecorded = bus.leave_channel(&key("left"), &socket, None).await.expect("left");
    let last = LastEvent { event: "greeting".into(), data: r#"{"n":1.0}"#.into() };
    bus.store_last_event(&key("cache-news"), &last, std::time::Duration::from_mins(30)).await.expect("kept");
    bus.claim_session("session-1", "p1").await.expect("owned");
    let peer = RelayPeer { process: "p1".into(), address: "10.0.0.1".parse().expect("an address") };
    bus.send_heartbeat(&peer).await.expect("registered");
    bus.report_lost_send("session-1", "p1").await.expect("lost");
    let message = |frame: &'static str, except: Option<SocketId>, ends: bool| BroadcastFrame {
        except,
        ends,
        ..BroadcastFrame::new(key("room"), frame)
    };
    let messages = [
        message(r#"{"event":"one"}"#, None, false),
        message(r#"{"event":"two"}"#, Some(socket.clone()), false),
        message(r#"{"event":"three"}"#, None, true),
    ];
    for message in messages.clone() {
        bus.publish_frame(message).await.expect("published");
    }
    // Published on the same connection as the frames before it, so that whoever hears it has heard them.
    let heard = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let output = std::io::BufReader::new(listener.stdout.take().expect("piped"));
        let mut lines = Vec::new();
        for line in output.lines() {
            let line = line.expect("text");
            let last = line.contains("three");
            lines.push(line);
            if last {
                break;
            }
        }
        let _ = listener.kill();
        let _ = listener.wait();
        lines.join("\n")
    });
    let heard = within(WAIT_TIMEOUT, "the third frame", heard).await.expect("frames");
    golden("redis.txt", &format!("{}\n== frames\n{}\n", dump(&redis), normalise(&heard)));

    let reader = RedisBus::start(&redis.url(), "uid-1", "p2", timing, CancellationToken::new()).expect("a bus");
    let mut incoming = reader.take_incoming_frames().expect("taken once");
    // Redis answers with the number of subscribers that received the bytes, which are no frame.
    let subscribers = async || redis.command(&["publish", "rt:uid-1:frames", "rubbish"]);
    eventually("both buses as subscribers", subscribers, |subscribers| subscribers.starts_with('2')).await;
    let committed = read_golden("redis.txt");
    // `redis-cli --no-raw` quotes what is in these frames as JSON does, but for letters beyond ASCII.
    let committed = committed.replace("\\xc3\\xa9", "é");
    let payloads = committed.lines().filter_map(|line| line.strip_prefix("3) ")).filter(|line| line.contains("from"));
    let payloads: Vec<String> = payloads.map(|line| serde_json::from_str(line).expect("a quoted text")).collect();
    // The first one was published by the script that decided the join.
    let added = frame::member_added(&channel("presence-room"), &member);
    let report = BroadcastFrame { except: Some(socket), ..BroadcastFrame::new(key("presence-room"), added) };
    let messages: Vec<_> = std::iter::once(report).chain(messages).collect();
    assert_eq!(payloads.len(), messages.len(), "{committed}");
    for (payload, message) in payloads.iter().zip(messages) {
        redis.command(&["publish", "rt:uid-1:frames", payload]);
        let read = within(WAIT_TIMEOUT, "a frame", incoming.recv()).await.expect("a frame");
        let fields = |frame: BroadcastFrame| (frame.subject, frame.frame, frame.except, frame.ends);
        assert_eq!(fields(read), fields(message), "a committed frame is read back");
    }
}
