//! `realtime diff`: what the apply of a manifest would change in the live cluster.

mod live;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use kube::{Client, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use self::live::{LiveCluster, list_pruned, read_live_cluster, read_live_objects};
use self::report::{DifferenceReport, ObjectKey, SecretMask, add_removed_fields, compare_objects, list_replaced};
use super::output::{OutputFormat, print_value};
use super::{files, print, report_bad_input};
use crate::api::RealtimeCluster;
use crate::desired::{
    self, ClusterInputs, DesiredObjects, OPERATOR_NAMESPACE, RECEIVER_PORT, ServerImage, receiver_address,
};
use crate::kubernetes::client::build_clients;
use crate::operator::compute_fingerprint;

/// The exit code of a manifest that changes something.
const CHANGES_EXIT_CODE: u8 = 1;

/// Show what the apply of a manifest would change in the live cluster, field by field
///
/// It renders the manifest with all that the operator would read, and compares every object with the live one: the cluster,
/// its apps, and each child that would be created, changed or pruned. It says which pods would be replaced, and whether the
/// gate would prove the cluster anew. Nothing is written. Values of Secrets are shown as digests that can be compared within
/// one output. The app registry follows the apps, and is not compared. It reads what the operator reads, Secrets too, with your
/// own rights.
///
/// Exit codes: 0 no difference, 1 the apply changes something, 2 the manifest is wrong, or the API server refuses a read.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    realtime diff eu.yaml\n  \
    realtime diff eu.yaml apps.yaml -o json | jq -r .replacesPodsOf[]")]
pub struct Arguments {
    /// Files with one RealtimeCluster and its RealtimeApps; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The operator's own image, which a new cluster without `spec.image` runs
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Text, or the difference as one object
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `realtime diff` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    let report = match Box::pin(compare_manifest(&arguments)).await {
        Ok(report) => report,
        Err(errors) => return report_bad_input(&errors),
    };
    let code = match arguments.output {
        OutputFormat::Text => print::print_text(&report.to_text()),
        format => print_value(format, &report),
    };
    if code == 0 && !report.is_empty() { CHANGES_EXIT_CODE } else { code }
}

async fn compare_manifest(arguments: &Arguments) -> Result<DifferenceReport, Vec<String>> {
    let input = files::read(&arguments.files)?;
    for note in &input.notes {
        eprintln!("realtime: note: {note}");
    }
    let one = |error: String| vec![error];
    let clients = build_clients(Arc::default()).await.map_err(|error| one(error.to_string()))?;
    let found = Box::pin(read_live_cluster(&clients.call, input)).await.map_err(one)?;
    ensure_acceptable(&found)?;
    let objects = render_wanted(&found, arguments)?;
    compare_live(&clients.call, &found, &objects).await.map_err(one)
}

/// Refuses an update that the API server would refuse.
fn ensure_acceptable(found: &LiveCluster) -> Result<(), Vec<String>> {
    let Some(live) = &found.live else { return Ok(()) };
    found.wanted.validate_cel_update(live).map_err(|errors| {
        errors.into_vec().into_iter().map(|error| format!("{}: {}", error.field_path, error.message)).collect()
    })
}

/// Renders the cluster as the operator would after the apply. A value that is generated only then is a text in angle brackets.
fn render_wanted(found: &LiveCluster, arguments: &Arguments) -> Result<DesiredObjects, Vec<String>> {
    let read = found.references.resolve(&found.wanted);
    let mut secrets = read.secrets.clone();
    desired::add_stand_ins(&found.wanted, &read.apps, &mut secrets, |reference| {
        format!("<{} of Secret {}>", reference.key, reference.name)
    });
    let generate = |purpose: &str| format!("<{purpose}>");
    let known = read.app_credentials.clone();
    let credentials = desired::generate_credentials(&found.wanted, &read.generated, known, generate);
    let inputs = ClusterInputs {
        cluster: &found.wanted,
        apps: &read.apps,
        secrets: &secrets,
        credentials: &credentials,
        receiver: &receiver_address(OPERATOR_NAMESPACE, RECEIVER_PORT),
        own_networks: &[],
        own_image: &ServerImage::of_operator(arguments.image.as_deref()),
        recorded_image: read.recorded_image.as_ref(),
        stream: read.stream.as_ref(),
    };
    let valid = desired::validate(&inputs)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<String>>())?;
    desired::render_objects(&valid).map_err(|error| vec![error.to_string()])
}

async fn compare_live(
    client: &Client,
    found: &LiveCluster,
    desired: &DesiredObjects,
) -> Result<DifferenceReport, String> {
    let to_value = |error: serde_json::Error| error.to_string();
    let (children, mut live) = read_live_objects(client, &desired.children).await?;
    let pruned = match &found.live {
        Some(cluster) => list_pruned(client, cluster, &desired.children).await?,
        None => vec![],
    };
    let mut wanted = vec![specified("RealtimeCluster", &found.wanted).map_err(to_value)?];
    for (app, _) in &found.apps {
        wanted.push(specified("RealtimeApp", app).map_err(to_value)?);
    }
    let clusters = found.live.iter().map(|cluster| specified("RealtimeCluster", cluster));
    let apps = found.apps.iter().filter_map(|(_, live)| live.as_ref()).map(|app| specified("RealtimeApp", app));
    for object in clusters.chain(apps) {
        let object = object.map_err(to_value)?;
        let key = ObjectKey::of(&object);
        // An apply removes the fields that the manifest has no more.
        if let Some(wanted) = wanted.iter_mut().find(|wanted| ObjectKey::of(wanted) == key) {
            add_removed_fields(&mut wanted["spec"], &object["spec"]);
        }
        live.insert(key, object);
    }
    wanted.extend(children);
    let objects = compare_objects(&wanted, &live, pruned, &SecretMask::random());
    Ok(DifferenceReport {
        replaces_pods_of: list_replaced(&objects),
        objects,
        proves_anew: is_proven_anew(&found.wanted, desired),
        suspended: found.wanted.spec.suspend,
    })
}

/// Whether the templates and the stream differ from those that the gate has proven last.
fn is_proven_anew(cluster: &RealtimeCluster, desired: &DesiredObjects) -> bool {
    let Some(status) = &cluster.status else { return true };
    status.gate.as_ref().is_none_or(|gate| gate.fingerprint != compute_fingerprint(status, desired))
}

/// The part of a cluster or an app that people write.
fn specified<K: ResourceExt + Serialize>(kind: &str, object: &K) -> Result<Value, serde_json::Error> {
    let spec = serde_json::to_value(object)?["spec"].take();
    let metadata = json!({
        "name": object.name_any(),
        "namespace": object.namespace(),
        "labels": object.labels(),
        "annotations": object.annotations(),
    });
    Ok(json!({ "kind": kind, "metadata": metadata, "spec": spec }))
}
