//! Decides which addresses webhooks may be sent to.
//!
//! In: the URL that a customer configured, and the exceptions that the cluster's owner allows beyond the public
//! internet. Out: the egress class of the URL, or a refusal. The operator reports by it an app whose endpoint is refused,
//! and the dispatcher sends by it. A host name proves nothing, since its owner decides what it resolves to: the dispatcher
//! also judges the very addresses that a connection is made to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock};

use ipnet::IpNet;
use url::{Host, Url};

/// Ports that a public endpoint may have.
const PUBLIC_PORTS: [u16; 2] = [443, 8443];

/// The configured exceptions to public addresses.
#[derive(Debug, Default)]
pub struct EgressPolicy {
    networks: Vec<IpNet>,
    endpoints: Vec<Endpoint>,
    /// Exceptions and denials that change while the process runs.
    listed: RwLock<ListedEgress>,
}

/// The parts of a policy that change while the process runs.
#[derive(Debug, Default)]
struct ListedEgress {
    endpoints: Vec<Endpoint>,
    /// Networks that are not the internet although their addresses are public: those of the Kubernetes cluster itself.
    denied: Vec<IpNet>,
}

/// A host in lower case, and a port.
type Endpoint = (String, u16);

/// The class of an endpoint: the addresses that it may resolve to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressClass {
    /// Public addresses and allowed networks.
    Public,
    /// Allowed networks only, because the scheme or the port is not one for the internet.
    Private,
    /// An exactly listed exception: any address.
    Exempt,
}

/// The reason for not sending a webhook to an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefusal {
    /// The text is no http or https URL. It is not shown, since it may contain a password.
    #[error("the URL is no http or https address: correct the endpoint")]
    Malformed,
    /// The endpoint's addresses are not public.
    #[error(
        "{0} is not a public address: correct the endpoint, or allow its network in `webhooks.allowedNetworks` of the RealtimeCluster"
    )]
    Address(String),
    /// The endpoint's addresses are public, and those of the Kubernetes cluster itself.
    #[error(
        "{0} is in a network of the Kubernetes cluster itself, or in `webhooks.deniedNetworks`: correct the endpoint, or allow its network in `webhooks.allowedNetworks` of the RealtimeCluster"
    )]
    Denied(String),
    /// The scheme or the port is not one for the internet.
    #[error(
        "{0} is not https on port 443 or 8443: correct the endpoint, or allow its network in `webhooks.allowedNetworks` of the RealtimeCluster"
    )]
    Port(String),
}

impl EgressPolicy {
    /// Parses the two lists of exceptions; items that cannot be parsed allow nothing.
    #[must_use]
    pub fn new<'a>(networks: impl Iterator<Item = &'a str>, endpoints: impl Iterator<Item = &'a str>) -> Self {
        Self {
            networks: networks.filter_map(|text| text.parse().ok()).collect(),
            endpoints: endpoints.filter_map(parse_endpoint).collect(),
            listed: RwLock::default(),
        }
    }

    /// Replaces the endpoints that change while the process runs; an item that cannot be parsed allows nothing.
    pub fn set_listed<'a>(&self, endpoints: impl Iterator<Item = &'a str>) {
        let mut listed = self.listed.write().unwrap_or_else(PoisonError::into_inner);
        listed.endpoints = endpoints.filter_map(parse_endpoint).collect();
    }

    /// Replaces the networks that are denied although their addresses are public. Allowed networks are allowed all the same.
    ///
    /// # Errors
    /// The first text that is no network; nothing changes then, since a network that is left out would be allowed.
    pub fn set_denied<'a>(&self, networks: impl Iterator<Item = &'a str>) -> Result<(), String> {
        let denied: Result<Vec<IpNet>, String> =
            networks.map(|text| text.parse().map_err(|_| format!("`{text}` is no network"))).collect();
        self.listed.write().unwrap_or_else(PoisonError::into_inner).denied = denied?;
        Ok(())
    }

    fn is_denied(&self, address: IpAddr) -> bool {
        let listed = self.listed.read().unwrap_or_else(PoisonError::into_inner);
        let meant = unwrap_embedded_ipv4(address);
        listed.denied.iter().any(|network| network.contains(&meant) || network.contains(&address))
    }

    fn is_exempt(&self, host: &str, port: u16) -> bool {
        let listed = self.listed.read().unwrap_or_else(PoisonError::into_inner);
        self.endpoints.iter().chain(listed.endpoints.iter()).any(|(name, exact)| *name == host && *exact == port)
    }

    /// The egress class of a URL, as far as its text decides it.
    ///
    /// # Errors
    /// The URL is refused for every address that it may resolve to.
    pub fn classify_url(&self, url: &Url) -> Result<EgressClass, EgressRefusal> {
        let (Some(host), Some(port), "https" | "http") = (url.host(), url.port_or_known_default(), url.scheme()) else {
            return Err(EgressRefusal::Malformed);
        };
        let text = match &host {
            Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        if self.is_exempt(&text, port) {
            return Ok(EgressClass::Exempt);
        }
        let public = url.scheme() == "https" && PUBLIC_PORTS.contains(&port);
        let class = if public { EgressClass::Public } else { EgressClass::Private };
        let literal = match host {
            Host::Domain(_) if public || !self.networks.is_empty() => return Ok(class),
            Host::Domain(_) => return Err(EgressRefusal::Port(format!("{text}:{port}"))),
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
        };
        if self.is_allowed(class, literal) {
            Ok(class)
        } else if is_global(literal) && class == EgressClass::Private {
            Err(EgressRefusal::Port(format!("{text}:{port}")))
        } else {
            Err(self.explain_refusal(text, &[literal]))
        }
    }

    /// The refusal of a host whose addresses are all refused.
    #[must_use]
    pub fn describe_refusal(&self, host: &str, addresses: &[IpAddr]) -> EgressRefusal {
        let listed = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.explain_refusal(if listed == host { listed } else { format!("{host} ({listed})") }, addresses)
    }

    fn explain_refusal(&self, shown: String, addresses: &[IpAddr]) -> EgressRefusal {
        let is_denied = addresses.iter().all(|address| is_global(*address) && self.is_denied(*address));
        if is_denied { EgressRefusal::Denied(shown) } else { EgressRefusal::Address(shown) }
    }

    /// Whether an endpoint of this class may be connected to at this address.
    #[must_use]
    pub fn is_allowed(&self, class: EgressClass, address: IpAddr) -> bool {
        let meant = unwrap_embedded_ipv4(address);
        let allowed = || self.networks.iter().any(|network| network.contains(&meant));
        match class {
            EgressClass::Exempt => true,
            EgressClass::Private => allowed(),
            EgressClass::Public => allowed() || (is_global(address) && !self.is_denied(address)),
        }
    }
}

