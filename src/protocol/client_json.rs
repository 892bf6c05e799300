//! JSON as clients and backends in the field write it.
//!
//! In: texts. Out: values. JavaScript cuts texts between the halves of a surrogate pair, and `JSON.stringify` writes the
//! lone half as `\ud83d`, which JSON allows and Unicode does not: it becomes U+FFFD, as in SockJS. Ids of users are texts
//! or numbers, and a number keeps its digits. Pure.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// The fields of an object, each as its JSON. Of a field that occurs twice the last one counts.
pub type RawFields = HashMap<String, Box<RawValue>>;

/// Parses JSON in which lone escaped surrogates stand for U+FFFD.
///
/// # Errors
/// The text is not JSON, or has another form.
pub fn parse<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    serde_json::from_str(json).or_else(|error| match replace_lone_surrogates(json) {
        Some(repaired) => serde_json::from_str(&repaired),
        None => Err(error),
    })
}

/// The same for bytes.
///
/// # Errors
/// The bytes are not UTF-8 or not JSON, or the JSON has another form.
pub fn parse_bytes<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| {
        match std::str::from_utf8(json).ok().and_then(replace_lone_surrogates) {
            Some(repaired) => serde_json::from_str(&repaired),
            None => Err(error),
        }
    })
}

/// A message out of its JSON. Clients send texts; any other value is forwarded as its JSON.
#[must_use]
pub fn parse_message(json: &str) -> String {
    parse(json).unwrap_or_else(|_| json.to_owned())
}

/// Parses the id of a user: a text that is not empty, or a number with the digits that it was written with.
#[must_use]
pub fn parse_id(json: &RawValue) -> Option<String> {
    let text = json.get();
    match text.as_bytes().first()? {
        b'"' => parse(text).ok().filter(|id: &String| !id.is_empty()),
        b'-' | b'0'..=b'9' => Some(text.to_owned()),
        _ => None,
    }
}

/// Replaces lone escaped surrogates; `None` if there is none.
#[must_use]
pub fn replace_lone_surrogates(json: &str) -> Option<String> {
    if !json.contains("\\ud") && !json.contains("\\uD") {
        return None;
    }
    let mut whole = String::with_capacity(json.len());
    let (mut rest, mut is_changed) = (json, false);
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        whole.push_str(before);
        let taken = match (parse_escaped_unit(escape), escape.get(6..).and_then(parse_escaped_unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                whole.push_str("\\ufffd");
                (rest, is_changed) = (&escape[6..], true);
                continue;
            }
            // The character after the backslash too, so that an escaped backslash begins nothing.
            _ => 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        let (escape, after) = escape.split_at(taken);
        whole.push_str(escape);
        rest = after;
    }
    whole.push_str(rest);
    is_changed.then_some(whole)
}

/// The UTF-16 unit of a text that begins with `\uXXXX`.
fn parse_escaped_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.chars().all(|c| c.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn lone_surrogates_are_replaced_and_nothing_else() {
        for (text, parsed) in [
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""\uDE00 first""#, "\u{fffd} first"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""\uD83D\uDE00""#, "\u{1f600}"),
            (r#""\ud83dx\ude00""#, "\u{fffd}x\u{fffd}"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""plain""#, "plain"),
        ] {
            assert_eq!(parse::<String>(text).ok().as_deref(), Some(parsed), "{text}");
            assert_eq!(parse_bytes::<String>(text.as_bytes()).ok().as_deref(), Some(parsed), "{text}");
        }
        assert_eq!(parse::<Value>(r#"{"a":["\udc00"]}"#).ok(), Some(json!({ "a": ["\u{fffd}"] })));
        for bad in [r#""\ud83""#, r#""\ud83d"#, "{", ""] {
            assert!(parse::<Value>(bad).is_err() && parse_bytes::<Value>(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parse_message("{\"x\": 1}"), "{\"x\": 1}");
    }

    #[test]
    fn an_id_is_a_text_or_a_number_as_it_was_written() {
        for (json, id) in [
            ("\"7\"", Some("7")),
            ("7", Some("7")),
            ("-7", Some("-7")),
            ("1.0", Some("1.0")),
            ("100000000000000000000000000000", Some("100000000000000000000000000000")),
            ("12345678901234567890", Some("12345678901234567890")),
            ("\"\\ud83d\"", Some("\u{fffd}")),
            ("\"\"", None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            ("{}", None),
        ] {
            let raw: Box<RawValue> = serde_json::from_str(json).expect("json");
            assert_eq!(parse_id(&raw).as_deref(), id, "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_json_anyway_is_never_changed(text in any::<String>()) {
            let json = Value::from(text.as_str()).to_string();
            prop_assert_eq!(replace_lone_surrogates(&json), None);
            prop_assert_eq!(parse::<String>(&json).ok(), Some(text));
        }

        #[test]
        fn any_units_of_utf16_become_a_text(units in proptest::collection::vec(any::<u16>(), 0..8)) {
            let escaped = units.iter().fold(String::new(), |text, unit| text + &format!("\\u{unit:04x}"));
            let parsed: String = parse(&format!("\"{escaped}\"")).expect("a text");
            prop_assert_eq!(parsed, String::from_utf16_lossy(&units));
        }
    }
}
