//! Whether a live object differs from the rendered one. Pure.

use serde_json::Value;

use super::foreign_fields::has_foreign_fields;

/// Whether an apply or a repair would change the live object.
pub fn needs_apply(wanted: &Value, live: &Value) -> bool {
    !is_up_to_date(wanted, live) || has_foreign_fields(wanted, live)
}

/// Whether the live object has every rendered field with its rendered value.
fn is_up_to_date(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(name, value)| match live.get(name) {
            Some(found) => is_up_to_date(value, found),
            None => value.is_null(),
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| is_up_to_date(wanted, live))
        }
        _ => wanted == live,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_api_server_are_no_difference() {
        let wanted = json!({ "spec": { "ports": [{ "port": 80 }], "selector": { "a": "b" } } });
        let mut live = json!({ "spec": { "ports": [{ "port": 80, "protocol": "TCP" }], "selector": { "a": "b" }, "clusterIP": "x" } });
        assert!(is_up_to_date(&wanted, &live));
        live["spec"]["selector"]["a"] = json!("c");
        assert!(!is_up_to_date(&wanted, &live));
    }
}
