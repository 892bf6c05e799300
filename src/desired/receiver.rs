//! Name and address of the operator's webhook receiver, as the operator's manifests install it.

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "realtime-operator";

/// Service of the webhook receiver, in the namespace of the operator.
pub const RECEIVER_SERVICE: &str = "realtime-operator-receiver";

/// Port of the webhook receiver.
pub const RECEIVER_PORT: u16 = 8090;

/// `HOST:PORT` under which dispatchers reach the receiver of the operator in this namespace.
#[must_use]
pub fn receiver_address(namespace: &str, port: u16) -> String {
    format!("{RECEIVER_SERVICE}.{namespace}.svc:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde::Deserialize;

    #[test]
    fn the_manifest_of_the_operator_has_the_receiver_at_this_address() {
        let text = include_str!("../../examples/operator.yaml");
        let services = serde_yaml::Deserializer::from_str(text).filter_map(|document| {
            let value = serde_yaml::Value::deserialize(document).expect("YAML");
            (value["kind"] == "Service").then(|| serde_yaml::from_value::<Service>(value).expect("a Service"))
        });
        let addresses: Vec<String> = services
            .map(|service| {
                let (metadata, spec) = (service.metadata, service.spec.unwrap_or_default());
                let port = spec.ports.and_then(|ports| Some(ports.first()?.port)).unwrap_or_default();
                format!("{}.{}.svc:{port}", metadata.name.unwrap_or_default(), metadata.namespace.unwrap_or_default())
            })
            .collect();
        assert!(addresses.contains(&receiver_address(OPERATOR_NAMESPACE, RECEIVER_PORT)), "{addresses:?}");
    }
}
