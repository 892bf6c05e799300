//! `SockJS` 0.3.3: its frames, their wrapping for each transport, and the parsing of client messages.
//!
//! A frame is `o`, `h`, `a["…"]` or `c[code,"reason"]`. Some browsers mangle characters that others keep, so a fixed
//! list is sent as `\uXXXX` only. In: texts and bodies. Out: frames and messages, or the texts with which the protocol
//! answers. pusher-js's own fallbacks look similar and have their rules in [`super::fallback`].

use std::fmt::Write;

use serde_json::Value;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::client_json::{self, parse_message};

/// `o`: opens a new session.
pub const OPEN_FRAME: &str = "o";

/// `h`: a heartbeat without content.
pub const HEARTBEAT_FRAME: &str = "h";

/// Units after which a streaming answer ends, so that a browser can free it.
pub const RESPONSE_MAX_UNITS: usize = 128 << 10;

/// Units before the first frame of `xhr_streaming`, for browsers that buffer the first ones.
const PRELUDE_UNIT_COUNT: usize = 2_048;

/// Least units in the head of `htmlfile`, its callback's name not counted, for the same reason.
const HTMLFILE_HEAD_MIN_UNITS: usize = 1_023;

/// Answer to a body that is missing, or no array.
pub const PAYLOAD_EXPECTED: &str = "Payload expected.";

/// Answer to a body that is not JSON.
pub const BROKEN_JSON: &str = "Broken JSON encoding.";

/// `a[…]`: a batch of messages.
#[must_use]
pub fn encode_messages<'a>(messages: impl IntoIterator<Item = &'a str>) -> String {
    let mut frame = String::from("a[");
    for (n, message) in messages.into_iter().enumerate() {
        if n > 0 {
            frame.push(',');
        }
        frame.push_str(&quote_json(message));
    }
    frame.push(']');
    frame
}

/// `c[code,"reason"]`: ends the session.
#[must_use]
pub fn encode_close(code: u16, reason: &str) -> String {
    format!("c[{code},{}]", quote_json(reason))
}

/// A JSON string in which all characters that a browser might mangle are escaped.
#[must_use]
pub fn quote_json(text: &str) -> String {
    let plain = Value::from(text).to_string();
    if !plain.chars().any(is_mangled) {
        return plain;
    }
    let mut quoted = String::with_capacity(plain.len() + 16);
    let mut units = [0; 2];
    for c in plain.chars() {
        if is_mangled(c) {
            for unit in c.encode_utf16(&mut units) {
                // Writing into a String cannot fail.
                let _ = write!(quoted, "\\u{unit:04x}");
            }
        } else {
            quoted.push(c);
        }
    }
    quoted
}

/// The protocol's list; beyond the basic plane a character is two surrogates, which are on it.
fn is_mangled(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f'
        | '\u{200c}'..='\u{200f}'
        | '\u{2028}'..='\u{202f}'
        | '\u{2060}'..='\u{206f}'
        | '\u{fff0}'..=char::MAX)
}

/// The form in which a transport writes a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameWrapping {
    /// `xhr` and `xhr_streaming`: a line each.
    Line,
    /// `eventsource`: an event each.
    Event,
    /// `htmlfile`: a script each.
    Script,
    /// `jsonp`: a call of this function.
    Call(String),
}

impl FrameWrapping {
    /// The frame as it is written to the response.
    #[must_use]
    pub fn wrap(&self, frame: &str) -> String {
        match self {
            Self::Line => format!("{frame}\n"),
            // Clients undo percent signs here; line breaks cannot occur in a frame.
            Self::Event => format!("data: {}\r\n\r\n", frame.replace('%', "%25")),
            Self::Script => {
                // Otherwise a message could end the script and begin its own.
                let text = Value::from(frame).to_string().replace('<', "\\u003c");
                format!("<script>\np({text});\n</script>\r\n")
            }
            Self::Call(callback) => format!("/**/{callback}({});\r\n", Value::from(frame)),
        }
    }

    /// The text that ends a written frame and never occurs within it.
    #[must_use]
    pub fn frame_terminator(&self) -> &'static str {
        match self {
            Self::Line => "\n",
            Self::Event => "\r\n\r\n",
            Self::Script => "</script>\r\n",
            Self::Call(_) => ");\r\n",
        }
    }
}

