//! Reads the Gateways that routes attach to, for their addresses. They belong to others and are never changed.

use std::collections::BTreeSet;

use serde_json::json;

use super::context::ControllerContext;
use super::entrance_addresses::{ReadGateway, namespace_of};
use crate::desired::ValidCluster;
use crate::desired::expose::Entrance;
use crate::desired::render::GATEWAY_API_VERSION;
use crate::kubernetes::apply;

/// Reads each Gateway of the exposures with hosts once. A failed read is a problem of its entrance, never a failed reconcile.
pub async fn read_gateways(context: &ControllerContext, cluster: &ValidCluster) -> Vec<ReadGateway> {
    let mut names = BTreeSet::new();
    for exposure in cluster.exposures.iter().filter(|exposure| !exposure.hosts.is_empty()) {
        if let Entrance::Gateway(_, parents) = &exposure.entrance {
            names.extend(parents.iter().map(|parent| (namespace_of(parent, cluster).to_owned(), parent.name.clone())));
        }
    }
    let mut read = Vec::new();
    for (namespace, name) in names {
        let metadata = json!({ "namespace": namespace, "name": name });
        let object = json!({ "apiVersion": GATEWAY_API_VERSION, "kind": "Gateway", "metadata": metadata });
        let found = match apply::fetch_object(&context.client, &object).await {
            Ok(Some(found)) => serde_json::to_value(found).map_err(|error| error.to_string()),
            Ok(None) => Err("it does not exist".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        read.push(ReadGateway { namespace, name, object: found });
    }
    read
}
