//! A double of IAM and KMS in front of a Kinesis: identity policies decide on each signed call, as `realtime iam` prints them.
//!
//! In: the printed roles, and calls whose access key names the caller. Out: an allowed call, forwarded; a denied one, answered
//! with `AccessDeniedException` in the form of AWS. It evaluates `Effect`, `Action` and `Resource` with wildcards and the one
//! condition of the printed policies, and panics on any other element. It verifies no signature and knows no policy of a
//! resource, a boundary or an organisation. Sources: IAM User Guide, "Policy evaluation logic" and "IAM JSON policy elements";
//! Kinesis API reference, `CreateStream` (tags need `AddTagsToStream`); Kinesis Developer Guide, "Permissions to use
//! user-generated KMS keys".

// The double ends a test at a policy that it cannot evaluate; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use realtime_operator::rehearsal::KinesisInterposer;
use serde_json::{Value, json};

use crate::kinesis_local::forward_request;

/// The account of the streams.
pub const ACCOUNT: &str = "000000000000";

/// Access key that may do everything, for the preparations of a test.
pub const ADMINISTRATOR: &str = "administrator";

/// The only KMS key of the account, and its alias.
const KEY_ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
const KEY_ALIAS: &str = "alias/chat";

/// The key that AWS manages, whose use needs no permission.
const AWS_MANAGED_KEY: &str = "alias/aws/kinesis";

/// The server of each access key, up to its first dot.
const SERVER_OF_KEY: [(&str, &str); 4] =
    [("websocket", "edge"), ("sockjs", "edge"), ("dispatcher", "dispatcher"), ("operator", "operator")];

/// One right of a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// `edge`, `dispatcher` or `operator`.
    pub server: String,
    /// An action, such as `kinesis:PutRecords`.
    pub action: String,
    /// Pattern of the resources.
    pub resource: String,
}

/// One action of a statement, on one resource.
#[derive(Clone, Debug)]
struct PolicyRule {
    is_allow: bool,
    permission: Permission,
    /// Aliases of which the key must have one; `None` without a condition.
    aliases: Option<Vec<String>>,
}

/// A right that a call needs.
#[derive(Debug)]
struct RequiredRight {
    action: String,
    resource: String,
    /// Aliases of the key, for an action of KMS.
    aliases: Vec<String>,
}

/// The decision on a right, with the rules that allow it.
#[derive(Debug, PartialEq)]
enum PolicyDecision {
    Allowed(BTreeSet<Permission>),
    ExplicitDeny,
    ImplicitDeny,
}

/// The double; clones share its state.
#[derive(Clone)]
pub struct IamDouble(Arc<Mutex<IamState>>);

#[derive(Default)]
struct IamState {
    rules: Vec<PolicyRule>,
    /// Name of the role of each server.
    roles: BTreeMap<String, String>,
    withdrawn: BTreeSet<Permission>,
    used: BTreeSet<Permission>,
    /// Server and action of each denied call.
    denied: BTreeSet<(String, String)>,
    /// Stream ARN of each iterator and page token.
    tokens: HashMap<String, String>,
    /// KMS key of each encrypted stream.
    keys: HashMap<String, String>,
}

/// A signed call.
struct SignedCall {
    access_key: String,
    region: String,
    operation: String,
    request: Value,
}

