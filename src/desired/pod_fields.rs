//! The fields of a pod that decide what its servers run and reach. Pure.
//!
//! In: a rendered or a live pod spec. Out: a flat list of its fields with their values, without defaults of the API
//! server, so that the same pod has the same list whether it was rendered or read. A digest of the list marks a pod
//! template, and two lists show which fields of a pod differ from its template. Fields that change nothing of it, such
//! as resources, tolerations and security contexts, are not in the list: platforms set them by policies of their own.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, VolumeMount};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The policy for DNS of a pod that names none.
const DEFAULT_DNS_POLICY: &str = "ClusterFirst";

/// Fields that the API server adds to volumes and variables.
const DEFAULTED_FIELDS: [&str; 2] = ["defaultMode", "apiVersion"];

/// A field of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodField {
    /// The container that has it; `None` for a field of the pod itself.
    pub container: Option<String>,
    /// Kind of the field.
    pub kind: FieldKind,
    /// Name within its list, such as that of a variable; empty for a field that is no list.
    pub name: String,
}

/// The kind of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldKind {
    /// A container, with its image.
    Container,
    /// A container that runs before the others, or beside them as a sidecar, with its image.
    InitContainer,
    /// The image of a container.
    Image,
    /// The command of a container.
    Command,
    /// The arguments of a container.
    Arguments,
    /// The directory in which a container starts.
    WorkingDirectory,
    /// The hooks of a container.
    Lifecycle,
    /// A variable of a container.
    Variable,
    /// Variables from a whole Secret or `ConfigMap`.
    VariableSource,
    /// A mount of a volume, by its path.
    VolumeMount,
    /// A volume of the pod.
    Volume,
    /// A condition without which the pod is not Ready.
    ReadinessGate,
    /// The host names of one address, in the pod's own hosts file.
    HostAlias,
    /// Whether the pod is on its node's network.
    HostNetwork,
    /// The source of the pod's DNS configuration.
    DnsPolicy,
    /// The pod's own DNS configuration.
    DnsConfig,
    /// The identity of the pod.
    ServiceAccount,
}

/// The place of a field in the JSON of a pod or of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonField {
    /// The field of this name.
    Single(&'static str),
    /// An entry of a list.
    Keyed {
        /// Name of the list.
        list: &'static str,
        /// The field of an entry that names it.
        key: &'static str,
    },
    /// An entry of a list, by its index.
    Indexed(&'static str),
}

impl FieldKind {
    /// The place of the field in the JSON of a pod or of a container.
    #[must_use]
    pub fn json_field(self) -> JsonField {
        use JsonField::{Indexed, Keyed, Single};
        match self {
            Self::Container => Keyed { list: "containers", key: "name" },
            Self::InitContainer => Keyed { list: "initContainers", key: "name" },
            Self::Image => Single("image"),
            Self::Command => Single("command"),
            Self::Arguments => Single("args"),
            Self::WorkingDirectory => Single("workingDir"),
            Self::Lifecycle => Single("lifecycle"),
            Self::Variable => Keyed { list: "env", key: "name" },
            Self::VariableSource => Indexed("envFrom"),
            Self::VolumeMount => Keyed { list: "volumeMounts", key: "mountPath" },
            Self::Volume => Keyed { list: "volumes", key: "name" },
            Self::ReadinessGate => Keyed { list: "readinessGates", key: "conditionType" },
            Self::HostAlias => Keyed { list: "hostAliases", key: "ip" },
            Self::HostNetwork => Single("hostNetwork"),
            Self::DnsPolicy => Single("dnsPolicy"),
            Self::DnsConfig => Single("dnsConfig"),
            Self::ServiceAccount => Single("serviceAccountName"),
        }
    }

    /// The field as a manifest spells it.
    fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::InitContainer => "init container",
            Self::Image => "image",
            Self::Command => "command",
            Self::Arguments => "args",
            Self::WorkingDirectory => "workingDir",
            Self::Lifecycle => "lifecycle",
            Self::Variable => "env",
            Self::VariableSource => "envFrom",
            Self::VolumeMount => "volumeMount",
            Self::Volume => "volume",
            Self::ReadinessGate => "readinessGate",
            Self::HostAlias => "hostAlias",
            Self::HostNetwork => "hostNetwork",
            Self::DnsPolicy => "dnsPolicy",
            Self::DnsConfig => "dnsConfig",
            Self::ServiceAccount => "serviceAccountName",
        }
    }
}

