//! Resolves host names without blocking a thread, with a time limit, and cancelled with its attempts.
//!
//! The system's own resolver blocks a thread for as long as a name server is silent: a few hundred names of one customer
//! would occupy every thread on which this process reads its files.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::phase::PHASE_TIMEOUT;
use crate::process::locks::lock_unpoisoned;
use crate::process::name_resolver::build_resolver;

/// Longest wait for one answer of a name server; a query is sent again within the time limit of the phase.
const QUERY_TIMEOUT: Duration = Duration::from_millis(900);
/// Bounds the names that are resolved at once.
const CONCURRENT_LOOKUPS_MAX: usize = 256;
/// Bounds the answers that are kept.
const CACHED_ANSWERS_MAX: u64 = 4_096;
/// Longest time for which an address is used without another query, even if its record has a longer TTL.
const ADDRESS_TTL_MAX: Duration = Duration::from_mins(1);
/// Longest time for which a missing name is not looked up again.
const MISSING_NAME_TTL_MAX: Duration = Duration::from_secs(5);
/// Bounds the addresses of one name.
pub const ADDRESSES_MAX: usize = 16;

/// The file of addresses that need no name server; kubelet writes `hostAliases` of a pod into it.
const HOSTS_PATH: &str = "/etc/hosts";

/// The addresses of a name.
type Lookup = Result<Arc<[IpAddr]>, ResolveFailure>;

/// The reason why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFailure {
    /// The name does not exist.
    #[error("the name {0} does not exist")]
    Missing(String),
    /// No name server answered in time.
    #[error("no name server answered for {0} within {limit} s", limit = PHASE_TIMEOUT.as_secs())]
    Timeout(String),
    /// A name server answered with an error.
    #[error("name {name}: {message}")]
    Failed {
        /// The name that was looked up.
        name: String,
        /// The error of the resolver.
        message: String,
    },
}

/// Resolves names; shared by all endpoints of a process.
pub struct NameResolver {
    resolver: TokioResolver,
    /// Addresses of `/etc/hosts`, by name: they precede every answer of a name server, also for a name of the search list.
    hosts: HashMap<String, Arc<[IpAddr]>>,
    lookups: Arc<Semaphore>,
    /// Lookups in flight by name: attempts for one name share a lookup, so that one name occupies one permit.
    in_flight: Mutex<HashMap<String, WeakShared<BoxFuture<'static, Lookup>>>>,
}

impl NameResolver {
    /// A resolver of the name servers in `/etc/resolv.conf`, with its search list and `ndots`, and of `/etc/hosts`; or of this
    /// one name server.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn new(name_server: Option<SocketAddr>) -> Result<Self, String> {
        let resolver = build_resolver(name_server, QUERY_TIMEOUT, |options| {
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            options.cache_size = CACHED_ANSWERS_MAX;
            options.positive_max_ttl = Some(ADDRESS_TTL_MAX);
            options.negative_max_ttl = Some(MISSING_NAME_TTL_MAX);
        })?;
        Ok(Self {
            resolver,
            hosts: parse_hosts(&std::fs::read_to_string(HOSTS_PATH).unwrap_or_default()),
            lookups: Arc::new(Semaphore::new(CONCURRENT_LOOKUPS_MAX)),
            in_flight: Mutex::default(),
        })
    }

    /// Resolves a name to its addresses, at least one.
    ///
    /// # Errors
    /// The name does not exist, or no name server answers in time.
    pub async fn resolve(&self, name: &str) -> Lookup {
        match self.hosts.get(&name.trim_end_matches('.').to_ascii_lowercase()) {
            Some(addresses) => Ok(Arc::clone(addresses)),
            None => self.share_lookup(name).await,
        }
    }

    fn share_lookup(&self, name: &str) -> Shared<BoxFuture<'static, Lookup>> {
        let mut in_flight = lock_unpoisoned(&self.in_flight);
        if let Some(shared) = in_flight.get(name).and_then(WeakShared::upgrade) {
            return shared;
        }
        // An entry without attempts is dead.
        in_flight.retain(|_, lookup| lookup.upgrade().is_some());
        let (resolver, lookups, wanted) = (self.resolver.clone(), Arc::clone(&self.lookups), name.to_owned());
        let lookup = async move {
            let found = timeout(PHASE_TIMEOUT, look_up(&resolver, &lookups, &wanted)).await;
            found.unwrap_or(Err(ResolveFailure::Timeout(wanted)))
        };
        let shared = lookup.boxed().shared();
        if let Some(weak) = shared.downgrade() {
            in_flight.insert(name.to_owned(), weak);
        }
        shared
    }
}

