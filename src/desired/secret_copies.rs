//! Immutable copies of the Secrets that pods read at their start, each named by the hash of its content. Pure.
//!
//! A pod that referenced the user's own Secret would read the newest value whenever it is created again. In a rollout that
//! stands still on a rotated value, a pod of the former template could then never prove its template again.

use std::collections::BTreeMap;

use super::secret_references::{SecretReference, SecretTexts};
use crate::protocol::{Secret, signature};

/// Hex digits of the content's hash in a name.
const HASH_LEN: usize = 10;

/// A copy of the referenced keys of one Secret.
#[derive(Clone, Debug)]
pub struct SecretCopy {
    /// Name of the copy: it changes with the content.
    pub name: String,
    /// Name of the Secret that was copied.
    pub source: String,
    /// The referenced keys with their values.
    pub values: BTreeMap<String, Secret>,
}

/// Copies the referenced keys, one copy per Secret. A Secret that lacks all of them is left out: validating reports it.
pub(super) fn copy_secrets(
    cluster: &str,
    references: &[SecretReference],
    texts: &SecretTexts,
    salt: &Secret,
) -> Vec<SecretCopy> {
    let mut by_source: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for reference in references {
        if let Some(text) = texts.get(&reference.name).and_then(|texts| texts.get(&reference.key)) {
            by_source.entry(&reference.name).or_default().insert(&reference.key, text);
        }
    }
    let copy = |(source, values): (&str, BTreeMap<&str, &str>)| {
        let lines: Vec<String> = values.iter().map(|(key, text)| format!("{source} {key} {text}")).collect();
        // Salted, since names of Secrets are readable to more people than their contents.
        let mut hash = signature::salted_digest(salt.expose(), &lines.join("\n"));
        hash.truncate(HASH_LEN);
        SecretCopy {
            name: format!("{cluster}-copy-{hash}"),
            source: source.to_owned(),
            values: values.into_iter().map(|(key, text)| (key.to_owned(), Secret::new(text))).collect(),
        }
    };
    by_source.into_iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str, key: &str) -> SecretReference {
        SecretReference { name: name.to_owned(), key: key.to_owned(), purpose: "a value" }
    }

    fn copies(url: &str) -> Vec<SecretCopy> {
        let texts = SecretTexts::from([
            (
                "eu-redis".to_owned(),
                BTreeMap::from([("url".to_owned(), url.to_owned()), ("other".to_owned(), "x".to_owned())]),
            ),
            ("eu-aws".to_owned(), BTreeMap::from([("id".to_owned(), "a".to_owned())])),
        ]);
        let references = [reference("eu-redis", "url"), reference("eu-aws", "id"), reference("missing", "key")];
        copy_secrets("eu", &references, &texts, &Secret::new("salt"))
    }

    #[test]
    fn a_copy_holds_the_referenced_keys_and_its_name_changes_with_their_content() {
        let (one, again, two) = (copies("redis://a"), copies("redis://a"), copies("redis://b"));
        let names = |copies: &[SecretCopy]| copies.iter().map(|copy| copy.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&one), names(&again));
        assert_eq!(one.iter().map(|copy| copy.source.as_str()).collect::<Vec<_>>(), ["eu-aws", "eu-redis"]);
        assert_eq!(one[0].name, two[0].name, "the other Secret did not change");
        assert_ne!(one[1].name, two[1].name);
        assert_eq!(one[1].values.keys().collect::<Vec<_>>(), ["url"], "only what is referenced is copied");
        assert!(one[1].name.starts_with("eu-copy-") && one[1].name.len() == "eu-copy-".len() + HASH_LEN);
    }
}