/// The text before the first frame of `xhr_streaming`.
#[must_use]
pub fn line_prelude() -> String {
    format!("{}\n", "h".repeat(PRELUDE_UNIT_COUNT))
}

/// The text before the first frame of `eventsource`.
pub const EVENT_PRELUDE: &str = "\r\n";

/// The head of an `htmlfile`, which the protocol fixes to the letter.
#[must_use]
pub fn htmlfile_head(callback: &str) -> String {
    let head = format!(
        r#"<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.{callback};
    c.start();
    function p(d) {{c.message(d);}};
    window.onload = function() {{c.stop();}};
  </script>"#
    );
    let fill = (HTMLFILE_HEAD_MIN_UNITS + callback.len()).saturating_sub(head.len());
    format!("{head}{}\r\n\r\n", " ".repeat(fill))
}

/// The page that a hidden frame loads, which the protocol fixes to the letter but for the script's address.
#[must_use]
pub fn iframe_page(script: &str) -> String {
    format!(
        r#"<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{script}"></script>
  <script>{IFRAME_SCRIPT}</script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"#
    )
}

/// The script in the page of a hidden frame.
pub const IFRAME_SCRIPT: &str = "
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  ";

/// The function that `htmlfile` and `jsonp` call, from the query; its name has at most `most` letters.
///
/// # Errors
/// The name is absent, or contains more than a name may.
pub fn parse_callback(query: &str, most: usize) -> Result<String, &'static str> {
    let named = |wanted: &str| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
    };
    let callback = named("c").or_else(|| named("callback")).ok_or("\"callback\" parameter required")?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if callback.len() > most || !callback.chars().all(valid) {
        return Err("invalid \"callback\" parameter");
    }
    Ok(callback)
}

/// Parses the body of `xhr_send`: a JSON array, each element a message.
///
/// # Errors
/// The body has another form; the text is the protocol's answer.
pub fn parse_send(body: &[u8]) -> Result<Vec<String>, &'static str> {
    let text = String::from_utf8_lossy(body);
    if text.is_empty() {
        return Err(PAYLOAD_EXPECTED);
    }
    match serde_json::from_str::<Vec<Box<RawValue>>>(&text) {
        Ok(list) => Ok(list.iter().map(|element| parse_message(element.get())).collect()),
        Err(_) if serde_json::from_str::<Box<RawValue>>(&text).is_ok() => Err(PAYLOAD_EXPECTED),
        Err(_) => Err(BROKEN_JSON),
    }
}

/// Parses the body of `jsonp_send`: a form whose field `d` holds the body of an `xhr_send`, or that body itself.
///
/// # Errors
/// The body has another form; the text is the protocol's answer.
pub fn parse_form(content_type: &str, body: &[u8]) -> Result<Vec<String>, &'static str> {
    match content_type.split(';').next().unwrap_or_default() {
        "application/x-www-form-urlencoded" => {
            let field = form_urlencoded::parse(body).find_map(|(name, value)| (name == "d").then_some(value));
            parse_send(field.unwrap_or_default().as_bytes())
        }
        "text/plain" | "" => parse_send(body),
        _ => Err(PAYLOAD_EXPECTED),
    }
}

/// Parses a text of a WebSocket: an array of messages or one message; an empty text has none.
///
/// # Errors
/// The text is not JSON: the socket is to be closed.
pub fn parse_socket(text: &str) -> Result<Vec<String>, &'static str> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match parse_send(text.as_bytes()) {
        Err(PAYLOAD_EXPECTED) => Ok(vec![parse_message(text.trim())]),
        messages => messages,
    }
}

