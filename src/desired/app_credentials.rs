//! The generated credentials of apps: one Secret per app, which the app owns. Pure.
//!
//! In: an app that references no Secret, the Secret that has the name of its credentials, and the pair that the Secret of a
//! cluster holds for it. Out: the pairs that the cluster serves, and the step that is due before one Secret holds the pair.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as SecretObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::problem::RefusalCause;
use super::render::COMPONENT_LABEL;
use super::secret_references::{decode_secret, trim_texts};
use crate::api::{API_GROUP, RealtimeApp};
use crate::protocol::{AppKey, Secret};

const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
const MANAGER: &str = "realtime-operator";

const APP_KIND: &str = "RealtimeApp";

/// Longest name of a Secret.
const SECRET_NAME_LEN_MAX: usize = 253;

/// A generated app key with its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedPair {
    /// Generated key of the app.
    pub key: AppKey,
    /// Generated secret of the app key.
    pub secret: Secret,
}

/// The generated credentials of one app, as far as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppCredentials {
    /// The pairs that are served, all active; the first one signs webhooks.
    pub pairs: Vec<GeneratedPair>,
    /// The reason for which the Secret of the app cannot be used.
    pub refusal: Option<CredentialsRefusal>,
    /// The step that is due.
    pub step: Option<CredentialsStep>,
}

/// The reason for which the Secret with the name of an app's credentials cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsRefusal {
    /// The cause in the status of the app.
    pub cause: RefusalCause,
    /// The problem and its remedy.
    pub message: String,
}

/// A step towards one Secret per app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialsStep {
    /// Create the Secret of the app, with the pair that the Secret of the cluster holds, or else with a new one.
    Create(Option<GeneratedPair>),
    /// Make the app the owner of its Secret, which has none: a backup restores Secrets without owners.
    Adopt,
    /// Delete the pair from the Secret of the cluster: the Secret of the app holds the same.
    RemoveFromCluster,
    /// Wait until Kubernetes has deleted the Secret of a former app of this name.
    AwaitDeletion,
}

/// Name of the Secret with the generated credentials of an app.
#[must_use]
pub fn app_credentials_name(app: &RealtimeApp) -> String {
    format!("{}-credentials", app.metadata.name.as_deref().unwrap_or_default())
}

/// Purposes of an app's key and of its secret in the Secret of generated values of a cluster, where they were stored before
/// each app had a Secret.
#[must_use]
pub fn cluster_pair_purposes(app: &RealtimeApp) -> [String; 2] {
    ["key", "secret"].map(|part| format!("app-{}-{part}", app.spec.app_id))
}

/// Renders the Secret with the generated credentials of an app. The app owns it, so that Kubernetes deletes both together.
#[must_use]
pub fn render_app_credentials(app: &RealtimeApp, pair: &GeneratedPair) -> SecretObject {
    let texts = [("key", pair.key.as_str()), ("secret", pair.secret.expose())];
    SecretObject {
        metadata: ObjectMeta {
            name: Some(app_credentials_name(app)),
            namespace: app.metadata.namespace.clone(),
            labels: Some(
                [
                    ("app.kubernetes.io/name", "realtime"),
                    (COMPONENT_LABEL, "credentials"),
                    ("app.kubernetes.io/part-of", "realtime"),
                    (MANAGED_BY_LABEL, MANAGER),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ),
            owner_references: app_owner_reference(app).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(texts.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).into()),
        type_: Some("Opaque".to_owned()),
        ..SecretObject::default()
    }
}

/// The reference by which an app owns its Secret; `None` for a manifest that was never applied.
#[must_use]
pub fn app_owner_reference(app: &RealtimeApp) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: format!("{API_GROUP}/v1alpha1"),
        kind: APP_KIND.to_owned(),
        name: app.metadata.name.clone()?,
        uid: app.metadata.uid.clone()?,
        controller: Some(true),
        // The deletion of an app need not wait for its Secret.
        block_owner_deletion: None,
    })
}

