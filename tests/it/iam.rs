//! The printed IAM roles: their forms, and their rights beside the calls in the code.

use std::collections::{BTreeMap, BTreeSet};

use realtime_operator::api::cluster::StreamManagement;
use realtime_operator::cli::iam::{PermissionHolder, StreamPurpose, list_operations};
use realtime_operator::desired::StreamGoal;
use realtime_operator::kinesis::KinesisOperation;
use realtime_operator::process::metrics::LabelValue;
use syn::visit::Visit;
use syn::{Expr, ExprMethodCall, ExprPath, ImplItem, ImplItemFn, Item, Type};

use crate::cli::{manifest, realtime};
use crate::golden::golden;
use crate::source_tree::{SourceFile, parse_sources, read_sources};

const ACCOUNT: &[&str] = &["--account", "123456789012"];
const ISSUER: &[&str] = &["--oidc-issuer", "https://oidc.eks.eu-west-1.amazonaws.com/id/A1B2"];
const EKS: &[&str] = &["--eks-cluster", "prod"];
const ROLES: &str = "edge: { roleARN: 'arn:aws:iam::123456789012:role/eu-edge' }, dispatcher: { roleARN: 'arn:aws:iam::123456789012:role/teams/eu-hooks' }";

/// The identity of the example.
const EXAMPLE_IDENTITY: &str = "    identity:\n      type: PodIdentity\n";

/// Runs `realtime iam` on the example with this identity and stream. Its exit code and what it printed.
fn print_roles(identity: &str, webhooks: &str, arguments: &[&[&str]]) -> (Option<i32>, String) {
    let file = manifest(EXAMPLE_IDENTITY, &format!("    identity: {identity}\n"));
    if !webhooks.is_empty() {
        let text = std::fs::read_to_string(file.path()).expect("a manifest");
        let (first, rest) = text.split_once("spec:\n").expect("a spec");
        std::fs::write(file.path(), format!("{first}spec:\n  webhooks: {webhooks}\n{rest}")).expect("written");
    }
    let path = file.path().to_str().expect("a path").to_owned();
    let output = realtime(&[&["iam", path.as_str()][..], &arguments.concat()].concat(), &[]);
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.code(), String::from_utf8_lossy(&text).replace(&path, "FILE"))
}

#[test]
fn the_roles_of_every_identity_are_printed_in_every_form() {
    let irsa = format!("{{ type: IRSA, {ROLES} }}");
    let web_identity = format!("{{ type: WebIdentity, {ROLES} }}");
    let keys = "{ type: StaticKeys, secretRef: { name: keys } }";
    let full = "{ stream: { name: events, retentionHours: 24, encryption: { kmsKey: alias/chat }, deletionPolicy: Delete, acknowledgeDataLoss: [LowerRetention, Delete] }, deadLetter: {} }";
    let observed = "{ stream: { name: events, management: Observe, encryption: { kmsKey: 1a2b } } }";
    let form = |form: &'static str| ["--format", form];
    let (json, aws, eksctl, terraform) = (form("json"), form("aws"), form("eksctl"), form("terraform"));
    for (file, identity, webhooks, arguments) in [
        ("pod-identity.json", "{ type: PodIdentity }", "", vec![ACCOUNT, &json]),
        ("pod-identity-full.json", "{ type: PodIdentity }", full, vec![ACCOUNT, &json]),
        ("pod-identity-observe.json", "{ type: PodIdentity }", observed, vec![ACCOUNT, &json]),
        ("pod-identity.sh", "{ type: PodIdentity }", full, vec![ACCOUNT, EKS, &aws]),
        ("pod-identity.eksctl.yaml", "{ type: PodIdentity }", full, vec![ACCOUNT, EKS, &eksctl]),
        ("pod-identity.tf", "{ type: PodIdentity }", full, vec![ACCOUNT, EKS, &terraform]),
        ("irsa.json", &irsa, "", vec![ISSUER, &json]),
        ("irsa.sh", &irsa, "", vec![ISSUER, &aws]),
        ("irsa.eksctl.yaml", &irsa, "", vec![EKS, &eksctl]),
        ("irsa.tf", &irsa, "", vec![ISSUER, &terraform]),
        ("web-identity.json", &web_identity, "", vec![ISSUER, &json]),
        ("static-keys.json", keys, "", vec![ACCOUNT, &json]),
        ("static-keys.sh", keys, "", vec![ACCOUNT, &aws]),
        ("static-keys.tf", keys, "", vec![ACCOUNT, &terraform]),
        ("node-role.sh", "{ type: NodeRole }", "", vec![ACCOUNT, &aws]),
    ] {
        let (code, text) = print_roles(identity, webhooks, &arguments);
        assert_eq!(code, Some(0), "{file}: {text}");
        golden(&format!("iam/{file}"), &text);
    }
}

#[test]
fn a_missing_argument_is_named_with_the_command_that_prints_it() {
    let irsa = format!("{{ type: IRSA, {ROLES} }}");
    for (identity, arguments, says) in [
        ("{ type: PodIdentity }", vec![], "aws sts get-caller-identity --query Account"),
        (irsa.as_str(), vec![], "aws eks describe-cluster --name NAME --query cluster.identity.oidc.issuer"),
        ("{ type: PodIdentity }", vec![ACCOUNT, &["--format", "aws"]], "aws eks list-clusters"),
        (irsa.as_str(), vec![&["--format", "eksctl"][..]], "aws eks list-clusters"),
        ("{ type: NodeRole }", vec![ACCOUNT, EKS, &["--format", "eksctl"]], "use --format json, aws or terraform"),
        ("{ type: PodIdentity }", vec![&["--account", "1"][..]], "write its 12 digits"),
    ] {
        let (code, text) = print_roles(identity, "", &arguments);
        assert_eq!(code, Some(2), "{identity} {arguments:?}: {text}");
        assert!(text.contains(says), "{identity} {arguments:?}: {text}");
    }
}

