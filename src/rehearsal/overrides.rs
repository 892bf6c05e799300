//! Overrides: changes that a manual edit of a Deployment, or a stale copy of a Secret, would make.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::EnvVar;

use crate::config::ServerKind;
use crate::desired::{DesiredObjects, ValidCluster};
use crate::protocol::registry::{App, AppRegistry};
use crate::protocol::{AppId, Secret};

/// One change to a rendered server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestOverride {
    /// The server whose pods get it.
    pub server: ServerKind,
    /// The target of the change.
    pub target: OverrideTarget,
    /// The value to set.
    pub value: String,
}

/// The target of an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverrideTarget {
    /// A variable of the pod template.
    Variable(String),
    /// The secret of an app in this server's copy of the registry; `probe` names the app of the journeys.
    AppSecret(String),
}

/// Why an edit is not understood or cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// Not of the form.
    #[error(
        "`{0}` is no edit: write SERVER:NAME=VALUE, such as sockjs:REALTIME_WEBHOOKS=off, or SERVER:secret/APP_ID=VALUE"
    )]
    Form(String),
    /// The server is unknown.
    #[error("{0}")]
    Server(String),
    /// A server that the manifest does not have.
    #[error("the {0} server is Disabled in the manifest, so that there is nothing to edit")]
    NoServer(ServerKind),
    /// An app that the manifests do not have.
    #[error("no app has the id `{0}`: write the appID of a RealtimeApp, or `probe`")]
    NoApp(String),
}

impl FromStr for ManifestOverride {
    type Err = OverrideError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || OverrideError::Form(text.to_owned());
        let (server, rest) = text.split_once(':').ok_or_else(form)?;
        let (name, value) = rest.split_once('=').ok_or_else(form)?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(form());
        }
        let what = match name.strip_prefix("secret/") {
            Some(app) => OverrideTarget::AppSecret(app.to_owned()),
            None => OverrideTarget::Variable(name.to_owned()),
        };
        Ok(Self { server: server.parse().map_err(OverrideError::Server)?, target: what, value: value.to_owned() })
    }
}

impl fmt::Display for ManifestOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            OverrideTarget::Variable(name) => write!(f, "{}:{name}={}", self.server, self.value),
            OverrideTarget::AppSecret(app) => write!(f, "{}:secret/{app}=…", self.server),
        }
    }
}

/// Makes the edits of variables.
///
/// # Errors
/// A server that is not there.
pub fn override_variables(desired: &mut DesiredObjects, edits: &[ManifestOverride]) -> Result<(), OverrideError> {
    for edit in edits {
        let deployment = desired.deployments.iter_mut().find(|(server, _)| *server == edit.server);
        let Some((_, deployment)) = deployment else { return Err(OverrideError::NoServer(edit.server)) };
        let OverrideTarget::Variable(name) = &edit.target else { continue };
        let containers = deployment.spec.template.spec.as_mut().map(|pod| pod.containers.as_mut_slice());
        for container in containers.unwrap_or_default() {
            let variables = container.env.get_or_insert_default();
            variables.retain(|variable| variable.name != *name);
            variables.push(EnvVar { name: name.clone(), value: Some(edit.value.clone()), value_from: None });
        }
    }
    Ok(())
}

/// The registry as the edits leave it for one server.
///
/// # Errors
/// An app that is not there.
pub fn overridden_registry(
    cluster: &ValidCluster,
    server: ServerKind,
    edits: &[ManifestOverride],
) -> Result<AppRegistry, OverrideError> {
    let mut apps: BTreeMap<AppId, App> = cluster.registry.apps().map(|app| (app.id.clone(), app.clone())).collect();
    for edit in edits.iter().filter(|edit| edit.server == server) {
        let OverrideTarget::AppSecret(name) = &edit.target else { continue };
        let id = if name == "probe" { cluster.probe.id.clone() } else { AppId(name.clone()) };
        let app = apps.get_mut(&id).ok_or_else(|| OverrideError::NoApp(name.clone()))?;
        for credential in &mut app.credentials {
            credential.secret = Secret::new(edit.value.clone());
        }
    }
    Ok(AppRegistry::new(apps.into_values()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_names_server_variable_and_value() {
        let edit: ManifestOverride = "sockjs:REALTIME_WEBHOOKS=off".parse().expect("an edit");
        assert_eq!(
            edit,
            ManifestOverride {
                server: ServerKind::Sockjs,
                target: OverrideTarget::Variable("REALTIME_WEBHOOKS".into()),
                value: "off".into()
            }
        );
        let edit: ManifestOverride = "dispatcher:secret/1001=a=b".parse().expect("an edit");
        assert_eq!((edit.target, edit.value), (OverrideTarget::AppSecret("1001".into()), "a=b".into()));
        assert_eq!("websocket:X=".parse::<ManifestOverride>().map(|edit| edit.value), Ok(String::new()));
    }

    #[test]
    fn what_is_no_edit_is_answered_with_the_form() {
        for bad in ["", "sockjs", "sockjs:REALTIME_WEBHOOKS", "sockjs:=x", "sockjs:A B=x"] {
            assert!(matches!(bad.parse::<ManifestOverride>(), Err(OverrideError::Form(_))), "{bad}");
        }
        let error = "nobody:A=b".parse::<ManifestOverride>().expect_err("no server").to_string();
        assert!(error.contains("websocket, sockjs, edge, dispatcher"), "{error}");
    }
}
