//! The rooms under the fuzzer, and what must hold of them.

// The rooms' own tests are run with the library.
#[path = "../../src/config/mod.rs"]
pub mod config;
#[path = "../properties/mod.rs"]
pub mod properties;
#[path = "../../src/protocol/mod.rs"]
pub mod protocol;
