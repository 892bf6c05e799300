//! The caller of a request: the address of the client, and the origin that its browser sends.
//!
//! In: the peer address of the connection, the request's headers, the networks of trusted proxies. Out: the client's
//! address. Any client can forge a header, so forwarded addresses are trusted from the right, only as far as trusted
//! proxies wrote them: up to the first address outside their networks.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::protocol::forwarded::{self, ForwardedHeader};
use crate::protocol::relay;

const X_FORWARDED_FOR_HEADER: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Networks whose forwarded addresses are trusted.
pub type TrustedProxies = Arc<[IpNet]>;

/// The peer address of the connection, as the listener saw it.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress {
    /// The address of the connection, or the one that its proxy reported.
    pub address: IpAddr,
    /// Whether a proxy reported the address, by a header of the PROXY protocol.
    pub is_reported: bool,
}

impl PeerAddress {
    const UNKNOWN: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), is_reported: false };
}

/// The address of a client, as far as it can be known.
#[derive(Clone, Copy, Debug)]
struct ClientAddress {
    address: IpAddr,
    /// Whether the address is that of one client, or of one network of clients.
    is_source: bool,
}

/// The client that sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The address of the client.
    pub address: IpAddr,
    /// The address that bounds count clients by; `None` where it may be that of a proxy for everybody.
    pub source: Option<IpAddr>,
    /// The origin of the page; `None` outside browsers.
    pub origin: Option<String>,
}

/// Removes headers that only servers of the cluster may set, and attaches the client's address to the request.
pub fn sanitize_request(request: &mut Request, trusted: &[IpNet]) {
    let ours: Vec<HeaderName> = request
        .headers()
        .keys()
        .filter(|name| name.as_str().starts_with(relay::RELAY_HEADER_PREFIX))
        .cloned()
        .collect();
    for name in ours {
        request.headers_mut().remove(name);
    }
    let peer = request.extensions().get::<PeerAddress>().copied().unwrap_or(PeerAddress::UNKNOWN);
    let address = resolve_client_address(peer.address, request.headers(), trusted);
    let is_reported = peer.is_reported || address != peer.address.to_canonical();
    let is_source = is_source_address(address, is_reported, trusted);
    request.extensions_mut().insert(ClientAddress { address, is_source });
}

