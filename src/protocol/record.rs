//! The Kinesis record: one JSON envelope with the events of one channel.
//!
//! Kinesis does not order the puts of several pods, so state events carry the (epoch, seq) that the bus assigned when
//! it decided them; other events carry a number of their process.

use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::{EventFields, MissingField};
use super::{AppId, ChannelName};

pub use super::event::{EventKind, EventOrder, EventTopic, LeaveCause};

/// The version that this release writes and the newest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// Longest partition key that Kinesis accepts, in characters (API reference, `PutRecordsRequestEntry`).
const PARTITION_KEY_MAX_LEN: usize = 256;

/// One record of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// Version of the envelope's form.
    pub v: u32,
    /// The app that the events belong to.
    pub app: AppId,
    /// The channel that the events belong to.
    pub channel: ChannelName,
    /// The process that wrote the record.
    pub edge: RecordOrigin,
    /// The events, oldest first.
    pub events: Vec<RecordedEvent>,
}

/// The process that wrote a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordOrigin {
    /// UID of the cluster; a record of another cluster is never delivered.
    pub cluster: String,
    /// The kind of server, as its name.
    pub server: String,
    /// Name of the writing pod.
    pub pod: String,
    /// The process's id, new at each start.
    pub process: String,
}

/// One event in a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "EventFields")]
pub struct RecordedEvent {
    /// A ULID that the event keeps through every retry.
    pub id: String,
    /// Time at which the event was decided, in ms since 1970.
    pub time_ms: u64,
    /// Position among the channel's state events; absent for other events.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub order: Option<EventOrder>,
    /// Its number within the process, for events without `order`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The cause, if the client did not leave by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<LeaveCause>,
    /// The kind of event, with its fields.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl TryFrom<EventFields> for RecordedEvent {
    type Error = MissingField;

    fn try_from(mut fields: EventFields) -> Result<Self, MissingField> {
        let kind = fields.take_kind()?;
        let time_ms = fields.time_ms.ok_or(MissingField("time_ms"))?;
        Ok(Self { time_ms, order: fields.order(), n: fields.n, cause: fields.cause, kind, id: fields.id })
    }
}

/// The reason why a record cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer release wrote it: wait for an upgrade, never drop it.
    #[error("the record has version {0}, this release reads up to {RECORD_VERSION}: upgrade the dispatcher")]
    TooNew(u32),
    /// The bytes are not one of our records.
    #[error("not a record of ours: {0}")]
    Malformed(String),
}

impl StreamRecord {
    /// Encodes the record for the stream.
    ///
    /// # Errors
    /// Never for values of this type; the library's signature has one.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Parses a record's bytes.
    ///
    /// # Errors
    /// A newer version, which must wait, or bytes that are no record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct VersionField {
            v: u32,
        }
        let parsed = serde_json::from_slice::<Self>(bytes);
        // A newer version need not have the form of this one.
        let version = match &parsed {
            Ok(record) => Some(record.v),
            Err(_) => serde_json::from_slice::<VersionField>(bytes).ok().map(|field| field.v),
        };
        match version {
            Some(v) if v > RECORD_VERSION => Err(RecordError::TooNew(v)),
            _ => parsed.map_err(|error| RecordError::Malformed(error.to_string())),
        }
    }
}

/// Encodes a record from events that are JSON already; the bytes are those of [`StreamRecord::to_bytes`].
///
/// # Errors
/// Never for values of these types; the library's signature has one.
pub fn encode_record<E: AsRef<[u8]>>(
    app: &AppId,
    channel: &ChannelName,
    edge: &RecordOrigin,
    events: &[E],
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        v: u32,
        app: &'a AppId,
        channel: &'a ChannelName,
        edge: &'a RecordOrigin,
        events: [(); 0],
    }
    let mut bytes = serde_json::to_vec(&Envelope { v: RECORD_VERSION, app, channel, edge, events: [] })?;
    // The list is last: `]}` goes behind the events.
    bytes.truncate(bytes.len() - 2);
    bytes.reserve(events.iter().map(|event| event.as_ref().len() + 1).sum::<usize>() + 2);
    for (n, event) in events.iter().enumerate() {
        if n > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(event.as_ref());
    }
    bytes.extend_from_slice(b"]}");
    Ok(bytes)
}

