//! Patterns of origins, and origins.

use super::protocol::origin::{is_origin_allowed, is_pattern};

/// A pattern in the first line, an origin in the second.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, origin) = text.split_once('\n').unwrap_or((text, text));
    let allowed = |patterns: &[&str], origin| {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        is_origin_allowed(&patterns, origin)
    };
    assert!(allowed(&[], Some(origin)) && allowed(&[pattern], None), "without a list, and outside browsers");
    assert!(allowed(&["*"], Some(origin)));
    let is_allowed = allowed(&[pattern], Some(origin));
    assert!(!is_allowed || is_pattern(pattern), "an invalid pattern allows nobody");
    assert_eq!(
        allowed(&["https://other.invalid", pattern], Some(origin)),
        is_allowed || allowed(&["https://other.invalid"], Some(origin))
    );
    if let Some(host) = origin.strip_prefix("https://") {
        let beside = format!("https://{host}.evil.invalid");
        assert!(!allowed(&["https://shop.example.com", "https://*.example.com"], Some(&beside)), "{beside}");
    }
}
