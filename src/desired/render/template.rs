//! Marks of a pod template, by which a live pod is compared with its rendered template.

use k8s_openapi::api::core::v1::{Container, EnvVar};
use sha2::{Digest, Sha256};

/// Condition type of the readiness gate in every pod.
pub const READINESS_GATE: &str = "realtime-operator.dev/webhooks-delivered";
/// Annotation of a pod template: a digest of its container's image, command, arguments and variables.
pub const TEMPLATE_ANNOTATION: &str = "realtime-operator.dev/template";
/// Annotation of a pod template: a digest of the Secrets that servers read at their start, so that a change starts a
/// rollout.
pub const SECRETS_ANNOTATION: &str = "realtime-operator.dev/secrets";
/// Annotation of a pod: a digest of the current app registry. A change makes kubelet refresh the mounted Secrets at once.
pub const REGISTRY_ANNOTATION: &str = "realtime-operator.dev/registry";

/// Digest of a container's image, command, arguments and variables. Defaults of the API server do not count, so that a
/// live container has the digest of the rendered one exactly when it was not changed.
#[must_use]
pub fn template_digest(container: &Container) -> String {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default().join(" ");
    let mut lines = vec![
        format!("image {}", container.image.as_deref().unwrap_or_default()),
        format!("command {}", list(&container.command)),
        format!("args {}", list(&container.args)),
    ];
    lines.extend(container.env.iter().flatten().map(describe_variable));
    lines.extend(container.env_from.iter().flatten().map(|from| format!("envFrom {from:?}")));
    hex::encode(&Sha256::digest(lines.join("\n"))[..8])
}

fn describe_variable(variable: &EnvVar) -> String {
    let name = &variable.name;
    let from = variable.value_from.as_ref();
    if let Some(key) = from.and_then(|from| from.secret_key_ref.as_ref()) {
        return format!("env {name} secret {}/{}", key.name, key.key);
    }
    if let Some(field) = from.and_then(|from| from.field_ref.as_ref()) {
        return format!("env {name} field {}", field.field_path);
    }
    match from {
        Some(other) => format!("env {name} other {other:?}"),
        None => format!("env {name} value {}", variable.value.as_deref().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{EnvFromSource, EnvVarSource, ObjectFieldSelector};

    fn container() -> Container {
        let field = |version: Option<&str>| EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: version.map(str::to_owned),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        };
        let variable = |name: &str, value: Option<&str>, value_from| EnvVar {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            value_from,
        };
        Container {
            name: "sockjs".to_owned(),
            image: Some("realtime:1".to_owned()),
            env: Some(vec![variable("A", Some("1"), None), variable("POD", None, Some(field(None)))]),
            ..Container::default()
        }
    }

    #[test]
    fn the_digest_ignores_defaults_of_the_api_server_and_shows_every_change() {
        let rendered = template_digest(&container());
        let mut live = container();
        live.image_pull_policy = Some("IfNotPresent".to_owned());
        live.termination_message_path = Some("/dev/termination-log".to_owned());
        for variable in live.env.iter_mut().flatten() {
            if let Some(field) = variable.value_from.as_mut().and_then(|from| from.field_ref.as_mut()) {
                field.api_version = Some("v1".to_owned());
            }
        }
        assert_eq!(template_digest(&live), rendered);
        let change = |change: &dyn Fn(&mut Container)| {
            let mut changed = container();
            change(&mut changed);
            template_digest(&changed)
        };
        let changes: [&dyn Fn(&mut Container); 4] = [
            &|c| c.image = Some("realtime:2".to_owned()),
            &|c| c.args = Some(vec!["edge".to_owned()]),
            &|c| c.env.iter_mut().flatten().take(1).for_each(|v| v.value = Some("2".to_owned())),
            &|c| c.env_from = Some(vec![EnvFromSource::default()]),
        ];
        for changed in changes {
            assert_ne!(change(changed), rendered);
        }
    }
}
