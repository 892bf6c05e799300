//! Files that are generated and committed: what is committed is what the code prints.

use std::path::Path;

use realtime_operator::{api, config, edge};

fn compare(file: &str, printed: &str, command: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == printed, "{file} is not what the code prints: run `{command}`");
}

#[test]
fn the_crds_are_up_to_date() {
    for crd in api::crd::all_crds().expect("crds") {
        let yaml = api::yaml::yaml_document(&crd.object).expect("yaml");
        compare(&format!("crds/{}", crd.file), &yaml, "./test --generate");
    }
}

#[test]
fn the_page_of_variables_is_up_to_date() {
    compare("docs/variables.md", &config::render_variables_page(), "./test --generate");
}

#[test]
fn the_page_of_limits_is_up_to_date() {
    compare("docs/limits.md", &edge::server::limits_page::render_limits_page(), "./test --generate");
}

#[test]
fn the_page_of_reasons_is_up_to_date() {
    compare("docs/reasons.md", &api::conditions::reasons_page(), "./test --generate");
}

#[test]
fn every_example_can_be_rendered() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).expect("examples/") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("an example");
        let mut manifests = realtime_operator::desired::Manifests::default();
        let read = manifests.add_file(&path.display().to_string(), &text);
        assert!(read.is_ok(), "{read:?}");
        count += manifests.clusters.len();
    }
    assert!(count > 0, "an example with a cluster");
}

/// The page says when each is sent; the code has the list.
#[test]
fn every_close_code_has_a_line_and_every_line_a_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).expect("a file");
    let code = |line: &str| line.split(" u16 = ").nth(1).map(|rest| rest.trim_end_matches(';').to_owned());
    let source = read("src/protocol/frame.rs");
    let codes: Vec<String> = source.lines().filter(|line| line.contains("pub const")).filter_map(code).collect();
    let page = read("docs/clients.md");
    let lines = page.lines().filter_map(|line| line.strip_prefix("| 4"));
    let told: Vec<String> = lines.map(|line| format!("4{}", &line[..3])).collect();
    assert!(codes.len() > 12 && codes == told, "docs/clients.md has {told:?}, the code has {codes:?}");
}
