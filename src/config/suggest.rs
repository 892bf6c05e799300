//! Suggests the known name that is most similar to a misspelt one.

/// The candidate that differs from `found` by few slips: one for every three letters at most.
#[must_use]
pub fn suggest_name<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |text: &str| text.to_lowercase().bytes().filter(u8::is_ascii_alphanumeric).collect::<Vec<_>>();
    let wanted = letters(found);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&wanted, &letters(candidate)), candidate))
        .min()
        .filter(|(slips, _)| slips * 3 <= wanted.len().max(3))
        .map(|(_, candidate)| candidate)
}

/// Number of slips between two texts: a letter too many, too few, wrong, or swapped with its neighbour (optimal string
/// alignment).
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut slips = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                slips = slips.min(before[j - 1] + 1);
            }
            row.push(slips);
        }
        before = last;
        last = row;
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_recognised_and_other_words_are_not() {
        let names = ["region", "websocket", "endpointURL", "log"];
        for (found, expected) in [
            ("regoin", Some("region")),
            ("websockets", Some("websocket")),
            ("endpointUrl", Some("endpointURL")),
            ("endpoint_url", Some("endpointURL")),
            ("foo", None),
            ("zone", None),
            ("", None),
        ] {
            assert_eq!(suggest_name(found, names), expected, "{found}");
        }
    }
}
