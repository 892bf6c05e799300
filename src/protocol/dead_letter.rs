//! The dead letter: one event that an endpoint did not get, or one record that could not be read, with the reason.
//!
//! A letter is a Kinesis record of its own, JSON, below [`LETTER_BYTES_MAX`]. An event is written as its endpoint would
//! have received it; the bytes of a record that is not an event of this cluster are written in base64, cut to
//! [`RAW_BYTES_MAX`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::webhook::WebhookEvent;
use super::{AppId, ShardId, StreamName};

/// The version that this release writes and the newest that it reads.
pub const DEAD_LETTER_VERSION: u32 = 1;
/// Bounds the bytes of a record or an event in a letter; in base64 they are a third more.
pub const RAW_BYTES_MAX: usize = 512 * 1024;
/// Bounds the bytes of an encoded letter, so that a stream with the smallest record size of Kinesis, 1 MiB, takes it.
pub const LETTER_BYTES_MAX: usize = 700 * 1024;
/// Bounds the texts of a letter that outside parties decide: names, answers and descriptions.
const TEXT_LEN_MAX: usize = 1_024;

/// A letter with one lost event or record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Version of the letter's form.
    pub v: u32,
    /// The reason, as in `/flow`, such as `RetryWindowOver`.
    pub reason: String,
    /// The reason in more words: the parser's error, or the cluster of a foreign record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// UID of the cluster whose dispatcher wrote the letter.
    pub cluster: String,
    /// The app of the event; absent for a record that was not read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub app: Option<AppId>,
    /// The endpoint that did not get the event; absent if the app is unknown or the record was not read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub endpoint: Option<String>,
    /// Attempts to post the event.
    pub attempts: u32,
    /// The outcome of the last attempt; absent without an attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_answer: Option<String>,
    /// The record that the event was read from.
    pub source: LetterSource,
    /// Time at which the letter was written, in ms since 1970.
    pub written_ms: u64,
    /// Time at which the event was decided, in ms since 1970; absent for a record that was not read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub time_ms: Option<u64>,
    /// The event, as its endpoint would have received it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event: Option<Box<RawValue>>,
    /// The bytes that are no event of this cluster, or an event above [`RAW_BYTES_MAX`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub raw: Option<RawContent>,
}

/// The place of a record in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterSource {
    /// The stream that was read.
    pub stream: StreamName,
    /// The shard of the record.
    pub shard: ShardId,
    /// The record's sequence number in the shard.
    pub sequence: String,
}

/// The bytes of a record or an event, in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawContent {
    /// The first bytes, at most [`RAW_BYTES_MAX`], in base64.
    pub base64: String,
    /// Number of bytes before the cut.
    pub bytes: usize,
    /// Whether bytes were cut off.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub cut: bool,
}

/// The reason why a letter cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LetterError {
    /// A newer release wrote it.
    #[error("the letter has version {0}, this release reads up to {DEAD_LETTER_VERSION}: use a newer release")]
    TooNew(u32),
    /// The bytes are no letter.
    #[error("not a dead letter: {0}")]
    Malformed(String),
}

impl RawContent {
    /// Encodes the first bytes; `total` is their number before an earlier cut.
    #[must_use]
    pub fn encode(bytes: &[u8], total: usize) -> Self {
        let kept = bytes.get(..RAW_BYTES_MAX).unwrap_or(bytes);
        Self { base64: STANDARD.encode(kept), bytes: total, cut: kept.len() < total }
    }

    /// The kept bytes; `None` if the text is not base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.base64).ok()
    }
}

impl DeadLetter {
    /// Encodes the letter for the stream. Texts that outside parties decide are cut, and an event that is too large
    /// becomes raw bytes.
    #[must_use]
    pub fn to_bytes(mut self) -> Vec<u8> {
        for text in [&mut self.detail, &mut self.last_answer, &mut self.endpoint].into_iter().flatten() {
            truncate_text(text);
        }
        if let Some(event) = self.event.take_if(|event| event.get().len() > RAW_BYTES_MAX) {
            self.raw = Some(RawContent::encode(event.get().as_bytes(), event.get().len()));
        }
        // Values of this type always serialise.
        serde_json::to_vec(&self).unwrap_or_default()
    }