/// Reads the lines of a hosts file: an address, then its names. Other lines are left out.
fn parse_hosts(text: &str) -> HashMap<String, Arc<[IpAddr]>> {
    let mut found: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        words.for_each(|name| found.entry(name.to_ascii_lowercase()).or_default().push(address));
    }
    found.into_iter().map(|(name, addresses)| (name, addresses.into())).collect()
}

async fn look_up(resolver: &TokioResolver, lookups: &Semaphore, name: &str) -> Lookup {
    let failed = |message: String| ResolveFailure::Failed { name: name.to_owned(), message };
    let _permit = lookups.acquire().await.map_err(|error| failed(error.to_string()))?;
    let answer = resolver.lookup_ip(name).await.map_err(|error| {
        if error.is_nx_domain() || error.is_no_records_found() {
            ResolveFailure::Missing(name.to_owned())
        } else {
            failed(error.to_string())
        }
    })?;
    let addresses: Vec<IpAddr> = answer.iter().take(ADDRESSES_MAX).collect();
    if addresses.is_empty() { Err(ResolveFailure::Missing(name.to_owned())) } else { Ok(addresses.into()) }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn the_hosts_file_precedes_name_servers() {
        let hosts = "# hosts\n127.0.0.1 localhost\n10.0.0.9\tShop.test shop # ours\n::1 localhost\nnonsense shop\n";
        let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let mut resolver = NameResolver::new(Some(mute.local_addr().expect("an address"))).expect("a resolver");
        resolver.hosts = parse_hosts(hosts);
        for (name, expected) in
            [("shop.test", vec!["10.0.0.9"]), ("SHOP.", vec!["10.0.0.9"]), ("localhost", vec!["127.0.0.1", "::1"])]
        {
            let found = resolver.resolve(name).await.expect("an address");
            assert_eq!(found.iter().map(IpAddr::to_string).collect::<Vec<_>>(), expected, "{name}");
        }
        assert!(resolver.resolve("other.test.").await.is_err());
    }

    #[tokio::test]
    async fn a_mute_name_server_ends_every_lookup_in_time_and_blocks_no_thread() {
        let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let resolver = NameResolver::new(Some(mute.local_addr().expect("an address"))).expect("a resolver");
        let started = Instant::now();
        let names: Vec<String> = (0..1_000).map(|n| format!("h{n}.test.")).collect();
        let lookups = names.iter().map(|name| resolver.resolve(name));
        let answers = tokio::time::timeout(Duration::from_secs(10), futures::future::join_all(lookups)).await;
        assert!(answers.expect("in time").iter().all(|answer| matches!(answer, Err(ResolveFailure::Timeout(_)))));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(resolver.lookups.available_permits(), CONCURRENT_LOOKUPS_MAX, "nothing goes on");
        tokio::fs::metadata("/").await.expect("files are still read");
    }

    #[tokio::test]
    async fn attempts_for_one_name_share_a_lookup_and_end_it_with_the_last_of_them() {
        let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let resolver = NameResolver::new(Some(mute.local_addr().expect("an address"))).expect("a resolver");
        let (first, second) = (resolver.share_lookup("a.test."), resolver.share_lookup("a.test."));
        assert!(first.ptr_eq(&second));
        let waited = tokio::time::timeout(Duration::from_millis(100), futures::future::join(first, second)).await;
        assert!(waited.is_err());
        assert_eq!(resolver.lookups.available_permits(), CONCURRENT_LOOKUPS_MAX, "both attempts ended");
        let _third = resolver.share_lookup("b.test.");
        assert_eq!(lock_unpoisoned(&resolver.in_flight).len(), 1, "a lookup without attempts is forgotten");
    }

    #[tokio::test]
    async fn the_hosts_of_this_machine_need_no_name_server() {
        let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let resolver = NameResolver::new(Some(mute.local_addr().expect("an address"))).expect("a resolver");
        let found = resolver.resolve("localhost").await.expect("an address");
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
