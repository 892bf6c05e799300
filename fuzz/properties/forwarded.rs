//! The address of a client behind proxies.

use std::net::IpAddr;

use ipnet::IpNet;

use super::protocol::forwarded::{ForwardedHeader, resolve_client_address};

/// The lines of a header.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines: Vec<&str> = text.lines().collect();
    let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
    let (stranger, proxy): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [10, 0, 0, 1].into());
    for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
        assert_eq!(resolve_client_address(stranger, header, &lines, &trusted), stranger, "nobody vouches for it");
        assert_eq!(resolve_client_address(proxy, header, &lines, &[]), proxy, "nobody is trusted");
        let found = resolve_client_address(proxy, header, &lines, &trusted);
        assert_eq!(found, found.to_canonical(), "one address has one form");
        // The entry of the proxy stands right of all that the client wrote.
        let own = match header {
            ForwardedHeader::XForwardedFor => "198.51.100.7",
            ForwardedHeader::Forwarded => "for=198.51.100.7",
        };
        let whole: Vec<&str> = lines.iter().copied().chain([own]).collect();
        let reported: IpAddr = [198, 51, 100, 7].into();
        assert_eq!(resolve_client_address(proxy, header, &whole, &trusted), reported);
    }
}
