//! `realtime iam`: the IAM roles of a cluster, with the least rights.

mod formats;
mod permissions;
mod roles;

use std::path::PathBuf;

use clap::ValueEnum;

use super::{files, print, report_bad_input};
use crate::api::cluster::IdentityType;
use crate::desired::{self, ServerAccount, ValidStream};

pub use permissions::{PermissionHolder, StreamPurpose, list_operations};
use roles::{RoleInputs, build_roles};

/// Namespace and `ServiceAccount` of the operator, as the chart installs it.
const OPERATOR_ACCOUNT: &str = "realtime-operator/realtime-operator";

/// Print the IAM roles that a cluster needs, with the least rights
///
/// One role for the edges, one for the dispatcher, one for the operator. Each has a policy, and the trust policy of the
/// identity type in the manifest. Rights that lose data are there only if the manifest acknowledges the loss: `DeleteStream` is
/// a policy of its own. With `management: Observe` no role can create, change or delete a stream.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
        realtime iam eu.yaml --account 123456789012\n  \
        realtime iam eu.yaml --account 123456789012 --eks-cluster prod --format aws | sh\n  \
        realtime iam eu.yaml --account 123456789012 --eks-cluster prod --format terraform > realtime.tf\n\n\
        With type IRSA or WebIdentity add --oidc-issuer, which this command prints:\n  \
        aws eks describe-cluster --name prod --query cluster.identity.oidc.issuer --output text")]
pub struct Arguments {
    /// Files with one RealtimeCluster; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The AWS account of the stream; by default that of the roles in the manifest
    #[arg(long, value_name = "ID", value_parser = parse_account)]
    account: Option<String>,
    /// The OIDC issuer of the Kubernetes cluster, for type IRSA and `WebIdentity`
    #[arg(long, value_name = "URL", value_parser = parse_issuer)]
    oidc_issuer: Option<String>,
    /// The name of the EKS cluster, for the forms other than json
    #[arg(long, value_name = "NAME")]
    eks_cluster: Option<String>,
    /// Namespace and `ServiceAccount` of the operator
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = OPERATOR_ACCOUNT, value_parser = parse_operator_account)]
    operator_account: (String, String),
    /// The form of the output
    #[arg(long, value_enum, default_value_t = IamFormat::Json)]
    format: IamFormat,
}

/// Forms of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IamFormat {
    /// Roles with their documents, as JSON
    Json,
    /// Commands of the AWS CLI
    Aws,
    /// A configuration file of eksctl
    Eksctl,
    /// Resources for Terraform to apply
    Terraform,
}

fn parse_account(text: &str) -> Result<String, String> {
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no account: write its 12 digits"))
    }
}

/// An issuer without its scheme, as IAM names a provider.
fn parse_issuer(text: &str) -> Result<String, String> {
    let issuer = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if issuer.is_empty() || !issuer.chars().all(plain) {
        return Err(format!(
            "`{text}` is no issuer: write it as `aws eks describe-cluster` prints it, https://HOST/PATH"
        ));
    }
    Ok(issuer.to_owned())
}

fn parse_operator_account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("`{text}` names no ServiceAccount: write NAMESPACE/NAME, such as {OPERATOR_ACCOUNT}")),
    }
}

/// Runs `realtime iam` and returns its exit code.
#[must_use]
pub fn run(arguments: &Arguments) -> u8 {
    match render_roles(arguments) {
        Ok(text) => print::print_text(&text),
        Err(errors) => report_bad_input(&errors),
    }
}

