//! The IAM roles of a cluster: policies and trust policies, as JSON documents. Pure.
//!
//! Sources: IAM User Guide, "`OpenID` Connect federation" and "IAM JSON policy elements"; EKS User Guide, "IAM roles for service
//! accounts" and "EKS Pod Identity"; Kinesis Developer Guide, "Permissions to use user-generated KMS keys".

use serde_json::{Value, json};

use super::permissions::{PermissionHolder, StreamPurpose, list_operations};
use crate::api::cluster::IdentityType;
use crate::desired::{StreamGoal, ValidStream};

/// Longest name of an IAM role (IAM User Guide, "IAM and AWS STS quotas").
const ROLE_NAME_LEN_MAX: usize = 64;

/// Role of the operator, which serves all clusters.
const OPERATOR_ROLE: &str = "realtime-operator";

/// The key of AWS, whose use needs no permission.
const AWS_MANAGED_KEY: &str = "alias/aws/kinesis";

/// The facts of a cluster that its roles depend on.
pub struct RoleInputs<'a> {
    /// Namespace of the cluster.
    pub namespace: &'a str,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// The stream of the manifest.
    pub stream: &'a ValidStream,
    /// Whether the manifest names the stream; otherwise its name ends with a part of a UID that is not known yet.
    pub is_stream_named: bool,
    /// Type of the identity.
    pub identity: IdentityType,
    /// AWS account of the stream.
    pub account: String,
    /// OIDC issuer without its scheme; empty for an identity that needs none.
    pub oidc_issuer: String,
    /// `ServiceAccount` of the edges, and the ARN of their role in the manifest.
    pub edge: (String, Option<String>),
    /// `ServiceAccount` of the dispatcher, and the ARN of its role in the manifest.
    pub dispatcher: (String, Option<String>),
    /// Namespace and `ServiceAccount` of the operator.
    pub operator: (String, String),
}

