//! The snapshot of one cluster: variables, images, stream, proof and apps, to be kept, sent and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AppDigest, DeliverySnapshot, EdgeLoad, MoveSnapshot, SessionSnapshot};
use crate::api::RealtimeCluster;
use crate::api::cluster::TransportState;
use crate::api::conditions::condition;
use crate::config::{Release, ServerKind, Variable};
use crate::protocol::AppId;

/// `apiVersion` of a snapshot.
const API_VERSION: &str = "realtime-operator.dev/v1alpha1";
/// `kind` of a snapshot.
const KIND: &str = "ClusterSnapshot";

/// A snapshot of one cluster. No secret is in it, only digests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSnapshot {
    /// Version of the form, always `realtime-operator.dev/v1alpha1`.
    pub api_version: String,
    /// Kind of the document, always `ClusterSnapshot`.
    pub kind: String,
    /// The kind of objects that were read.
    pub origin: SnapshotOrigin,
    /// `NAMESPACE/NAME` of the cluster, or of the first Deployment.
    pub cluster: String,
    /// Time at which the objects were read, RFC 3339; `None` for a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// Identifies the key of the digests; `None` when no secret was read.
    #[serde(rename = "keyID", default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Release of the servers, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The servers with their variables.
    pub servers: BTreeMap<ServerKind, ServerSnapshot>,
    /// The Kinesis stream; `None` where none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamSnapshot>,
    /// The proof of the cluster; `None` where no operator proves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateSnapshot>,
    /// Counts of the edges' sessions; `None` where they were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionSnapshot>,
    /// Load of the edges, by the server whose transports they carry; without those whose edges do not report it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<ServerKind, EdgeLoad>,
    /// Deliveries to the endpoints of customers; `None` where they were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliverySnapshot>,
    /// Tracks of the moves to this cluster; `None` where no operator listed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Vec<MoveSnapshot>>,
    /// The apps; `None` when they were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apps: Option<BTreeMap<AppId, AppDigest>>,
    /// The seal of a snapshot of live objects; `None` for that of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SnapshotSeal>,
}

/// The kind of objects that a snapshot was taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotOrigin {
    /// A RealtimeCluster with the Deployments that the operator wrote.
    Operator,
    /// A manifest, rendered without an API server.
    Manifest,
    /// Deployments of other servers, which no operator of ours knows.
    Foreign,
}

/// One kind of server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSnapshot {
    /// Name of the Deployment.
    pub deployment: String,
    /// Image of the container.
    pub image: String,
    /// Number of pods; `None` while an autoscaler sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Variables of the container, by name.
    pub variables: BTreeMap<String, VariableValue>,
}

/// The value of a variable, or why it is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VariableValue {
    /// A text that is no secret.
    Text(String),
    /// Digest of a secret.
    Digest(String),
    /// A field of the pod, such as its name.
    Field(String),
    /// The source was not read: the reason.
    Unknown(String),
}

/// The Kinesis stream of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamSnapshot {
    /// Name of the stream.
    pub name: String,
    /// ARN of the stream; empty until it exists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arn: String,
    /// Status as Kinesis reports it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
}

/// The proof of a cluster, as its status has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateSnapshot {
    /// Status of the condition Ready: `True`, `False` or `Unknown`.
    pub ready: String,
    /// Reason of the condition Ready.
    pub reason: String,
    /// Message of the condition Ready.
    #[serde(default)]
    pub message: String,
    /// Whether the status is that of the newest manifest.
    pub current: bool,
    /// Last time at which the gate was known to be open, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<String>,
    /// State of each transport.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transports: Vec<TransportSnapshot>,
}

/// The proof of one transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransportSnapshot {
    /// Name of the transport.
    pub name: String,
    /// Result of the latest journeys.
    pub state: TransportState,
    /// First hop that fails; empty when none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hop: String,
}

