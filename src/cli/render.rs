//! `realtime render`: what a manifest becomes.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Secret;

use super::{files, print, report_bad_input};
use crate::desired::{
    self, ClusterInputs, DesiredObjects, OPERATOR_NAMESPACE, RECEIVER_PORT, ServerImage, ValidCluster, receiver_address,
};

/// Print the objects that a manifest becomes.
///
/// Generated secrets, and those of Secrets that the files do not hold, are shown as words in angle brackets: the
/// output says what the operator would apply, it is not meant to be applied.
#[derive(clap::Args)]
pub struct Arguments {
    /// Files with one RealtimeCluster and its RealtimeApps; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// `HOST:PORT` of the operator's webhook receiver
    #[arg(long, default_value_t = receiver_address(OPERATOR_NAMESPACE, RECEIVER_PORT), value_name = "HOST:PORT")]
    receiver: String,
    /// The operator's own image, which a new cluster without `spec.image` runs
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
}

/// Runs `realtime render` and returns its exit code.
pub fn run(arguments: &Arguments) -> u8 {
    match render_manifests(arguments) {
        Ok(documents) => print::print_text(&documents),
        Err(errors) => report_bad_input(&errors),
    }
}

/// The objects of the cluster in some files.
pub struct RenderedInput {
    /// The cluster after its validation.
    pub cluster: ValidCluster,
    /// Every object of the cluster.
    pub objects: DesiredObjects,
    /// Secrets with the generated pairs of its apps.
    pub app_credentials: Vec<Secret>,
}

/// Renders the cluster of some files. A Secret that the files do not hold, and a generated one, is a text in angle
/// brackets, which [`is_stand_in`] knows.
///
/// # Errors
/// Every mistake in the files, a line each.
pub fn render_files(files: &[PathBuf], receiver: &str, image: Option<&str>) -> Result<RenderedInput, Vec<String>> {
    let mut input = files::read(files)?;
    for note in &input.notes {
        eprintln!("realtime: note: {note}");
    }
    desired::add_stand_ins(&input.cluster, &input.apps, &mut input.secrets, |reference| {
        format!("<{} of Secret {}>", reference.key, reference.name)
    });
    let generate = |purpose: &str| format!("<{purpose}>");
    let credentials = desired::generate_all_credentials(&input.cluster, &input.apps, generate);
    let inputs = ClusterInputs {
        cluster: &input.cluster,
        apps: &input.apps,
        secrets: &input.secrets,
        credentials: &credentials,
        receiver,
        own_networks: &[],
        own_image: &ServerImage::of_operator(image),
        recorded_image: None,
        stream: None,
    };
    let cluster =
        desired::validate(&inputs).map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let refused: Vec<String> =
        cluster.refused.iter().flat_map(|refused| &refused.problems).map(ToString::to_string).collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let objects = desired::render_objects(&cluster).map_err(|error| vec![error.to_string()])?;
    let names = input.apps.iter().map(|app| (app, app.metadata.name.as_deref().unwrap_or_default()));
    let of_apps = names.filter_map(|(app, name)| Some((app, credentials.apps.get(name)?.pairs.first()?)));
    let app_credentials = of_apps.map(|(app, pair)| desired::render_app_credentials(app, pair)).collect();
    Ok(RenderedInput { cluster, objects, app_credentials })
}

/// Whether a text stands for a secret that [`render_files`] does not have.
pub fn is_stand_in(text: &str) -> bool {
    text.starts_with('<') && text.ends_with('>')
}

fn render_manifests(arguments: &Arguments) -> Result<String, Vec<String>> {
    let rendered = render_files(&arguments.files, &arguments.receiver, arguments.image.as_deref())?;
    let one = |error: &dyn std::fmt::Display| vec![error.to_string()];
    let mut objects = rendered.objects.children;
    for secret in rendered.objects.registry.into_iter().chain(rendered.app_credentials) {
        objects.push(serde_json::to_value(secret).map_err(|error| one(&error))?);
    }
    print::join_yaml_documents(&objects).map_err(|error| one(&error))
}
