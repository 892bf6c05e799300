//! Settings of a server's pods: the fields that a platform team sets, with the names and types of core Kubernetes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Pattern of the name of an object, in part: labels of a DNS name may not begin or end with a dash either.
pub const OBJECT_NAME_PATTERN: &str = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// Settings of the pods of one server. A change of them starts new pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSettings {
    /// Requests and limits of the server. Without a request and a limit, a pod requests 25m of CPU and 64Mi of memory.
    #[serde(default, skip_serializing_if = "ResourcesSpec::is_empty")]
    pub resources: ResourcesSpec,
    /// Labels of the nodes on which pods run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub tolerations: Vec<Toleration>,
    /// Rules by which the scheduler prefers or demands nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How pods spread over zones and nodes. A constraint without a `labelSelector` counts the pods of its server. By default
    /// they spread evenly over zones and over nodes, as far as these have room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub priority_class_name: Option<String>,
    /// Labels that pods have in addition to those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(name, !name.startsWith('app.kubernetes.io/') && !name.startsWith('realtime-operator.dev/'))").message("labels of app.kubernetes.io/ and realtime-operator.dev/ belong to the operator: write others"))]
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations that pods have in addition to those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(name, !name.startsWith('realtime-operator.dev/'))").message("annotations of realtime-operator.dev/ belong to the operator: write others"))]
    pub pod_annotations: BTreeMap<String, String>,
    /// How many pods an eviction, such as a node drain, may take at once.
    #[serde(default)]
    pub pod_disruption_budget: DisruptionBudget,
    /// Additional environment variables of the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<ExtraVariable>,
}

/// Prefix of labels, beside [`OPERATOR_PREFIX`], that belong to the operator.
pub const APP_LABEL_PREFIX: &str = "app.kubernetes.io/";

/// Prefix of labels and annotations that belong to the operator.
pub const OPERATOR_PREFIX: &str = "realtime-operator.dev/";

/// How many pods an eviction may take at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionBudget {
    /// Number of pods that may be missing at once, or a percentage of them.
    pub max_unavailable: IntOrString,
}

impl Default for DisruptionBudget {
    fn default() -> Self {
        Self { max_unavailable: IntOrString::Int(1) }
    }
}

/// Requests and limits of a server, by resource: `cpu`, `memory` and others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourcesSpec {
    /// Amounts that the scheduler reserves.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 20))]
    pub requests: BTreeMap<String, Amount>,
    /// Amounts that the server may not exceed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 20))]
    pub limits: BTreeMap<String, Amount>,
}

impl ResourcesSpec {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An amount of a resource, such as `250m`, `1` or `512Mi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Amount(pub String);

/// Pattern of an amount: that of Kubernetes for quantities, without a sign.
pub const AMOUNT_PATTERN: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

impl JsonSchema for Amount {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount of a resource, such as `250m`, `1` or `512Mi`.",
            "pattern": AMOUNT_PATTERN,
            "x-kubernetes-int-or-string": true,
        })
    }
}

/// Whether a text matches [`AMOUNT_PATTERN`].
#[must_use]
pub fn is_amount(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let has_digit = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_power = |unit: &str| {
        let power = unit.strip_prefix(['e', 'E']).map(|power| power.strip_prefix(['+', '-']).unwrap_or(power));
        power.is_some_and(|power| !power.is_empty() && power.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_binary =
        |unit: &str| unit.len() == 2 && unit.ends_with('i') && unit.starts_with(['K', 'M', 'G', 'T', 'P', 'E']);
    let is_decimal = |unit: &str| unit.len() == 1 && "numkMGTPE".contains(unit);
    has_digit && (unit.is_empty() || is_decimal(unit) || is_binary(unit) || is_power(unit))
}

impl<'de> Deserialize<'de> for Amount {
    /// Reads a number as people write it in YAML, or a text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(number) => Ok(Self(number.to_string())),
            IntOrString::String(text) => Ok(Self(text)),
        }
    }
}

/// Service accounts of the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccounts {
    /// Account of the edges: they write the stream.
    pub edge: ServiceAccountSpec,
    /// Account of the dispatcher: it reads the stream and keeps Leases.
    pub dispatcher: ServiceAccountSpec,
}

/// A service account of some servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccountSpec {
    /// Name of the account; by default that of the cluster with `-edge` or `-dispatcher`. Trust policies of IAM roles name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub name: Option<String>,
    /// Whether the operator creates the account; `Never` uses one that exists.
    pub create: AccountCreation,
}

/// Whether the operator creates a service account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccountCreation {
    /// The operator creates and owns the account.
    #[default]
    Always,
    /// The account exists, with its annotations.
    Never,
}

/// An environment variable in addition to those that the operator renders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ExtraVariable {
    /// Name of the variable.
    // An API server accepts a rule only if it can bound its cost: by lengths of texts and lists.
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-._a-zA-Z][-._a-zA-Z0-9]*$')").message("this is no name of a variable: write letters, digits and underscores, the first no digit"),
        validation = Rule::new("!self.startsWith('REALTIME_') && !self.startsWith('AWS_') && !self.startsWith('SSL_') && !self.lowerAscii().endsWith('_proxy')").message("this variable belongs to the operator: remove it and use the field of the spec that sets it")
    )]
    pub name: String,
    /// Value of the variable.
    #[serde(default)]
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_those_of_kubernetes_without_a_sign() {
        for text in ["1", "0.5", ".5", "5.", "250m", "64Mi", "1Ei", "2E", "1e3", "1E-3", "100n"] {
            assert!(is_amount(text), "{text}");
        }
        for text in ["", ".", "-1", "+1", "1 Gi", "1gi", "1mi", "Mi", "1.2.3", "1e", "1e+", "1Kim", "0x1"] {
            assert!(!is_amount(text), "{text}");
        }
    }

    #[test]
    fn an_amount_is_a_number_or_a_text() {
        let read = |text: &str| serde_yaml::from_str::<Amount>(text).map(|amount| amount.0).ok();
        assert_eq!((read("2"), read("'2'"), read("512Mi")), (Some("2".into()), Some("2".into()), Some("512Mi".into())));
        assert_eq!((read("true"), read("[1]")), (None, None));
    }
}
