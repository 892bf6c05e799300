//! Binds the listeners of every process, for IPv4 and IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

/// Binds a listener. `[::]` takes both families; on a kernel without IPv6 it becomes `0.0.0.0`.
///
/// # Errors
/// The address cannot be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if has_no_family(address, &error) => {
            tracing::info!(%address, "no IPv6 on this node, listening on IPv4 alone");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Whether the address is that of all interfaces in a family that the kernel lacks.
fn has_no_family(address: SocketAddr, error: &io::Error) -> bool {
    /// `EAFNOSUPPORT` of Linux, for which the standard library has no kind.
    const FAMILY_UNSUPPORTED: i32 = 97;
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified())
        && (error.raw_os_error() == Some(FAMILY_UNSUPPORTED) || error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn one_listener_takes_both_families() {
        let listener = bind("[::]:0".parse().expect("an address")).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        for client in ["127.0.0.1", "::1"] {
            let client: IpAddr = client.parse().expect("an address");
            if address.is_ipv4() && client.is_ipv6() {
                continue;
            }
            let (connected, accepted) = tokio::join!(TcpStream::connect((client, address.port())), listener.accept());
            connected.expect("connected");
            assert_eq!(accepted.expect("accepted").1.ip().to_canonical(), client);
        }
    }

    #[test]
    fn only_a_missing_family_is_replaced() {
        let unsupported = io::Error::from_raw_os_error(97);
        let all: SocketAddr = "[::]:1".parse().expect("an address");
        assert!(has_no_family(all, &unsupported) && has_no_family(all, &io::ErrorKind::AddrNotAvailable.into()));
        assert!(!has_no_family(all, &io::ErrorKind::AddrInUse.into()));
        for other in ["[::1]:1", "0.0.0.0:1"] {
            assert!(!has_no_family(other.parse().expect("an address"), &unsupported), "{other}");
        }
    }
}
