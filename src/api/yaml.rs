//! Writes YAML for the tools of Kubernetes, which read version 1.1, where unquoted `Off`, `no` and `y` are booleans.
//!
//! In: an object. Out: its text, which has the same meaning in versions 1.1 and 1.2. Otherwise a CRD with an unquoted
//! `Off` in an enum would refuse `Off`, and a variable with the value `off` would not be a string.

use serde_json::Value;

/// Texts that are booleans in version 1.1 but not in version 1.2, by which the serializer writes.
const BOOLEAN_WORDS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];

/// Serializes an object to one YAML document.
///
/// # Errors
/// Never for objects; the signature of `serde_yaml` requires one.
pub fn yaml_document(object: &Value) -> Result<String, serde_yaml::Error> {
    Ok(quote_scalars(&serde_yaml::to_string(object)?))
}

/// Quotes scalars whose type would change; lines of a block scalar stay unchanged.
fn quote_scalars(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut block = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|depth| line.trim().is_empty() || indent > depth) {
            written.push_str(line);
        } else {
            block = opens_block(line).then_some(indent);
            let value = write_scalar(line);
            let (before, _) = line.split_at(line.len() - value.len());
            written.push_str(before);
            if BOOLEAN_WORDS.iter().any(|boolean| value.eq_ignore_ascii_case(boolean)) {
                written.extend(["'", value, "'"]);
            } else {
                written.push_str(value);
            }
        }
        written.push('\n');
    }
    written
}

/// Returns the scalar at the end of a line: after its key, or after the dash of a list.
fn write_scalar(line: &str) -> &str {
    match line.rsplit_once(": ") {
        Some((_, value)) => value,
        None => line
            .rsplit_once("- ")
            .filter(|(before, _)| before.trim_matches(['-', ' ']).is_empty())
            .map_or("", |(_, value)| value),
    }
}

/// Whether the lines below belong to a block scalar.
fn opens_block(line: &str) -> bool {
    let header = line.rsplit(' ').next().unwrap_or_default();
    header.starts_with(['|', '>']) && header[1..].chars().all(|c| c.is_ascii_digit() || c == '-' || c == '+')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_stays_a_text_for_a_reader_of_version_1_1() {
        let object =
            json!({ "enum": ["Kinesis", "Off"], "env": [{ "name": "W", "value": "off" }], "deep": { "n": "No" } });
        let text = yaml_document(&object).expect("yaml");
        assert_eq!(text, "enum:\n- Kinesis\n- 'Off'\nenv:\n- name: W\n  value: 'off'\ndeep:\n  n: 'No'\n");
        assert_eq!(serde_yaml::from_str::<Value>(&text).expect("yaml"), object);
    }

    #[test]
    fn scalars_that_need_no_quotes_get_none() {
        for object in [
            json!({ "a": "on time", "b": true, "c": "office", "d": "'off'", "e": "a: off", "f": "", "g": null }),
            json!({ "text": "first\noff\n- no\nkey: yes\n", "after": "x" }),
            json!([{ "text": "off\nno" }, ["x", "true"]]),
        ] {
            let text = yaml_document(&object).expect("yaml");
            assert_eq!(text, serde_yaml::to_string(&object).expect("yaml"));
            assert_eq!(serde_yaml::from_str::<Value>(&text).expect("yaml"), object);
        }
    }
}