/// Generates a pair for each app that references no Secret, by name of the app.
pub(super) fn generate_app_credentials(
    apps: &[RealtimeApp],
    mut generate: impl FnMut(&str) -> String,
) -> BTreeMap<String, AppCredentials> {
    let mut made = BTreeMap::new();
    for app in apps.iter().filter(|app| app.spec.credentials.is_empty()) {
        let name = app.metadata.name.clone().unwrap_or_default();
        let pair = GeneratedPair {
            key: AppKey(generate(&format!("{name}-key"))),
            secret: Secret::new(generate(&format!("{name}-secret"))),
        };
        made.insert(name, AppCredentials { pairs: vec![pair], ..AppCredentials::default() });
    }
    made
}

/// Recalls the credentials of each app that references no Secret, by name of the app: from its Secret, found by `find`, and
/// from `known`, the generated values of the cluster by purpose.
pub fn recall_app_credentials<'a>(
    apps: &[RealtimeApp],
    find: impl Fn(&str) -> Option<&'a SecretObject>,
    known: &BTreeMap<String, String>,
) -> BTreeMap<String, AppCredentials> {
    let apps = apps.iter().filter(|app| app.spec.credentials.is_empty());
    let recall = |app: &RealtimeApp| {
        let recalled = recall_pairs(app, find(&app_credentials_name(app)), find_cluster_pair(app, known));
        (app.metadata.name.clone().unwrap_or_default(), recalled)
    };
    apps.map(recall).collect()
}

/// Finds the pair of an app among the generated values of a cluster, by purpose.
#[must_use]
pub fn find_cluster_pair(app: &RealtimeApp, known: &BTreeMap<String, String>) -> Option<GeneratedPair> {
    let [key, secret] = cluster_pair_purposes(app);
    let (key, secret) = known.get(&key).zip(known.get(&secret))?;
    Some(GeneratedPair { key: AppKey(key.clone()), secret: Secret::new(secret.as_str()) })
}

/// Recalls the credentials of one app. A pair that a cluster serves is served until it is stored in the Secret of the app;
/// one that differs from it is served beside it.
#[must_use]
pub fn recall_pairs(
    app: &RealtimeApp,
    secret: Option<&SecretObject>,
    of_cluster: Option<GeneratedPair>,
) -> AppCredentials {
    match read_secret(app, secret) {
        StoredSecret::Refused(refusal) => {
            AppCredentials { pairs: of_cluster.into_iter().collect(), refusal: Some(refusal), step: None }
        }
        StoredSecret::Missing => AppCredentials {
            pairs: of_cluster.clone().into_iter().collect(),
            refusal: None,
            step: Some(CredentialsStep::Create(of_cluster)),
        },
        StoredSecret::OfFormerApp => AppCredentials {
            pairs: of_cluster.into_iter().collect(),
            refusal: None,
            step: Some(CredentialsStep::AwaitDeletion),
        },
        StoredSecret::Pair { pair, is_owned } => {
            let is_stored_twice = of_cluster.as_ref() == Some(&pair);
            let done = is_stored_twice.then_some(CredentialsStep::RemoveFromCluster);
            let step = if is_owned { done } else { Some(CredentialsStep::Adopt) };
            // The pair of the cluster comes first and goes on to sign: its receivers of webhooks may know no other key.
            let differing = of_cluster.filter(|other| other.key != pair.key);
            AppCredentials { pairs: differing.into_iter().chain([pair]).collect(), refusal: None, step }
        }
    }
}

/// The Secret with the name of an app's credentials.
enum StoredSecret {
    Missing,
    /// It belongs to a deleted app of this name, with which Kubernetes deletes it.
    OfFormerApp,
    Refused(CredentialsRefusal),
    Pair {
        pair: GeneratedPair,
        is_owned: bool,
    },
}

