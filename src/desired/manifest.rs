//! Reads manifests strictly: a field that is not in the schema is an error.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use serde_json::Value;

use super::secret_references::{decode_secret, trim_texts};
use crate::api::{self, API_GROUP, RealtimeApp, RealtimeCluster, RealtimeMigration};

/// Objects read from manifest files.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Clusters, each with the file it came from.
    pub clusters: Vec<(String, RealtimeCluster)>,
    /// Apps, each with the file it came from.
    pub apps: Vec<(String, RealtimeApp)>,
    /// Moves of traffic, each with the file it came from.
    pub migrations: Vec<(String, RealtimeMigration)>,
    /// The texts of Secrets by namespace and name.
    pub secrets: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// Objects of other kinds, which are ignored: `Namespace channels`.
    pub others: Vec<String>,
}

/// An error in a manifest file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputError {
    /// Path of the file, as given.
    pub file: String,
    /// Kind and name of the object: `RealtimeCluster eu`; empty when the document cannot be parsed.
    pub object: String,
    /// Path of the field; empty for the whole object.
    pub path: String,
    /// The error and its remedy.
    pub message: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.path.is_empty() {
            write!(f, "{} ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Manifests {
    /// Adds the objects of a file: any number of YAML documents.
    ///
    /// # Errors
    /// All errors of the file, not only the first.
    pub fn add_file(&mut self, file: &str, text: &str) -> Result<(), Vec<InputError>> {
        let mut errors = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            // Parsing to YAML first refuses duplicate keys, which a JSON value would silently merge.
            let value = serde_yaml::Value::deserialize(document)
                .map_err(|error| error.to_string())
                .and_then(|value| serde_json::to_value(value).map_err(|error| error.to_string()));
            match value {
                Ok(Value::Null) => {}
                Ok(value) => errors.extend(self.add_object(file, value).err().into_iter().flatten()),
                Err(error) => {
                    let message = format!("is not YAML that can be read: {error}");
                    errors.push(InputError {
                        file: file.to_owned(),
                        object: String::new(),
                        path: String::new(),
                        message,
                    });
                    break;
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn add_object(&mut self, file: &str, value: Value) -> Result<(), Vec<InputError>> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let object = format!("{kind} {name}");
        let error = |path: &str, message: String| {
            vec![InputError { file: file.to_owned(), object: object.clone(), path: path.to_owned(), message }]
        };
        if kind.is_empty() || version.is_empty() {
            let message = "the document has no apiVersion and kind: is it a Kubernetes object?".to_owned();
            return Err(vec![InputError {
                file: file.to_owned(),
                object: String::new(),
                path: String::new(),
                message,
            }]);
        }
        if version == "v1" && kind == "Secret" {
            let secret: Secret = serde_json::from_value(value).map_err(|e| error("", e.to_string()))?;
            self.add_secret(secret);
            return Ok(());
        }
        if !version.starts_with(&format!("{API_GROUP}/")) {
            self.others.push(object);
            return Ok(());
        }
        let Some(schema) = api::crd::object_schema(&kind) else {
            return Err(error("kind", format!("is `{kind}`: write RealtimeCluster, RealtimeApp or RealtimeMigration")));
        };
        if version != format!("{API_GROUP}/v1alpha1") {
            return Err(error("apiVersion", format!("is `{version}`: write {API_GROUP}/v1alpha1")));
        }
        if name.is_empty() {
            return Err(error("metadata.name", "is missing: give the object a name".to_owned()));
        }
        let findings = api::check_schema(&value, schema);
        if !findings.is_empty() {
            return Err(findings.into_iter().flat_map(|finding| error(&finding.path, finding.message)).collect());
        }
        let rules = |errors: kube::core::cel::ValidationErrors| -> Vec<InputError> {
            errors
                .into_vec()
                .into_iter()
                .flat_map(|e| error(&e.field_path, format!("breaks a rule: {}", e.message)))
                .collect()
        };
        let unreadable = |e: serde_json::Error| error("", e.to_string());
        match kind.as_str() {
            "RealtimeCluster" => {
                let cluster: RealtimeCluster = serde_json::from_value(value).map_err(unreadable)?;
                cluster.validate_cel().map_err(rules)?;
                self.clusters.push((file.to_owned(), cluster));
            }
            "RealtimeMigration" => {
                let migration: RealtimeMigration = serde_json::from_value(value).map_err(unreadable)?;
                migration.validate_cel().map_err(rules)?;
                self.migrations.push((file.to_owned(), migration));
            }
            _ => {
                let app: RealtimeApp = serde_json::from_value(value).map_err(unreadable)?;
                app.validate_cel().map_err(rules)?;
                self.apps.push((file.to_owned(), app));
            }
        }
        Ok(())
    }

    fn add_secret(&mut self, secret: Secret) {
        let mut texts = decode_secret(&secret);
        texts.extend(secret.string_data.unwrap_or_default());
        let namespace = secret.metadata.namespace.unwrap_or_else(|| "default".to_owned());
        self.secrets.insert((namespace, secret.metadata.name.unwrap_or_default()), trim_texts(texts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::MINIMAL_CLUSTER;

    fn errors(text: &str) -> Vec<String> {
        let result = Manifests::default().add_file("eu.yaml", text);
        result.err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_smallest_useful_manifest_is_read() {
        let mut manifests = Manifests::default();
        manifests.add_file("eu.yaml", MINIMAL_CLUSTER).expect("read");
        assert_eq!(manifests.clusters.len(), 1);
        assert_eq!(manifests.clusters[0].1.spec.websocket.replicas, 3);
    }

    #[test]
    fn each_mistake_is_reported_with_file_path_and_remedy() {
        for (name, from, to, says) in [
            ("an unknown field", "aws: {", "awz: {}, aws: {", "eu.yaml: "),
            (
                "a wrong type",
                "region: eu-west-1",
                "region: 1",
                "eu.yaml: RealtimeCluster eu: spec.aws.region is `1`, a text is wanted",
            ),
            ("an empty region", "region: eu-west-1", "region: ''", "spec.aws.region is empty: write a value"),
            (
                "two identities",
                "{ type: PodIdentity }",
                "{ type: PodIdentity, secretRef: { name: k } }",
                "keep one identity",
            ),
            ("a type that is there twice", "{ type: PodIdentity }", "{ type: PodIdentity, type: IRSA }", "duplicate"),
            (
                "a name too long",
                "name: eu,",
                "name: eueueueueueueueueueueueueueueueueueueueue,",
                "more than 40 characters",
            ),
            ("no name", "name: eu,", "", "metadata.name is missing"),
            (
                "another kind",
                "RealtimeCluster",
                "RealtimeClutser",
                "write RealtimeCluster, RealtimeApp or RealtimeMigration",
            ),
            ("another version", "v1alpha1", "v1", "apiVersion is `realtime-operator.dev/v1`"),
        ] {
            let found = errors(&MINIMAL_CLUSTER.replacen(from, to, 1));
            assert!(found.iter().any(|error| error.contains(says)), "{name}: {found:?}");
        }
        for (name, extra, says) in [
            (
                "a contract name in env",
                "sockjs: { env: [{ name: REALTIME_WEBHOOKS, value: 'off' }] }",
                "spec.sockjs.env",
            ),
            ("no replicas", "sockjs: { replicas: 0 }", "spec.sockjs.replicas is 0: write a number from 1 to 1000"),
            ("off without a word", "webhooks: { mode: Off }", "acknowledgeNoWebhooks"),
            ("off for another cluster", "webhooks: { mode: Off, acknowledgeNoWebhooks: us }", "acknowledgeNoWebhooks"),
            ("shards on demand", "webhooks: { stream: { shards: 2 } }", "shards go with mode: Provisioned"),
            ("half of both", "servers: Combined\n  sockjs: { state: Disabled }", "servers: Combined serves both"),
            ("a word of no meaning", "servers: Together", "write one of Separate, Combined"),
            ("no server at all", "websocket: { state: Disabled }\n  sockjs: { state: Disabled }", "enable one of them"),
        ] {
            let found = errors(&format!("{MINIMAL_CLUSTER}  {extra}\n"));
            assert!(found.iter().any(|error| error.contains(says)), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_move_is_read() {
        assert_eq!(errors(include_str!("../../tests/fixtures/migration/move.yaml")), [""; 0]);
    }

    /// The same table is checked at a real API server.
    #[test]
    fn manifests_are_refused_in_the_words_of_the_api_server() {
        let table: Vec<Value> = serde_json::from_str(include_str!("../../tests/fixtures/refused.json")).expect("JSON");
        assert!(table.len() > 20);
        for case in table {
            let mut object: Value = serde_yaml::from_str(MINIMAL_CLUSTER).expect("a cluster");
            object["kind"] = case["kind"].clone();
            object["metadata"]["name"] = case["name"].clone();
            match case["kind"].as_str() {
                Some("RealtimeCluster") => {
                    for (field, value) in case["spec"].as_object().expect("fields") {
                        object["spec"][field] = value.clone();
                    }
                }
                _ => object["spec"] = case["spec"].clone(),
            }
            let found = errors(&object.to_string());
            let says = case["message"].as_str().expect("a message");
            assert!(found.len() == 1 && found[0].contains(says), "{}: {found:?}", case["what"]);
        }
    }

    #[test]
    fn a_webhook_that_some_cluster_can_send_is_accepted() {
        let app = |spec: &str| {
            let head = "apiVersion: realtime-operator.dev/v1alpha1\nkind: RealtimeApp\nmetadata: { name: shop }\n";
            errors(&format!("{head}spec: {{ appID: '1', {spec} }}\n"))
        };
        let url = |url: &str| app(&format!("webhooks: [{{ name: a, url: '{url}' }}]"));
        for address in [
            "https://a.test",
            "https://a.test:8443/x?y=https://b@c#d",
            "http://10.0.0.1/",
            "https://[2606:4700::1111]:443/",
            "https://müller.test/ä",
            "https://a_b.test/x@y",
        ] {
            assert_eq!(url(address), [""; 0], "{address}");
        }
    }

    #[test]
    fn all_mistakes_of_a_file_are_reported_at_once() {
        let found =
            errors(&MINIMAL_CLUSTER.replace("region: eu-west-1", "region: ''").replace("type: Redis", "type: NATS"));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_document_that_is_no_object_is_reported() {
        assert!(errors("a: [").iter().any(|error| error.contains("is not YAML")));
        assert!(errors("a: 1").iter().any(|error| error.contains("no apiVersion and kind")));
        assert!(errors("").is_empty());
    }

    #[test]
    fn secrets_are_read_and_other_kinds_ignored() {
        let mut manifests = Manifests::default();
        let text = "apiVersion: v1\nkind: Secret\nmetadata: { name: s, namespace: n }\nstringData: { key: k }\n---\n\
                    apiVersion: v1\nkind: Namespace\nmetadata: { name: n }\n";
        manifests.add_file("a.yaml", text).expect("read");
        assert_eq!(manifests.secrets[&("n".to_owned(), "s".to_owned())]["key"], "k");
        assert_eq!(manifests.others, ["Namespace n"]);
    }
}
