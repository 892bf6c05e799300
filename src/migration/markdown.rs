//! A review as Markdown, for a pull request.

use std::fmt::Write;

use super::{Finding, MigrationReview};

/// Longest text of one cell, in characters: lists of scripts are longer than a page.
const CELL_CHARACTERS_MAX: usize = 160;

/// Renders a review. Writing to a text cannot fail.
#[must_use]
pub fn render_markdown(review: &MigrationReview) -> String {
    let mut page = format!("## Review of a move from `{}` to `{}`\n\n", review.source, review.target);
    let blocking: Vec<&Finding> = review.findings.iter().filter(|finding| finding.blocks).collect();
    let others: Vec<&Finding> = review.findings.iter().filter(|finding| !finding.blocks).collect();
    match blocking.len() {
        0 => page.push_str("Nothing blocks this move.\n"),
        1 => page.push_str("**Blocked** by one finding.\n"),
        count => {
            let _ = writeln!(page, "**Blocked** by {count} findings.");
        }
    }
    add_table(&mut page, &blocking);
    if !others.is_empty() {
        page.push_str("\n### To be confirmed by a person\n");
        add_table(&mut page, &others);
    }
    let _ = writeln!(page, "\nApproval hash: `{}`. Every compared value changes the hash.", review.approval_hash);
    page
}

fn add_table(page: &mut String, findings: &[&Finding]) {
    if findings.is_empty() {
        return;
    }
    page.push_str("\n| finding | where | source | target | next step |\n|---|---|---|---|---|\n");
    for Finding { code, subject, source, target, message, .. } in findings {
        let cells = [subject, source, target].map(|text| quote(text));
        let _ = writeln!(page, "| {code} | {} | {} | {} | {} |", cells[0], cells[1], cells[2], escape(message));
    }
}

/// A value as code, since it may contain what Markdown would read.
fn quote(text: &str) -> String {
    if text.is_empty() || text == "–" {
        return "–".to_owned();
    }
    format!("`{}`", escape(text).replace('`', "'"))
}

/// A text in one cell of a table.
fn escape(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ").replace('|', "\\|");
    if line.chars().count() <= CELL_CHARACTERS_MAX {
        return line;
    }
    line.chars().take(CELL_CHARACTERS_MAX).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::FindingCode;

    #[test]
    fn a_value_breaks_no_table() {
        let found = Finding::new(FindingCode::Changed, "a|b", "line\nbreak").with_values("`x`\n|", "y".repeat(500));
        let mut page = String::new();
        add_table(&mut page, &[&found]);
        let row = page.lines().last().expect("a row");
        assert!(row.starts_with("| Changed | `a\\|b` | `'x' \\|` | `yyy"), "{row}");
        assert!(row.ends_with("…` | line break |") && page.lines().count() == 4, "{page}");
    }
}
