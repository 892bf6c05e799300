//! The connection log of an edge, read by `realtime tail` and from `/tail`.

use super::*;
use crate::resources::{LoggedProgram, command_bound_to_test};

/// Starts `realtime tail` at an edge, and waits until it follows.
async fn start_tail(edge: &Edge, arguments: &[&str]) -> LoggedProgram {
    let address = edge.running.admin.to_string();
    let mut command = command_bound_to_test(env!("CARGO_BIN_EXE_realtime"));
    command.args(["tail", "--address", &address, "-o", "json"]).args(arguments).env_clear();
    command.env("REALTIME_ADMIN_TOKEN", TOKEN);
    let mut program = LoggedProgram::spawn("`realtime tail`", &mut command);
    program.wait_until_ready(|log| log.contains("realtime: following").then_some(())).await.expect("it follows");
    program
}

/// The entries that were printed.
fn entries(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn a_reader_follows_one_app_from_its_connects_to_its_closes() {
    let edge = alone("edge").await;
    let mut tail = start_tail(&edge, &["--app", "1"]).await;
    let mut all = start_tail(&edge, &[]).await;
    let mut stranger = Ws::open(edge.running.public, "/app/nobody?protocol=7").await;
    stranger.expect("pusher:error").await;
    let mut disabled = Ws::open(edge.running.public, "/app/key2?protocol=7").await;
    disabled.expect("pusher:error").await;

    let mut ws = edge.websocket().await;
    ws.subscribe("private-room", None).await;
    ws.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "private-other", "auth": "key1:bad" } })).await;
    ws.expect("pusher:error").await;
    let mut old = Ws::open(edge.running.public, "/app/key1?protocol=1").await;
    old.expect("pusher:error").await;
    ws.socket.close(None).await.expect("closed");

    let seen = eventually(
        "the close in the log",
        async || entries(&tail.log()),
        |seen| seen.iter().any(|entry| entry["event"] == "closed"),
    )
    .await;
    let words: Vec<_> = seen
        .iter()
        .map(|entry| [&entry["app"], &entry["event"], &entry["channel"], &entry["reason"]].map(|field| field.as_str()))
        .collect();
    assert_eq!(
        words,
        [
            [Some("1"), Some("opened"), None, None],
            [Some("1"), Some("subscribed"), Some("private-room"), None],
            [Some("1"), Some("error"), Some("private-other"), Some("signature")],
            [Some("1"), Some("refused"), None, Some("protocol")],
            [Some("1"), Some("closed"), None, None],
        ]
    );
    assert_eq!(seen[0]["address"], "127.0.0.1");
    assert_eq!((seen[0]["socket"].as_str(), seen[1]["socket"].as_str()), (Some(&*ws.id), Some(&*ws.id)));
    assert_eq!(seen[0]["transport"], "websocket");

    let seen = eventually(
        "the close in the other log",
        async || entries(&all.log()),
        |seen| seen.iter().any(|entry| entry["event"] == "closed"),
    )
    .await;
    let refused: Vec<_> = seen.iter().filter(|entry| entry["event"] == "refused").collect();
    assert_eq!((&refused[0]["reason"], &refused[0]["app"]), (&json!("app_unknown"), &Value::Null));
    assert_eq!((&refused[1]["reason"], &refused[1]["app"]), (&json!("app_disabled"), &json!("2")));

    // The end of the edge ends its readers.
    edge.stop().await;
    for program in [&mut tail, &mut all] {
        let code = program.wait_ended().await.code();
        assert_eq!(code, Some(0), "{}", program.log());
    }
}

#[tokio::test]
async fn the_log_needs_the_token_a_known_query_and_a_place() {
    let edge = alone("websocket").await;
    let without = edge.http.get(format!("http://{}/tail", edge.running.admin)).send().await.expect("an answer");
    assert_eq!(without.status(), 401);
    let unknown = edge.admin("/tail?apps=1").await;
    assert_eq!(unknown.status(), 400);
    assert!(unknown.text().await.expect("a text").contains("`apps` is no parameter"));
    let mut readers = Vec::new();
    for _ in 0..8 {
        let reader = edge.admin("/tail").await;
        assert_eq!(reader.status(), 200);
        readers.push(reader);
    }
    assert_eq!(edge.admin("/tail").await.status(), 429);
    drop(readers);
    eventually("a free place", async || edge.admin("/tail").await.status().as_u16(), |status| *status == 200).await;
    edge.stop().await;
}
