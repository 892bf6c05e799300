//! The bodies and frames of pusher-js's own fallbacks.

use super::protocol::fallback::{
    EMPTY_FRAME, FallbackFrame, HEARTBEAT_FRAME, OPEN_FRAME, encode_close, encode_messages, parse_send, utf16_units,
};

/// The body of a send, or a line of an answer.
pub fn check(data: &[u8]) {
    if let Ok(list) = parse_send(data) {
        let size: usize = list.iter().map(String::len).sum();
        assert!(size <= 3 * data.len(), "{} bytes became {size}", data.len());
        let line = line(&encode_messages(list.iter().map(String::as_str)));
        assert_eq!(parse_send(&line.as_bytes()[1..]).as_ref(), Ok(&list), "an answer's array is a body too");
        assert_eq!(FallbackFrame::parse(&line), Some(FallbackFrame::Messages(list)));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(utf16_units(text) <= text.len());
    if let Some(frame) = FallbackFrame::parse(text) {
        let written = match &frame {
            FallbackFrame::Open => OPEN_FRAME.to_owned(),
            FallbackFrame::Heartbeat => HEARTBEAT_FRAME.to_owned(),
            FallbackFrame::Messages(list) if list.is_empty() => EMPTY_FRAME.to_owned(),
            FallbackFrame::Messages(list) => encode_messages(list.iter().map(String::as_str)),
            FallbackFrame::Close(code, reason) => encode_close(*code, reason),
        };
        assert_eq!(FallbackFrame::parse(&line(&written)), Some(frame));
    }
}

/// A frame without its newline, of which there is one only.
fn line(frame: &str) -> String {
    let line = frame.strip_suffix('\n').expect("a newline at the end");
    assert!(!line.contains('\n'), "one line: {line}");
    line.to_owned()
}
