//! The address of a client behind proxies, from the headers in which they report it. Pure.
//!
//! In: the address of the connection, the lines of a header, the networks of trusted proxies. Out: the client's address.
//! Any client can forge a header, so forwarded addresses are trusted from the right, only as far as trusted proxies wrote
//! them: up to the first address outside their networks.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Forwarded entries that are read: more proxies than any deployment has.
const FORWARDED_HOPS_MAX: usize = 32;

/// The header whose lines are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: addresses, separated by commas.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): elements with a pair `for`.
    Forwarded,
}

/// The client's address: the nearest one that is not a trusted proxy's.
#[must_use]
pub fn resolve_client_address(peer: IpAddr, header: ForwardedHeader, lines: &[&str], trusted: &[IpNet]) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let is_proxy = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if !is_proxy(nearest) {
        return nearest;
    }
    let entries = lines.iter().rev().flat_map(|line| line.rsplit(','));
    for entry in entries.take(FORWARDED_HOPS_MAX) {
        let found = match header {
            ForwardedHeader::XForwardedFor => parse_address(entry),
            ForwardedHeader::Forwarded => parse_forwarded_element(entry),
        };
        // An unreadable entry ends the trust.
        let Some(found) = found else { break };
        nearest = found;
        if !is_proxy(nearest) {
            break;
        }
    }
    nearest
}

/// Parses an address, with or without brackets and port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Returns the address in one element of `Forwarded` (RFC 7239): `for=192.0.2.1;proto=https`, quoted if it has a colon.
fn parse_forwarded_element(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    parse_address(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}