impl fmt::Display for PodField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(container) = &self.container {
            write!(f, "container {container}: ")?;
        }
        f.write_str(self.kind.name())?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}

/// The fields of one pod with their values.
pub type PodFields = BTreeMap<PodField, String>;

/// Lists the fields of a pod.
#[must_use]
pub fn list_pod_fields(spec: &PodSpec) -> PodFields {
    let mut fields = PodFields::new();
    let mut insert = |container: Option<&str>, kind: FieldKind, name: &str, value: String| {
        fields.insert(PodField { container: container.map(str::to_owned), kind, name: name.to_owned() }, value);
    };
    let init = spec.init_containers.iter().flatten().map(|container| (FieldKind::InitContainer, container));
    for (kind, container) in spec.containers.iter().map(|container| (FieldKind::Container, container)).chain(init) {
        insert(None, kind, &container.name, container.image.clone().unwrap_or_default());
        list_container_fields(container, &mut |kind, name, value| insert(Some(&container.name), kind, name, value));
    }
    for volume in spec.volumes.iter().flatten() {
        insert(None, FieldKind::Volume, &volume.name, describe_json(volume));
    }
    for gate in spec.readiness_gates.iter().flatten() {
        insert(None, FieldKind::ReadinessGate, &gate.condition_type, String::new());
    }
    for alias in spec.host_aliases.iter().flatten() {
        insert(None, FieldKind::HostAlias, &alias.ip, alias.hostnames.clone().unwrap_or_default().join(" "));
    }
    if spec.host_network == Some(true) {
        insert(None, FieldKind::HostNetwork, "", "true".to_owned());
    }
    if let Some(policy) = spec.dns_policy.as_deref().filter(|policy| *policy != DEFAULT_DNS_POLICY) {
        insert(None, FieldKind::DnsPolicy, "", policy.to_owned());
    }
    if let Some(config) = &spec.dns_config {
        insert(None, FieldKind::DnsConfig, "", describe_json(config));
    }
    insert(None, FieldKind::ServiceAccount, "", spec.service_account_name.clone().unwrap_or_default());
    fields
}

fn list_container_fields(container: &Container, insert: &mut impl FnMut(FieldKind, &str, String)) {
    insert(FieldKind::Image, "", container.image.clone().unwrap_or_default());
    if let Some(command) = &container.command {
        insert(FieldKind::Command, "", command.join(" "));
    }
    if let Some(arguments) = &container.args {
        insert(FieldKind::Arguments, "", arguments.join(" "));
    }
    if let Some(directory) = &container.working_dir {
        insert(FieldKind::WorkingDirectory, "", directory.clone());
    }
    if let Some(lifecycle) = &container.lifecycle {
        insert(FieldKind::Lifecycle, "", describe_json(lifecycle));
    }
    // Of two variables of one name, the later one is in force.
    for variable in container.env.iter().flatten() {
        insert(FieldKind::Variable, &variable.name, describe_variable(variable));
    }
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        insert(FieldKind::VariableSource, &index.to_string(), describe_json(source));
    }
    for mount in container.volume_mounts.iter().flatten() {
        insert(FieldKind::VolumeMount, &mount.mount_path, describe_mount(mount));
    }
}

fn describe_variable(variable: &EnvVar) -> String {
    let Some(from) = &variable.value_from else { return variable.value.clone().unwrap_or_default() };
    if let Some(key) = &from.secret_key_ref {
        return format!("key {} of Secret {}", key.key, key.name);
    }
    match &from.field_ref {
        Some(field) => format!("field {}", field.field_path),
        None => describe_json(from),
    }
}

/// The name of the volume first: an injector's mount is known by it.
fn describe_mount(mount: &VolumeMount) -> String {
    let path = mount.sub_path.as_ref().map(|path| format!(" {path}")).unwrap_or_default();
    format!("{}{path}{}", mount.name, if mount.read_only == Some(true) { " read-only" } else { "" })
}

/// The volume of a mount, from its description.
#[must_use]
pub fn mounted_volume(description: &str) -> &str {
    description.split(' ').next().unwrap_or_default()
}

fn describe_json(value: &impl Serialize) -> String {
    // These types serialize always; an empty text would only hide a difference of a type that never occurs.
    let mut value = serde_json::to_value(value).unwrap_or_default();
    remove_defaults(&mut value);
    value.to_string()
}