/// The key and the query from a session's first message, `{"path":"/app/KEY?protocol=7&…"}`. Any text before `/app` is
/// the client's own prefix.
#[must_use]
pub fn first_message(text: &str) -> Option<(String, String)> {
    let message: Value = client_json::parse(text).ok()?;
    let path = message.get("path")?.as_str()?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (before, key) = path.rsplit_once('/')?;
    (before.ends_with("/app") && !key.is_empty()).then(|| (key.to_owned(), query.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_characters_that_browsers_mangle_are_escaped() {
        for (text, quoted) in [
            ("plain ü € <&>", r#""plain ü € <&>""#),
            ("\"\\/", r#""\"\\/""#),
            ("\n\r\t\u{8}\u{c}\0\x1f", r#""\n\r\t\b\f\u0000\u001f""#),
            ("\x7f\u{200b}\u{200c}\u{200f}\u{2010}", "\"\x7f\u{200b}\\u200c\\u200f\u{2010}\""),
            ("\u{2027}\u{2028}\u{202f}\u{2030}", "\"\u{2027}\\u2028\\u202f\u{2030}\""),
            ("\u{205f}\u{2060}\u{206f}\u{2070}", "\"\u{205f}\\u2060\\u206f\u{2070}\""),
            ("\u{ffef}\u{fff0}\u{ffff}", "\"\u{ffef}\\ufff0\\uffff\""),
            ("\u{1f600}", r#""\ud83d\ude00""#),
        ] {
            assert_eq!(quote_json(text), quoted);
        }
    }

    #[test]
    fn every_transport_wraps_a_frame_differently() {
        let call = FrameWrapping::Call("a.b".into());
        for (wrapping, frame, written) in [
            (&FrameWrapping::Line, encode_messages(["x"]), "a[\"x\"]\n"),
            (&FrameWrapping::Event, encode_messages(["100 %"]), "data: a[\"100 %25\"]\r\n\r\n"),
            (&FrameWrapping::Script, OPEN_FRAME.to_owned(), "<script>\np(\"o\");\n</script>\r\n"),
            (&FrameWrapping::Script, encode_messages(["x"]), "<script>\np(\"a[\\\"x\\\"]\");\n</script>\r\n"),
            (
                &FrameWrapping::Script,
                encode_messages(["</script>"]),
                "<script>\np(\"a[\\\"\\u003c/script>\\\"]\");\n</script>\r\n",
            ),
            (&call, encode_close(2010, "no"), "/**/a.b(\"c[2010,\\\"no\\\"]\");\r\n"),
            (&call, encode_messages(["x", "y"]), "/**/a.b(\"a[\\\"x\\\",\\\"y\\\"]\");\r\n"),
        ] {
            assert_eq!(wrapping.wrap(&frame), written);
            assert!(
                written.ends_with(wrapping.frame_terminator())
                    && written.matches(wrapping.frame_terminator()).count() == 1
            );
        }
    }

    #[test]
    fn the_preludes_are_as_long_as_browsers_need() {
        assert_eq!(line_prelude().len(), 2_049);
        for callback in ["c", "callback", "_jp.a1b2c3d"] {
            let head = htmlfile_head(callback);
            assert!(head.len() > 1_024 && head.ends_with(" \r\n\r\n"), "{}", head.len());
            assert!(head.contains(&format!("var c = parent.{callback};\n")));
        }
    }

    #[test]
    fn a_callback_is_a_name_and_nothing_else() {
        for (query, found) in [
            ("c=%63allback", Ok("callback")),
            ("callback=x.y-z_1", Ok("x.y-z_1")),
            ("callback=b&c=a", Ok("a")),
            ("c=", Ok("")),
            ("", Err("\"callback\" parameter required")),
            ("d=x", Err("\"callback\" parameter required")),
            ("c=%20", Err("invalid \"callback\" parameter")),
            ("c=*", Err("invalid \"callback\" parameter")),
            ("c=abc(", Err("invalid \"callback\" parameter")),
            ("c=abc%28", Err("invalid \"callback\" parameter")),
            ("c=%C3%BC", Err("invalid \"callback\" parameter")),
        ] {
            assert_eq!(parse_callback(query, 10).as_deref(), found.as_deref(), "{query}");
        }
        assert!(parse_callback("c=12345678901", 10).is_err());
    }

    #[test]
    fn a_send_body_is_an_array() {
        for (body, found) in [
            ("[]", Ok(vec![])),
            (r#"["a","b"]"#, Ok(vec!["a", "b"])),
            (r#" [ "ä\u00fc" ] "#, Ok(vec!["äü"])),
            (r#"[{"a": 1}, 2]"#, Ok(vec![r#"{"a": 1}"#, "2"])),
            (r#"["\ud83d\ude00 \ud800 \\ud800"]"#, Ok(vec!["😀 \u{fffd} \\ud800"])),
            (r#"["\udc00\ud800\udc00\ud800"]"#, Ok(vec!["\u{fffd}\u{10000}\u{fffd}"])),
            ("", Err(PAYLOAD_EXPECTED)),
            ("{}", Err(PAYLOAD_EXPECTED)),
            ("null", Err(PAYLOAD_EXPECTED)),
            ("\"a\"", Err(PAYLOAD_EXPECTED)),
            (r#"["x"#, Err(BROKEN_JSON)),
            ("[a]", Err(BROKEN_JSON)),
            (" ", Err(BROKEN_JSON)),
        ] {
            let found = found.map(|list| list.into_iter().map(str::to_owned).collect());
            assert_eq!(parse_send(body.as_bytes()), found, "{body}");
        }
        assert_eq!(parse_send(b"[\"\xff\"]"), Ok(vec!["\u{fffd}".to_owned()]));
    }

    #[test]
    fn a_form_has_its_messages_in_d() {
        let form = "application/x-www-form-urlencoded; charset=UTF-8";
        for (kind, body, found) in [
            (form, "d=%5B%22x%22%5D", Ok(vec!["x".to_owned()])),
            (form, "a=b&d=[\"a+b\"]", Ok(vec!["a b".to_owned()])),
            (form, "d=%5B%5D", Ok(vec![])),
            (form, "d=%5B%22x", Err(BROKEN_JSON)),
            (form, "d=", Err(PAYLOAD_EXPECTED)),
            (form, "p=p", Err(PAYLOAD_EXPECTED)),
            (form, "", Err(PAYLOAD_EXPECTED)),
            ("text/plain", "[\"%61bc\"]", Ok(vec!["%61bc".to_owned()])),
            ("", "[\"x\"]", Ok(vec!["x".to_owned()])),
            ("text/plain", "[\"x", Err(BROKEN_JSON)),
            ("application/json", "[\"x\"]", Err(PAYLOAD_EXPECTED)),
        ] {
            assert_eq!(parse_form(kind, body.as_bytes()), found, "{kind} {body}");
        }
    }

    #[test]
    fn a_socket_accepts_arrays_single_messages_and_empty_texts() {
        let one = |text: &str| Ok(vec![text.to_owned()]);
        for (text, found) in [
            ("", Ok(vec![])),
            ("[]", Ok(vec![])),
            ("[\"a\"]", one("a")),
            ("\"a\"", one("a")),
            ("{\"a\":1}", one("{\"a\":1}")),
            ("[\"a", Err(BROKEN_JSON)),
        ] {
            assert_eq!(parse_socket(text), found, "{text}");
        }
    }

    #[test]
    fn the_first_message_names_the_key() {
        let pair = |key: &str, query: &str| Some((key.to_owned(), query.to_owned()));
        for (text, found) in [
            (r#"{"path":"/app/k1?protocol=7&client=js"}"#, pair("k1", "protocol=7&client=js")),
            (r#"{"path":"/app/k1"}"#, pair("k1", "")),
            (r#"{"path":"/own/prefix/app/k1?a=/b"}"#, pair("k1", "a=/b")),
            (r#"{"path":"/app/"}"#, None),
            (r#"{"path":"/apps/k1"}"#, None),
            (r#"{"path":"app/k1"}"#, None),
            (r#"{"path":7}"#, None),
            ("{}", None),
            ("k1", None),
        ] {
            assert_eq!(first_message(text), found, "{text}");
        }
    }

    proptest! {
        #[test]
        fn quoted_texts_round_trip(text in any::<String>()) {
            let quoted = quote_json(&text);
            prop_assert!(!quoted.chars().any(is_mangled));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).ok(), Some(text));
        }

        #[test]
        fn messages_round_trip(list in proptest::collection::vec(any::<String>(), 0..4)) {
            let frame = encode_messages(list.iter().map(String::as_str));
            prop_assert_eq!(parse_send(&frame.as_bytes()[1..]), Ok(list));
        }

        #[test]
        fn any_code_units_make_a_message(units in proptest::collection::vec(any::<u16>(), 0..12)) {
            let escaped = units.iter().fold(String::new(), |text, unit| format!("{text}\\u{unit:04x}"));
            let body = format!("[\"{escaped}\"]");
            prop_assert_eq!(parse_send(body.as_bytes()), Ok(vec![String::from_utf16_lossy(&units)]));
        }

        #[test]
        fn no_body_makes_the_parsers_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (parse_send(&body), parse_form("", &body), parse_socket(&String::from_utf8_lossy(&body)));
        }

        #[test]
        fn a_script_is_never_ended_by_a_message(text in any::<String>()) {
            let written = FrameWrapping::Script.wrap(&encode_messages([text.as_str()]));
            prop_assert_eq!(written.matches('<').count(), 2);
        }
    }
}
