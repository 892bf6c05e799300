//! Edges that relay to each other: in this process, or as processes of their own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use realtime_operator::bus::{BusScope, RedisBus};

use super::*;
use crate::processes::environment;
use crate::resources::{listen_on_one_port, start_on_free_ports};

pub const SECRET: &str = "between-edges";

/// Each connection goes to the next edge.
pub async fn round_robin(edges: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut client, _)) = listener.accept().await {
            turn += 1;
            let edges = edges.clone();
            tokio::spawn(async move {
                // One that is gone is passed over, as a load balancer would.
                for n in 0..edges.len() {
                    if let Ok(mut edge) = TcpStream::connect(edges[(turn + n) % edges.len()]).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut edge).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

pub struct Cluster {
    pub pods: Vec<Edge>,
    pub peers: Vec<SocketAddr>,
    pub entry: SocketAddr,
}

impl Cluster {
    pub async fn start(redis: &Redis) -> Self {
        Self::with(&redis.url(), ("uid-1".into(), "sockjs"), &[SECRET; 3]).await
    }

    /// One pod for each of these values of `REALTIME_PEER_SECRET`.
    pub async fn with(redis: &str, (scope, server): (BusScope<'_>, &str), secrets: &[&str]) -> Self {
        realtime_operator::process::install_tls();
        // Edges that relay to each other have one peer port.
        let listeners = listen_on_one_port(1..=u8::try_from(secrets.len()).expect("few")).await;
        let peers = listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect();
        let mut pods = Vec::new();
        for (listener, secret) in listeners.into_iter().zip(secrets) {
            let apps = tempfile::tempdir().expect("a directory");
            write_registry(apps.path(), vec![fast()]);
            let address = listener.local_addr().expect("an address").ip().to_string();
            let mut own = vec![
                ("REALTIME_CLUSTER_UID", scope.cluster),
                ("REALTIME_POD_IP", &address),
                ("REALTIME_PEER_SECRET", secret),
                ("REALTIME_BUS", "redis"),
                ("REALTIME_REDIS_URL", redis),
            ];
            if !scope.group.is_empty() {
                own.push(("REALTIME_BUS_GROUP", scope.group));
            }
            let values = values(server, "off", apps.path(), &own);
            let shutdown = CancellationToken::new();
            let bus = RedisBus::connect(redis, scope, &format!("p{}", pods.len()), shutdown.clone()).await;
            let deps = EdgeDependencies {
                public: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
                admin: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
                peer: Some(listener),
                apps_dir: apps.path().to_owned(),
                kinesis: None,
                bus: Arc::new(bus.expect("a bus")),
                shutdown: shutdown.clone(),
            };
            let running = edge::start(values, deps).await.expect("an edge");
            pods.push(Edge { running, shutdown, apps, http: once() });
        }
        let entry = round_robin(pods.iter().map(|pod| pod.running.public).collect()).await;
        Self { pods, peers, entry }
    }

    /// The sum of a counter over the pods.
    pub async fn sum(&self, metric: &str) -> u64 {
        let mut sum = 0;
        for pod in &self.pods {
            sum += pod.metric(metric).await;
        }
        sum
    }
}

pub fn fast() -> App {
    let mut app = app("1", true);
    app.limits.client_events_per_second = 1_000_000;
    app
}

/// Three edges as processes of their own, where clients reach them, and the apps that they know.
pub async fn start_processes(redis: &Redis) -> (Vec<Server>, Vec<SocketAddr>, tempfile::TempDir) {
    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), vec![fast()]);
    let servers = start_on_free_ports(async |[peer_port]: [u16; 1]| {
        let starting = (1..=3).map(|n| start_process(n, peer_port, redis, apps.path()));
        futures::future::join_all(starting).await.into_iter().collect::<Result<Vec<_>, _>>()
    })
    .await;
    let public = servers.iter().map(|server| server.address("public")).collect();
    (servers, public, apps)
}

async fn start_process(n: u8, peer_port: u16, redis: &Redis, apps: &Path) -> Result<Server, String> {
    let address = format!("127.0.0.{n}");
    let own = [
        ("REALTIME_TRANSPORTS", "xhr_streaming,xhr_polling".to_owned()),
        ("REALTIME_WEBHOOKS", "off".to_owned()),
        ("REALTIME_BUS", "redis".to_owned()),
        ("REALTIME_REDIS_URL", redis.url()),
        ("REALTIME_APPS_PATH", apps.display().to_string()),
        ("REALTIME_PUBLIC_ADDRESS", "127.0.0.1:0".to_owned()),
        ("REALTIME_ADMIN_ADDRESS", format!("{address}:0")),
        ("REALTIME_PEER_ADDRESS", format!("{address}:{peer_port}")),
        ("REALTIME_PEER_SECRET", SECRET.to_owned()),
        ("REALTIME_POD_IP", address),
    ];
    Server::try_start("edge", &environment("sockjs", &own, &[])).await
}
