//! external-dns as its Deployment starts it, and the owners that its TXT records name: whether it would write a record and remove it
//! again. Pure. Options, environment and names of records are those of external-dns 0.21 (`docs/flags.md`, `registry/mapper`,
//! `plan/policy.go`).

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container;

use super::workload::template_of;
use crate::api::migration::MoveObstacle;

/// Template of the record's type within a prefix or suffix.
const TYPE_TEMPLATE: &str = "%{record_type}";

/// Type of the record of a move, as its TXT record has it.
const RECORD_TYPE: &str = "cname";

/// One external-dns of a Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalDns {
    /// `NAMESPACE/NAME` of the Deployment.
    pub deployment: String,
    /// Owner of its records (`--txt-owner-id`); `None` for a value that kubelet resolves.
    pub owner_id: Option<String>,
    policy: String,
    /// Whether it keeps owners in TXT records (`--registry`).
    keeps_texts: bool,
    prefix: String,
    suffix: String,
    sources: Vec<String>,
    /// The only namespace whose objects it reads; empty for all.
    namespace: String,
    domains: Vec<String>,
}

/// A TXT record about the owner of a host's record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnershipRecord {
    /// Name of the TXT record.
    pub name: String,
    /// Owner of the host's record.
    pub owner: String,
    /// Object from which the host's record was made, such as `crd/channels/sockjs`; empty where none is named.
    pub resource: String,
}

impl ExternalDns {
    /// Reads the options of a Deployment; `None` for one without pods, and without the options of external-dns.
    #[must_use]
    pub fn of_deployment(deployment: &Deployment) -> Option<Self> {
        if deployment.spec.replicas == Some(0) {
            return None;
        }
        let containers = &template_of(deployment)?.containers;
        let options = containers.iter().map(Options).find(|options| !options.list("provider").is_empty())?;
        let (metadata, one) = (&deployment.metadata, |name: &str| options.list(name).pop());
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let owner_id = one("txt-owner-id").unwrap_or_else(|| "default".to_owned());
        Some(Self {
            deployment: format!("{}/{}", part(&metadata.namespace), part(&metadata.name)),
            owner_id: Some(owner_id).filter(|owner| !owner.contains("$(") && !owner.is_empty()),
            policy: one("policy").unwrap_or_else(|| "sync".to_owned()),
            keeps_texts: one("registry").is_none_or(|registry| registry == "txt"),
            prefix: one("txt-prefix").unwrap_or_default(),
            suffix: one("txt-suffix").unwrap_or_default(),
            sources: options.list("source"),
            namespace: one("namespace").unwrap_or_default(),
            domains: options.list("domain-filter"),
        })
    }

    /// Whether it makes records of a host from the `DNSEndpoint`s of a namespace.
    #[must_use]
    pub fn writes(&self, namespace: &str, host: &str) -> bool {
        let is_within = |domain: &String| {
            let domain = domain.trim_start_matches('.');
            host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
        };
        self.sources.iter().any(|source| source == "crd")
            && (self.namespace.is_empty() || self.namespace == namespace)
            && (self.domains.is_empty() || self.domains.iter().any(is_within))
    }
}

/// The options of a container, as arguments or as variables.
struct Options<'a>(&'a Container);

impl Options<'_> {
    /// Values of an option, each of one that can be repeated.
    fn list(&self, name: &str) -> Vec<String> {
        let (flag, mut values) = (format!("--{name}"), Vec::new());
        let mut arguments = self.0.command.iter().chain(&self.0.args).flatten();
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix(&flag) {
                Some("") => values.extend(arguments.next().cloned()),
                Some(rest) => values.extend(rest.strip_prefix('=').map(str::to_owned)),
                None => {}
            }
        }
        if values.is_empty() {
            let variable = format!("EXTERNAL_DNS_{}", name.to_uppercase().replace('-', "_"));
            let found = self.0.env.iter().flatten().find(|found| found.name == variable);
            let text = found.and_then(|found| found.value.as_deref()).unwrap_or_default();
            values.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        }
        values
    }
}

impl OwnershipRecord {
    /// Parses the text of a TXT record; `None` for one that is not external-dns's.
    #[must_use]
    pub fn parse(name: &str, text: &str) -> Option<Self> {
        let mut parts = text.trim_matches('"').split(',');
        if parts.next() != Some("heritage=external-dns") {
            return None;
        }
        let labels: Vec<&str> = parts.collect();
        let label = |key: &str| labels.iter().find_map(|label| label.strip_prefix(key)).map(str::to_owned);
        Some(Self {
            name: name.to_owned(),
            owner: label("external-dns/owner=")?,
            resource: label("external-dns/resource=").unwrap_or_default(),
        })
    }
}