fn parse_endpoint(text: &str) -> Option<Endpoint> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_ascii_lowercase(), port.parse().ok()?))
}

/// The IPv4 address within a mapped or NAT64 address; any other address unchanged.
fn unwrap_embedded_ipv4(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => address,
    }
}

/// Whether an address is global unicast by IANA's registries of special-purpose addresses.
#[must_use]
pub fn is_global(address: IpAddr) -> bool {
    match unwrap_embedded_ipv4(address) {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => is_global_v6(v6),
    }
}

fn is_global_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127 | 224..=255, ..]     // this network, private, loopback, multicast and reserved
            | [100, 64..=127, ..]          // shared by carriers (CGNAT)
            | [169, 254, ..]               // link-local, where clouds keep metadata
            | [172, 16..=31, ..]           // private
            | [192, 0, 0 | 2, _]           // protocol assignments, documentation
            | [192, 88, 99, _]             // 6to4 relays
            | [192, 168, ..]               // private
            | [198, 18 | 19, ..]           // benchmarking
            | [198, 51, 100, _]            // documentation
            | [203, 0, 113, _] // documentation
    )
}

fn is_global_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Protocol assignments (Teredo, benchmarking, ORCHID), documentation twice, 6to4 with any embedded address.
        [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_purpose_addresses_are_not_global() {
        for (name, address, global) in [
            ("a public one", "93.184.216.34", true),
            ("this network", "0.0.0.0", false),
            ("loopback", "127.0.0.1", false),
            ("private 10", "10.1.2.3", false),
            ("private 172", "172.31.255.255", false),
            ("beyond private 172", "172.32.0.1", true),
            ("private 192", "192.168.0.1", false),
            ("CGNAT", "100.64.0.1", false),
            ("beyond CGNAT", "100.128.0.1", true),
            ("metadata", "169.254.169.254", false),
            ("benchmarking", "198.19.0.1", false),
            ("beyond benchmarking", "198.20.0.1", true),
            ("protocol assignments", "192.0.0.8", false),
            ("documentation 1", "192.0.2.1", false),
            ("documentation 2", "198.51.100.1", false),
            ("documentation 3", "203.0.113.1", false),
            ("6to4 relay", "192.88.99.1", false),
            ("multicast", "224.0.0.1", false),
            ("broadcast", "255.255.255.255", false),
            ("public v6", "2606:4700::1111", true),
            ("unspecified v6", "::", false),
            ("loopback v6", "::1", false),
            ("ULA", "fd00::1", false),
            ("link-local v6", "fe80::1", false),
            ("multicast v6", "ff02::1", false),
            ("Teredo", "2001:0:1::1", false),
            ("documentation v6", "2001:db8::1", false),
            ("documentation v6, newer", "3fff:0fff::1", false),
            ("6to4", "2002:0a00:0001::1", false),
            ("mapped private", "::ffff:10.0.0.1", false),
            ("mapped public", "::ffff:93.184.216.34", true),
            ("compatible", "::10.0.0.1", false),
            ("NAT64 private", "64:ff9b::10.0.0.1", false),
            ("NAT64 public", "64:ff9b::93.184.216.34", true),
            ("NAT64, local use", "64:ff9b:1::1", false),
            ("segment routing", "5f00::1", false),
        ] {
            assert_eq!(is_global(address.parse().expect(address)), global, "{name}");
        }
    }

    #[test]
    fn endpoints_are_classified_by_scheme_port_and_exceptions() {
        let strict = EgressPolicy::default();
        let open = EgressPolicy::new(["127.0.0.0/8"].into_iter(), ["receiver.test:8080", "[::1]:9000"].into_iter());
        for (name, policy, url, expected) in [
            ("https by name", &strict, "https://a.test/x", Some(EgressClass::Public)),
            ("https on 8443", &strict, "https://a.test:8443/x", Some(EgressClass::Public)),
            ("https on another port", &strict, "https://a.test:444/x", None),
            ("plain http", &strict, "http://a.test/x", None),
            ("a public address", &strict, "https://93.184.216.34/", Some(EgressClass::Public)),
            ("loopback", &strict, "https://127.0.0.1/", None),
            ("loopback in disguise", &strict, "https://0x7f000001/", None),
            ("loopback, mapped", &strict, "https://[::ffff:127.0.0.1]/", None),
            ("another scheme", &strict, "ftp://a.test/", None),
            ("an allowed network", &open, "http://127.0.0.1:9999/", Some(EgressClass::Private)),
            ("an allowed network, mapped", &open, "http://[::ffff:127.0.0.1]:9999/", Some(EgressClass::Private)),
            ("a network that is not allowed", &open, "http://10.0.0.1/", None),
            ("a name that may lie in an allowed network", &open, "http://a.test/", Some(EgressClass::Private)),
            ("an exact endpoint", &open, "http://Receiver.test:8080/x", Some(EgressClass::Exempt)),
            ("an exact endpoint, v6", &open, "http://[::1]:9000/x", Some(EgressClass::Exempt)),
            ("another port of an exact endpoint", &open, "http://[::1]:9001/x", None),
        ] {
            assert_eq!(policy.classify_url(&url.parse().expect(url)).ok(), expected, "{name}");
        }
    }

    #[test]
    fn networks_of_the_kubernetes_cluster_are_refused_although_they_are_public() {
        let policy = EgressPolicy::new(["198.200.7.0/24"].into_iter(), ["own.test:443"].into_iter());
        policy.set_denied(["198.200.0.0/16", "2600:1f18:1:2::/64", "64:ff9b::/96"].into_iter()).expect("networks");
        for (name, address, allowed) in [
            ("a pod", "198.200.1.1", false),
            ("a pod, mapped", "::ffff:198.200.1.1", false),
            ("a pod behind NAT64", "64:ff9b::198.200.1.1", false),
            ("an allowed part", "198.200.7.1", true),
            ("an allowed part, mapped", "::ffff:198.200.7.1", true),
            ("another public address", "198.201.1.1", true),
            ("a pod, v6", "2600:1f18:1:2:aaaa::5", false),
            ("another subnet, v6", "2600:1f18:1:3::5", true),
            ("a denied network in its own notation", "64:ff9b::93.184.216.34", false),
        ] {
            let address: IpAddr = address.parse().expect(address);
            assert_eq!(policy.is_allowed(EgressClass::Public, address), allowed, "{name}");
            assert!(policy.is_allowed(EgressClass::Exempt, address), "{name}");
        }
        let refusal = |url: &str| policy.classify_url(&url.parse().expect(url)).expect_err(url).to_string();
        assert!(
            refusal("https://198.200.1.1/").contains("198.200.1.1 is in a network of the Kubernetes cluster itself")
        );
        assert!(
            refusal("https://[2600:1f18:1:2::1]:8443/").contains("is in a network of the Kubernetes cluster itself")
        );
        assert!(refusal("https://198.201.1.1:9/").contains("is not https on port"));
        let found = policy.describe_refusal("a.test", &["198.200.1.1", "198.200.1.2"].map(|it| it.parse().expect(it)));
        assert!(found.to_string().starts_with("a.test (198.200.1.1, 198.200.1.2) is in a network of the"), "{found}");
        let mixed = policy.describe_refusal("a.test", &["198.200.1.1", "10.0.0.1"].map(|it| it.parse().expect(it)));
        assert!(mixed.to_string().contains("is not a public address"), "{mixed}");
        assert_eq!(policy.set_denied(["rubbish"].into_iter()), Err("`rubbish` is no network".to_owned()));
        assert!(!policy.is_allowed(EgressClass::Public, [198, 200, 1, 1].into()), "the former networks hold");
    }

    #[test]
    fn a_resolved_address_is_judged_by_the_endpoint_class() {
        let open = EgressPolicy::new(["10.0.0.0/8"].into_iter(), std::iter::empty());
        let (public, private): (IpAddr, IpAddr) = ([93, 184, 216, 34].into(), [10, 0, 0, 1].into());
        let loopback = IpAddr::from([127, 0, 0, 1]);
        for (class, allowed) in [
            (EgressClass::Public, [true, true, false]),
            (EgressClass::Private, [false, true, false]),
            (EgressClass::Exempt, [true; 3]),
        ] {
            assert_eq!(
                [public, private, loopback].map(|address| open.is_allowed(class, address)),
                allowed,
                "{class:?}"
            );
        }
    }
}