impl IamDouble {
    /// A double with these roles, as `realtime iam` prints them.
    pub fn new(printed: &Value) -> Self {
        let mut state = IamState::default();
        for role in printed["roles"].as_array().expect("roles") {
            let server = role["server"].as_str().expect("a server");
            state.roles.insert(server.to_owned(), role["roleName"].as_str().expect("a name").to_owned());
            for policy in role["policies"].as_object().expect("policies").values() {
                state.rules.extend(read_rules(server, policy));
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, IamState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every right that the policies grant.
    pub fn list_permissions(&self) -> BTreeSet<Permission> {
        self.lock().rules.iter().map(|rule| rule.permission.clone()).collect()
    }

    /// Withdraws these rights and no others.
    pub fn withdraw(&self, permissions: impl IntoIterator<Item = Permission>) {
        self.lock().withdrawn = permissions.into_iter().collect();
    }

    /// Encrypts these streams with the key of the account.
    pub fn encrypt_streams(&self, region: &str, names: &[&str]) {
        let keys = names.iter().map(|name| (stream_arn(region, name), KEY_ALIAS.to_owned()));
        self.lock().keys.extend(keys);
    }

    /// The granted rights of which no allowed call has made use.
    pub fn list_unused(&self) -> BTreeSet<Permission> {
        let granted = self.list_permissions();
        granted.difference(&self.lock().used).cloned().collect()
    }

    /// The denials since the last call of [`Self::take_denied`]: server and action, each once.
    pub fn list_denied(&self) -> BTreeSet<(String, String)> {
        self.lock().denied.clone()
    }

    /// The same denials, which are forgotten.
    pub fn take_denied(&self) -> BTreeSet<(String, String)> {
        std::mem::take(&mut self.lock().denied)
    }

    /// The double as a part of a rehearsal: in front of its Kinesis, or of the one at `target`.
    pub fn interposer(&self, target: Option<String>) -> KinesisInterposer {
        let iam = self.clone();
        Arc::new(move |kinesis: SocketAddr| {
            let (iam, target) = (iam.clone(), target.clone().unwrap_or_else(|| format!("http://{kinesis}")));
            Box::pin(async move { iam.serve(target).await })
        })
    }

    /// Serves the double in front of the Kinesis at `target`, until the test ends.
    pub async fn serve(&self, target: String) -> std::io::Result<SocketAddr> {
        realtime_operator::process::install_tls();
        let client = reqwest::Client::builder().no_proxy().build().map_err(std::io::Error::other)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(authorize_call).with_state((self.clone(), client, target));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    /// The answer to a call that is denied; `None` if it is allowed.
    fn find_refusal(&self, call: &SignedCall) -> Option<Response> {
        if call.access_key == ADMINISTRATOR {
            return None;
        }
        let holder = call.access_key.split('.').next().unwrap_or_default();
        let Some((_, server)) = SERVER_OF_KEY.iter().find(|(key, _)| *key == holder) else {
            let message = "The security token included in the request is invalid.";
            return Some(refuse("UnrecognizedClientException", message));
        };
        let mut state = self.lock();
        for right in state.list_required(call) {
            let rules = state.rules.iter().filter(|rule| !state.withdrawn.contains(&rule.permission));
            let because = match evaluate(rules, server, &right) {
                PolicyDecision::Allowed(permissions) => {
                    state.used.extend(permissions);
                    continue;
                }
                PolicyDecision::ImplicitDeny => {
                    format!("because no identity-based policy allows the {} action", right.action)
                }
                PolicyDecision::ExplicitDeny => "with an explicit deny in an identity-based policy".to_owned(),
            };
            let role = state.roles.get(*server).cloned().unwrap_or_default();
            state.denied.insert(((*server).to_owned(), right.action.clone()));
            let message = format!(
                "User: arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{} is not authorized to perform: {} on resource: {} {because}",
                call.access_key, right.action, right.resource
            );
            let is_of_key = right.action.starts_with("kms:");
            let code = if is_of_key { "KMSAccessDeniedException" } else { "AccessDeniedException" };
            return Some(refuse(code, &message));
        }
        None
    }

    /// Remembers the stream of each token in the answer to an allowed call, and the key of a stream that it encrypts.
    fn learn(&self, call: &SignedCall, answer: &Value) {
        let mut state = self.lock();
        let stream = state.find_stream(call);
        for name in ["ShardIterator", "NextShardIterator", "NextToken"] {
            if let Some(token) = answer[name].as_str() {
                state.tokens.insert(token.to_owned(), stream.clone());
            }
        }
        if call.operation == "StartStreamEncryption" {
            state.keys.insert(stream, call.request["KeyId"].as_str().unwrap_or_default().to_owned());
        } else if call.operation == "DeleteStream" {
            state.keys.remove(&stream);
        }
    }
}

impl IamState {
    /// ARN of the stream of a call: in its request, or behind its token.
    fn find_stream(&self, call: &SignedCall) -> String {
        let text = |name: &str| call.request[name].as_str();
        let token = text("ShardIterator").or(text("NextToken")).and_then(|token| self.tokens.get(token));
        if let Some(arn) = token {
            return arn.clone();
        }
        let named = |name| stream_arn(&call.region, name);
        text("StreamARN").map(str::to_owned).or_else(|| text("StreamName").map(named)).unwrap_or_default()
    }

    /// The rights that a call needs, the first one that of its own operation.
    fn list_required(&self, call: &SignedCall) -> Vec<RequiredRight> {
        let stream = self.find_stream(call);
        let on_stream = |operation: &str| RequiredRight {
            action: format!("kinesis:{operation}"),
            resource: stream.clone(),
            aliases: vec![],
        };
        let mut rights = vec![on_stream(&call.operation)];
        if call.operation == "CreateStream" && call.request["Tags"].as_object().is_some_and(|tags| !tags.is_empty()) {
            rights.push(on_stream("AddTagsToStream"));
        }
        let key = match call.operation.as_str() {
            "StartStreamEncryption" => call.request["KeyId"].as_str(),
            _ => self.keys.get(&stream).map(String::as_str),
        };
        let of_key = match call.operation.as_str() {
            "PutRecords" => Some("kms:GenerateDataKey"),
            "GetRecords" => Some("kms:Decrypt"),
            "StartStreamEncryption" => Some("kms:DescribeKey"),
            _ => None,
        };
        if let (Some(_), Some(action)) = (key.filter(|key| *key != AWS_MANAGED_KEY), of_key) {
            rights.push(RequiredRight {
                action: action.to_owned(),
                resource: format!("arn:aws:kms:{}:{ACCOUNT}:key/{KEY_ID}", call.region),
                aliases: vec![KEY_ALIAS.to_owned()],
            });
        }
        rights
    }
}

impl SignedCall {
    fn read(headers: &HeaderMap, body: &Bytes) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/kinesis/aws4_request, …`
        let credential = text(header::AUTHORIZATION.as_str()).split("Credential=").nth(1).unwrap_or_default();
        let part = |index: usize| credential.split('/').nth(index).unwrap_or_default().to_owned();
        Self {
            access_key: part(0),
            region: part(2),
            operation: text("x-amz-target").rsplit('.').next().unwrap_or_default().to_owned(),
            request: serde_json::from_slice(body).unwrap_or_default(),
        }
    }
}

fn stream_arn(region: &str, name: &str) -> String {
    format!("arn:aws:kinesis:{region}:{ACCOUNT}:stream/{name}")
}

/// The rules of a policy: one for each action and resource of its statements.
fn read_rules(server: &str, policy: &Value) -> Vec<PolicyRule> {
    assert_eq!(policy["Version"], "2012-10-17", "{policy}");
    let texts = |value: &Value| match value {
        Value::String(text) => vec![text.clone()],
        other => other.as_array().expect("a list").iter().map(|it| it.as_str().expect("a text").to_owned()).collect(),
    };
    let mut rules = Vec::new();
    for statement in policy["Statement"].as_array().expect("statements") {
        let known = ["Sid", "Effect", "Action", "Resource", "Condition"];
        let unknown = statement.as_object().expect("a statement").keys().find(|name| !known.contains(&name.as_str()));
        assert_eq!(unknown, None, "an element that the double does not evaluate");
        let is_allow = match statement["Effect"].as_str() {
            Some("Allow") => true,
            Some("Deny") => false,
            other => panic!("an effect {other:?}"),
        };
        let aliases = statement.get("Condition").map(|condition| {
            let found = &condition["ForAnyValue:StringEquals"]["kms:ResourceAliases"];
            let only = json!({ "ForAnyValue:StringEquals": { "kms:ResourceAliases": found } });
            assert_eq!(*condition, only, "a condition that the double does not evaluate");
            texts(found)
        });
        for action in texts(&statement["Action"]) {
            for resource in texts(&statement["Resource"]) {
                let permission = Permission { server: server.to_owned(), action: action.clone(), resource };
                rules.push(PolicyRule { is_allow, permission, aliases: aliases.clone() });
            }
        }
    }
    rules
}

/// Evaluates the policies of a server: an explicit deny wins, and a right that no rule allows is denied.
fn evaluate<'a>(rules: impl Iterator<Item = &'a PolicyRule>, server: &str, right: &RequiredRight) -> PolicyDecision {
    let mut allowed = BTreeSet::new();
    for rule in rules {
        let Permission { server: holder, action, resource } = &rule.permission;
        let has_alias = |aliases: &Vec<String>| aliases.iter().any(|alias| right.aliases.contains(alias));
        let applies = holder == server
            && matches_pattern(&action.to_lowercase(), &right.action.to_lowercase())
            && matches_pattern(resource, &right.resource)
            && rule.aliases.as_ref().is_none_or(has_alias);
        match (applies, rule.is_allow) {
            (true, false) => return PolicyDecision::ExplicitDeny,
            (true, true) => drop(allowed.insert(rule.permission.clone())),
            (false, _) => {}
        }
    }
    if allowed.is_empty() { PolicyDecision::ImplicitDeny } else { PolicyDecision::Allowed(allowed) }
}

/// Whether a text is as a pattern says, in which `*` stands for any text and `?` for one character.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches_pattern(rest.as_str(), &text[at..]))
        }
        Some(wanted) => {
            let mut found = text.chars();
            found.next().is_some_and(|it| wanted == '?' || wanted == it)
                && matches_pattern(rest.as_str(), found.as_str())
        }
    }
}

async fn authorize_call(
    State((iam, client, target)): State<(IamDouble, reqwest::Client, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let call = SignedCall::read(&headers, &body);
    if let Some(refusal) = iam.find_refusal(&call) {
        return refusal;
    }
    match forward_request(&client, &target, &headers, body).await {
        Ok((status, answer)) => {
            if status.is_success() {
                iam.learn(&call, &serde_json::from_slice(&answer).unwrap_or_default());
            }
            (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer).into_response()
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn refuse(code: &str, message: &str) -> Response {
    let body = json!({ "__type": code, "Message": message }).to_string();
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}

#[test]
fn policies_are_evaluated_as_iam_does() {
    let statement = |effect: &str, action: &str, resource: &str| json!({ "Effect": effect, "Action": action, "Resource": resource });
    let mut of_key = statement("Allow", "kms:Decrypt", "*");
    of_key["Condition"] = json!({ "ForAnyValue:StringEquals": { "kms:ResourceAliases": "alias/chat" } });
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        statement("Allow", "kinesis:Get*", "arn:x:stream/a-?"),
        statement("Allow", "kinesis:PutRecords", "arn:x:stream/*"),
        statement("Deny", "kinesis:PutRecords", "arn:x:stream/secret"),
        of_key,
    ] });
    let rules = read_rules("edge", &policy);
    for (name, server, action, resource, aliases, expected) in [
        ("a wildcard in the action", "edge", "kinesis:GetRecords", "arn:x:stream/a-1", vec![], "allowed"),
        ("an action in other case", "edge", "Kinesis:getrecords", "arn:x:stream/a-1", vec![], "allowed"),
        ("a longer resource", "edge", "kinesis:GetRecords", "arn:x:stream/a-12", vec![], "implicit"),
        ("an action without a rule", "edge", "kinesis:DeleteStream", "arn:x:stream/a-1", vec![], "implicit"),
        ("a rule of another role", "operator", "kinesis:GetRecords", "arn:x:stream/a-1", vec![], "implicit"),
        ("a wildcard in the resource", "edge", "kinesis:PutRecords", "arn:x:stream/", vec![], "allowed"),
        ("a denial beside a grant", "edge", "kinesis:PutRecords", "arn:x:stream/secret", vec![], "explicit"),
        ("a condition that holds", "edge", "kms:Decrypt", "k", vec!["alias/a", "alias/chat"], "allowed"),
        ("a condition that does not", "edge", "kms:Decrypt", "k", vec!["alias/a"], "implicit"),
    ] {
        let aliases = aliases.into_iter().map(str::to_owned).collect();
        let right = RequiredRight { action: action.to_owned(), resource: resource.to_owned(), aliases };
        let found = match evaluate(rules.iter(), server, &right) {
            PolicyDecision::Allowed(_) => "allowed",
            PolicyDecision::ExplicitDeny => "explicit",
            PolicyDecision::ImplicitDeny => "implicit",
        };
        assert_eq!(found, expected, "{name}");
    }
}
