//! Journeys through a TLS front, as through a load balancer: proven, refused and unreachable, in one life of a cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use realtime_operator::api::Reason;
use realtime_operator::api::cluster::ExternalGate;
use realtime_operator::config::ServerKind;
use realtime_operator::gate::Verdict;
use realtime_operator::prober::{ClientAddress, DialTarget, ExternalPlan, ServiceRoute, TlsTrust};
use realtime_operator::protocol::Transport;
use realtime_operator::rehearsal::RunningRehearsal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificates::Authority;
use crate::rehearsal::{MANIFEST, start_from, wait_for_verdict};

const HOST: &str = "ws.front.test";

/// A front that ends TLS and passes bytes on, as a load balancer does.
struct TlsFront {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl TlsFront {
    /// Serves a certificate for these names in front of a server.
    async fn start(authority: &Authority, names: &str, upstream: SocketAddr) -> Self {
        Self::start_with(authority, names, upstream, None).await
    }

    /// As [`Self::start`], and refuses requests whose body is larger, as a web ACL does.
    async fn start_with(
        authority: &Authority,
        names: &str,
        upstream: SocketAddr,
        body_bytes_max: Option<usize>,
    ) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let (certificate, key) = authority.sign(files.path(), "front", names);
        let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
                    if let Some(most) = body_bytes_max
                        && !pass_small_request(&mut client, &mut server, most).await
                    {
                        return;
                    }
                    // Either end may reset the connection, as through a real front.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// Passes the first request of a connection on; answers it with 403 if its body is too large. A client of these tests sends one
/// request in each connection.
async fn pass_small_request(client: &mut TlsStream<TcpStream>, server: &mut TcpStream, most: usize) -> bool {
    let mut request = Vec::new();
    let (head, length) = loop {
        let mut chunk = [0; 4096];
        let Ok(count @ 1..) = client.read(&mut chunk).await else { return false };
        request.extend_from_slice(&chunk[..count]);
        let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        break (end + 4, length.unwrap_or(0));
    };
    if length <= most {
        return server.write_all(&request).await.is_ok();
    }
    let mut rest = vec![0; (head + length).saturating_sub(request.len())];
    let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if client.read_exact(&mut rest).await.is_ok() && client.write_all(answer).await.is_ok() {
        // The client may have closed the connection.
        let _ = client.shutdown().await;
    }
    false
}

fn trust(authority: &Authority) -> TlsTrust {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate()).expect("a certificate")).expect("an authority");
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth().into()
}

fn route(front: SocketAddr, trust: &TlsTrust, server: ServerKind) -> ServiceRoute {
    let carried = Transport::ALL.into_iter().filter(|transport| transport.server_kind() == server);
    ServiceRoute {
        name: format!("{HOST} at {front} ({server})"),
        public: ClientAddress {
            target: DialTarget::Socket(front),
            host: Some(HOST.to_owned()),
            tls: Some(trust.clone()),
            base_path: String::new(),
        },
        api: None,
        transports: carried.collect(),
        serving: true,
        has_large_events: true,
    }
}

/// A path to the HTTP API behind a front, whose listener enters at the pod itself.
fn api_route(front: SocketAddr, trust: &TlsTrust, pod: SocketAddr) -> ServiceRoute {
    let route = route(front, trust, ServerKind::Websocket);
    ServiceRoute { api: Some(route.public.clone()), public: ClientAddress::plain(pod), ..route }
}

/// Replaces the paths from outside in the running plan.
fn set_routes(rehearsal: &RunningRehearsal, gate: ExternalGate, routes: Vec<ServiceRoute>) {
    let prober = rehearsal.prober.as_ref().expect("journeys");
    prober.plan.send_modify(|plan| {
        let external = ExternalPlan { gate: Some(gate), routes, pending: vec![], source: "127.0.0.1".to_owned() };
        let mut changed = (**plan).clone();
        changed.external = external;
        *plan = Arc::new(changed);
    });
}

fn external(verdict: &Verdict) -> Option<(&'static str, Reason)> {
    verdict.external.as_ref().map(|external| (external.status, external.reason))
}

