//! Files that are generated and committed: what is committed is what the code prints.

use std::path::Path;

use realtime_operator::process::metrics_page::render_metrics_page;
use realtime_operator::{api, cli, config, edge};

use crate::fixtures::validate_with_stand_ins;

fn compare(file: &str, printed: &str, command: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == printed, "{file} is not what the code prints: run `{command}`");
}

#[test]
fn the_crds_are_up_to_date() {
    for crd in api::crd::all_crds().expect("crds") {
        let yaml = api::yaml::yaml_document(&crd.object).expect("yaml");
        for folder in ["crds", "charts/realtime-operator/files/crds", "charts/realtime-operator-crds/files/crds"] {
            compare(&format!("{folder}/{}", crd.file), &yaml, "./test --generate");
        }
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
fn the_page_of_metrics_is_up_to_date() {
    compare("docs/metrics.md", &render_metrics_page(&cli::metric_rows()), "./test --generate");
}

#[test]
fn every_example_can_be_rendered() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).expect("examples/") {
        let path = entry.expect("an entry").path();
        // The folders hold manifests of other tools.
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("an example");
        let mut manifests = realtime_operator::desired::Manifests::default();
        let read = manifests.add_file(&path.display().to_string(), &text);
        assert!(read.is_ok(), "{read:?}");
        let apps: Vec<_> = manifests.apps.into_iter().map(|(_, app)| app).collect();
        for (_, cluster) in manifests.clusters {
            let valid = validate_with_stand_ins(cluster, &apps).unwrap_or_else(|found| panic!("{found:?}"));
            let objects = realtime_operator::desired::render_objects(&valid).expect("objects");
            assert!(objects.children.len() > 10, "{}", path.display());
            count += 1;
        }
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
    let documented: Vec<String> = lines.map(|line| format!("4{}", &line[..3])).collect();
    assert!(codes.len() > 12 && codes == documented, "docs/clients.md has {documented:?}, the code has {codes:?}");
}

/// Words in backticks of a page, outside its blocks of code.
fn quoted_words(page: &str) -> Vec<&str> {
    let outside = page.split("```").step_by(2);
    outside.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// Every file of a folder, with the folders in it.
fn files_below(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_path_and_test_that_the_architecture_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).expect("docs/architecture.md");
    let mut files = Vec::new();
    files_below(&root.join("src"), &mut files);
    files_below(&root.join("tests/it"), &mut files);
    let sources: Vec<String> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .map(|path| std::fs::read_to_string(path).expect("a source"))
        .collect();
    let is_path = |word: &str| ["src/", "tests/", "crds/", "docs/"].iter().any(|folder| word.starts_with(folder));
    let is_function =
        |word: &str| word.contains('_') && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    let is_defined = |word: &str| {
        let quoted = format!("\"{word}\"");
        sources.iter().any(|text| {
            text.contains(&format!("fn {word}("))
                || text.contains(&format!("fn {word}<"))
                || text.contains(&quoted)
                // A room of the edge, in the table of its floors.
                || text.contains(&format!("mod {word};"))
        })
    };
    let words = quoted_words(&page);
    let paths = words.iter().filter(|word| is_path(word) && !root.join(word).exists());
    let functions = words.iter().filter(|word| is_function(word) && !is_defined(word));
    let missing: Vec<&str> = paths.chain(functions).copied().collect();
    assert!(words.len() > 100 && missing.is_empty(), "docs/architecture.md names what is not there: {missing:?}");
}
