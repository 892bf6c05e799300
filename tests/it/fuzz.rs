//! The corpus of the fuzzer, through the same properties: what it once found stays found.

// A property ends the test where it does not hold; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use realtime_operator::protocol;

#[path = "../../fuzz/properties/mod.rs"]
mod properties;

/// Files of one target: a corpus is what teaches a fuzzer and a reader something, not all that it tried.
const MAX_FILES: usize = 60;

/// Bytes of one file.
const MAX_BYTES: usize = 4096;

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.expect("an entry").path()).collect());
    entries.unwrap_or_default()
}

#[test]
fn every_property_holds_for_its_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (target, check) in properties::TARGETS {
        let files = entries(&fuzz.join("corpus").join(target));
        assert!((5..=MAX_FILES).contains(&files.len()), "fuzz/corpus/{target} has {} files", files.len());
        for file in files {
            let bytes = fs::read(&file).expect("a file");
            assert!(bytes.len() < MAX_BYTES, "{} has {} bytes", file.display(), bytes.len());
            assert!(
                catch_unwind(|| check(&bytes)).is_ok(),
                "the property {target} does not hold for {}",
                file.display()
            );
        }
    }
}

#[test]
fn every_property_is_fuzzed_and_has_a_corpus_of_its_own() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| {
        let stems = entries(&fuzz.join(folder)).into_iter().filter_map(|path| path.file_stem().map(ToOwned::to_owned));
        let mut names: Vec<String> = stems.map(|stem| stem.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = properties::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("targets"), targets);
    assert_eq!(names("corpus"), targets);
}
