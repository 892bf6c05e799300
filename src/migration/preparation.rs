//! The conversion of the source's record to a weighted one, before a move.

use std::fmt::Write;

use super::record::WeightedRecord;
use crate::api::yaml::yaml_document;

/// The source's record, and the object that makes it today.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConversion {
    /// The weighted record that the source gets.
    pub record: WeightedRecord,
    /// Weight of the record.
    pub weight: u8,
    /// Namespace of the source's objects.
    pub namespace: String,
    /// `KIND/NAME` of the object whose annotations or rules make the present record, such as `ingress/sockjs`.
    pub owner: String,
}

/// Renders the conversion as commands. One change takes the present record and gives the weighted one: a simple record beside a
/// weighted one is refused by Route 53, and a weighted alias on the way would keep its type. Writing to a text cannot fail.
#[must_use]
pub fn render_conversion(conversion: &SourceConversion) -> String {
    let SourceConversion { record, weight, namespace, owner } = conversion;
    let name = format!("{}-weighted", record.target.replace('.', "-"));
    let object = record.to_endpoint(&name, namespace, *weight);
    let yaml = yaml_document(&object).unwrap_or_default();
    let mut text = format!(
        "# Conversion of {host} at the source to a weighted CNAME. Run it with the kubeconfig of the source.\n\
         # Before: {target} resolves to the source alone, external-dns has the source `crd` and `--policy sync`,\n\
         # and nobody changes records of {host} meanwhile.\n\
         set -eu\n: \"${{ZONE:?set it to the zone of the host}}\"\n\
         pause() {{ printf '%s, then press Enter: ' \"$1\"; read -r _; }}\n\
         answers() {{ for server in $(dig +short NS \"$ZONE\"); do dig +norecurse @\"$server\" {host} CNAME; done; }}\n\
         dig +short {target} | grep .\n\n\
         {checks}\n\
         # 1. One sync for both: the former record goes, and the weighted one comes.\n\
         kubectl scale deployment/external-dns --replicas=0 -n external-dns\n\
         kubectl annotate {owner} -n {namespace} --overwrite \\\n  \
         external-dns.kubernetes.io/controller=none external-dns.alpha.kubernetes.io/controller=none\n\
         kubectl apply -f - <<'END'\n",
        host = record.host,
        target = record.target,
        checks = render_checks(&record.host),
    );
    text.push_str(yaml.trim_start_matches("---\n"));
    let _ = write!(
        text,
        "END\nkubectl scale deployment/external-dns --replicas=1 -n external-dns\n\n\
         # 2. Wait until every server of the zone answers with it.\n\
         pause 'Wait for a sync of external-dns'; answers; pause 'Compare the answers'\n\n\
         # 3. Test the brake of the source: {weight}, {less}, {weight} again, as the provider shows them.\n",
        less = weight - 1,
    );
    for weight in [*weight - 1, *weight] {
        let patch = serde_json::json!([{
            "op": "replace",
            "path": "/spec/endpoints/0/providerSpecific/0/value",
            "value": weight.to_string(),
        }]);
        let _ = writeln!(text, "kubectl patch dnsendpoint {name} -n {namespace} --type=json -p '{patch}'");
        let _ = writeln!(text, "pause 'Wait until the provider shows weight {weight}'");
    }
    let _ = write!(
        text,
        "\n# By hand, if external-dns cannot:\n# aws route53 change-resource-record-sets --hosted-zone-id ZONE --change-batch \
         '{}'\n",
        record.to_change_batch(*weight)
    );
    text
}

/// Renders the checks of external-dns at the source: one that removes no record, or does not own the present one, leaves it in the
/// zone beside the new one, which Route 53 refuses. Names of TXT records are those of `list_ownership_names`, and of addresses too.
fn render_checks(host: &str) -> String {
    let (label, domain) = host.split_once('.').unwrap_or((host, ""));
    let script = r#"# 0. external-dns must remove records, read DNSEndpoints and own the present record, if it has an owner.
arguments=$(kubectl get deployment/external-dns -n external-dns -o 'jsonpath={.spec.template.spec.containers[*].args}')
options() { printf '%s' "$arguments" | tr -d '[]"' | tr ', ' '\n\n'; }
option() {
  options | awk -v flag="--$1" 'next_is { print; exit } $0 == flag { next_is = 1 } index($0, flag "=") == 1 { print substr($0, length(flag) + 2); exit }'
}
refuse() { echo "$1" >&2; exit 1; }
case "$(option policy)" in
  upsert-only | create-only) refuse 'RecordsKept: external-dns removes no record: start it with --policy=sync' ;;
esac
options | grep -Eqx -e '(--source=)?crd' || pause 'external-dns has no --source=crd among its arguments: give it the source'
owners() {
  for server in $(dig +short NS "$ZONE"); do
    for type in cname a aaaa ''; do
      affix() { option "$1" | sed "s/%{record_type}/$type/"; }
      for label in 'LABEL' "${type:-cname}-LABEL"; do
        dig +norecurse +short @"$server" "$(affix txt-prefix)$label$(affix txt-suffix).DOMAIN" TXT
      done
    done
  done | sed -n 's/.*heritage=external-dns.*external-dns\/owner=\([^,"]*\).*/\1/p' | sort -u
}
owner=$(option txt-owner-id)
for found in $(owners); do
  [ "$found" = "${owner:-default}" ] || refuse "OwnerForeign: the record of HOST belongs to the owner $found, and external-dns here is ${owner:-default}: convert it where $found runs, or start external-dns with --migrate-from-txt-owner=$found"
done
"#;
    script.replace("LABEL", label).replace("DOMAIN", domain).replace("HOST", host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_former_record_goes_and_the_weighted_one_comes_in_one_sync() {
        let record = WeightedRecord {
            host: "sockjs-eu.example.com".to_owned(),
            target: "sockjs.old.example.com".to_owned(),
            ttl_seconds: 60,
        };
        let (namespace, owner) = ("channels".to_owned(), "ingress/sockjs".to_owned());
        let text = render_conversion(&SourceConversion { record, weight: 20, namespace, owner });
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part}: {text}"));
        assert!(place("--replicas=0") < place("annotate ingress/sockjs"));
        assert!(place("annotate ingress/sockjs") < place("setIdentifier: sockjs.old.example.com"));
        assert!(place("setIdentifier: sockjs.old.example.com") < place("--replicas=1"));
        assert!(text.contains("\"value\":\"19\"") && text.contains("\"Weight\":20"), "{text}");
    }
}
