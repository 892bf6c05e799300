//! The one table of variables that every server reads.
//!
//! In: the environment of a process. Out: typed values with defaults filled in, or one line that names the variable and
//! its remedy. Servers parse from the table, the operator renders from it, `docs/variables.md` is generated from it:
//! there is no second list. A variable that is unknown, missing or contradictory stops the server before it accepts a
//! client, and "no webhooks" must be written explicitly: the outage that this project answers was one wrong variable
//! that switched something off in silence.
//!
//! This room must not know I/O, nor any other room.

mod docs;
mod parse;
mod release;
mod server;
mod suggest;
mod table;
mod value_kind;
mod variable_key;
mod variable_scope;

pub use docs::render_variables_page;
pub use parse::{ConfigError, ServerConfig, is_guarded, is_host, is_path_prefix, is_script};
pub use release::Release;
pub use server::ServerKind;
pub use suggest::suggest_name;
pub use table::{VARIABLE_TABLE, Variable};
pub use value_kind::{Requirement, ValueKind};
pub use variable_key::{VariableKey, name};

/// The exit code of a server that refuses its configuration (`EX_CONFIG` of sysexits.h).
pub const CONFIG_EXIT_CODE: u8 = 78;

/// Annotation of a `ServiceAccount` by which EKS sets `AWS_ROLE_ARN` in its pods.
pub const IAM_ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// Annotation of a `RealtimeCluster` whose value its pods carry: another value restarts them, one after the other. The last
/// value stays in force when the annotation is removed.
pub const RESTARTED_AT_ANNOTATION: &str = "realtime-operator.dev/restarted-at";
