//! Paths of journeys through load balancers. Pure.
//!
//! In: the exposures, the published addresses of the status, and the paths through Services. Out: a path for each host and each
//! address, and the load balancers that have none yet.

use std::net::{IpAddr, SocketAddr};

use crate::api::cluster::{EntranceStatus, ExternalGate};
use crate::config::ServerKind;
use crate::desired::expose::{Entrance, Exposure};
use crate::prober::{ClientAddress, DialTarget, ExternalPlan, ServiceRoute, TlsTrust};
use crate::protocol::Transport;

/// Ends of annotations that name a web ACL: of the AWS Load Balancer Controller and of EKS Auto Mode.
const WEB_ACL_SUFFIXES: [&str; 3] = ["/wafv2-acl-arn", "/wafv2-acl-name", "/waf-acl-id"];

/// Inputs from which [`plan_external_routes`] plans.
pub struct ExternalInputs<'a> {
    /// The word of the manifest.
    pub gate: ExternalGate,
    pub exposures: &'a [Exposure],
    /// The load balancers with their published addresses.
    pub entrances: &'a [EntranceStatus],
    /// The paths through Services, behind which the load balancers are.
    pub services: &'a [ServiceRoute],
    /// Authorities whose certificates are accepted, or the error of reading them.
    pub trust: Result<TlsTrust, String>,
    /// Address from which journeys begin.
    pub source: String,
}

/// Plans the paths through the load balancers that have a host.
pub fn plan_external_routes(inputs: &ExternalInputs<'_>) -> ExternalPlan {
    let is_external = |exposure: &&Exposure| exposure.entrance != Entrance::ClusterIp && !exposure.hosts.is_empty();
    let mut plan = ExternalPlan { source: inputs.source.clone(), ..ExternalPlan::default() };
    for exposure in inputs.exposures.iter().filter(is_external) {
        plan.gate = Some(inputs.gate);
        let published: Vec<&EntranceStatus> =
            inputs.entrances.iter().filter(|entrance| entrance.hosts == exposure.hosts).collect();
        if published.is_empty() {
            plan.pending.push(format!("{}: its load balancer has not been observed yet", exposure.hosts.join(", ")));
        }
        for entrance in published {
            if entrance.addresses.is_empty() {
                let cause = if entrance.problem.is_empty() { "no address yet" } else { &entrance.problem };
                plan.pending.push(format!("{}: {cause}", entrance.object));
            }
            match (&inputs.trust, entrance.tls) {
                (Err(error), true) => {
                    plan.pending.push(format!("{}: no authorities for TLS: {error}", entrance.object));
                }
                (Ok(trust), true) => plan.routes.extend(list_routes(inputs, exposure, entrance, Some(trust))),
                (_, false) => plan.routes.extend(list_routes(inputs, exposure, entrance, None)),
            }
        }
    }
    plan
}

/// Pairs hosts and addresses so that each is in at least one path: certificates differ by host, networks by address.
fn list_routes(
    inputs: &ExternalInputs<'_>,
    exposure: &Exposure,
    entrance: &EntranceStatus,
    trust: Option<&TlsTrust>,
) -> Vec<ServiceRoute> {
    let (hosts, addresses) = (&exposure.hosts, &entrance.addresses);
    let count = if addresses.is_empty() { 0 } else { hosts.len().max(addresses.len()) };
    let servers: Vec<ServerKind> = exposure.paths().into_iter().map(|(_, server)| server).collect();
    let behind = inputs
        .services
        .iter()
        .filter(|service| service.transports.iter().any(|transport| servers.contains(&transport.server_kind())));
    let behind: Vec<&ServiceRoute> = behind.collect();
    let mut transports: Vec<Transport> = behind.iter().flat_map(|service| service.transports.iter().copied()).collect();
    // A publish is the same whatever the transport of its receiver.
    transports.truncate(if exposure.is_http_api { 1 } else { transports.len() });
    let serving = !behind.is_empty() && behind.iter().all(|service| service.serving);
    let route = |number: usize| {
        let (host, address) = (&hosts[number % hosts.len()], &addresses[number % addresses.len()]);
        let target = match address.parse::<IpAddr>() {
            Ok(ip) => DialTarget::Socket(SocketAddr::new(ip, entrance.port)),
            Err(_) => DialTarget::Name(address.clone(), entrance.port),
        };
        let address = ClientAddress {
            target: target.clone(),
            host: Some(host.clone()),
            tls: trust.cloned(),
            base_path: exposure.base_path.clone().unwrap_or_default(),
        };
        // Clients of the HTTP API are backends: the session that hears the publish enters through the Service.
        let (public, api) = match behind.first().filter(|_| exposure.is_http_api) {
            Some(service) => (service.public.clone(), Some(address)),
            None => (address, None),
        };
        ServiceRoute {
            name: format!("{host} at {target}"),
            public,
            api,
            transports: transports.clone(),
            serving,
            has_large_events: has_web_acl(exposure),
        }
    };
    (0..count).map(route).collect()
}

