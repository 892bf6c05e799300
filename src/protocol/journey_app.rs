//! The app of an operator's journeys, which is no customer's.

use super::{AppId, signature};

/// App id of the probe: 15 digits that no customer is likely to have, derived so that a cluster keeps its id.
#[must_use]
pub fn derive_journey_app(uid: &str) -> AppId {
    let digest = signature::body_md5(uid.as_bytes());
    let number = digest.get(..10).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
    AppId(format!("9{number:014}"))
}
