//! What users write, and what they read back.
//!
//! In: nothing. Out: the kinds with their schema and rules, the condition types and reasons, and the CRDs printed from
//! them. This room must not know clients nor how anything is reconciled.

pub mod conditions;
