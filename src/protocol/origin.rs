//! Patterns of the origins that may connect to an app, and their match with the origin that a browser sends. Pure.
//!
//! An origin is a scheme, a host and, if it is not the scheme's default, a port (RFC 6454). A pattern is written the
//! same: `https://shop.example.com`. Its host may begin with `*.`, which matches every name below; its port may be `*`.
//! Without a scheme it matches every scheme and, unless it names one, every port. `*` matches all; `null`, which
//! browsers send for pages without an origin of their own, matches nothing else.

#[derive(Debug, PartialEq, Eq)]
enum OriginPattern<'a> {
    All,
    Null,
    Parts { scheme: Option<&'a str>, below: bool, host: &'a str, port: PortPattern },
}

#[derive(Debug, PartialEq, Eq)]
enum PortPattern {
    Any,
    /// The default port of the scheme.
    SchemeDefault,
    Number(u16),
}

/// Whether a request with this origin may connect. Without patterns every origin may. A client that sends no origin is
/// no browser and may connect: a refusal would keep none of them out, since such a client could claim any origin.
#[must_use]
pub fn is_origin_allowed(patterns: &[String], origin: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    patterns.is_empty()
        || patterns.iter().filter_map(|text| parse_pattern(text)).any(|pattern| pattern.matches_origin(origin))
}

/// Whether the text is a valid pattern. An invalid one matches no origin.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    parse_pattern(text).is_some()
}

fn parse_pattern(text: &str) -> Option<OriginPattern<'_>> {
    match text {
        "*" => return Some(OriginPattern::All),
        "null" => return Some(OriginPattern::Null),
        _ => {}
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    let (host, port) = split_port(rest);
    let (below, host) = host.strip_prefix("*.").map_or((false, host), |host| (true, host));
    if !scheme.is_none_or(is_scheme) || !is_host(host) || (below && host.starts_with('[')) {
        return None;
    }
    let port = match port {
        None if scheme.is_none() => PortPattern::Any,
        None => PortPattern::SchemeDefault,
        Some("*") => PortPattern::Any,
        Some(number) => PortPattern::Number(number.parse().ok()?),
    };
    Some(OriginPattern::Parts { scheme, below, host, port })
}

impl OriginPattern<'_> {
    fn matches_origin(&self, origin: &str) -> bool {
        let Self::Parts { scheme, below, host, port } = self else {
            return *self == Self::All || origin == "null";
        };
        let Some((found, rest)) = origin.split_once("://") else { return false };
        let (name, number) = split_port(rest);
        let own = default_port(found);
        let number = match number {
            Some(number) => number.parse().ok(),
            None => own,
        };
        let named = if *below {
            let above = name.len().checked_sub(host.len()).filter(|at| *at > 1 && name.is_char_boundary(*at));
            above.is_some_and(|at| name[..at].ends_with('.') && name[at..].eq_ignore_ascii_case(host))
        } else {
            name.eq_ignore_ascii_case(host)
        };
        named
            && scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case(found))
            && match port {
                PortPattern::Any => true,
                PortPattern::SchemeDefault => number == own,
                PortPattern::Number(wanted) => number == Some(*wanted),
            }
    }
}

/// Host and port; an IPv6 address is in brackets.
fn split_port(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    text.split('.').all(|label| !label.is_empty() && label.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_their_origins_only() {
        for (pattern, fit, others) in [
            (
                "https://shop.example.com",
                &["https://shop.example.com", "https://shop.example.com:443", "https://SHOP.example.com"][..],
                &["http://shop.example.com", "https://shop.example.com:8443", "https://a.shop.example.com"][..],
            ),
            (
                "https://*.example.com",
                &["https://shop.example.com", "https://a.b.example.com"],
                &[
                    "https://example.com",
                    "https://.example.com",
                    "https://evilexample.com",
                    "https://example.com.evil.org",
                    "http://shop.example.com",
                    "https://shop.example.com:444",
                ],
            ),
            (
                "*.example.com",
                &["https://shop.example.com", "http://shop.example.com:3000", "capacitor://shop.example.com"],
                &["https://example.com", "https://shop.example.org"],
            ),
            ("example.com", &["https://example.com", "http://example.com:3000"], &["https://www.example.com"]),
            ("example.com:8080", &["http://example.com:8080"], &["http://example.com", "http://example.com:80"]),
            ("http://localhost:*", &["http://localhost", "http://localhost:3000"], &["https://localhost:3000"]),
            ("http://[::1]:3000", &["http://[::1]:3000"], &["http://[::1]", "http://[::2]:3000"]),
            ("[::1]", &["http://[::1]:3000", "http://[::1]"], &["http://[::2]"]),
            ("*", &["https://example.com", "null", "nonsense"], &[]),
            ("null", &["null"], &["https://null", "https://example.com", ""]),
            ("no pattern", &[], &["https://no pattern", "no pattern", "null", ""]),
        ] {
            let patterns = [pattern.to_owned()];
            for origin in fit {
                assert!(is_origin_allowed(&patterns, Some(origin)), "{pattern} matches {origin}");
            }
            for origin in others {
                assert!(!is_origin_allowed(&patterns, Some(origin)), "{pattern} does not match {origin}");
            }
            assert!(is_origin_allowed(&patterns, None), "{pattern}: no browser");
        }
        assert!(is_origin_allowed(&[], Some("https://example.com")), "without patterns every origin may connect");
        let two = ["https://a.example".to_owned(), "https://b.example".to_owned()];
        assert!(is_origin_allowed(&two, Some("https://b.example")), "one matching pattern is enough");
    }

    #[test]
    fn invalid_patterns_are_refused() {
        for text in [
            "",
            "https://",
            "https://*",
            "https://a.*.example.com",
            "https://*example.com",
            "https://example.com/",
            "https://example.com:port",
            "https://example.com:99999",
            "https://example..com",
            "://example.com",
            "1http://example.com",
            "https://[::x]",
            "https://*.[::1]",
            "https://ex ample.com",
            "*.*",
        ] {
            assert!(!is_pattern(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_texts_make_the_matcher_panic(pattern in "\\PC{0,24}", origin in "\\PC{0,24}") {
            let _ = is_origin_allowed(&[pattern], Some(&origin));
        }

        #[test]
        fn a_wildcard_matches_subdomains_and_no_mere_suffix(name in "[a-z]{1,9}") {
            let patterns = ["https://*.example.com".to_owned()];
            let (below, beside) = (format!("https://{name}.example.com"), format!("https://{name}example.com"));
            prop_assert!(is_origin_allowed(&patterns, Some(&below)));
            prop_assert!(!is_origin_allowed(&patterns, Some(&beside)));
        }
    }
}