fn read_secret(app: &RealtimeApp, secret: Option<&SecretObject>) -> StoredSecret {
    let name = app_credentials_name(app);
    let refuse = |cause, message| StoredSecret::Refused(CredentialsRefusal { cause, message });
    if name.len() > SECRET_NAME_LEN_MAX {
        let message = format!(
            "is empty, and the Secret with the generated pair would have a name of more than {SECRET_NAME_LEN_MAX} characters: \
             reference a Secret with `key` and `secret`, or create the app with a shorter name"
        );
        return refuse(RefusalCause::Invalid, message);
    }
    let Some(secret) = secret else { return StoredSecret::Missing };
    let owners = secret.metadata.owner_references.as_deref().unwrap_or_default();
    let is_owned =
        app.metadata.uid.is_some() && owners.iter().any(|owner| Some(&owner.uid) == app.metadata.uid.as_ref());
    let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY_LABEL));
    let is_labelled = label.is_some_and(|manager| manager == MANAGER);
    let is_former = |owner: &OwnerReference| owner.kind == APP_KIND && Some(&owner.name) == app.metadata.name.as_ref();
    if !is_owned && is_labelled && owners.iter().any(is_former) {
        return StoredSecret::OfFormerApp;
    }
    let is_restored = is_labelled && owners.is_empty();
    if !(is_owned || is_restored) {
        let owner = owners.first().map_or_else(
            || "it has no owner".to_owned(),
            |owner| format!("it belongs to {} {}", owner.kind, owner.name),
        );
        let message = format!(
            "is empty, and Secret {name}, which would hold the generated pair, already exists and is not ours ({owner}): it was \
             not changed. Rename or delete it, or reference a Secret with `key` and `secret`"
        );
        return refuse(RefusalCause::CredentialsNotOurs, message);
    }
    let texts = trim_texts(decode_secret(secret));
    let text = |key: &str| texts.get(key).filter(|text| !text.is_empty());
    match (text("key"), text("secret")) {
        (Some(key), Some(_)) if !key.bytes().all(|b| b.is_ascii_graphic()) => refuse(
            RefusalCause::Invalid,
            format!(
                "is empty, and the `key` of Secret {name} has a blank or a character that no header can carry: write letters \
                 and digits, or delete the Secret so that a new pair is generated"
            ),
        ),
        (Some(key), Some(secret)) => StoredSecret::Pair {
            pair: GeneratedPair { key: AppKey(key.clone()), secret: Secret::new(secret.as_str()) },
            is_owned,
        },
        _ => refuse(
            RefusalCause::Invalid,
            format!(
                "is empty, and Secret {name} lacks `key` or `secret`: write both, or delete the Secret so that a new pair is \
                 generated"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn app(name: &str) -> RealtimeApp {
        let app = json!({
            "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp",
            "metadata": { "name": name, "namespace": "channels", "uid": "u1" },
            "spec": { "appID": "1001" },
        });
        serde_json::from_value(app).expect("an app")
    }

    fn pair(word: &str) -> GeneratedPair {
        GeneratedPair { key: AppKey(format!("key-{word}")), secret: Secret::new(format!("secret-{word}")) }
    }

    /// The Secret as the operator creates it, with other metadata.
    fn stored(word: &str, owners: &Value, labels: &Value) -> SecretObject {
        let mut secret = serde_json::to_value(render_app_credentials(&app("shop"), &pair(word))).expect("JSON");
        secret["metadata"]["ownerReferences"] = owners.clone();
        secret["metadata"]["labels"] = labels.clone();
        serde_json::from_value(secret).expect("a Secret")
    }

    fn owner(kind: &str, name: &str, uid: &str) -> Value {
        json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid }])
    }

    #[test]
    fn a_pair_is_moved_and_never_made_again() {
        let (own, former) = (owner("RealtimeApp", "shop", "u1"), owner("RealtimeApp", "shop", "u0"));
        let (none, labels) = (json!([]), json!({ MANAGED_BY_LABEL: MANAGER }));
        let owned = stored("a", &own, &labels);
        for (case, secret, of_cluster, served, step) in [
            ("a new app", None, None, vec![], Some(CredentialsStep::Create(None))),
            ("before the move", None, Some("a"), vec!["a"], Some(CredentialsStep::Create(Some(pair("a"))))),
            ("both hold the pair", Some(&owned), Some("a"), vec!["a"], Some(CredentialsStep::RemoveFromCluster)),
            ("after the move", Some(&owned), None, vec!["a"], None),
            ("another cluster has another pair", Some(&owned), Some("b"), vec!["b", "a"], None),
            ("its label was removed", Some(&stored("a", &own, &json!({}))), None, vec!["a"], None),
            ("restored", Some(&stored("a", &none, &labels)), Some("a"), vec!["a"], Some(CredentialsStep::Adopt)),
            (
                "of a deleted app",
                Some(&stored("a", &former, &labels)),
                None,
                vec![],
                Some(CredentialsStep::AwaitDeletion),
            ),
        ] {
            let recalled = recall_pairs(&app("shop"), secret, of_cluster.map(pair));
            let expected = served.into_iter().map(pair).collect::<Vec<_>>();
            assert_eq!((recalled.pairs, recalled.refusal, recalled.step), (expected, None, step), "{case}");
        }
    }

    #[test]
    fn a_secret_that_is_not_ours_refuses_the_app_and_a_pair_of_the_cluster_is_served_all_the_same() {
        let (none, labels) = (json!([]), json!({ MANAGED_BY_LABEL: MANAGER }));
        let own = owner("RealtimeApp", "shop", "u1");
        let mut incomplete = stored("a", &own, &labels);
        incomplete.data.as_mut().and_then(|data| data.remove("secret"));
        let long = "a".repeat(SECRET_NAME_LEN_MAX);
        for (case, name, secret, cause, words) in [
            (
                "of a person",
                "shop",
                Some(stored("a", &none, &json!({}))),
                RefusalCause::CredentialsNotOurs,
                "it has no owner",
            ),
            (
                "of a controller",
                "shop",
                Some(stored("a", &owner("ExternalSecret", "x", "u2"), &labels)),
                RefusalCause::CredentialsNotOurs,
                "it belongs to ExternalSecret x",
            ),
            (
                "of another app",
                "shop",
                Some(stored("a", &owner("RealtimeApp", "x", "u2"), &labels)),
                RefusalCause::CredentialsNotOurs,
                "it belongs to RealtimeApp x",
            ),
            ("incomplete", "shop", Some(incomplete), RefusalCause::Invalid, "lacks `key` or `secret`"),
            (
                "a blank in the key",
                "shop",
                Some(stored("a b", &own, &labels)),
                RefusalCause::Invalid,
                "no header can carry",
            ),
            ("too long a name", &long, None, RefusalCause::Invalid, "more than 253 characters"),
        ] {
            for of_cluster in [None, Some(pair("c"))] {
                let recalled = recall_pairs(&app(name), secret.as_ref(), of_cluster.clone());
                assert_eq!((recalled.pairs, recalled.step), (of_cluster.into_iter().collect(), None), "{case}");
                let refusal = recalled.refusal.expect(case);
                assert_eq!(refusal.cause, cause, "{case}");
                assert!(refusal.message.contains(words), "{case}: {}", refusal.message);
            }
        }
    }

    #[test]
    fn apps_that_reference_secrets_have_no_generated_pair_and_those_of_one_id_share_that_of_the_cluster() {
        let mut referencing = app("own");
        referencing.spec.credentials =
            serde_json::from_value(json!([{ "secretRef": { "name": "x" } }])).expect("credentials");
        let apps = [referencing, app("shop"), app("shop-2")];
        let known = ["key", "secret"].map(|part| (format!("app-1001-{part}"), format!("{part}-a"))).into();
        let recalled = recall_app_credentials(&apps, |_| None, &known);
        let expected = AppCredentials {
            pairs: vec![pair("a")],
            refusal: None,
            step: Some(CredentialsStep::Create(Some(pair("a")))),
        };
        let expected = ["shop", "shop-2"].map(|name| (name.to_owned(), expected.clone()));
        assert_eq!(recalled, expected.into());
        let made = generate_app_credentials(&apps, str::to_owned);
        assert_eq!(made.keys().collect::<Vec<_>>(), ["shop", "shop-2"]);
        assert_eq!(made["shop"].pairs[0].key.as_str(), "shop-key");
    }

    #[test]
    fn the_secret_of_an_app_belongs_to_it_alone() {
        let secret = render_app_credentials(&app("shop"), &pair("a"));
        assert_eq!(secret.metadata.name.as_deref(), Some("shop-credentials"));
        let owner = &secret.metadata.owner_references.as_ref().expect("an owner")[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("RealtimeApp", "shop", "u1"));
        let read = recall_pairs(&app("shop"), Some(&secret), None);
        assert_eq!((read.pairs, read.step), (vec![pair("a")], None));
    }
}
