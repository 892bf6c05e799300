//! The header of the PROXY protocol.

use super::protocol::proxy_header::{PROXY_HEADER_BYTES_MAX, ProxyHeader};

/// The beginning of a connection.
pub fn check(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    match whole {
        ProxyHeader::Complete { length, .. } => {
            assert!(length <= data.len() && length <= PROXY_HEADER_BYTES_MAX);
            assert_eq!(ProxyHeader::parse(&data[..length]), whole, "the rest of the connection does not count");
            let more = [data, b"GET / HTTP/1.1"].concat();
            assert_eq!(ProxyHeader::parse(&more), whole);
            for end in [0, length / 2, length - 1] {
                assert_eq!(ProxyHeader::parse(&data[..end]), ProxyHeader::Partial, "cut at {end}");
            }
        }
        ProxyHeader::Partial => {
            assert!(data.len() < PROXY_HEADER_BYTES_MAX, "a reader that waits has a bound");
        }
        ProxyHeader::Absent | ProxyHeader::Invalid => {
            let more = [data, b"\r\n"].concat();
            assert_eq!(ProxyHeader::parse(&more), whole, "more bytes change nothing");
        }
    }
}
