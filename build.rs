//! Link arguments of the program.

use std::env::var;
use std::process::Command;

/// The first glibc whose loader reads packed relocations (release notes of glibc 2.36).
const PACKED_RELOCATIONS_GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The loader reads every relocation at the start, and their pages stay in the memory of each process: 1.3 MiB as a
    // table, 20 KiB packed.
    if is_native_build() && glibc_version().is_some_and(|version| version >= PACKED_RELOCATIONS_GLIBC) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the program is built for this machine's kind, whose glibc it then runs with.
fn is_native_build() -> bool {
    var("HOST").is_ok_and(|host| var("TARGET").is_ok_and(|target| host == target && target.ends_with("-linux-gnu")))
}

/// The version of this machine's glibc; `None` where it is not known.
fn glibc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