/// Calls of the Kinesis client in a part of the program, by method.
struct ClientCalls<'a> {
    /// The operations of each method of the client.
    methods: &'a BTreeMap<String, BTreeSet<String>>,
    found: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for ClientCalls<'_> {
    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        // `read` of a file or a socket takes one argument, and that of a lock none.
        let is_client = call.method != "read" || call.args.len() == 2;
        if let Some(operations) = self.methods.get(&call.method.to_string()).filter(|_| is_client) {
            self.found.extend(operations.iter().cloned());
        }
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// The variants of `KinesisOperation` that a function names, and the functions of the client that it calls.
#[derive(Default)]
struct NamedOperations {
    operations: BTreeSet<String>,
    calls: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for NamedOperations {
    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        let segments: Vec<String> = path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let [.., owner, variant] = segments.as_slice()
            && owner == "KinesisOperation"
        {
            self.operations.insert(variant.clone());
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let receiver = match &*call.receiver {
            Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
            _ => None,
        };
        if matches!(receiver.as_deref(), Some("self" | "change")) {
            self.calls.insert(call.method.to_string());
        }
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// The operations of each function of the client and of its changes.
fn read_client_methods(files: &[SourceFile]) -> BTreeMap<String, BTreeSet<String>> {
    let mut named: BTreeMap<String, NamedOperations> = BTreeMap::new();
    let in_room = files.iter().filter(|file| file.path.starts_with("kinesis/"));
    for block in in_room.flat_map(|file| &file.items) {
        let Item::Impl(block) = block else { continue };
        let Type::Path(owner) = &*block.self_ty else { continue };
        if !(owner.path.is_ident("KinesisClient") || owner.path.is_ident("StreamChange")) {
            continue;
        }
        for item in &block.items {
            let ImplItem::Fn(ImplItemFn { sig, block, .. }) = item else { continue };
            let found = named.entry(sig.ident.to_string()).or_default();
            found.visit_block(block);
        }
    }
    let of_callees = |found: &NamedOperations| {
        let callees = found.calls.iter().filter_map(|callee| named.get(callee));
        let mut operations = found.operations.clone();
        operations.extend(callees.flat_map(|callee| callee.operations.iter().cloned()));
        operations
    };
    let methods = named.iter().map(|(name, found)| (name.clone(), of_callees(found)));
    methods.filter(|(_, operations)| !operations.is_empty()).collect()
}

#[test]
fn every_call_of_the_code_is_in_a_printed_policy_and_nothing_else_is() {
    let files = parse_sources(&read_sources());
    let methods = read_client_methods(&files);
    let called_in = |folders: &[&str], except: &str| {
        let mut calls = ClientCalls { methods: &methods, found: BTreeSet::new() };
        for file in &files {
            if folders.iter().any(|folder| file.path.starts_with(folder)) && !file.path.starts_with(except) {
                file.items.iter().for_each(|item| calls.visit_item(item));
            }
        }
        calls.found
    };
    let goal = StreamGoal {
        management: StreamManagement::AdoptOrCreate,
        capacity: None,
        retention_hours: None,
        encryption_key: None,
        tags: BTreeMap::new(),
        may_lower_retention: true,
        is_deleted_with_cluster: true,
    };
    let printed = |holders: &[PermissionHolder]| {
        let purposes = [StreamPurpose::Events, StreamPurpose::DeadLetters];
        let all = holders.iter().flat_map(|holder| purposes.map(|purpose| list_operations(*holder, purpose, &goal)));
        all.flatten().map(|operation| operation.api_name().to_owned()).collect::<BTreeSet<String>>()
    };
    let no_file = "no file";
    let operator =
        [PermissionHolder::Operator, PermissionHolder::OperatorDeletion, PermissionHolder::OperatorLetterProof];
    for (holders, folders, except) in [
        (&[PermissionHolder::Edge][..], &["edge/"][..], no_file),
        (&[PermissionHolder::Dispatcher], &["dispatcher/"], "dispatcher/replay/"),
        (&[PermissionHolder::Replay], &["dispatcher/replay/"], no_file),
        (&operator, &["operator/", "prober/"], no_file),
    ] {
        assert_eq!(printed(holders), called_in(folders, except), "{holders:?}: printed, and called in {folders:?}");
    }
    let all: BTreeSet<String> = KinesisOperation::ALL.iter().map(|operation| operation.api_name().to_owned()).collect();
    let holders = [&operator[..], &[PermissionHolder::Edge, PermissionHolder::Dispatcher]].concat();
    assert_eq!(printed(&holders), all, "each operation has a holder");
    let observed = StreamGoal { management: StreamManagement::Observe, ..goal.clone() };
    for purpose in [StreamPurpose::Events, StreamPurpose::DeadLetters] {
        let observers = [PermissionHolder::Operator, PermissionHolder::OperatorLetterProof];
        let mut operations = observers.into_iter().flat_map(|holder| list_operations(holder, purpose, &observed));
        let reads = ["Describe", "List", "Get"];
        let writes = operations.find(|it| !reads.iter().any(|read| it.api_name().starts_with(read)));
        assert_eq!(writes, None, "an observer writes nothing");
    }
}