fn remove_defaults(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !DEFAULTED_FIELDS.contains(&name.as_str()));
            fields.values_mut().for_each(remove_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_defaults),
        _ => {}
    }
}

/// Digest of the fields of a pod, by which a template is marked: 16 hex digits.
#[must_use]
pub fn template_digest(spec: &PodSpec) -> String {
    let fields = list_pod_fields(spec);
    let lines: Vec<String> = fields.iter().map(|(field, value)| format!("{field} {value}")).collect();
    hex::encode(&Sha256::digest(lines.join("\n"))[..8])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A pod as it is rendered, small.
    pub fn rendered_pod() -> PodSpec {
        read_pod(&json!({
            "serviceAccountName": "eu-edge",
            "readinessGates": [{ "conditionType": "realtime-operator.dev/webhooks-delivered" }],
            "containers": [{
                "name": "sockjs", "image": "registry.test/acme/realtime:1", "args": ["edge"],
                "env": [
                    { "name": "REALTIME_WEBHOOKS", "value": "kinesis" },
                    { "name": "REALTIME_EMPTY", "value": "" },
                    { "name": "REALTIME_POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "REALTIME_REDIS_URL", "valueFrom": { "secretKeyRef": { "name": "eu-copy-1", "key": "url" } } },
                ],
                "volumeMounts": [{ "name": "pod", "mountPath": "/etc/realtime/pod", "readOnly": true }],
            }],
            "volumes": [{ "name": "pod", "projected": { "sources": [
                { "downwardAPI": { "items": [{ "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } }] } },
            ] } }],
        }))
    }

    pub fn read_pod(value: &Value) -> PodSpec {
        serde_json::from_value(value.clone()).expect("a pod spec")
    }

    #[test]
    fn defaults_and_fields_that_decide_nothing_do_not_change_the_digest() {
        let rendered = rendered_pod();
        let mut live = serde_json::to_value(&rendered).expect("JSON");
        live["dnsPolicy"] = json!("ClusterFirst");
        live["restartPolicy"] = json!("Always");
        live["tolerations"] = json!([{ "key": "a", "operator": "Exists" }]);
        live["volumes"][0]["projected"]["defaultMode"] = json!(420);
        live["volumes"][0]["projected"]["sources"][0]["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"] =
            json!("v1");
        let container = &mut live["containers"][0];
        container["imagePullPolicy"] = json!("IfNotPresent");
        container["resources"] = json!({ "limits": { "memory": "1Gi" } });
        container["env"][1].as_object_mut().expect("a variable").remove("value");
        container["env"][2]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        assert_eq!(template_digest(&read_pod(&live)), template_digest(&rendered));
    }

    #[test]
    fn each_field_that_decides_what_runs_changes_the_digest() {
        let rendered = rendered_pod();
        let base = serde_json::to_value(&rendered).expect("JSON");
        for (pointer, value) in [
            ("/containers/0/image", json!("registry.test/acme/realtime:2")),
            ("/containers/0/args", json!(["dispatcher"])),
            ("/containers/0/env/0/value", json!("off")),
            ("/containers/0/volumeMounts/0/subPath", json!("x")),
            ("/containers/0/command", json!(["sh"])),
            ("/containers/0/workingDir", json!("/tmp")),
            ("/containers/0/lifecycle", json!({ "preStop": { "exec": { "command": ["true"] } } })),
            ("/containers/0/envFrom", json!([{ "secretRef": { "name": "x" } }])),
            ("/containers/1", json!({ "name": "sidecar", "image": "x" })),
            ("/initContainers", json!([{ "name": "first", "image": "x" }])),
            ("/hostAliases", json!([{ "ip": "10.0.0.1", "hostnames": ["a"] }])),
            ("/hostNetwork", json!(true)),
            ("/dnsPolicy", json!("Default")),
            ("/dnsConfig", json!({ "nameservers": ["10.0.0.1"] })),
            ("/serviceAccountName", json!("default")),
            ("/readinessGates/1", json!({ "conditionType": "x" })),
            ("/volumes/1", json!({ "name": "x", "emptyDir": {} })),
        ] {
            let mut changed = base.clone();
            let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
            match changed.pointer_mut(parent).expect("a parent") {
                Value::Array(items) => items.push(value),
                parent => parent[last] = value,
            }
            assert_ne!(template_digest(&read_pod(&changed)), template_digest(&rendered), "{pointer}");
        }
    }
}
