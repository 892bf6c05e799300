//! Records of the stream, and the webhooks that they become.

use serde_json::Value;

use super::protocol::record::{RECORD_VERSION, RecordError, RecordedEvent, StreamRecord, hash_key, partition_key};
use super::protocol::webhook::{WebhookBody, WebhookEvent};

/// The bytes of a record, or of a webhook's body.
pub fn check(data: &[u8]) {
    match StreamRecord::parse(data) {
        Ok(record) => read(&record),
        Err(RecordError::TooNew(version)) => assert!(version > RECORD_VERSION),
        Err(RecordError::Malformed(_)) => {}
    }
    if let Ok(body) = serde_json::from_slice::<WebhookBody>(data) {
        again(&body);
    }
}

fn read(record: &StreamRecord) {
    let bytes = record.to_bytes().expect("bytes");
    assert_eq!(StreamRecord::parse(&bytes).as_ref(), Ok(record), "written and read again");
    let key = partition_key(&record.app, &record.channel);
    assert!(key.chars().count() <= 256, "a key that Kinesis takes: {key}");
    assert_eq!(hash_key(&key), hash_key(&partition_key(&record.app, &record.channel)));
    let event = |event: &RecordedEvent| WebhookEvent::new(record.channel.clone(), event.clone());
    let events = record.events.iter().map(event).collect();
    again(&WebhookBody { time_ms: 1, events });
}

fn again(body: &WebhookBody) {
    let value = serde_json::to_value(body).expect("json");
    for event in value["events"].as_array().expect("events") {
        let fields = event.as_object().expect("an object");
        assert!(fields.values().all(|field| field.is_string() || field.is_number()), "as SDKs read them: {event}");
        assert!(["name", "channel", "id"].iter().all(|name| fields.get(*name).is_some_and(Value::is_string)));
    }
    assert_eq!(serde_json::from_value::<WebhookBody>(value).ok().as_ref(), Some(body), "written and read again");
}
