//! Routes of clients through Services to a cluster's pods. Pure.
//!
//! In: the cluster's live Services, its pods, the requested transports. Out: a route for each edge server. A route whose
//! Service is missing, or has no address yet, serves nothing, so that a first proof cannot complete without it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use super::pods::ServerPod;
use crate::config::ServerKind;
use crate::prober::{ClientAddress, ServiceRoute};
use crate::protocol::Transport;

/// Port of the Services that clients connect to.
const SERVICE_PORT: u16 = 80;

/// One route for each Service that carries at least one of the transports.
pub fn find_service_routes(
    cluster: &str,
    services: &[Service],
    pods: &[ServerPod],
    transports: &BTreeSet<Transport>,
) -> Vec<ServiceRoute> {
    let servers: BTreeSet<ServerKind> = transports.iter().map(|transport| transport.server_kind()).collect();
    let route = |server: ServerKind| {
        let name = format!("{cluster}-{server}");
        let service = services.iter().find(|service| service.name_any() == name);
        let address = service.and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse::<IpAddr>().ok());
        let behind = |pod: &&ServerPod| pod.server.serves_as(server) && pod.serving;
        // While a pod of the former template is behind it too, a journey may lead there and proves nothing of this one.
        let (current, former): (Vec<_>, Vec<_>) = pods.iter().filter(behind).partition(|pod| pod.current);
        ServiceRoute {
            name: format!("Service {name}"),
            public: ClientAddress::plain(SocketAddr::new(
                address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                SERVICE_PORT,
            )),
            transports: transports.iter().copied().filter(|transport| transport.server_kind() == server).collect(),
            serving: address.is_some() && !current.is_empty() && former.is_empty(),
            api: None,
            has_large_events: false,
        }
    };
    servers.into_iter().map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ServiceSpec;

    fn service(name: &str, address: Option<&str>) -> Service {
        let spec = ServiceSpec { cluster_ip: address.map(str::to_owned), ..ServiceSpec::default() };
        let mut service = Service { spec: Some(spec), ..Service::default() };
        service.metadata.name = Some(name.to_owned());
        service
    }

    #[test]
    fn a_route_serves_when_its_service_has_an_address_and_current_pods_only() {
        let edge = |admitted| ServerPod::for_test("eu-websocket-0", ServerKind::Websocket, admitted, false, 0);
        let former = || {
            let mut former = edge(Some("1f"));
            former.current = false;
            former
        };
        let mut both = edge(Some("1f"));
        both.server = ServerKind::Edge;
        let there = || vec![service("eu-websocket", Some("198.18.0.9"))];
        for (name, services, pods, expected) in [
            ("no Service", vec![], vec![edge(Some("1f"))], "0.0.0.0:80 false"),
            ("no address yet", vec![service("eu-websocket", None)], vec![edge(Some("1f"))], "0.0.0.0:80 false"),
            (
                "another's",
                vec![service("us-websocket", Some("198.18.0.9"))],
                vec![edge(Some("1f"))],
                "0.0.0.0:80 false",
            ),
            ("nobody was let in", there(), vec![edge(None)], "198.18.0.9:80 false"),
            ("pods of the former template only", there(), vec![former()], "198.18.0.9:80 false"),
            ("pods of both templates", there(), vec![edge(Some("1f")), former()], "198.18.0.9:80 false"),
            ("it leads to a pod", there(), vec![edge(Some("1f"))], "198.18.0.9:80 true"),
            ("it leads to a pod of both", there(), vec![both], "198.18.0.9:80 true"),
        ] {
            let found = find_service_routes("eu", &services, &pods, &[Transport::Websocket].into());
            let routes: Vec<String> =
                found.iter().map(|route| format!("{} {}", route.public.target, route.serving)).collect();
            assert_eq!(routes, [expected], "{name}");
        }
    }

    #[test]
    fn each_server_has_a_route_with_its_own_transports() {
        let found = find_service_routes("eu", &[], &[], &Transport::ALL.into());
        let routes: Vec<(&str, usize)> =
            found.iter().map(|route| (route.name.as_str(), route.transports.len())).collect();
        assert_eq!(routes, [("Service eu-websocket", 1), ("Service eu-sockjs", 6)]);
    }
}
