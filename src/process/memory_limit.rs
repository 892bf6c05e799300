//! The memory that the process may use, as its container's cgroup limits it.

use std::fs;

/// The files that hold the limit, of cgroup version 2 and version 1.
const LIMIT_FILES: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Limits from here on are none: version 1 writes the largest number of pages.
const UNLIMITED_BYTES_MIN: u64 = 1 << 60;

/// Reads the limit in bytes; `None` where there is none.
#[must_use]
pub fn read_memory_limit() -> Option<u64> {
    LIMIT_FILES.iter().find_map(|file| parse_memory_limit(&fs::read_to_string(file).ok()?))
}

/// Parses the text of a limit: bytes, or `max`.
fn parse_memory_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_of_bytes_and_anything_else_is_none() {
        for (text, expected) in [
            ("268435456\n", Some(256 << 20)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("", None),
            ("-1", None),
        ] {
            assert_eq!(parse_memory_limit(text), expected, "{text:?}");
        }
    }
}
