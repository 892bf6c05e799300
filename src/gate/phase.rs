//! The phases of a gate.

/// Phase of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatePhase {
    /// Never open yet, and no confirmed evidence speaks against it, or not every transport has been tried.
    Proving,
    /// Proven in every dimension.
    Open,
    /// Never open yet; every transport was tried, and confirmed evidence speaks against it.
    Refused,
    /// Open before, and closed by confirmed evidence.
    Closed,
}