    /// Parses a letter.
    ///
    /// # Errors
    /// A newer version, or bytes that are no letter.
    pub fn parse(bytes: &[u8]) -> Result<Self, LetterError> {
        #[derive(Deserialize)]
        struct VersionField {
            v: u32,
        }
        let malformed = |error: serde_json::Error| LetterError::Malformed(error.to_string());
        let VersionField { v } = serde_json::from_slice(bytes).map_err(malformed)?;
        if v > DEAD_LETTER_VERSION {
            return Err(LetterError::TooNew(v));
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The event of the letter; `None` for raw bytes, and for an event of a kind that this release does not know.
    #[must_use]
    pub fn parse_event(&self) -> Option<WebhookEvent> {
        serde_json::from_str(self.event.as_ref()?.get()).ok()
    }

    /// A digest that all copies of one letter share: after a lost answer of Kinesis a letter is written twice.
    #[must_use]
    pub fn identity(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        let event = self.event.as_ref().map_or("", |event| event.get());
        let LetterSource { stream, shard, sequence } = &self.source;
        hex::encode(Sha256::digest(format!("{stream}\n{shard}\n{sequence}\n{endpoint}\n{event}")))
    }
}

/// Cuts a text after [`TEXT_LEN_MAX`] bytes at most, between two characters, and marks the cut.
fn truncate_text(text: &mut String) {
    if text.len() > TEXT_LEN_MAX {
        text.truncate(text.floor_char_boundary(TEXT_LEN_MAX));
        text.push('…');
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::EventKind;

    /// A letter of a failed endpoint with this content.
    pub fn letter(event: Option<Box<RawValue>>, raw: Option<RawContent>) -> DeadLetter {
        let source = LetterSource { stream: "s".into(), shard: "shard-0".into(), sequence: "9".repeat(128) };
        DeadLetter {
            v: DEAD_LETTER_VERSION,
            reason: "RetryWindowOver".to_owned(),
            detail: None,
            cluster: "u".to_owned(),
            app: Some("1001".into()),
            endpoint: Some("hook".to_owned()),
            attempts: 3,
            last_answer: Some("answered 500".to_owned()),
            source,
            written_ms: 2,
            time_ms: Some(1),
            event,
            raw,
        }
    }

    #[test]
    fn the_event_of_a_letter_is_the_event_of_the_webhook() {
        let channel = ChannelName::parse("a").expect("a name");
        let event = WebhookEvent { kind: EventKind::ChannelOccupied, channel, id: "01".to_owned(), order: None };
        let json = serde_json::value::to_raw_value(&event).expect("JSON");
        let bytes = letter(Some(json.clone()), None).to_bytes();
        let read = DeadLetter::parse(&bytes).expect("a letter");
        assert_eq!(read.parse_event(), Some(event));
        assert_eq!(read.event.as_ref().map(|event| event.get()), Some(json.get()));
        assert_eq!(read.identity(), letter(Some(json.clone()), None).identity());
        let other = DeadLetter { endpoint: Some("other".to_owned()), ..letter(Some(json), None) };
        assert_ne!(read.identity(), other.identity(), "one event goes to two endpoints");
    }

    #[test]
    fn the_largest_letter_fits_its_bound_and_says_what_was_cut() {
        let text = |len: usize| Some("ä\n\"".repeat(len / 4));
        let bytes = vec![255; 10 << 20];
        let raw = RawContent::encode(&bytes, bytes.len());
        assert!(raw.cut && raw.bytes == 10 << 20 && raw.decode().expect("base64") == bytes[..RAW_BYTES_MAX]);
        let largest = DeadLetter {
            detail: text(9_999),
            last_answer: text(9_999),
            endpoint: text(9_999),
            ..letter(None, Some(raw))
        };
        let written = largest.to_bytes();
        assert!(written.len() < LETTER_BYTES_MAX, "{}", written.len());
        assert!(DeadLetter::parse(&written).expect("a letter").detail.expect("a text").ends_with('…'));

        let event = RawValue::from_string(format!("\"{}\"", "x".repeat(RAW_BYTES_MAX))).expect("JSON");
        let written = letter(Some(event), None).to_bytes();
        assert!(written.len() < LETTER_BYTES_MAX, "{}", written.len());
        let read = DeadLetter::parse(&written).expect("a letter");
        assert_eq!(
            (read.event.is_none(), read.raw.map(|raw| (raw.bytes, raw.cut))),
            (true, Some((RAW_BYTES_MAX + 2, true)))
        );
    }

    #[test]
    fn a_newer_letter_is_no_malformed_one() {
        assert_eq!(DeadLetter::parse(br#"{"v":2}"#).expect_err("newer"), LetterError::TooNew(2));
        assert!(matches!(DeadLetter::parse(br#"{"v":1}"#), Err(LetterError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(DeadLetter::parse(&bytes).is_err());
        }
    }
}
