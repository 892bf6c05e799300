//! Reads the variables of a workload's container, as kubelet would set them, with secrets as digests.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::{SecretDigester, ServerSnapshot, VariableValue};
use crate::config::Variable;

/// Parts of names that variables with secrets have, in programs that are not ours.
const SECRET_NAME_PARTS: [&str; 7] = ["SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL", "PRIVATE", "ACCESS_KEY"];

/// The texts of the Secrets and `ConfigMap`s that a container references, by name and key.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentTexts {
    /// Texts of Secrets; a name without an entry was not read.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Texts of `ConfigMap`s; a name without an entry was not read.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
}

/// The spec of a Deployment's pods.
#[must_use]
pub fn template_of(deployment: &Deployment) -> Option<&PodSpec> {
    deployment.spec.template.spec.as_ref()
}

/// Collects the names of the Secrets and `ConfigMap`s that a container's variables reference.
#[must_use]
pub fn collect_environment_sources(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut secrets, mut config_maps) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        secrets.extend(source.secret_ref.as_ref().map(|found| found.name.clone()));
        config_maps.extend(source.config_map_ref.as_ref().map(|found| found.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        secrets.extend(from.secret_key_ref.as_ref().map(|found| found.name.clone()));
        config_maps.extend(from.config_map_key_ref.as_ref().map(|found| found.name.clone()));
    }
    (secrets, config_maps)
}

/// Reads a server from its Deployment; without a digester its secrets are unknown.
///
/// # Errors
/// The Deployment has no container, or none of this name.
pub fn read_server(
    deployment: &Deployment,
    container: Option<&str>,
    texts: &EnvironmentTexts,
    digester: Option<&SecretDigester>,
) -> Result<ServerSnapshot, String> {
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let containers = template_of(deployment).map(|pod| pod.containers.as_slice()).unwrap_or_default();
    let found = match container {
        Some(wanted) => containers.iter().find(|container| container.name == wanted),
        None => containers.first(),
    };
    let names = || containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = found.ok_or_else(|| match container {
        Some(wanted) => format!("Deployment {name} has no container {wanted}: it has {}", names()),
        None => format!("Deployment {name} has no container"),
    })?;
    Ok(ServerSnapshot {
        deployment: name,
        image: found.image.clone().unwrap_or_default(),
        replicas: deployment.spec.replicas,
        variables: VariableReader { texts, digester }.read_all(found),
    })
}

struct VariableReader<'a> {
    texts: &'a EnvironmentTexts,
    digester: Option<&'a SecretDigester>,
}

impl VariableReader<'_> {
    /// Sources of whole objects come first: a variable of its own replaces them, as kubelet has it.
    fn read_all(&self, container: &Container) -> BTreeMap<String, VariableValue> {
        let mut variables = BTreeMap::new();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            if let Some(found) = &source.config_map_ref {
                let texts = self.texts.config_maps.get(&found.name);
                self.add_object(&mut variables, prefix, ("ConfigMap", &found.name), texts, false);
            }
            if let Some(found) = &source.secret_ref {
                let texts = self.texts.secrets.get(&found.name);
                self.add_object(&mut variables, prefix, ("Secret", &found.name), texts, true);
            }
        }
        for variable in container.env.iter().flatten() {
            variables.insert(variable.name.clone(), self.read_variable(variable));
        }
        variables
    }

    fn add_object(
        &self,
        variables: &mut BTreeMap<String, VariableValue>,
        prefix: &str,
        (kind, name): (&str, &str),
        texts: Option<&BTreeMap<String, String>>,
        is_secret: bool,
    ) {
        let Some(texts) = texts else {
            variables.insert(format!("{prefix}* of {kind} {name}"), unread(kind, name));
            return;
        };
        for (key, text) in texts {
            let variable = format!("{prefix}{key}");
            let value = self.protect(&variable, text, is_secret);
            variables.insert(variable, value);
        }
    }

    fn read_variable(&self, variable: &EnvVar) -> VariableValue {
        let name = variable.name.as_str();
        let Some(from) = &variable.value_from else {
            return self.protect(name, variable.value.as_deref().unwrap_or_default(), false);
        };
        let key_of =
            |kind: &str, object: &str, key: &str, texts: Option<&BTreeMap<String, String>>, is_secret| match texts
                .map(|texts| texts.get(key))
            {
                Some(Some(text)) => self.protect(name, text, is_secret),
                Some(None) => VariableValue::Unknown(format!("{kind} {object} has no key {key}")),
                None => unread(kind, object),
            };
        if let Some(found) = &from.secret_key_ref {
            return key_of("Secret", &found.name, &found.key, self.texts.secrets.get(&found.name), true);
        }
        if let Some(found) = &from.config_map_key_ref {
            return key_of("ConfigMap", &found.name, &found.key, self.texts.config_maps.get(&found.name), false);
        }
        match (&from.field_ref, &from.resource_field_ref) {
            (Some(field), _) => VariableValue::Field(field.field_path.clone()),
            (None, Some(resource)) => VariableValue::Field(resource.resource.clone()),
            (None, None) => VariableValue::Unknown("a source that this release does not read".to_owned()),
        }
    }

    fn protect(&self, name: &str, text: &str, is_secret: bool) -> VariableValue {
        if !is_secret && !is_secret_name(name) && !has_password(text) {
            return VariableValue::Text(text.to_owned());
        }
        match self.digester {
            Some(digester) => VariableValue::Digest(digester.digest(name, text)),
            None => VariableValue::Unknown("a secret, which is read with a key only".to_owned()),
        }
    }
}