/// The partition key of a channel: `app_id/channel`, or its hash if that is too long for Kinesis.
#[must_use]
pub fn partition_key(app: &AppId, channel: &ChannelName) -> String {
    let key = format!("{app}/{channel}");
    if key.chars().count() <= PARTITION_KEY_MAX_LEN { key } else { hex::encode(Sha256::digest(key.as_bytes())) }
}

/// The hash key of a partition key: its MD5 as a number, which lies in one shard's range.
#[must_use]
pub fn hash_key(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn record(events: Vec<RecordedEvent>) -> StreamRecord {
        StreamRecord {
            v: RECORD_VERSION,
            app: "1001".into(),
            channel: ChannelName::parse("presence-a").expect("a valid name"),
            edge: RecordOrigin { cluster: "u".into(), server: "sockjs".into(), pod: "p".into(), process: "b".into() },
            events,
        }
    }

    #[test]
    fn the_envelope_has_the_documented_form() {
        let joined = RecordedEvent {
            id: "01A".into(),
            time_ms: 5,
            order: Some(EventOrder { epoch: 9, seq: 1 }),
            n: None,
            cause: None,
            kind: EventKind::MemberAdded { user_id: "7".into() },
        };
        let value = serde_json::to_value(record(vec![joined])).expect("json");
        assert_eq!(
            value["events"],
            json!([{ "id": "01A", "time_ms": 5, "epoch": 9, "seq": 1, "name": "member_added", "user_id": "7" }])
        );
        assert_eq!(value["edge"], json!({ "cluster": "u", "server": "sockjs", "pod": "p", "process": "b" }));
    }

    #[test]
    fn records_round_trip() {
        let client_event = RecordedEvent {
            id: "01B".into(),
            time_ms: 6,
            order: None,
            n: Some(3),
            cause: None,
            kind: EventKind::ClientEvent {
                event: "client-a".into(),
                data: "{}".into(),
                socket_id: "1.2".into(),
                user_id: None,
            },
        };
        let left = RecordedEvent {
            id: "01C".into(),
            time_ms: 7,
            order: Some(EventOrder { epoch: 1, seq: 2 }),
            n: None,
            cause: Some(LeaveCause::Drain),
            kind: EventKind::ChannelVacated,
        };
        let other = |kind| RecordedEvent { id: "01D".into(), time_ms: 8, order: None, n: Some(4), cause: None, kind };
        let count = other(EventKind::SubscriptionCount { subscription_count: 3 });
        let record = record(vec![client_event, left, other(EventKind::CacheMiss), count]);
        let bytes = record.to_bytes().expect("bytes");
        for count in 0..=record.events.len() {
            let record = StreamRecord { events: record.events[..count].to_vec(), ..record.clone() };
            let events: Vec<_> = record.events.iter().map(|event| serde_json::to_vec(event).expect("json")).collect();
            let encoded = encode_record(&record.app, &record.channel, &record.edge, &events);
            assert_eq!(encoded.expect("bytes"), record.to_bytes().expect("bytes"));
        }
        assert_eq!(StreamRecord::parse(&bytes), Ok(record));
    }

    #[test]
    fn an_event_without_a_field_of_its_kind_is_refused_by_its_name() {
        for (text, missing) in [
            (r#"{"id":"1","name":"member_added","time_ms":1}"#, Some("user_id")),
            (r#"{"id":"1","name":"client_event","event":"e","data":"d","time_ms":1}"#, Some("socket_id")),
            (r#"{"id":"1","name":"subscription_count","time_ms":1}"#, Some("subscription_count")),
            (r#"{"id":"1","name":"cache_miss"}"#, Some("time_ms")),
            (r#"{"name":"cache_miss","time_ms":1}"#, Some("id")),
            (r#"{"id":"1","time_ms":1}"#, Some("name")),
            (r#"{"id":"1","name":"cache_miss","time_ms":1,"later":{"a":[1]}}"#, None),
        ] {
            let read = serde_json::from_str::<RecordedEvent>(text).map_err(|error| error.to_string());
            match missing {
                Some(field) => {
                    let error = read.expect_err(text);
                    assert!(error.contains(&format!("missing field `{field}`")), "{text}: {error}");
                }
                None => assert!(read.is_ok(), "{text}: {read:?}"),
            }
        }
        let unknown = serde_json::from_str::<RecordedEvent>(r#"{"id":"1","name":"later","time_ms":1}"#);
        assert!(unknown.expect_err("an unknown kind").to_string().contains("unknown variant `later`"));
    }

    #[test]
    fn half_of_an_order_is_none() {
        let read = |text| serde_json::from_str::<RecordedEvent>(text).map(|event| event.order).ok().flatten();
        assert_eq!(read(r#"{"id":"1","name":"channel_occupied","time_ms":1,"epoch":5}"#), None);
        let both = read(r#"{"id":"1","name":"channel_occupied","time_ms":1,"epoch":5,"seq":2}"#);
        assert_eq!(both, Some(EventOrder { epoch: 5, seq: 2 }));
    }

    #[test]
    fn a_newer_version_waits_and_a_broken_record_does_not() {
        assert_eq!(StreamRecord::parse(br#"{"v":2,"else":true}"#), Err(RecordError::TooNew(2)));
        for bad in [&b""[..], b"\xf3\x89\x9a\xc2", b"{}", br#"{"v":1}"#] {
            assert!(matches!(StreamRecord::parse(bad), Err(RecordError::Malformed(_))));
        }
    }

    #[test]
    fn long_keys_are_hashed() {
        let channel = ChannelName::parse(&"x".repeat(200)).expect("a valid name");
        assert_eq!(partition_key(&"1".into(), &channel).len(), 202);
        assert_eq!(partition_key(&"1".repeat(60).into(), &channel).len(), 64);
        assert_eq!(hash_key(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
    }

    proptest! {
        #[test]
        fn any_event_round_trips(
            texts in proptest::array::uniform4(any::<String>()),
            (time_ms, epoch, seq) in any::<(u64, u64, u64)>(),
            (ordered, drained, which) in (any::<bool>(), any::<bool>(), 0..7),
        ) {
            let [id, one, two, three] = texts;
            let kind = match which {
                0 => EventKind::ChannelOccupied,
                1 => EventKind::ChannelVacated,
                2 => EventKind::MemberAdded { user_id: one },
                3 => EventKind::MemberRemoved { user_id: one },
                4 => EventKind::ClientEvent { event: one, data: two, socket_id: three, user_id: drained.then(|| "7".into()) },
                5 => EventKind::CacheMiss,
                _ => EventKind::SubscriptionCount { subscription_count: seq },
            };
            let order = ordered.then_some(EventOrder { epoch, seq });
            let event = RecordedEvent { id, time_ms, order, n: (!ordered).then_some(seq), cause: drained.then_some(LeaveCause::Drain), kind };
            let record = record(vec![event]);
            prop_assert_eq!(StreamRecord::parse(&record.to_bytes().expect("bytes")), Ok(record));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(StreamRecord::parse(&bytes).is_err());
        }

        #[test]
        fn every_partition_key_is_accepted_by_the_stream(app in any::<String>(), name in "[a-z]{1,200}") {
            let channel = ChannelName::parse(&name).expect("a name");
            prop_assert!(partition_key(&app.into(), &channel).chars().count() <= PARTITION_KEY_MAX_LEN);
        }
    }
}
