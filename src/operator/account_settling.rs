//! When EKS knows a `ServiceAccount`: its webhook injects nothing into a pod whose account it has not seen yet. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::config::IAM_ROLE_ANNOTATION;

/// Least age of a `ServiceAccount`, in s, before pods are created that need its role. The webhook of EKS waits 100 ms for an
/// account that it does not know, and then admits the pod without an identity (amazon-eks-pod-identity-webhook,
/// `buildPodPatchConfig`).
const SETTLE_GRACE_SECONDS: i64 = 2;

/// Whether a rendered object is an account whose annotation EKS reads.
#[must_use]
pub fn needs_settling(rendered: &Value) -> bool {
    let annotation = &rendered["metadata"]["annotations"][IAM_ROLE_ANNOTATION];
    rendered["kind"] == "ServiceAccount" && annotation.is_string()
}

/// Whether an account has not been created or changed for long enough that EKS knows it.
#[must_use]
pub fn is_settled(live: &ObjectMeta, now: Timestamp) -> bool {
    let created = live.creation_timestamp.as_ref();
    let changed = live.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
    let newest = changed.chain(created).map(|time| time.0.as_second()).max();
    newest.is_none_or(|newest| now.as_second() - newest >= SETTLE_GRACE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_account_settles_two_seconds_after_its_last_change() {
        let live: ObjectMeta = serde_json::from_value(json!({
            "creationTimestamp": "1970-01-01T00:00:10Z",
            "managedFields": [{ "manager": "m", "time": "1970-01-01T00:00:20Z" }],
        }))
        .expect("metadata");
        let at = |second| Timestamp::from_second(second).expect("a time");
        for (now, expected) in [(15, false), (21, false), (22, true)] {
            assert_eq!(is_settled(&live, at(now)), expected, "{now}");
        }
        assert!(is_settled(&ObjectMeta::default(), at(0)), "nothing is known of its age");
        let account = |annotations: Value| {
            needs_settling(&json!({ "kind": "ServiceAccount", "metadata": { "annotations": annotations } }))
        };
        assert!(account(json!({ IAM_ROLE_ANNOTATION: "arn:e" })));
        assert!(!account(json!({})) && !account(Value::Null));
        assert!(!needs_settling(&json!({ "kind": "Deployment", "metadata": {} })));
    }
}
