//! The rules of Kubernetes for names and for labels. Pure.

/// Longest name of a label or of an annotation without its prefix, and longest value of a label.
const LABEL_LEN_MAX: usize = 63;
/// Longest prefix of the name of a label or of an annotation.
const PREFIX_LEN_MAX: usize = 253;

/// Whether a text has the characters of a DNS label. Its length is not checked.
pub fn is_dns_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(is_inner)
}

/// Whether a text is the value of a label.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

/// Whether a text is the name of a label or of an annotation: a name, or a DNS name, `/` and a name.
pub fn is_qualified_name(text: &str) -> bool {
    let Some((prefix, name)) = text.split_once('/') else { return is_label_name(text) };
    prefix.len() <= PREFIX_LEN_MAX && prefix.split('.').all(is_dns_label) && is_label_name(name)
}

fn is_label_name(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let has_ends = is_end(text.bytes().next()) && is_end(text.bytes().last());
    text.len() <= LABEL_LEN_MAX && has_ends && text.bytes().all(is_inner)
}