fn render_roles(arguments: &Arguments) -> Result<String, Vec<String>> {
    let input = files::read(&arguments.files)?;
    let spec = &input.cluster.spec;
    let describe =
        |problems: Vec<desired::ManifestProblem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let stream: ValidStream = desired::validate_stream(&input.cluster, "").map_err(describe)?;
    let name = input.cluster.metadata.name.clone().unwrap_or_default();
    let identity = &spec.aws.identity;
    let role_of = |role: &Option<crate::api::cluster::IdentityRole>| role.as_ref().map(|role| role.role_arn.clone());
    let (edge_role, dispatcher_role) = (role_of(&identity.edge), role_of(&identity.dispatcher));
    let in_manifest = [&edge_role, &dispatcher_role].into_iter().flatten().find_map(|arn| arn.split(':').nth(4));
    let account = arguments.account.clone().or_else(|| in_manifest.map(str::to_owned));
    let needs_issuer = matches!(identity.kind, IdentityType::Irsa | IdentityType::WebIdentity);
    let mut errors = Vec::new();
    if account.is_none() {
        errors.push("the account of the stream is not known: add --account with its 12 digits, which `aws sts get-caller-identity --query Account` prints".to_owned());
    }
    if needs_issuer && arguments.oidc_issuer.is_none() && arguments.format != IamFormat::Eksctl {
        errors.push("aws.identity.type trusts an OIDC provider: add --oidc-issuer, which `aws eks describe-cluster --name NAME --query cluster.identity.oidc.issuer --output text` prints".to_owned());
    }
    let needs_cluster = match arguments.format {
        IamFormat::Json => false,
        IamFormat::Eksctl => true,
        IamFormat::Aws | IamFormat::Terraform => identity.kind == IdentityType::PodIdentity,
    };
    if needs_cluster && arguments.eks_cluster.is_none() {
        errors.push(
            "the EKS cluster is not known: add --eks-cluster with its name, as `aws eks list-clusters` prints it"
                .to_owned(),
        );
    }
    if arguments.format == IamFormat::Eksctl
        && matches!(identity.kind, IdentityType::StaticKeys | IdentityType::NodeRole)
    {
        errors.push("eksctl makes roles of ServiceAccounts only: use --format json, aws or terraform for this aws.identity.type".to_owned());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let accounts = &spec.service_accounts;
    let account_of = |spec, server| ServerAccount::resolve(spec, format!("{name}-{server}")).name;
    let named_streams = spec.webhooks.stream.name.is_some();
    let inputs = RoleInputs {
        namespace: input.namespace(),
        cluster: &name,
        stream: &stream,
        is_stream_named: named_streams,
        identity: identity.kind,
        account: account.unwrap_or_default(),
        oidc_issuer: arguments.oidc_issuer.clone().unwrap_or_default(),
        edge: (account_of(&accounts.edge, "edge"), edge_role),
        dispatcher: (account_of(&accounts.dispatcher, "dispatcher"), dispatcher_role),
        operator: arguments.operator_account.clone(),
    };
    let roles = build_roles(&inputs);
    let eks_cluster = arguments.eks_cluster.as_deref().unwrap_or_default();
    let place = formats::EksPlace { cluster: eks_cluster, region: &stream.region, identity: identity.kind };
    Ok(match arguments.format {
        IamFormat::Json => formats::format_json(&inputs, &roles),
        IamFormat::Aws => formats::format_commands(&place, &roles),
        IamFormat::Eksctl => formats::format_eksctl(&place, &roles),
        IamFormat::Terraform => formats::format_terraform(&place, &roles),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_aws_would_refuse_are_refused_with_their_form() {
        assert_eq!(parse_account("123456789012").as_deref(), Ok("123456789012"));
        for bad in ["", "12345", "12345678901a"] {
            assert!(parse_account(bad).expect_err("no account").contains("12 digits"));
        }
        let issuer = "oidc.eks.eu-west-1.amazonaws.com/id/A1";
        assert_eq!(parse_issuer(&format!("https://{issuer}/")).as_deref(), Ok(issuer));
        assert!(parse_issuer("https://a b").is_err() && parse_issuer("").is_err());
        assert_eq!(parse_operator_account("a/b"), Ok(("a".to_owned(), "b".to_owned())));
        for bad in ["a", "/b", "a/", "a/b/c"] {
            assert!(parse_operator_account(bad).expect_err("no account").contains("NAMESPACE/NAME"), "{bad}");
        }
    }
}
