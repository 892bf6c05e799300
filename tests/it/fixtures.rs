//! Objects that several tests begin with: files of the repository, an app of the registry, and a Kinesis with one stream.

use std::collections::BTreeMap;
use std::path::Path;

use realtime_operator::api::{RealtimeApp, RealtimeCluster};
use realtime_operator::desired::{
    self, ClusterInputs, ManifestProblem, ServerImage, ValidCluster, generate_all_credentials, validate,
};
use realtime_operator::protocol::Secret;
use realtime_operator::protocol::registry::{
    App, AppLimits, AppRegistry, BatchMode, Credential, CredentialState, WebhookEndpoint,
};
use serde_json::Value;

/// The text of a file of the repository.
pub fn read_file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The documents of a text in YAML.
pub fn parse_documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n").map(|document| document.trim_start_matches("---\n"));
    documents.map(|document| serde_yaml::from_str(document).expect("YAML")).collect()
}

/// Validates a cluster as the operator would, with a text for every Secret that it references.
pub fn validate_with_stand_ins(
    mut cluster: RealtimeCluster,
    apps: &[RealtimeApp],
) -> Result<ValidCluster, Vec<ManifestProblem>> {
    cluster.metadata.uid = Some("1a2b3c4d-0000".to_owned());
    let mut secrets = BTreeMap::new();
    desired::add_stand_ins(&cluster, apps, &mut secrets, |_| "text".to_owned());
    let generate = |purpose: &str| format!("generated-{purpose}");
    validate(&ClusterInputs {
        cluster: &cluster,
        apps,
        secrets: &secrets,
        credentials: &generate_all_credentials(&cluster, apps, generate),
        receiver: "receiver.svc:8090",
        own_networks: &[],
        own_image: &ServerImage::of_operator(None),
        recorded_image: None,
        stream: None,
    })
}

/// An enabled app with one key, client events and the limits by default; a test changes fields by a struct update.
pub fn build_app(id: &str, key: &str, secret: &str) -> App {
    App {
        id: id.into(),
        credentials: vec![build_credential(key, secret, CredentialState::Active)],
        enabled: true,
        client_events: true,
        subscription_count: false,
        authorization_seconds: None,
        allowed_origins: vec![],
        limits: AppLimits::default(),
        webhooks: vec![],
        disabled_webhooks: vec![],
    }
}

pub fn build_credential(key: &str, secret: &str, state: CredentialState) -> Credential {
    Credential { key: key.into(), secret: Secret::new(secret), state }
}

/// A webhook of all events.
pub fn build_webhook(url: &str) -> WebhookEndpoint {
    WebhookEndpoint {
        name: "hook".into(),
        url: url.into(),
        events: vec![],
        channel_prefix: String::new(),
        timeout_seconds: 4,
        batch: BatchMode::Many,
        headers: BTreeMap::new(),
        unsendable: None,
    }
}

/// Replaces the registry's files, each at once, as a mount does.
pub fn write_registry(directory: &Path, apps: impl IntoIterator<Item = App>) {
    for (name, text) in AppRegistry::new(apps).to_files().expect("files") {
        replace_file(directory, &name, &text);
    }
}

pub fn replace_file(directory: &Path, name: &str, text: &str) {
    let aside = directory.join("aside");
    std::fs::write(&aside, text).expect("written");
    std::fs::rename(&aside, directory.join(name)).expect("moved");
}

#[cfg(feature = "rehearsal")]
pub use with_kinesis::*;

#[cfg(feature = "rehearsal")]
mod with_kinesis {
    use std::collections::BTreeMap;

    use ferrokinesis::store::StoreOptions;
    use realtime_operator::kinesis::{AwsCredentials, KinesisClient, LiveCapacity, StreamSettings};
    use realtime_operator::rehearsal::separate_reads_from_puts;
    use tokio::net::TcpListener;

    use crate::fault_proxy::{FaultSwitch, apply_fault};
    use crate::waiting::eventually_ok;

    /// A size of a load; an environment variable raises it.
    pub fn load_size(variable: &str, default: usize) -> usize {
        std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// The region of every test's stream.
    pub const REGION: &str = "eu-west-1";

    /// Serves routes in this process until the test ends; answers with their base URL.
    pub async fn serve_routes(router: axum::Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    pub async fn connect_kinesis(endpoint: &str, stream: &str) -> KinesisClient {
        connect_kinesis_as("a", endpoint, stream).await
    }

    /// A new client whose calls are signed with this access key.
    pub async fn connect_kinesis_as(access_key: &str, endpoint: &str, stream: &str) -> KinesisClient {
        realtime_operator::process::install_tls();
        let credentials = AwsCredentials::Static { access_key_id: access_key.into(), secret_access_key: "b".into() };
        let (region, endpoint) = (REGION.to_owned(), Some(endpoint.to_owned()));
        KinesisClient::connect(&StreamSettings { stream: stream.into(), region, endpoint, credentials }).await
    }

    /// A Kinesis API in this process, with an active stream of so many shards: its endpoint, and a client.
    pub async fn start_kinesis(stream: &str, shards: u32) -> (String, KinesisClient) {
        let (endpoint, client, _) = start_faulty_kinesis(stream, shards).await;
        (endpoint, client)
    }

    /// [`start_kinesis`] behind a switch of faults.
    pub async fn start_faulty_kinesis(stream: &str, shards: u32) -> (String, KinesisClient, FaultSwitch) {
        let options = StoreOptions { create_stream_ms: 0, shard_limit: 100, ..StoreOptions::default() };
        let (router, _) = ferrokinesis::create_app(options);
        let faults = FaultSwitch::default();
        let layer = axum::middleware::from_fn_with_state(faults.clone(), apply_fault);
        let endpoint = serve_routes(separate_reads_from_puts(router).layer(layer)).await;
        let client = connect_kinesis(&endpoint, stream).await;
        client.create_stream(LiveCapacity::Provisioned(shards), &BTreeMap::new()).await.expect("created");
        wait_until_active(&client).await;
        (endpoint, client, faults)
    }

    pub async fn wait_until_active(client: &KinesisClient) {
        eventually_ok("an active stream", async || match client.describe_stream().await {
            Ok(summary) if summary.status == "ACTIVE" => Ok(()),
            Ok(summary) => Err(summary.status),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }
}
