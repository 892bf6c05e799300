//! The reason for which a session is closed: the code and sentence that the client receives.

/// The close code and sentence of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// The close code that the client receives.
    pub code: u16,
    /// The sentence that the client receives.
    pub reason: String,
    /// Whether the session is closed because this process drains.
    pub drain: bool,
}

impl CloseReason {
    /// A close that is not part of a drain.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), drain: false }
    }
}
