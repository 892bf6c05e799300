//! Lists of names in messages. Pure.

/// Lists at most `max` names, and counts the others: `a, b and 3 more`.
pub fn list_names(names: &[String], max: usize) -> String {
    let listed = names.iter().take(max).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(max) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}
