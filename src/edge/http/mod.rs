//! The public listener and its routes.

pub(crate) mod listener;
pub(crate) mod router;
