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
         # 1. One sync for both: the former record goes, and the weighted one comes.\n\
         kubectl scale deployment/external-dns --replicas=0 -n external-dns\n\
         kubectl annotate {owner} -n {namespace} --overwrite \\\n  \
         external-dns.kubernetes.io/controller=none external-dns.alpha.kubernetes.io/controller=none\n\
         kubectl apply -f - <<'END'\n",
        host = record.host,
        target = record.target,
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