/// Whether a web ACL may stand in front: at an Application Load Balancer, to which one may be attached outside of the manifest
/// too, or by an annotation.
fn has_web_acl(exposure: &Exposure) -> bool {
    let is_acl = |key: &String| WEB_ACL_SUFFIXES.iter().any(|suffix| key.ends_with(suffix));
    matches!(exposure.entrance, Entrance::Alb(..)) || exposure.annotations.keys().any(is_acl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::exposure_status::tests::cluster;

    fn trust() -> TlsTrust {
        crate::process::install_tls();
        rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
            .into()
    }

    fn service(server: ServerKind, serving: bool) -> ServiceRoute {
        let carried = Transport::ALL.into_iter().filter(|transport| transport.server_kind() == server);
        ServiceRoute {
            name: format!("Service eu-{server}"),
            public: ClientAddress::plain(([198, 18, 0, 9], 80).into()),
            api: None,
            transports: carried.collect(),
            serving,
            has_large_events: false,
        }
    }

    fn entrance(hosts: &[&str], addresses: &[&str], problem: &str) -> EntranceStatus {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        EntranceStatus {
            object: "Ingress eu-websocket".to_owned(),
            hosts: list(hosts),
            addresses: list(addresses),
            port: 443,
            tls: true,
            problem: problem.to_owned(),
        }
    }

    fn plan(manifest: &str, entrances: &[EntranceStatus], serving: bool) -> ExternalPlan {
        plan_external_routes(&ExternalInputs {
            gate: ExternalGate::Auto,
            exposures: &cluster(manifest).exposures,
            entrances,
            services: &[service(ServerKind::Websocket, serving), service(ServerKind::Sockjs, true)],
            trust: Ok(trust()),
            source: "10.0.0.7".to_owned(),
        })
    }

    const ALB: &str = "  websocket: { hosts: [a.test, b.test], basePath: /rt, expose: { type: EKSALB, controller: EKSAutoMode, scheme: Internal } }\n";

    #[test]
    fn each_host_and_each_address_is_in_a_path() {
        for (hosts, addresses, expected) in [
            (
                &["a.test", "b.test"][..],
                &["192.0.2.1"][..],
                &["a.test at 192.0.2.1:443", "b.test at 192.0.2.1:443"][..],
            ),
            (
                &["a.test", "b.test"],
                &["k8s.elb.test", "2001:db8::1", "192.0.2.1"],
                &["a.test at k8s.elb.test:443", "b.test at [2001:db8::1]:443", "a.test at 192.0.2.1:443"],
            ),
            (&["a.test", "b.test"], &[], &[]),
        ] {
            let found = plan(ALB, &[entrance(hosts, addresses, "")], true);
            let names: Vec<&str> = found.routes.iter().map(|route| route.name.as_str()).collect();
            assert_eq!(names, expected);
            assert!(found.routes.iter().all(|route| route.transports == [Transport::Websocket] && route.serving));
            assert!(found.routes.iter().all(|route| route.has_large_events && route.public.base_path == "/rt"));
            assert_eq!(found.pending.is_empty(), !addresses.is_empty());
        }
    }

    #[test]
    fn a_publish_at_the_host_of_the_http_api_is_heard_through_the_service_behind_it() {
        let api =
            "  httpAPI: { host: api.test, expose: { type: Gateway, controller: Other, parentRefs: [{ name: g }] } }\n";
        for (extra, server, transport) in [
            ("", ServerKind::Websocket, Transport::Websocket),
            ("  websocket: { state: Disabled }\n", ServerKind::Sockjs, Transport::XhrStreaming),
        ] {
            let found = plan(&format!("{extra}{api}"), &[entrance(&["api.test"], &["192.0.2.1"], "")], true);
            let [route] = found.routes.as_slice() else { panic!("{:?}", found.routes) };
            assert_eq!(route.name, "api.test at 192.0.2.1:443");
            assert_eq!((route.transports.as_slice(), route.serving), ([transport].as_slice(), true));
            assert_eq!(route.public, service(server, true).public);
            let address = route.api.as_ref().expect("an address of the HTTP API");
            assert_eq!((address.host.as_deref(), address.tls.is_some()), (Some("api.test"), true));
            assert!(address.base_path.is_empty());
        }
    }

    #[test]
    fn a_load_balancer_without_an_address_is_pending_with_its_cause() {
        let of = |entrances: &[EntranceStatus]| plan(ALB, entrances, true).pending.join("; ");
        let hosts = ["a.test", "b.test"];
        assert_eq!(of(&[]), "a.test, b.test: its load balancer has not been observed yet");
        assert_eq!(of(&[entrance(&hosts, &[], "")]), "Ingress eu-websocket: no address yet");
        assert_eq!(of(&[entrance(&hosts, &[], "forbidden")]), "Ingress eu-websocket: forbidden");
        assert_eq!(of(&[entrance(&["former.test"], &["192.0.2.1"], "")]), of(&[]), "of the former hosts");
    }

    #[test]
    fn without_authorities_a_load_balancer_with_tls_is_pending_and_one_without_is_not() {
        for tls in [true, false] {
            let found = plan_external_routes(&ExternalInputs {
                gate: ExternalGate::Auto,
                exposures: &cluster(ALB).exposures,
                entrances: &[EntranceStatus { tls, ..entrance(&["a.test", "b.test"], &["192.0.2.1"], "") }],
                services: &[service(ServerKind::Websocket, true)],
                trust: Err("no certificates".to_owned()),
                source: String::new(),
            });
            let pending = if tls { "Ingress eu-websocket: no authorities for TLS: no certificates" } else { "" };
            assert_eq!((found.pending.join("; ").as_str(), found.routes.is_empty()), (pending, tls));
        }
    }

    #[test]
    fn only_a_load_balancer_with_hosts_is_external_and_a_web_acl_makes_events_large() {
        for manifest in ["", "  websocket: { hosts: [a.test] }\n", "  websocket: { expose: { type: LoadBalancer } }\n"]
        {
            assert_eq!(plan(manifest, &[], true).gate, None, "{manifest}");
        }
        let ingress = |annotations: &str| {
            format!(
                "  websocket: {{ hosts: [a.test], expose: {{ type: Ingress, controller: Other, annotations: {{ {annotations} }} }} }}\n"
            )
        };
        for (annotations, is_large) in [("", false), ("alb.ingress.kubernetes.io/wafv2-acl-arn: 'arn:x'", true)] {
            let found = plan(&ingress(annotations), &[entrance(&["a.test"], &["192.0.2.1"], "")], false);
            let route = &found.routes[0];
            assert_eq!((route.has_large_events, route.serving), (is_large, false), "{annotations}");
            assert_eq!(found.gate, Some(ExternalGate::Auto));
        }
    }
}