/// Names of the TXT records about the CNAME of a host: with the type of the record, and without it as releases before 0.18 wrote
/// them; for each external-dns, and for one that has no prefix and is not known.
#[must_use]
pub fn list_ownership_names(host: &str, known: &[ExternalDns]) -> BTreeSet<String> {
    let (label, domain) = host.split_once('.').unwrap_or((host, ""));
    let affixes = known.iter().map(|found| (found.prefix.as_str(), found.suffix.as_str())).chain([("", "")]);
    let names = affixes.flat_map(|(prefix, suffix)| {
        let has_type = prefix.contains(TYPE_TEMPLATE) || suffix.contains(TYPE_TEMPLATE);
        let name = |record_type: &str, label: &str| {
            let [prefix, suffix] = [prefix, suffix].map(|text| text.to_lowercase().replace(TYPE_TEMPLATE, record_type));
            format!("{prefix}{label}{suffix}.{domain}")
        };
        let typed = if has_type { label.to_owned() } else { format!("{RECORD_TYPE}-{label}") };
        [name(RECORD_TYPE, &typed), name("", label)]
    });
    // Beside a CNAME of the name itself there is no TXT record.
    names.filter(|name| name != host).collect()
}

/// The obstacle of a record that would never be removed. Several that may write it are one only if none of them removes it.
#[must_use]
pub fn check_policy(writers: &[ExternalDns]) -> Option<String> {
    let keeps = |writer: &&ExternalDns| writer.policy != "sync";
    let first = writers.iter().find(keeps)?;
    let ExternalDns { deployment, policy, .. } = first;
    writers.iter().all(|writer| keeps(&writer)).then(|| {
        MoveObstacle::RecordsKept
            .with(&format!("Deployment {deployment} has --policy={policy}: the target's record would stay in the zone"))
    })
}

