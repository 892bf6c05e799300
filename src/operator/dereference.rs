//! Reads the inputs of a cluster: its apps, the Secrets that it references, its generated secrets, its stream.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use rand::distr::{Alphanumeric, SampleString};

use super::context::{ControllerContext, ReconcileError};
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::desired::{self, AwsIdentity, ClusterCredentials, SecretTexts, StreamIdentity, ValidStream};
use crate::kinesis::{AwsCredentials, KinesisClient, StreamSettings};
use crate::protocol::StreamName;

/// Letters and digits of a generated secret. Lower-cased, 24 of them carry about 122 bits.
const GENERATED_SECRET_LEN: usize = 24;

/// The inputs of a cluster, as read from the API server.
pub struct Dereferenced {
    /// Apps, the oldest first: of two with the same id the older keeps it.
    pub apps: Vec<RealtimeApp>,
    /// The Secrets that cluster and apps reference.
    pub secrets: SecretTexts,
    /// Generated secrets of this cluster, by purpose.
    pub generated: BTreeMap<String, String>,
    /// The stream; `None` until the stream controller has created or adopted it.
    pub stream: Option<StreamIdentity>,
}

/// Name of the Secret that stores the generated secrets of a cluster.
#[must_use]
pub fn generated_secret_name(cluster: &RealtimeCluster) -> String {
    format!("{}-generated", cluster.name_any())
}

/// Reads all inputs; a missing Secret is left out, and validating reports it.
///
/// # Errors
/// The API server does not answer, or another owner has the Secret of generated values.
pub async fn read(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    with_apps: bool,
) -> Result<Dereferenced, ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let mut apps = Vec::new();
    if with_apps {
        let api: Api<RealtimeApp> = Api::namespaced(context.client.clone(), &namespace);
        let listed = api
            .list(&ListParams::default())
            .await
            .map_err(|error| ReconcileError::from_call("listing apps", &error))?;
        apps = listed.items;
        apps.sort_by_key(|app| (app.metadata.creation_timestamp.clone(), app.name_any()));
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let mut texts = SecretTexts::new();
    for reference in desired::collect_secret_references(cluster, &apps) {
        if texts.contains_key(&reference.name) {
            continue;
        }
        let found = secrets.get_opt(&reference.name).await;
        let found =
            found.map_err(|error| ReconcileError::from_call(&format!("reading Secret {}", reference.name), &error))?;
        if let Some(secret) = found {
            texts.insert(reference.name, desired::decode_secret(&secret));
        }
    }
    let name = generated_secret_name(cluster);
    let found = secrets.get_opt(&name).await;
    let found = found.map_err(|error| ReconcileError::from_call(&format!("reading Secret {name}"), &error))?;
    let uid = cluster.uid().unwrap_or_default();
    if let Some(secret) = &found
        && !secret.owner_references().iter().any(|owner| owner.uid == uid)
    {
        let message = format!(
            "Secret {namespace}/{name} already exists and is not ours: it was not changed. Delete it, or rename the cluster"
        );
        return Err(ReconcileError::terminal(Reason::ChildNotOurs, message));
    }
    let stream = cluster.status.as_ref().and_then(|status| status.stream.as_ref());
    let stream = stream
        .filter(|stream| !stream.arn.is_empty())
        .map(|stream| StreamIdentity { name: StreamName(stream.name.clone()), cluster_id: stream.cluster_id.clone() });
    Ok(Dereferenced {
        apps,
        secrets: texts,
        generated: found.as_ref().map(desired::decode_secret).unwrap_or_default(),
        stream,
    })
}

/// Recalls the credentials of a cluster, and generates those that are missing: random, but without I/O. The caller stores
/// [`ClusterCredentials::fresh`] once the cluster is valid.
#[must_use]
pub fn generate_credentials(cluster: &RealtimeCluster, read: &Dereferenced) -> ClusterCredentials {
    desired::generate_credentials(cluster, &read.apps, &read.generated, |_| {
        Alphanumeric.sample_string(&mut rand::rng(), GENERATED_SECRET_LEN).to_lowercase()
    })
}

/// Connects to the cluster's stream with the operator's own identity, or with the cluster's static keys.
///
/// # Errors
/// The Secret with the cluster's static keys is missing or incomplete.
pub async fn connect_stream(
    context: &ControllerContext,
    stream: &ValidStream,
    secrets: &SecretTexts,
) -> Result<KinesisClient, ReconcileError> {
    let credentials = match &stream.identity {
        AwsIdentity::StaticKeys(name) => {
            let text = |key: &str| secrets.get(name).and_then(|texts| texts.get(key)).cloned();
            let (Some(access_key_id), Some(secret_access_key)) = (text("accessKeyID"), text("secretAccessKey")) else {
                let message = format!("Secret {name} has no accessKeyID and secretAccessKey: create it with both");
                return Err(ReconcileError::transient(Reason::SecretMissing, message));
            };
            AwsCredentials::Static { access_key_id, secret_access_key }
        }
        AwsIdentity::Irsa(_) | AwsIdentity::PodIdentity | AwsIdentity::WebIdentity(_) | AwsIdentity::NodeRole => {
            AwsCredentials::Chain
        }
    };
    let settings = StreamSettings {
        stream: stream.name.clone(),
        region: stream.region.clone(),
        endpoint: stream.endpoint_url.clone(),
        credentials,
    };
    Ok(context.kinesis.client(&settings).await)
}
