//! The resolver of host names, by the name servers of this machine.
//!
//! In: one name server or none, the time limit of a query, and further options. Out: a resolver that blocks no thread. It must
//! not know the names, nor the use of their addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{TokioResolver, system_conf};

/// Times that a query is sent again to a name server that does not answer.
const QUERY_REPEATS_MAX: usize = 2;

/// The name server of a machine without `/etc/resolv.conf`, as resolv.conf(5) has it.
const LOCAL_NAME_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// Builds a resolver of the name servers in `/etc/resolv.conf`, with its search list and `ndots`; or of this one name server.
/// Each query waits for `query_timeout`; `adjust` sets further options.
///
/// # Errors
/// The resolver cannot be made.
pub fn build_resolver(
    name_server: Option<SocketAddr>,
    query_timeout: Duration,
    adjust: impl FnOnce(&mut ResolverOpts),
) -> Result<TokioResolver, String> {
    let (config, mut options) = match name_server {
        Some(address) => (build_config(address), ResolverOpts::default()),
        None => system_conf::read_system_conf().unwrap_or_else(|error| {
            tracing::warn!(%error, "/etc/resolv.conf not read: names are resolved by this machine");
            (build_config(LOCAL_NAME_SERVER), ResolverOpts::default())
        }),
    };
    options.timeout = query_timeout;
    options.attempts = QUERY_REPEATS_MAX;
    adjust(&mut options);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder.build().map_err(|error| error.to_string())
}

fn build_config(name_server: SocketAddr) -> ResolverConfig {
    let mut server = NameServerConfig::udp_and_tcp(name_server.ip());
    for connection in &mut server.connections {
        connection.port = name_server.port();
    }
    ResolverConfig::from_parts(None, vec![], vec![server])
}
