//! A release of this program: `MAJOR.MINOR.PATCH`.

use std::fmt;
use std::str::FromStr;

/// A release. A pre-release counts as the release that it precedes, since it has the same formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    major: u64,
    minor: u64,
    patch: u64,
}

impl Release {
    /// The first release. Servers of it, and of every later one, can be rendered.
    pub const FIRST: Self = Self { major: 0, minor: 1, patch: 0 };

    /// The first release whose pods have no fixed user, request resources and spread by default.
    pub const PLATFORM_DEFAULTS: Self = Self { major: 0, minor: 2, patch: 0 };

    /// The first release whose servers read the list of disabled endpoints, and batching and headers of an endpoint.
    pub const ENDPOINT_SETTINGS: Self = Self { major: 0, minor: 2, patch: 0 };

    /// The first release whose servers have health checks on the public port, and read the settings for a load balancer.
    pub const LOAD_BALANCER_SETTINGS: Self = Self { major: 0, minor: 2, patch: 0 };

    /// The release of this program.
    #[must_use]
    pub fn own() -> Self {
        env!("CARGO_PKG_VERSION").parse().unwrap_or(Self::FIRST)
    }
}

impl FromStr for Release {
    type Err = String;

    /// Parses `1.2.3`, `v1.2.3` and `1.2.3-rc.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('v').unwrap_or(text);
        let core = bare.split(['-', '+']).next().unwrap_or_default();
        let parts: Vec<Option<u64>> = core.split('.').map(parse_number).collect();
        match parts.as_slice() {
            [Some(major), Some(minor), Some(patch)] => Ok(Self { major: *major, minor: *minor, patch: *patch }),
            _ => Err(format!("`{text}` is no release: write one such as 1.2.3")),
        }
    }
}

/// Parses digits alone: the library accepts a sign.
fn parse_number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_versions_and_tags_and_ordered_by_number() {
        let release = |text: &str| text.parse::<Release>().map(|release| release.to_string()).ok();
        for (text, expected) in [
            ("0.1.0", Some("0.1.0")),
            ("v0.1.0", Some("0.1.0")),
            ("0.2.0-rc.1", Some("0.2.0")),
            ("0.2.0+build.5", Some("0.2.0")),
            ("0.2", None),
            ("0.+2.0", None),
            ("latest", None),
            ("1.2.3.4", None),
            ("", None),
        ] {
            assert_eq!(release(text).as_deref(), expected, "{text}");
        }
        let ordered = ["0.1.0", "0.2.0", "0.10.0", "1.0.0"].map(|text| text.parse::<Release>().expect("a release"));
        assert!(ordered.is_sorted());
        assert!(Release::own() >= Release::FIRST);
    }
}
