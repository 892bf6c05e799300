//! The PROXY protocol's header: the address of the client, written by a load balancer that forwards bytes.
//!
//! In: the first bytes of a connection. Out: the length of the header and the address in it, or the fact that more bytes
//! are needed or that there is no header. Source: the specification in haproxy's `doc/proxy-protocol.txt`, versions 1 and
//! 2. Pure.

use std::net::IpAddr;

/// The beginning of a header of version 1, which is a line of text.
const TEXT_SIGNATURE: &[u8] = b"PROXY ";

/// The longest header of version 1, with its line end.
const TEXT_BYTES_MAX: usize = 107;

/// The beginning of a header of version 2.
const BINARY_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of a header of version 2 before its addresses.
const BINARY_HEAD_BYTES: usize = 16;

/// The largest header. Balancers add some fields after the addresses; those of AWS take less than 100 bytes.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 << 10;

/// The beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The header has this length. Without an address, the balancer speaks for itself, as in a health check.
    Complete {
        /// Bytes of the header.
        length: usize,
        /// The address of the client.
        client: Option<IpAddr>,
    },
    /// More bytes may complete the header.
    Partial,
    /// The connection does not begin with a header.
    Absent,
    /// The header has a form that the protocol does not have.
    Invalid,
}

impl ProxyHeader {
    /// Parses the beginning of a connection.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let begins = |signature: &[u8]| {
            let length = bytes.len().min(signature.len());
            bytes[..length] == signature[..length]
        };
        if !begins(TEXT_SIGNATURE) && !begins(BINARY_SIGNATURE) {
            Self::Absent
        } else if bytes.starts_with(BINARY_SIGNATURE) {
            Self::parse_binary(bytes)
        } else if bytes.starts_with(TEXT_SIGNATURE) {
            Self::parse_text(bytes)
        } else {
            Self::Partial
        }
    }

    fn parse_text(bytes: &[u8]) -> Self {
        let line = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
            return if bytes.len() < TEXT_BYTES_MAX { Self::Partial } else { Self::Invalid };
        };
        let length = end + 2;
        let Ok(line) = std::str::from_utf8(&line[TEXT_SIGNATURE.len()..end]) else { return Self::Invalid };
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["UNKNOWN", ..] => Self::Complete { length, client: None },
            [family @ ("TCP4" | "TCP6"), client, _server, client_port, server_port]
                if client_port.parse::<u16>().is_ok() && server_port.parse::<u16>().is_ok() =>
            {
                match client.parse::<IpAddr>() {
                    Ok(client) if client.is_ipv4() == (family == "TCP4") => {
                        Self::Complete { length, client: Some(client.to_canonical()) }
                    }
                    _ => Self::Invalid,
                }
            }
            _ => Self::Invalid,
        }
    }

    fn parse_binary(bytes: &[u8]) -> Self {
        let Some(&[command, family, high, low]) = bytes.get(BINARY_SIGNATURE.len()..BINARY_HEAD_BYTES) else {
            return Self::Partial;
        };
        let length = BINARY_HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
        if !matches!(command, 0x20 | 0x21) || length > PROXY_HEADER_BYTES_MAX {
            return Self::Invalid;
        }
        let Some(addresses) = bytes.get(BINARY_HEAD_BYTES..length) else { return Self::Partial };
        let client = match (command, family) {
            (0x21, 0x11) => {
                addresses.get(..12).and_then(|_| <[u8; 4]>::try_from(&addresses[..4]).ok()).map(IpAddr::from)
            }
            (0x21, 0x21) => {
                addresses.get(..36).and_then(|_| <[u8; 16]>::try_from(&addresses[..16]).ok()).map(IpAddr::from)
            }
            // The balancer itself, or a family without IP addresses.
            _ => return Self::Complete { length, client: None },
        };
        client.map_or(Self::Invalid, |client| Self::Complete { length, client: Some(client.to_canonical()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).expect("a length").to_be_bytes();
        [BINARY_SIGNATURE, &[command, family], &length, addresses].concat()
    }

    fn addresses(client: &[u8], server: &[u8], fields: &[u8]) -> Vec<u8> {
        [client, server, &[0xc0, 0, 0x01, 0xbb], fields].concat()
    }

    #[test]
    fn headers_of_both_versions_are_read_to_their_end() {
        let four = addresses(&[198, 51, 100, 7], &[10, 0, 0, 1], b"");
        let six = addresses(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], &[0; 16], b"\x03\0\x04abcd");
        for (name, header, client) in [
            ("TCP4", b"PROXY TCP4 198.51.100.7 10.0.0.1 49152 443\r\n".to_vec(), Some("198.51.100.7")),
            ("TCP6", b"PROXY TCP6 2001:db8::7 fd00::1 49152 443\r\n".to_vec(), Some("2001:db8::7")),
            ("IPv4 in IPv6", b"PROXY TCP6 ::ffff:198.51.100.7 fd00::1 1 2\r\n".to_vec(), Some("198.51.100.7")),
            ("unknown", b"PROXY UNKNOWN\r\n".to_vec(), None),
            ("unknown with a rest", b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n".to_vec(), None),
            ("version 2, IPv4", binary(0x21, 0x11, &four), Some("198.51.100.7")),
            ("version 2, IPv6 and fields", binary(0x21, 0x21, &six), Some("2001:db8::7")),
            ("version 2, the balancer itself", binary(0x20, 0x00, b""), None),
            ("version 2, a path", binary(0x21, 0x31, &[0; 216]), None),
        ] {
            let found = ProxyHeader::Complete {
                length: header.len(),
                client: client.map(|ip| ip.parse().expect("an address")),
            };
            assert_eq!(ProxyHeader::parse(&[&header[..], b"GET / HTTP/1.1\r\n"].concat()), found, "{name}");
            for length in 0..header.len() {
                assert_eq!(ProxyHeader::parse(&header[..length]), ProxyHeader::Partial, "{name}: {length} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_a_broken_one() {
        for request in [&b"GET / HTTP/1.1\r\n"[..], b"POST /", b"\r\nGET /", b"PROXYGET", b"\x16\x03\x01"] {
            assert_eq!(ProxyHeader::parse(request), ProxyHeader::Absent, "{request:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(TEXT_BYTES_MAX));
        for header in [
            &b"PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n"[..],
            b"PROXY TCP4 198.51.100.7 10.0.0.1 1\r\n",
            b"PROXY TCP4 198.51.100.7 10.0.0.1 1 65536\r\n",
            b"PROXY TCP4 shop.example.com 10.0.0.1 1 2\r\n",
            b"PROXY UDP4 198.51.100.7 10.0.0.1 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY \xff\r\n",
            long.as_bytes(),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x22, 0x11, &[0; 12]),
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x21, 0x11, &[0; PROXY_HEADER_BYTES_MAX]),
        ] {
            assert_eq!(ProxyHeader::parse(header), ProxyHeader::Invalid, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_or_read_on(rest in proptest::collection::vec(any::<u8>(), 0..300), start in 0..3_usize) {
            let bytes = [[&b""[..], TEXT_SIGNATURE, BINARY_SIGNATURE][start], &rest].concat();
            if let ProxyHeader::Complete { length, .. } = ProxyHeader::parse(&bytes) {
                prop_assert!(length <= bytes.len() && length <= PROXY_HEADER_BYTES_MAX);
                prop_assert_eq!(ProxyHeader::parse(&bytes[..length]), ProxyHeader::parse(&bytes));
            }
        }
    }
}