/// Whether bounds count clients by this address. A private address that no proxy has reported may be that of a proxy which
/// nobody configured: all clients would share the bounds of one.
pub fn is_source_address(address: IpAddr, is_reported: bool, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    let is_private = match address {
        IpAddr::V4(v4) => {
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_pod_network(v4)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    !trusted.iter().any(|network| network.contains(&address)) && (is_reported || !is_private)
}

/// Whether the address is of a range that Kubernetes clusters use beside the private ones: shared address space (RFC 6598,
/// 100.64.0.0/10), the range for more pods on EKS, and the one for benchmarks (RFC 2544, 198.18.0.0/15).
fn is_pod_network(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    (first == 100 && second & 0xc0 == 64) || (first == 198 && second & 0xfe == 18)
}

/// Returns the client's address that was attached before.
pub fn address_of(parts: &Parts) -> IpAddr {
    find_address(parts).address
}

/// Returns the address that bounds count the client of a request by.
pub fn source_of(parts: &Parts) -> Option<IpAddr> {
    let found = find_address(parts);
    found.is_source.then_some(found.address)
}

fn find_address(parts: &Parts) -> ClientAddress {
    let unknown = ClientAddress { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), is_source: false };
    parts.extensions.get().copied().unwrap_or(unknown)
}

/// Attaches the client's address to a request that another server forwarded.
pub fn set_client_address(parts: &mut Parts, address: IpAddr) {
    parts.extensions.insert(ClientAddress { address, is_source: is_source_address(address, false, &[]) });
}

/// The client's address. A proxy's `X-Forwarded-For`, if present, alone counts, since such proxies pass a client's own
/// `Forwarded` on.
fn resolve_client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let (header, name) = if headers.contains_key(X_FORWARDED_FOR_HEADER) {
        (ForwardedHeader::XForwardedFor, X_FORWARDED_FOR_HEADER)
    } else {
        (ForwardedHeader::Forwarded, header::FORWARDED)
    };
    let lines: Vec<&str> = headers.get_all(&name).iter().map(|line| line.to_str().unwrap_or_default()).collect();
    forwarded::resolve_client_address(peer, header, &lines, trusted)
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let address = address_of(parts);
        let origin = parts.headers.get(header::ORIGIN);
        let source = source_of(parts);
        Ok(Self {
            address,
            source,
            origin: origin.map(|origin| String::from_utf8_lossy(origin.as_bytes()).into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a header's value"))
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn a_table_of_forwarded_addresses() {
        const XFF: &str = "x-forwarded-for";
        const RFC: &str = "forwarded";
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|network| network.parse().expect("a network")).collect();
        for (name, peer, lines, expected) in [
            ("no proxy", "192.0.2.1", &[][..], "192.0.2.1"),
            ("a stranger claims", "192.0.2.1", &[(XFF, "198.51.100.7")], "192.0.2.1"),
            ("a proxy says nothing", "10.0.0.1", &[], "10.0.0.1"),
            ("a proxy tells its client", "10.0.0.1", &[(XFF, "198.51.100.7")], "198.51.100.7"),
            ("the client claimed before", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7")], "198.51.100.7"),
            ("two proxies", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7, 10.0.0.2")], "198.51.100.7"),
            ("two lines", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7"), (XFF, "10.0.0.2")], "198.51.100.7"),
            ("all of them are proxies", "10.0.0.1", &[(XFF, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("with a port", "10.0.0.1", &[(XFF, "198.51.100.7:4711")], "198.51.100.7"),
            ("IPv6", "fd00::1", &[(XFF, "2001:db8::7")], "2001:db8::7"),
            ("IPv6 with a port", "10.0.0.1", &[(XFF, "[2001:db8::7]:4711")], "2001:db8::7"),
            ("IPv4 in IPv6", "::ffff:10.0.0.1", &[(XFF, "::ffff:198.51.100.7")], "198.51.100.7"),
            ("not an address", "10.0.0.1", &[(XFF, "198.51.100.7, unknown")], "10.0.0.1"),
            ("nothing between commas", "10.0.0.1", &[(XFF, "198.51.100.7,,10.0.0.2")], "10.0.0.2"),
            ("not even text", "10.0.0.1", &[(XFF, "198.51.100.7"), (XFF, "\u{e4}")], "10.0.0.1"),
            ("as RFC 7239 has it", "10.0.0.1", &[(RFC, "for=198.51.100.7;proto=https")], "198.51.100.7"),
            ("quoted", "10.0.0.1", &[(RFC, r#"for=203.0.113.9, For="[2001:db8::7]:4711""#)], "2001:db8::7"),
            ("hidden", "10.0.0.1", &[(RFC, "for=198.51.100.7, for=_hidden")], "10.0.0.1"),
            ("not for anyone", "10.0.0.1", &[(RFC, "by=198.51.100.7")], "10.0.0.1"),
            ("both", "10.0.0.1", &[(RFC, "for=203.0.113.9"), (XFF, "198.51.100.7")], "198.51.100.7"),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(resolve_client_address(peer, &headers(lines), &trusted).to_string(), expected, "{name}");
            assert_eq!(
                resolve_client_address(peer, &headers(lines), &[]),
                peer.to_canonical(),
                "{name}, and nobody is trusted"
            );
        }
        let long = vec!["10.0.0.9"; 10_000].join(",");
        let found =
            resolve_client_address("10.0.0.1".parse().expect("an address"), &headers(&[(XFF, &long)]), &trusted);
        assert_eq!(found.to_string(), "10.0.0.9", "a long line is not read to its end");
    }

    #[test]
    fn what_servers_say_to_each_other_is_never_taken_from_a_client() {
        let request = Request::builder()
            .header("X-Realtime-Client", "192.0.2.1")
            .header("x-realtime-client", "192.0.2.2")
            .header("X-REALTIME-Signature", "00")
            .header("X-Realtimes", "mine")
            .header("Origin", "https://a.example");
        let mut request = request.body(Body::empty()).expect("a request");
        let address = "192.0.2.9".parse().expect("an address");
        request.extensions_mut().insert(PeerAddress { address, is_reported: false });
        sanitize_request(&mut request, &[]);
        let mut left: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["origin", "x-realtimes"]);
        assert_eq!(
            request.extensions().get::<ClientAddress>().map(|found| found.address.to_string()),
            Some("192.0.2.9".into())
        );
    }

    #[test]
    fn a_table_of_addresses_by_which_clients_are_counted() {
        let trusted: [IpNet; 1] = ["203.0.113.0/24".parse().expect("a network")];
        for (name, address, is_reported, counted) in [
            ("a client of the internet", "198.51.100.7", false, true),
            ("the same behind a trusted proxy", "198.51.100.7", true, true),
            ("a trusted proxy", "203.0.113.9", false, false),
            ("a proxy that nobody configured", "10.0.0.9", false, false),
            ("a client of an office behind a trusted proxy", "10.0.0.9", true, true),
            ("the same, mapped to IPv6", "::ffff:10.0.0.9", false, false),
            ("a client by IPv6", "2001:db8::7", false, true),
            ("a node of a cluster by IPv6", "fd00::7", false, false),
            ("this machine", "127.0.0.1", false, false),
            ("a pod in shared address space", "100.127.0.9", false, false),
            ("beside shared address space", "100.128.0.9", false, true),
            ("a pod in the range for benchmarks", "198.19.0.9", false, false),
            ("beside the range for benchmarks", "198.20.0.9", false, true),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(is_source_address(address, is_reported, &trusted), counted, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_stranger_moves_what_is_found(line in "[ -~]{0,80}", rfc in "[ -~]{0,80}") {
            let peer: IpAddr = "192.0.2.1".parse().expect("an address");
            let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
            let lines = headers(&[("x-forwarded-for", &line), ("forwarded", &rfc)]);
            prop_assert_eq!(resolve_client_address(peer, &lines, &trusted), peer);
            // An entry of the client stands left of the proxy's, and does not count.
            let both = headers(&[("x-forwarded-for", &format!("{line}, 198.51.100.7"))]);
            prop_assert_eq!(resolve_client_address(trusted[0].addr(), &both, &trusted).to_string(), "198.51.100.7");
        }
    }
}