fn unread(kind: &str, name: &str) -> VariableValue {
    VariableValue::Unknown(format!("{kind} {name} was not read"))
}

/// Whether a value is a secret by its name: by the table for our variables, by its words for others.
fn is_secret_name(name: &str) -> bool {
    if let Some(row) = Variable::by_name(name) {
        return row.secret;
    }
    let name = name.to_ascii_uppercase();
    SECRET_NAME_PARTS.iter().any(|part| name.contains(part))
}

/// Whether a text is a URL with a user: `redis://user:password@host`.
fn has_password(text: &str) -> bool {
    let authority = text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    authority.is_some_and(|authority| authority.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(container: &str) -> Deployment {
        serde_yaml::from_str(&format!(
            "metadata: {{ name: legacy }}\nspec:\n  replicas: 3\n  selector: {{}}\n  template:\n    spec:\n      \
             containers:\n      - {{ name: proxy, image: p }}\n      - {container}\n"
        ))
        .expect("a Deployment")
    }

    fn texts() -> EnvironmentTexts {
        let object = |name: &str, pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
            (name.to_owned(), pairs.collect::<BTreeMap<_, _>>())
        };
        EnvironmentTexts {
            secrets: [object("s", &[("HMAC", "hush"), ("url", "redis://r")])].into(),
            config_maps: [object("c", &[("MODE", "fast"), ("PORT", "1")])].into(),
        }
    }

    const SERVER: &str = "{ name: server, image: 'i:1', envFrom: [{ configMapRef: { name: c }, prefix: X_ }, \
        { secretRef: { name: s } }, { secretRef: { name: away } }], env: [{ name: X_PORT, value: '2' }, \
        { name: EMPTY }, { name: REDIS, valueFrom: { secretKeyRef: { name: s, key: url } } }, \
        { name: GONE, valueFrom: { secretKeyRef: { name: s, key: nothing } } }, \
        { name: POD, valueFrom: { fieldRef: { fieldPath: metadata.name } } }, { name: API_TOKEN, value: hush }, \
        { name: DSN, value: 'postgres://me:hush@db/x' }, { name: SITE, value: 'https://a.test/b@c' }] }";

    #[test]
    fn variables_are_read_as_kubelet_sets_them_and_no_secret_is_shown() {
        let key = SecretDigester::new("0123456789abcdef").expect("a key");
        let server = read_server(&deployment(SERVER), Some("server"), &texts(), Some(&key)).expect("a server");
        assert_eq!((server.deployment.as_str(), server.image.as_str(), server.replicas), ("legacy", "i:1", Some(3)));
        let text = |text: &str| Some(VariableValue::Text(text.to_owned()));
        let found = |name: &str| server.variables.get(name).cloned();
        assert_eq!(found("X_MODE"), text("fast"));
        assert_eq!(found("X_PORT"), text("2"), "a variable of its own replaces that of an object");
        assert_eq!(found("EMPTY"), text(""));
        assert_eq!(found("SITE"), text("https://a.test/b@c"));
        assert_eq!(found("REDIS"), Some(VariableValue::Digest(key.digest("REDIS", "redis://r"))));
        assert_eq!(found("HMAC"), Some(VariableValue::Digest(key.digest("HMAC", "hush"))));
        for secret in ["API_TOKEN", "DSN"] {
            assert!(matches!(found(secret), Some(VariableValue::Digest(_))), "{secret}");
        }
        assert_eq!(found("POD"), Some(VariableValue::Field("metadata.name".to_owned())));
        assert_eq!(found("GONE"), Some(VariableValue::Unknown("Secret s has no key nothing".to_owned())));
        assert_eq!(found("* of Secret away"), Some(VariableValue::Unknown("Secret away was not read".to_owned())));
        assert!(!format!("{server:?}").contains("hush"));
    }

    #[test]
    fn without_a_key_secrets_are_unknown_and_a_container_is_chosen_by_name() {
        let deployment = deployment(SERVER);
        let server = read_server(&deployment, Some("server"), &texts(), None).expect("a server");
        assert!(matches!(server.variables["HMAC"], VariableValue::Unknown(_)));
        assert_eq!(read_server(&deployment, None, &texts(), None).expect("the first").image, "p");
        let refusal = read_server(&deployment, Some("nginx"), &texts(), None).expect_err("no such container");
        assert!(refusal.contains("it has proxy, server"), "{refusal}");
        let container = &template_of(&deployment).expect("pods").containers[1];
        let (secrets, config_maps) = collect_environment_sources(container);
        assert_eq!(secrets.into_iter().collect::<Vec<_>>(), ["away", "s"]);
        assert_eq!(config_maps.into_iter().collect::<Vec<_>>(), ["c"]);
    }
}
