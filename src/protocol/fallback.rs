//! Frames of pusher-js's own HTTP fallbacks (`xhr_streaming`, `xhr_polling`), which resemble `SockJS` and differ from
//! it.
//!
//! Frames end with a newline: `o`, `a["…"]`, `h`, `c[code,"reason"]`. A client pings by posting `[]` and must be
//! answered with `a[]`: an `h` would make it answer in turn, without end. Read from pusher-js 8.6 `src/core/http`.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client_json::parse_message;

/// Units a client receives before it re-opens its streaming request, in UTF-16 code units (256 KiB).
pub const STREAM_LIMIT_UNITS: usize = 262_144;

/// `o`: opens a new session.
pub const OPEN_FRAME: &str = "o\n";

/// `o`: opens a new session, whose client sends all further requests to another host.
#[must_use]
pub fn encode_open(hostname: Option<&str>) -> String {
    hostname.map_or_else(|| OPEN_FRAME.to_owned(), |hostname| format!("o{}\n", json!({ "hostname": hostname })))
}

/// `h`: a heartbeat without content.
pub const HEARTBEAT_FRAME: &str = "h\n";

/// `a[]`: the answer to a client's ping.
pub const EMPTY_FRAME: &str = "a[]\n";

/// `a[…]`: a batch of messages.
#[must_use]
pub fn encode_messages<'a>(messages: impl IntoIterator<Item = &'a str>) -> String {
    let list: Vec<&str> = messages.into_iter().collect();
    format!("a{}\n", json!(list))
}

/// `c[code,"reason"]`: ends the session.
#[must_use]
pub fn encode_close(code: u16, reason: &str) -> String {
    format!("c{}\n", json!([code, reason]))
}

/// Number of UTF-16 code units of a text, the unit in which the client counts.
#[must_use]
pub fn utf16_units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Parses the body of `xhr_send`: a JSON array of texts, each a message. `[]` is a ping. An element that is no text is
/// passed on as its JSON, so that it is refused alone.
///
/// # Errors
/// The body is not such an array; the text says what a client should send.
pub fn parse_send(body: &[u8]) -> Result<Vec<String>, &'static str> {
    if body.is_empty() {
        return Err("Payload expected.");
    }
    let list: Vec<Box<RawValue>> = serde_json::from_str(&String::from_utf8_lossy(body))
        .map_err(|_| "Broken JSON encoding: an array of strings is expected.")?;
    Ok(list.iter().map(|message| parse_message(message.get())).collect())
}

/// One frame, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FallbackFrame {
    /// `o`, the start of a session.
    Open,
    /// `h`, a heartbeat without content.
    Heartbeat,
    /// `a[…]`, a batch of messages.
    Messages(Vec<String>),
    /// `c[code,"reason"]`, the end of the session.
    Close(u16, String),
}

impl FallbackFrame {
    /// Parses one line, without its newline. `None` when it is no frame.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = (line.get(..1)?, line.get(1..)?);
        match kind {
            "o" => Some(Self::Open),
            "h" => Some(Self::Heartbeat),
            "a" => serde_json::from_str(rest).ok().map(Self::Messages),
            "c" => {
                let Value::Array(parts) = serde_json::from_str(rest).ok()? else { return None };
                let code = u16::try_from(parts.first()?.as_u64()?).ok()?;
                Some(Self::Close(code, parts.get(1)?.as_str()?.to_owned()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_round_trip() {
        for (text, frame) in [
            (OPEN_FRAME.to_owned(), FallbackFrame::Open),
            (encode_open(Some("pod-1.example.com")), FallbackFrame::Open),
            (HEARTBEAT_FRAME.to_owned(), FallbackFrame::Heartbeat),
            (EMPTY_FRAME.to_owned(), FallbackFrame::Messages(vec![])),
            (
                encode_messages(["{\"a\":\"\n\"}", "ü"]),
                FallbackFrame::Messages(vec!["{\"a\":\"\n\"}".into(), "ü".into()]),
            ),
            (encode_close(4200, "go \"away\""), FallbackFrame::Close(4200, "go \"away\"".into())),
        ] {
            let line = text.strip_suffix('\n').expect("a newline at the end");
            assert!(!line.contains('\n'), "one line: {line}");
            assert_eq!(FallbackFrame::parse(line), Some(frame), "{line}");
        }
        for bad in ["", "x", "a", "a{}", "c[]", "c[1]", "c[99999,\"\"]", "ä"] {
            assert_eq!(FallbackFrame::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_send_body_is_an_array_of_texts() {
        assert_eq!(parse_send(b"[]"), Ok(vec![]));
        assert_eq!(parse_send(br#"["{}"]"#), Ok(vec!["{}".to_owned()]));
        assert_eq!(parse_send(br#"["cut \ud83d","{}",7]"#), Ok(vec!["cut \u{fffd}".into(), "{}".into(), "7".into()]));
        for bad in [&b""[..], b"{}", b"7", b"[", b"\xff"] {
            assert!(parse_send(bad).is_err());
        }
    }

    #[test]
    fn a_surrogate_pair_counts_as_two_units() {
        assert_eq!(utf16_units("a😀"), 3);
    }

    proptest! {
        #[test]
        fn messages_round_trip(list in proptest::collection::vec(any::<String>(), 0..4)) {
            let frame = encode_messages(list.iter().map(String::as_str));
            prop_assert_eq!(parse_send(&frame.as_bytes()[1..]), Ok(list.clone()));
            prop_assert_eq!(FallbackFrame::parse(frame.trim_end()), Some(FallbackFrame::Messages(list)));
        }

        #[test]
        fn a_close_frame_round_trips(code in any::<u16>(), reason in any::<String>()) {
            let frame = encode_close(code, &reason);
            prop_assert_eq!(FallbackFrame::parse(frame.strip_suffix('\n').expect("a line")), Some(FallbackFrame::Close(code, reason)));
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (parse_send(&bytes), FallbackFrame::parse(&String::from_utf8_lossy(&bytes)));
        }
    }
}
