//! The room `dispatcher`.