async fn wait_for_external(
    rehearsal: &mut RunningRehearsal,
    ready: bool,
    (status, reason): (&'static str, Reason),
) -> Verdict {
    let awaited = format!("ready {ready}, external {status} {reason}");
    let found = |verdict: &Verdict| verdict.ready == ready && external(verdict) == Some((status, reason));
    wait_for_verdict(rehearsal, &awaited, found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_is_proven_by_journeys_and_its_faults_have_reasons() {
    let mut rehearsal = start_from(MANIFEST, &[], BTreeMap::new()).await;
    assert_eq!(rehearsal.refusals, [], "every server starts");
    let authority = Authority::new();
    let trust = trust(&authority);
    let websocket = rehearsal.serving.websocket.expect("a websocket pod");
    let sockjs = rehearsal.serving.sockjs.expect("a sockjs pod");
    let names = format!("DNS:{HOST}");
    let right = TlsFront::start(&authority, &names, websocket).await;
    let fallback = TlsFront::start(&authority, &names, sockjs).await;
    let good = || {
        vec![route(right.address, &trust, ServerKind::Websocket), route(fallback.address, &trust, ServerKind::Sockjs)]
    };
    set_routes(&rehearsal, ExternalGate::Required, good());
    let verdict = wait_for_external(&mut rehearsal, true, ("True", Reason::Proven)).await;
    let message = verdict.external.expect("a result").message;
    assert!(message.starts_with("7 journeys pass through "), "{message}");

    // A certificate for another host.
    let wrong = TlsFront::start(&authority, "DNS:other.front.test", websocket).await;
    set_routes(&rehearsal, ExternalGate::Auto, vec![route(wrong.address, &trust, ServerKind::Websocket)]);
    let verdict = wait_for_external(&mut rehearsal, false, ("False", Reason::CertificateInvalid)).await;
    assert_eq!(verdict.reason, Reason::CertificateInvalid);
    let detail = format!("is not accepted for {HOST}");
    assert!(verdict.message.contains(&detail) && verdict.message.contains("other.front.test"), "{}", verdict.message);

    // A web ACL that refuses bodies above 8 KB: only the large events of these journeys find it.
    let limited = TlsFront::start_with(&authority, &names, sockjs, Some(8 << 10)).await;
    set_routes(&rehearsal, ExternalGate::Auto, vec![route(limited.address, &trust, ServerKind::Sockjs)]);
    let verdict = wait_for_external(&mut rehearsal, false, ("False", Reason::PublishRejected)).await;
    assert!(verdict.message.contains("refused a send with status 403"), "{}", verdict.message);
    assert!(verdict.message.contains("SizeRestrictions_BODY"), "{}", verdict.message);

    // A listener that speaks no TLS: the pod itself.
    set_routes(&rehearsal, ExternalGate::Auto, vec![route(websocket, &trust, ServerKind::Websocket)]);
    let verdict = wait_for_external(&mut rehearsal, false, ("False", Reason::HandshakeRejected)).await;
    assert!(verdict.message.contains("does not speak TLS"), "{}", verdict.message);

    // Another cluster behind the host.
    let other = start_from(MANIFEST, &[], BTreeMap::new()).await;
    let behind = [(other.serving.websocket, ServerKind::Websocket), (other.serving.sockjs, ServerKind::Sockjs)];
    for (server, kind) in behind {
        let front = TlsFront::start(&authority, &names, server.expect("a pod")).await;
        set_routes(&rehearsal, ExternalGate::Auto, vec![route(front.address, &trust, kind)]);
        let verdict = wait_for_external(&mut rehearsal, false, ("False", Reason::WrongCluster)).await;
        assert!(verdict.message.contains("another cluster answers there"), "{}", verdict.message);
        set_routes(&rehearsal, ExternalGate::Auto, good());
        wait_for_external(&mut rehearsal, true, ("True", Reason::Proven)).await;
    }
    other.stop().await;

    // Nobody listens: the cluster stays Ready, unless the path is required.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    set_routes(&rehearsal, ExternalGate::Auto, vec![route(closed, &trust, ServerKind::Websocket)]);
    let verdict = wait_for_external(&mut rehearsal, true, ("Unknown", Reason::NotReachableFromHere)).await;
    let message = verdict.external.expect("a result").message;
    assert!(message.contains(&closed.to_string()) && message.contains("allow this address"), "{message}");
    set_routes(&rehearsal, ExternalGate::Required, vec![route(closed, &trust, ServerKind::Websocket)]);
    let verdict = wait_for_external(&mut rehearsal, false, ("Unknown", Reason::NotReachableFromHere)).await;
    assert_eq!(verdict.reason, Reason::NotReachableFromHere);
    rehearsal.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_of_the_http_api_is_proven_by_publishes_and_its_faults_have_reasons() {
    let mut rehearsal = start_from(MANIFEST, &[], BTreeMap::new()).await;
    assert_eq!(rehearsal.refusals, [], "every server starts");
    let authority = Authority::new();
    let trust = trust(&authority);
    let pod = rehearsal.serving.websocket.expect("a websocket pod");
    let names = format!("DNS:{HOST}");
    let right = TlsFront::start(&authority, &names, pod).await;
    let good = || vec![api_route(right.address, &trust, pod)];
    set_routes(&rehearsal, ExternalGate::Required, good());
    let verdict = wait_for_external(&mut rehearsal, true, ("True", Reason::Proven)).await;
    let message = verdict.external.expect("a result").message;
    assert!(message.starts_with("1 journey passes through "), "{message}");

    let wrong = TlsFront::start(&authority, "DNS:other.front.test", pod).await;
    set_routes(&rehearsal, ExternalGate::Auto, vec![api_route(wrong.address, &trust, pod)]);
    wait_for_external(&mut rehearsal, false, ("False", Reason::CertificateInvalid)).await;

    // A web ACL that refuses bodies above 8 KB.
    let limited = TlsFront::start_with(&authority, &names, pod, Some(8 << 10)).await;
    set_routes(&rehearsal, ExternalGate::Auto, vec![api_route(limited.address, &trust, pod)]);
    let verdict = wait_for_external(&mut rehearsal, false, ("False", Reason::PublishRejected)).await;
    assert!(
        verdict.message.contains("answered 403") && verdict.message.contains("SizeRestrictions_BODY"),
        "{}",
        verdict.message
    );

    // Another cluster behind the host does not know the key.
    let other = start_from(MANIFEST, &[], BTreeMap::new()).await;
    let front = TlsFront::start(&authority, &names, other.serving.websocket.expect("a pod")).await;
    set_routes(&rehearsal, ExternalGate::Auto, vec![api_route(front.address, &trust, pod)]);
    wait_for_external(&mut rehearsal, false, ("False", Reason::WrongCluster)).await;
    other.stop().await;

    set_routes(&rehearsal, ExternalGate::Auto, good());
    wait_for_external(&mut rehearsal, true, ("True", Reason::Proven)).await;
    rehearsal.stop().await;
}
