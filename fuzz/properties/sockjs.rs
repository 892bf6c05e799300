//! SockJS: escaping, wrapping, and everything that a client may send.

use super::protocol::sockjs::{
    FrameWrapping, encode_close, encode_messages, first_message, htmlfile_head, parse_callback, parse_form, parse_send,
    parse_socket, quote_json,
};

/// Letters of a callback's name, at most.
const MOST: usize = 32;

/// A body, a form, a message of a socket, a query, or a text to send.
pub fn check(data: &[u8]) {
    for read in [
        parse_send(data),
        parse_form("text/plain", data),
        parse_form("application/x-www-form-urlencoded", data),
        parse_form("application/json", data),
    ] {
        messages_of(read, data.len());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    messages_of(parse_socket(text), data.len());
    quoted(text);
    for frame in [encode_messages([text]), encode_messages([text, text]), encode_close(3000, text)] {
        wrapped(&frame);
    }
    if let Some((key, query)) = first_message(text) {
        assert!(!key.is_empty() && !key.contains(['/', '?']), "{key}");
        let path = if query.is_empty() { format!("/app/{key}") } else { format!("/app/{key}?{query}") };
        assert_eq!(first_message(&serde_json::json!({ "path": path }).to_string()), Some((key, query)));
    }
    if let Ok(name) = parse_callback(text, MOST) {
        assert!(name.len() <= MOST && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{name}");
        assert!(htmlfile_head(&name).contains(&format!("parent.{name};")));
    }
}

/// What was read can be sent and read again, and is no larger than every byte replaced by U+FFFD.
fn messages_of(read: Result<Vec<String>, &str>, size: usize) {
    let Ok(list) = read else { return };
    let total: usize = list.iter().map(String::len).sum();
    assert!(total <= 3 * size, "{size} bytes became {total}");
    assert!(list.len() <= size, "{size} bytes became {} messages", list.len());
    let frame = encode_messages(list.iter().map(String::as_str));
    assert_eq!(parse_send(&frame.as_bytes()[1..]).as_ref(), Ok(&list));
    if !list.is_empty() {
        assert_eq!(parse_socket(&frame[1..]), Ok(list));
    }
}

fn quoted(text: &str) {
    let quoted = quote_json(text);
    assert!(quoted.len() <= 6 * text.len() + 2, "{} bytes became {}", text.len(), quoted.len());
    assert!(!quoted.chars().any(|c| c.is_control() && c < '\x7f' || c >= '\u{fff0}'), "{quoted}");
    assert_eq!(serde_json::from_str::<String>(&quoted).ok().as_deref(), Some(text));
}

fn wrapped(frame: &str) {
    let line = FrameWrapping::Line.wrap(frame);
    assert_eq!((line.matches('\n').count(), line.strip_suffix('\n')), (1, Some(frame)));
    let event = FrameWrapping::Event.wrap(frame);
    let inside = event.strip_prefix("data: ").and_then(|event| event.strip_suffix("\r\n\r\n")).expect("an event");
    assert!(!inside.contains(['\r', '\n']), "one line: {inside}");
    assert_eq!(inside.replace("%25", "%"), frame);
    let script = FrameWrapping::Script.wrap(frame);
    assert_eq!(script.matches('<').count(), 2, "nothing ends the script but its own end: {script}");
    let inside = script.strip_prefix("<script>\np(").and_then(|script| script.strip_suffix(");\n</script>\r\n"));
    assert_eq!(serde_json::from_str::<String>(inside.expect("a script")).ok().as_deref(), Some(frame));
    let call = FrameWrapping::Call("f".into()).wrap(frame);
    let inside = call.strip_prefix("/**/f(").and_then(|call| call.strip_suffix(");\r\n"));
    assert_eq!(serde_json::from_str::<String>(inside.expect("a call")).ok().as_deref(), Some(frame));
}
