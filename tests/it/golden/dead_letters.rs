//! The letters in the dead-letter stream.

use realtime_operator::protocol::dead_letter::{DEAD_LETTER_VERSION, DeadLetter, LetterSource, RawContent};
use realtime_operator::protocol::webhook::WebhookEvent;

use super::{channel, events, golden, read_golden};

#[test]
fn dead_letters() {
    let source = LetterSource {
        stream: "rtc-channels-eu-1a2b3c".into(),
        shard: "shardId-000000000000".into(),
        sequence: "49".to_owned(),
    };
    let lost = |reason: &str| DeadLetter {
        v: DEAD_LETTER_VERSION,
        reason: reason.to_owned(),
        detail: None,
        cluster: "5f0c".to_owned(),
        app: Some("1001".into()),
        endpoint: None,
        attempts: 0,
        last_answer: None,
        source: source.clone(),
        written_ms: 1_700_000_300_000,
        time_ms: None,
        event: None,
        raw: None,
    };
    let event = WebhookEvent::new(channel("presence-room"), events().swap_remove(0));
    let event = serde_json::value::to_raw_value(&event).expect("json");
    let with_event = |letter| DeadLetter { time_ms: Some(1_700_000_000_000), event: Some(event.clone()), ..letter };
    let letters = [
        DeadLetter {
            endpoint: Some("orders".to_owned()),
            attempts: 14,
            last_answer: Some("answered 503".to_owned()),
            ..with_event(lost("RetryWindowOver"))
        },
        with_event(lost("UnknownApp")),
        DeadLetter {
            app: None,
            detail: Some("expected value at line 1 column 1".to_owned()),
            raw: Some(RawContent::encode(b"\xf3\x89", 600_000)),
            ..lost("Poison")
        },
    ];
    let lines: Vec<String> =
        letters.into_iter().map(|letter| String::from_utf8(letter.to_bytes()).expect("text")).collect();
    golden("dead-letters.jsonl", &format!("{}\n", lines.join("\n")));
    for line in read_golden("dead-letters.jsonl").lines() {
        let letter = DeadLetter::parse(line.as_bytes()).expect("a committed line is readable");
        assert_eq!(letter.to_bytes(), line.as_bytes(), "and is written as it was read");
    }
}
