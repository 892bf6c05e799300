//! Certificates for tests: an authority of their own, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority and what it signs, in a directory of their own.
pub struct Authority {
    files: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let new = Self { files: tempfile::tempdir().expect("a directory") };
        new.openssl(&["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"]);
        new
    }

    fn openssl(&self, arguments: &[&str]) {
        let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let made = Command::new("openssl").args(key).args(arguments).current_dir(self.files.path()).output();
        let made = made.expect("openssl is not installed: apt-get install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The file with the authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.files.path().join("ca.crt")
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.certificate()).expect("read")
    }

    /// Signs a certificate for these names, such as `DNS:localhost`, and writes it and its key as `NAME.crt` and `NAME.key`.
    pub fn sign(&self, folder: &Path, name: &str, names: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        let text = |path: &Path| path.display().to_string();
        let (subject, names) = (format!("/CN={name}"), format!("subjectAltName={names}"));
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
        let (key_path, certificate_path) = (text(&key), text(&certificate));
        let own = ["-subj", &subject, "-addext", &names, "-keyout", &key_path, "-out", &certificate_path];
        self.openssl(&[&signed[..], &own].concat());
        (certificate, key)
    }
}