/// The obstacle of a record whose ownership is not that of its writer, before a record of `resource` exists. `is_here` says whether
/// an object is in the Kubernetes of the writers.
#[must_use]
pub fn check_owners(
    writers: &[ExternalDns],
    found: &BTreeSet<OwnershipRecord>,
    resource: &str,
    is_here: impl Fn(&str) -> bool,
) -> Option<String> {
    if !writers.is_empty() && !writers.iter().any(|writer| writer.keeps_texts) {
        return None;
    }
    let ours: Vec<&str> = writers.iter().filter_map(|writer| writer.owner_id.as_deref()).collect();
    let is_ours = |record: &&OwnershipRecord| ours.contains(&record.owner.as_str());
    if let Some(left) = found.iter().find(|record| record.resource == resource && !is_ours(record)) {
        let known = if ours.is_empty() { "one that is not known".to_owned() } else { ours.join(", ") };
        return Some(MoveObstacle::OwnerForeign.with(&format!(
            "the TXT record {} gives the record of {resource} to the owner {}, and external-dns has {known}: it would create \
             the record, and neither change nor remove it",
            left.name, left.owner
        )));
    }
    let shared =
        found.iter().find(|record| record.resource != resource && is_ours(record) && !is_here(&record.resource));
    shared.map(|record| {
        MoveObstacle::OwnerShared.with(&format!(
            "the TXT record {} gives the record of {} to the owner {}, which external-dns has here too: it removes a record that no \
             object here asks for",
            record.name, record.resource, record.owner
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HOST: &str = "sockjs-eu.example.com";
    const OURS: &str = "crd/channels/sockjs-to-eks-sockjs";

    fn deployment(args: &[&str], more: &Value) -> Deployment {
        let mut container = json!({ "name": "external-dns", "args": args });
        for (field, value) in more.as_object().expect("fields") {
            container[field] = value.clone();
        }
        let object = json!({
            "metadata": { "name": "external-dns", "namespace": "dns" },
            "spec": { "selector": {}, "template": { "spec": { "containers": [{ "name": "proxy" }, container] } } },
        });
        serde_json::from_value(object).expect("a Deployment")
    }

    fn read(args: &[&str]) -> ExternalDns {
        let args = [&["--provider=aws", "--source=service", "--source=crd"], args].concat();
        ExternalDns::of_deployment(&deployment(&args, &json!({}))).expect("an external-dns")
    }

    fn owned(owner: &str, resource: &str) -> OwnershipRecord {
        let text = format!("heritage=external-dns,external-dns/owner={owner},external-dns/resource={resource}");
        OwnershipRecord::parse("cname-sockjs-eu.example.com", &text).expect("a record of external-dns")
    }

    #[test]
    fn options_are_read_as_arguments_and_as_variables_with_their_defaults() {
        let plain = read(&[]);
        assert_eq!((plain.owner_id.as_deref(), plain.policy.as_str()), (Some("default"), "sync"));
        let set = read(&["--policy", "upsert-only", "--txt-owner-id=east", "--txt-prefix=owner-"]);
        assert_eq!(
            (set.owner_id.as_deref(), set.policy.as_str(), set.prefix.as_str()),
            (Some("east"), "upsert-only", "owner-")
        );
        assert_eq!(read(&["--txt-owner-id=$(NAME)"]).owner_id, None, "kubelet resolves it");
        let env = json!({ "env": [
            { "name": "EXTERNAL_DNS_PROVIDER", "value": "aws" },
            { "name": "EXTERNAL_DNS_POLICY", "value": "create-only" },
            { "name": "EXTERNAL_DNS_SOURCE", "value": "ingress\ncrd" },
        ] });
        let found = ExternalDns::of_deployment(&deployment(&[], &env)).expect("an external-dns");
        assert_eq!((found.policy.as_str(), found.writes("channels", HOST)), ("create-only", true));
        assert_eq!(ExternalDns::of_deployment(&deployment(&["--source=crd"], &json!({}))), None, "another program");
        let mut idle = deployment(&["--provider=aws"], &json!({}));
        idle.spec.replicas = Some(0);
        assert_eq!(ExternalDns::of_deployment(&idle), None, "without pods");
    }

    #[test]
    fn a_writer_has_the_source_the_namespace_and_the_domain() {
        for (case, args, expected) in [
            ("of all", vec![], true),
            ("the domain", vec!["--domain-filter=example.org", "--domain-filter=example.com"], true),
            ("a domain with a dot", vec!["--domain-filter=.example.com"], true),
            ("another domain", vec!["--domain-filter=ample.com"], false),
            ("the namespace", vec!["--namespace=channels"], true),
            ("another namespace", vec!["--namespace=legacy"], false),
        ] {
            assert_eq!(read(&args).writes("channels", HOST), expected, "{case}");
        }
        let other = deployment(&["--provider=aws", "--source=ingress"], &json!({}));
        assert!(
            !ExternalDns::of_deployment(&other).expect("an external-dns").writes("channels", HOST),
            "no source crd"
        );
    }

    #[test]
    fn ownership_is_looked_for_under_the_typed_and_the_plain_name() {
        let names = |args: &[&str]| Vec::from_iter(list_ownership_names(HOST, &[read(args)]));
        assert_eq!(names(&[]), ["cname-sockjs-eu.example.com"], "the plain name is that of the CNAME");
        assert_eq!(
            names(&["--txt-prefix=owner-"]),
            ["cname-sockjs-eu.example.com", "owner-cname-sockjs-eu.example.com", "owner-sockjs-eu.example.com"]
        );
        assert_eq!(
            names(&["--txt-prefix=%{record_type}-abc-."]),
            ["-abc-.sockjs-eu.example.com", "cname-abc-.sockjs-eu.example.com", "cname-sockjs-eu.example.com"]
        );
        assert_eq!(
            names(&["--txt-suffix=-txt"]),
            ["cname-sockjs-eu-txt.example.com", "cname-sockjs-eu.example.com", "sockjs-eu-txt.example.com"]
        );
    }

    #[test]
    fn a_policy_that_keeps_records_is_an_obstacle_where_no_other_writer_removes_them() {
        let named =
            |writers: &[ExternalDns]| check_policy(writers).map(|text| text.split(':').next().map(str::to_owned));
        let (sync, upsert, create) = (read(&[]), read(&["--policy=upsert-only"]), read(&["--policy=create-only"]));
        assert_eq!(named(&[]), None, "nothing is readable");
        assert_eq!(named(std::slice::from_ref(&sync)), None);
        assert_eq!(named(std::slice::from_ref(&upsert)), Some(Some("RecordsKept".to_owned())));
        assert_eq!(named(&[upsert.clone(), create]), Some(Some("RecordsKept".to_owned())));
        assert_eq!(named(&[upsert, sync]), None, "one of them may be that of another zone");
    }

    #[test]
    fn a_foreign_owner_of_the_move_s_record_and_a_shared_one_are_obstacles() {
        let (ours, theirs) = (read(&["--txt-owner-id=new"]), "crd/legacy/sockjs-old-example-com-weighted");
        for (case, writers, found, expected) in [
            ("none", vec![ours.clone()], vec![], ""),
            ("the source's own", vec![ours.clone()], vec![owned("old", theirs)], ""),
            ("left by this external-dns", vec![ours.clone()], vec![owned("new", OURS)], ""),
            ("left by another", vec![ours.clone()], vec![owned("old", theirs), owned("former", OURS)], "OwnerForeign"),
            ("left, and the owner is not known", vec![], vec![owned("former", OURS)], "OwnerForeign"),
            ("one owner in both", vec![ours.clone()], vec![owned("new", theirs)], "OwnerShared"),
            ("another registry", vec![read(&["--registry=dynamodb"])], vec![owned("former", OURS)], ""),
            ("one external-dns for both", vec![ours.clone()], vec![owned("new", "crd/channels/here")], ""),
            ("the owner is not known", vec![], vec![owned("new", theirs)], ""),
        ] {
            let found =
                check_owners(&writers, &found.into_iter().collect(), OURS, |resource| resource == "crd/channels/here");
            let found = found.unwrap_or_default();
            assert_eq!(found.split(':').next().unwrap_or_default(), expected, "{case}: {found}");
        }
        assert_eq!(OwnershipRecord::parse("a", "v=spf1 -all"), None);
        assert_eq!(OwnershipRecord::parse("a", "heritage=external-dns,external-dns/version=1"), None, "no owner");
    }
}
