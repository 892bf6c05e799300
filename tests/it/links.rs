//! Links of the pages: every file and every heading that a page links to exists.

use std::path::{Path, PathBuf};

/// The pages of the project, all in Markdown.
fn read_pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for folder in ["", "docs", "charts/realtime-operator", "charts/realtime-operator-crds", "charts/realtime-cluster"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|ending| ending == "md") {
                let text = std::fs::read_to_string(&path).expect("a page");
                pages.push((path, text));
            }
        }
    }
    pages
}

/// The text of a page outside its blocks of code.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The targets of the links of a page.
fn list_links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(ToOwned::to_owned).collect()
}

/// The anchors of the headings of a page, as GitHub builds them.
fn list_anchors(page: &str) -> Vec<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
            kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
        })
        .collect()
}

#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_heading() {
    let pages = read_pages();
    let mut count = 0;
    let mut broken = Vec::new();
    for (path, page) in &pages {
        for link in list_links(page).iter().filter(|link| !link.contains("://")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().expect("a folder").join(file) };
            let text = std::fs::read_to_string(&target).ok();
            let leads = if anchor.is_empty() {
                target.exists()
            } else {
                text.is_some_and(|text| list_anchors(&text).iter().any(|found| found == anchor))
            };
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(count > 30 && broken.is_empty(), "{count} links, of which lead nowhere: {broken:#?}");
}

#[test]
fn anchors_are_built_as_github_builds_them() {
    let page = "# A `b`, and c\n```sh\n# not a heading\n```\n## From raw manifests, and to another name\n";
    assert_eq!(list_anchors(page), ["a-b-and-c", "from-raw-manifests-and-to-another-name"]);
    assert_eq!(list_links("[a](b.md#c) `x` and [d](e.md)"), ["b.md#c", "e.md"]);
}