/// The seal of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSeal {
    /// UID of the cluster, or of the first Deployment.
    pub uid: String,
    /// Number of the snapshot, higher than that of every former one of its cluster: its time in ms since 1970.
    pub sequence: u64,
    /// Time from which the snapshot does not count any more, RFC 3339.
    pub expires_at: String,
    /// HMAC-SHA-256 of the snapshot with an empty signature, in hexadecimal digits.
    #[serde(default)]
    pub signature: String,
}

impl ClusterSnapshot {
    /// A snapshot of servers alone.
    #[must_use]
    pub fn new(origin: SnapshotOrigin, cluster: String, servers: BTreeMap<ServerKind, ServerSnapshot>) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            origin,
            cluster,
            taken_at: None,
            key_id: None,
            version: None,
            servers,
            stream: None,
            gate: None,
            sessions: None,
            loads: BTreeMap::new(),
            delivery: None,
            moves: None,
            apps: None,
            seal: None,
        }
    }

    /// A snapshot of a cluster and its servers, as the API server has them.
    #[must_use]
    pub fn of_cluster(cluster: &RealtimeCluster, servers: BTreeMap<ServerKind, ServerSnapshot>) -> Self {
        let metadata = &cluster.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let name = format!("{}/{}", part(&metadata.namespace), part(&metadata.name));
        let status = cluster.status.as_ref();
        let stream = status.and_then(|status| status.stream.as_ref()).map(|stream| StreamSnapshot {
            name: stream.name.clone(),
            arn: stream.arn.clone(),
            status: stream.status.clone(),
        });
        Self {
            version: status.and_then(|status| status.version.clone()),
            stream,
            gate: Some(read_gate(cluster)),
            ..Self::new(SnapshotOrigin::Operator, name, servers)
        }
    }

    /// The snapshot without its seal, its times and the messages of its proof, which change while nothing else does.
    #[must_use]
    pub fn without_times(&self) -> Self {
        let gate = self.gate.clone().map(|gate| GateSnapshot { message: String::new(), passed_at: None, ..gate });
        let sessions = self.sessions.clone().map(|sessions| SessionSnapshot { at_ms: 0, ..sessions });
        Self { taken_at: None, seal: None, gate, sessions, ..self.clone() }
    }

    /// Reads JSON or YAML, for [`Self::from_document`]; null is read from a file with several documents. JSON's form of an enum
    /// is read through a value of JSON.
    #[must_use]
    pub fn read_document(text: &str) -> Value {
        let value = serde_yaml::from_str::<serde_yaml::Value>(text).ok();
        value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
    }

    /// Parses a snapshot from JSON or YAML; `None` if the text is another document.
    ///
    /// # Errors
    /// The text is a snapshot of a form that this release does not know.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        Self::from_document(&Self::read_document(text))
    }

    /// Parses a document as [`Self::parse`] does.
    ///
    /// # Errors
    /// The document is a snapshot of a form that this release does not know.
    pub fn from_document(document: &Value) -> Result<Option<Self>, String> {
        if document.get("kind").and_then(Value::as_str) != Some(KIND) {
            return Ok(None);
        }
        let found = Self::deserialize(document).map_err(|error| format!("no snapshot: {error}"))?;
        if found.api_version != API_VERSION {
            return Err(format!("apiVersion is `{}`: this release reads {API_VERSION}", found.api_version));
        }
        Ok(Some(found))
    }

    /// The text of a variable as a server has it: its own, or the default of the server's release. `None` when it has none,
    /// or one that is no text.
    #[must_use]
    pub fn effective_text(&self, kind: ServerKind, name: &str) -> Option<&str> {
        match self.servers.get(&kind)?.variables.get(name) {
            Some(VariableValue::Text(text)) => Some(text),
            Some(_) => None,
            None => self.default_text(kind, name),
        }
    }

    /// The default of a variable that a server does not have.
    pub(super) fn default_text(&self, kind: ServerKind, name: &str) -> Option<&'static str> {
        let row = Variable::by_name(name).filter(|row| row.servers.contains(&kind))?;
        let release = self.version.as_ref().and_then(|version| version.parse::<Release>().ok());
        if self.origin == SnapshotOrigin::Foreign || release.is_some_and(|release| !row.is_read_by(release)) {
            return None;
        }
        match row.need {
            crate::config::Requirement::Default(text) => Some(text),
            _ => None,
        }
    }
}

