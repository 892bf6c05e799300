//! Immutable copies of the Secrets that pods read at their start, each named by the hash of its content: a changed value changes
//! the template of the pods that read it. Pure.
//!
//! A pod that referenced the user's own Secret would read the newest value whenever it is created again. In a rollout that
//! stands still on a rotated value, a pod of the former template could then never prove its template again.

use std::collections::BTreeMap;

use super::secret_references::{SecretReaders, SecretReference, SecretTexts};
use crate::protocol::{Secret, signature};

/// Hex digits of the content's hash in a name.
const HASH_LEN: usize = 10;

/// Source of the copy of the admin token, in place of the name of a Secret: no Secret can have this name.
pub(super) const ADMIN_TOKEN_SOURCE: &str = "the admin token";
/// Key of the admin token.
pub(super) const ADMIN_TOKEN_KEY: &str = "token";
/// Source of the copy of the secret with which edges sign relayed requests.
pub(super) const PEER_SECRET_SOURCE: &str = "the peer secret";
/// Key of the peer secret.
pub(super) const PEER_SECRET_KEY: &str = "secret";

/// A copy of those keys of one Secret that the same servers read.
#[derive(Clone, Debug)]
pub struct SecretCopy {
    /// Name of the copy: it changes with the content.
    pub name: String,
    /// Name of the copied Secret, or of the source of a generated value.
    pub source: String,
    /// The copied keys with their values.
    pub values: BTreeMap<String, Secret>,
}

/// Names the copies of one cluster.
pub(super) struct CopyNames<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Salts the hashes, since names of Secrets are readable to more people than their contents.
    pub salt: &'a Secret,
}

impl CopyNames<'_> {
    /// Copies the values of a Secret.
    pub fn copy_values(&self, source: &str, values: &BTreeMap<&str, &str>) -> SecretCopy {
        let lines: Vec<String> = values.iter().map(|(key, text)| format!("{source} {key} {text}")).collect();
        let mut hash = signature::salted_digest(self.salt.expose(), &lines.join("\n"));
        hash.truncate(HASH_LEN);
        SecretCopy {
            name: format!("{}-copy-{hash}", self.cluster),
            source: source.to_owned(),
            values: values.iter().map(|(key, text)| ((*key).to_owned(), Secret::new(*text))).collect(),
        }
    }

    /// Copies the referenced keys, one copy per Secret and readers: a change of a key must not restart servers that do not
    /// read it. A Secret that lacks all of the keys is left out: validating reports it.
    pub fn copy_references(&self, references: &[SecretReference], texts: &SecretTexts) -> Vec<SecretCopy> {
        let mut by_source: BTreeMap<(&str, SecretReaders), BTreeMap<&str, &str>> = BTreeMap::new();
        for reference in references.iter().filter(|reference| reference.readers != SecretReaders::Operator) {
            if let Some(text) = texts.get(&reference.name).and_then(|texts| texts.get(&reference.key)) {
                by_source.entry((&reference.name, reference.readers)).or_default().insert(&reference.key, text);
            }
        }
        by_source.iter().map(|((source, _), values)| self.copy_values(source, values)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str, key: &str, readers: SecretReaders) -> SecretReference {
        SecretReference { name: name.to_owned(), key: key.to_owned(), purpose: "a value", readers }
    }

    fn copies(url: &str) -> Vec<SecretCopy> {
        let texts = SecretTexts::from([
            (
                "eu-redis".to_owned(),
                BTreeMap::from([("url".to_owned(), url.to_owned()), ("other".to_owned(), "x".to_owned())]),
            ),
            ("eu-aws".to_owned(), BTreeMap::from([("id".to_owned(), "a".to_owned())])),
        ]);
        let references = [
            reference("eu-redis", "url", SecretReaders::Edges),
            reference("eu-aws", "id", SecretReaders::Servers),
            reference("eu-redis", "other", SecretReaders::Operator),
            reference("missing", "key", SecretReaders::Servers),
        ];
        CopyNames { cluster: "eu", salt: &Secret::new("salt") }.copy_references(&references, &texts)
    }

    #[test]
    fn a_copy_holds_the_referenced_keys_and_its_name_changes_with_their_content() {
        let (one, again, two) = (copies("redis://a"), copies("redis://a"), copies("redis://b"));
        let names = |copies: &[SecretCopy]| copies.iter().map(|copy| copy.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&one), names(&again));
        assert_eq!(one.iter().map(|copy| copy.source.as_str()).collect::<Vec<_>>(), ["eu-aws", "eu-redis"]);
        assert_eq!(one[0].name, two[0].name, "the other Secret did not change");
        assert_ne!(one[1].name, two[1].name);
        assert_eq!(one[1].values.keys().collect::<Vec<_>>(), ["url"], "only what servers read is copied");
        assert!(one[1].name.starts_with("eu-copy-") && one[1].name.len() == "eu-copy-".len() + HASH_LEN);
    }
}
