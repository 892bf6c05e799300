//! Writes to standard output, also into a pipe that closes early.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::api;

/// Prints text. A closed pipe, such as that of `head`, is not an error.
pub fn print_text(text: &str) -> u8 {
    match print_part(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("realtime: cannot write to standard output: {error}");
            1
        }
        _ => 0,
    }
}

/// Prints a part of an output that goes on.
///
/// # Errors
/// Standard output takes no more, often because the reader of a pipe has ended.
pub fn print_part(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Objects as YAML documents.
///
/// # Errors
/// Never for objects; the library's signature has one.
pub fn join_yaml_documents(objects: &[Value]) -> Result<String, serde_yaml::Error> {
    let mut documents = String::new();
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            documents.push_str("---\n");
        }
        documents.push_str(&api::yaml::yaml_document(object)?);
    }
    Ok(documents)
}

/// Prints the CustomResourceDefinitions, or writes one file per kind.
#[derive(clap::Args)]
pub struct CrdArguments {
    /// Write one file per kind into this directory instead
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

/// Prints or writes the CustomResourceDefinitions.
pub fn print_crds(arguments: &CrdArguments) -> u8 {
    let printed = api::crd::all_crds().map_err(|error| error.to_string()).and_then(|crds| {
        if let Some(directory) = &arguments.directory {
            return write(directory, &crds).map(|()| String::new());
        }
        let objects: Vec<Value> = crds.into_iter().map(|crd| crd.object).collect();
        join_yaml_documents(&objects).map_err(|error| error.to_string())
    });
    match printed {
        Ok(documents) => print_text(&documents),
        Err(error) => {
            eprintln!("realtime: the CRDs cannot be printed: {error}");
            1
        }
    }
}

fn write(directory: &Path, crds: &[api::crd::CrdFile]) -> Result<(), String> {
    for crd in crds {
        let text = api::yaml::yaml_document(&crd.object).map_err(|error| error.to_string())?;
        let path = directory.join(crd.file);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