fn read_gate(cluster: &RealtimeCluster) -> GateSnapshot {
    let Some(status) = cluster.status.as_ref().filter(|status| status.observed_generation >= 0) else {
        let message = "no operator has looked at the cluster: is one running?".to_owned();
        return GateSnapshot { ready: "Unknown".to_owned(), message, ..GateSnapshot::default() };
    };
    let ready = status.find_condition(condition::READY);
    let transports = status.transports.iter().map(|transport| TransportSnapshot {
        name: transport.name.clone(),
        state: transport.state,
        hop: transport.hop.clone(),
    });
    GateSnapshot {
        ready: ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
        reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
        message: ready.map(|ready| ready.message.clone()).unwrap_or_default(),
        current: cluster.metadata.generation.is_none_or(|generation| generation == status.observed_generation),
        passed_at: status.gate.as_ref().and_then(|gate| gate.passed_at.clone()),
        transports: transports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::config::name;

    #[test]
    fn a_snapshot_is_read_back_as_it_was_and_other_documents_are_none() {
        let server = ServerSnapshot {
            deployment: "eu-sockjs".to_owned(),
            image: "a/b:1".to_owned(),
            replicas: Some(2),
            variables: [
                ("A", VariableValue::Text("off".to_owned())),
                ("B", VariableValue::Digest("12".to_owned())),
                ("C", VariableValue::Field("metadata.name".to_owned())),
                ("D", VariableValue::Unknown("no right".to_owned())),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        };
        let cluster = applied_cluster("status: { observedGeneration: 1, version: 0.2.0 }\n");
        let snapshot = ClusterSnapshot::of_cluster(&cluster, [(ServerKind::Sockjs, server)].into());
        let json = serde_json::to_string(&snapshot).expect("JSON");
        assert_eq!(ClusterSnapshot::parse(&json), Ok(Some(snapshot.clone())));
        let yaml = serde_yaml::to_string(&serde_json::to_value(&snapshot).expect("JSON")).expect("YAML");
        assert_eq!(ClusterSnapshot::parse(&yaml), Ok(Some(snapshot)));
        for other in ["", "kind: RealtimeCluster", "{", "kind: ClusterSnapshot\n---\nkind: ClusterSnapshot\n"] {
            assert_eq!(ClusterSnapshot::parse(other), Ok(None), "{other}");
        }
        assert!(ClusterSnapshot::parse("kind: ClusterSnapshot").is_err());
        let later = json.replace("v1alpha1", "v9");
        assert!(ClusterSnapshot::parse(&later).is_err_and(|error| error.contains("v9")));
    }

    #[test]
    fn a_cluster_without_an_operator_and_one_with_a_newer_manifest_are_not_current() {
        let gate = |extra: &str| read_gate(&applied_cluster(extra));
        assert_eq!((gate("").ready.as_str(), gate("").current), ("Unknown", false));
        assert!(!gate("status: { observedGeneration: 1 }\n").current);
        assert!(gate("status: { observedGeneration: 2 }\n").current);
    }

    #[test]
    fn an_absent_variable_has_the_default_of_the_servers_release() {
        let mut snapshot = ClusterSnapshot::of_cluster(
            &applied_cluster("status: { version: 0.2.0 }\n"),
            [(ServerKind::Sockjs, ServerSnapshot::default())].into(),
        );
        assert_eq!(snapshot.effective_text(ServerKind::Sockjs, name::ACTIVITY_TIMEOUT_SECONDS), Some("55"));
        assert_eq!(snapshot.effective_text(ServerKind::Sockjs, name::WEBHOOKS), None, "required: it has no default");
        assert_eq!(snapshot.effective_text(ServerKind::Websocket, name::LOG), None, "no such server");
        snapshot.version = Some("0.1.0".to_owned());
        assert_eq!(snapshot.effective_text(ServerKind::Sockjs, name::ACTIVITY_TIMEOUT_SECONDS), None, "it knows none");
    }
}