/// One role with its policies.
#[derive(Clone, Debug, PartialEq)]
pub struct IamRole {
    /// Holder of the role: `edge`, `dispatcher` or `operator`.
    pub server: &'static str,
    /// Name of the role.
    pub name: String,
    /// Path of the role, as in the ARN of the manifest; `/` by default.
    pub path: String,
    /// First part of the names of its policies: the role of the operator has those of every cluster.
    pub policy_prefix: String,
    /// Namespace of the `ServiceAccount`.
    pub namespace: String,
    /// Name of the `ServiceAccount`.
    pub service_account: String,
    /// The trust policy; null for an identity without roles of its own.
    pub trust: Value,
    /// The policies by name: that of the server, and those of the deletion, of the proof and of the replay of dead letters.
    pub policies: Vec<(&'static str, Value)>,
}

/// Builds the roles of edges, dispatcher and operator.
pub fn build_roles(inputs: &RoleInputs<'_>) -> Vec<IamRole> {
    let role_name = |arn: &Option<String>, server: &str| {
        let given = arn.as_deref().and_then(|arn| arn.split_once(":role/")).map(|(_, role)| role);
        let Some(given) = given else {
            let name = format!("realtime-{}-{}-{server}", inputs.namespace, inputs.cluster);
            return ("/".to_owned(), name.chars().take(ROLE_NAME_LEN_MAX).collect::<String>());
        };
        let (path, name) = given.rsplit_once('/').map_or(("", given), |(path, name)| (path, name));
        (if path.is_empty() { "/".to_owned() } else { format!("/{path}/") }, name.to_owned())
    };
    let of_server =
        |server, (account, arn): &(String, Option<String>), holders: &[(&'static str, PermissionHolder)]| {
            let (namespace, account) = (inputs.namespace.to_owned(), account.clone());
            build_role(inputs, server, role_name(arn, server), (namespace, account), holders)
        };
    let mut of_operator = vec![("access", PermissionHolder::Operator), ("delete", PermissionHolder::OperatorDeletion)];
    let mut of_dispatcher = vec![("access", PermissionHolder::Dispatcher)];
    if inputs.stream.dead_letter.is_some() {
        of_operator.push(("dead-letter-proof", PermissionHolder::OperatorLetterProof));
        // `realtime replay` is run in a dispatcher pod, which has the registry.
        of_dispatcher.push(("dead-letter-replay", PermissionHolder::Replay));
    }
    vec![
        of_server("edge", &inputs.edge, &[("access", PermissionHolder::Edge)]),
        of_server("dispatcher", &inputs.dispatcher, &of_dispatcher),
        build_role(
            inputs,
            "operator",
            ("/".to_owned(), OPERATOR_ROLE.to_owned()),
            inputs.operator.clone(),
            &of_operator,
        ),
    ]
}

fn build_role(
    inputs: &RoleInputs<'_>,
    server: &'static str,
    (path, name): (String, String),
    (namespace, service_account): (String, String),
    holders: &[(&'static str, PermissionHolder)],
) -> IamRole {
    let policies = holders.iter().filter_map(|(name, holder)| Some((*name, build_policy(inputs, *holder)?)));
    IamRole {
        server,
        name,
        path,
        policy_prefix: format!("realtime-{}-{}-{server}", inputs.namespace, inputs.cluster),
        trust: build_trust(inputs, &namespace, &service_account),
        policies: policies.collect(),
        namespace,
        service_account,
    }
}

/// Builds the policy of a holder; `None` if it needs no right.
fn build_policy(inputs: &RoleInputs<'_>, holder: PermissionHolder) -> Option<Value> {
    let events = &inputs.stream.goal;
    let letters = inputs.stream.dead_letter.as_ref().map(|letters| {
        let goal = events.of_dead_letters(letters.shards, letters.retention_hours);
        (StreamPurpose::DeadLetters, goal)
    });
    let mut statements = Vec::new();
    for (purpose, goal) in std::iter::once((StreamPurpose::Events, events.clone())).chain(letters) {
        let operations = list_operations(holder, purpose, &goal);
        let mut actions: Vec<String> =
            operations.iter().map(|operation| format!("kinesis:{}", operation.api_name())).collect();
        actions.sort_unstable();
        if !actions.is_empty() {
            statements.push(json!({
                "Sid": match purpose { StreamPurpose::Events => "Stream", StreamPurpose::DeadLetters => "DeadLetters" },
                "Effect": "Allow",
                "Action": actions,
                "Resource": stream_arn(inputs, purpose),
            }));
        }
    }
    statements.extend(build_key_statement(inputs, holder, events));
    (!statements.is_empty()).then(|| json!({ "Version": "2012-10-17", "Statement": statements }))
}

fn stream_arn(inputs: &RoleInputs<'_>, purpose: StreamPurpose) -> String {
    let name = match purpose {
        StreamPurpose::Events => Some(inputs.stream.name.clone()),
        StreamPurpose::DeadLetters => inputs.stream.dead_letter_name(),
    };
    let is_named = inputs.is_stream_named
        || (purpose == StreamPurpose::DeadLetters
            && inputs.stream.dead_letter.as_ref().is_some_and(|letters| letters.name.is_some()));
    let name = match name {
        Some(name) if is_named => name.to_string(),
        // The end of the name is a part of the UID, which the API server gives.
        _ => format!("rtc-{}-{}-*", inputs.namespace, inputs.cluster),
    };
    format!(
        "arn:{}:kinesis:{}:{}:stream/{name}",
        partition(&inputs.stream.region),
        inputs.stream.region,
        inputs.account
    )
}

/// Partition of a region (AWS General Reference, "Amazon Resource Names").
fn partition(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    }
}

/// The statement for a KMS key of the customer: writers generate data keys, readers decrypt, the operator looks the key up.
fn build_key_statement(inputs: &RoleInputs<'_>, holder: PermissionHolder, goal: &StreamGoal) -> Option<Value> {
    let key = goal.encryption_key.as_deref().filter(|key| *key != AWS_MANAGED_KEY)?;
    let has_letters = inputs.stream.dead_letter.is_some();
    let actions: &[&str] = match holder {
        PermissionHolder::Edge => &["kms:GenerateDataKey"],
        PermissionHolder::Dispatcher if has_letters => &["kms:Decrypt", "kms:GenerateDataKey"],
        PermissionHolder::Operator if goal.is_managed() => &["kms:Decrypt", "kms:DescribeKey"],
        PermissionHolder::Dispatcher | PermissionHolder::Operator | PermissionHolder::Replay => &["kms:Decrypt"],
        PermissionHolder::OperatorLetterProof if goal.is_managed() => &["kms:Decrypt", "kms:GenerateDataKey"],
        PermissionHolder::OperatorLetterProof | PermissionHolder::OperatorDeletion => return None,
    };
    let arn = |id: &str| {
        let region = &inputs.stream.region;
        format!("arn:{}:kms:{region}:{}:key/{id}", partition(region), inputs.account)
    };
    let mut statement = json!({ "Sid": "Key", "Effect": "Allow", "Action": actions });
    if key.starts_with("alias/") || key.contains(":alias/") {
        let alias = key.rsplit_once(":alias/").map_or_else(|| key.to_owned(), |(_, name)| format!("alias/{name}"));
        statement["Resource"] = arn("*").into();
        statement["Condition"] = json!({ "ForAnyValue:StringEquals": { "kms:ResourceAliases": alias } });
    } else {
        statement["Resource"] = if key.starts_with("arn:") { key.to_owned() } else { arn(key) }.into();
    }
    Some(statement)
}

/// The trust policy of a `ServiceAccount`; null for keys and for the role of a node.
fn build_trust(inputs: &RoleInputs<'_>, namespace: &str, account: &str) -> Value {
    let statement = match inputs.identity {
        IdentityType::PodIdentity => json!({
            "Effect": "Allow",
            "Principal": { "Service": "pods.eks.amazonaws.com" },
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        }),
        IdentityType::Irsa | IdentityType::WebIdentity => {
            let (issuer, partition) = (&inputs.oidc_issuer, partition(&inputs.stream.region));
            let provider = format!("arn:{partition}:iam::{}:oidc-provider/{issuer}", inputs.account);
            let mut equals = serde_json::Map::new();
            equals.insert(format!("{issuer}:aud"), "sts.amazonaws.com".into());
            equals.insert(format!("{issuer}:sub"), format!("system:serviceaccount:{namespace}:{account}").into());
            json!({
                "Effect": "Allow",
                "Principal": { "Federated": provider },
                "Action": "sts:AssumeRoleWithWebIdentity",
                "Condition": { "StringEquals": equals },
            })
        }
        IdentityType::StaticKeys | IdentityType::NodeRole => return Value::Null,
    };
    json!({ "Version": "2012-10-17", "Statement": [statement] })
}
