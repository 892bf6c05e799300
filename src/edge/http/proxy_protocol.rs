//! Reads the header of the PROXY protocol at the beginning of a connection.
//!
//! In: a connection from a trusted network. Out: the address of the client, and the bytes that were read after the header.
//! A header from elsewhere is not one: any client could write it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::edge::apps::client_address::TrustedProxies;
use crate::protocol::proxy_header::{PROXY_HEADER_BYTES_MAX, ProxyHeader};

/// Bytes that one read takes: a usual header, and the beginning of a request.
const READ_BYTES: usize = 512;

/// Whether connections begin with a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocolMode {
    /// No connection begins with one.
    #[default]
    Disabled,
    /// A connection from a trusted network may.
    Accepted,
    /// A connection from a trusted network does, or is closed.
    Required,
}

impl ProxyProtocolMode {
    /// Parses the value of the variable, which was checked with it.
    pub fn parse(value: &str) -> Self {
        match value {
            "accepted" => Self::Accepted,
            "required" => Self::Required,
            _ => Self::Disabled,
        }
    }
}

/// The rule of a listener for the PROXY protocol.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocol {
    /// Whether connections begin with a header.
    pub mode: ProxyProtocolMode,
    /// The networks from which a header counts.
    pub trusted: TrustedProxies,
}

/// The reason for which a connection is closed unserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeaderError {
    /// The header is required and absent.
    Absent,
    /// The header has a form that the protocol does not have.
    Invalid,
    /// The connection ended, or the header did not arrive in time.
    Incomplete,
}

impl ProxyProtocol {
    /// Reads the header of a connection, if one counts there. Returns the client's address and the bytes after the header.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub async fn read_header(
        &self,
        socket: &mut (impl AsyncRead + Unpin),
        peer: IpAddr,
        within: Duration,
    ) -> Result<(IpAddr, Vec<u8>), ProxyHeaderError> {
        let is_trusted = |network: &IpNet| network.contains(&peer.to_canonical());
        if self.mode == ProxyProtocolMode::Disabled || !self.trusted.iter().any(is_trusted) {
            return Ok((peer, vec![]));
        }
        let mut bytes = Vec::with_capacity(READ_BYTES);
        let reading = async {
            loop {
                match ProxyHeader::parse(&bytes) {
                    ProxyHeader::Complete { length, client } => {
                        return Ok((client.unwrap_or(peer), bytes.split_off(length)));
                    }
                    ProxyHeader::Absent if self.mode == ProxyProtocolMode::Required => {
                        return Err(ProxyHeaderError::Absent);
                    }
                    ProxyHeader::Absent => return Ok((peer, std::mem::take(&mut bytes))),
                    ProxyHeader::Invalid => return Err(ProxyHeaderError::Invalid),
                    ProxyHeader::Partial if bytes.len() >= PROXY_HEADER_BYTES_MAX => {
                        return Err(ProxyHeaderError::Invalid);
                    }
                    ProxyHeader::Partial => {}
                }
                match socket.read_buf(&mut bytes).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(ProxyHeaderError::Incomplete),
                }
            }
        };
        timeout(within, reading).await.unwrap_or(Err(ProxyHeaderError::Incomplete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "PROXY TCP4 198.51.100.7 10.0.0.1 49152 443\r\n";

    async fn read(mode: &str, peer: &str, sent: &str) -> Result<(String, String), ProxyHeaderError> {
        let trusted = ["10.0.0.0/8".parse().expect("a network")].into_iter().collect();
        let rule = ProxyProtocol { mode: ProxyProtocolMode::parse(mode), trusted };
        let peer = peer.parse().expect("an address");
        let found = rule.read_header(&mut sent.as_bytes(), peer, Duration::from_secs(5)).await;
        found.map(|(client, rest)| (client.to_string(), String::from_utf8_lossy(&rest).into_owned()))
    }

    #[tokio::test]
    async fn a_header_counts_from_trusted_networks_alone() {
        let request = "GET / HTTP/1.1\r\n\r\n";
        let both = format!("{HEADER}{request}");
        let of = |client: &str, rest: &str| Ok((client.to_owned(), rest.to_owned()));
        for (name, mode, peer, sent, expected) in [
            ("disabled", "disabled", "10.0.0.1", &*both, of("10.0.0.1", "")),
            ("a stranger", "accepted", "192.0.2.1", &both, of("192.0.2.1", "")),
            ("a stranger needs none", "required", "192.0.2.1", request, of("192.0.2.1", "")),
            ("accepted", "accepted", "10.0.0.1", &both, of("198.51.100.7", request)),
            ("IPv4 in IPv6", "accepted", "::ffff:10.0.0.1", &both, of("198.51.100.7", request)),
            ("required", "required", "10.0.0.1", &both, of("198.51.100.7", request)),
            ("the balancer's own check", "required", "10.0.0.1", "PROXY UNKNOWN\r\nGET", of("10.0.0.1", "GET")),
            ("accepted without", "accepted", "10.0.0.1", request, of("10.0.0.1", request)),
            ("required without", "required", "10.0.0.1", request, Err(ProxyHeaderError::Absent)),
            ("broken", "accepted", "10.0.0.1", "PROXY TCP4 x\r\n", Err(ProxyHeaderError::Invalid)),
            ("cut", "accepted", "10.0.0.1", "PROXY TCP4 198", Err(ProxyHeaderError::Incomplete)),
            ("nothing", "accepted", "10.0.0.1", "", Err(ProxyHeaderError::Incomplete)),
        ] {
            assert_eq!(read(mode, peer, sent).await, expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_does_not_arrive_is_given_up() {
        let (mut socket, _other) = tokio::io::duplex(64);
        let trusted = ["10.0.0.0/8".parse().expect("a network")].into_iter().collect();
        let rule = ProxyProtocol { mode: ProxyProtocolMode::Accepted, trusted };
        let found =
            rule.read_header(&mut socket, "10.0.0.1".parse().expect("an address"), Duration::from_secs(5)).await;
        assert_eq!(found, Err(ProxyHeaderError::Incomplete));
    }
}
