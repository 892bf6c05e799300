//! Findings of a review: their codes, in the order of their weight, and whether they block a move.

use std::fmt;

use serde::Serialize;

/// Kinds of findings, the heaviest first: a review lists them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FindingCode {
    /// The target's edges write no webhook events.
    WebhooksOff,
    /// The target's edges write webhook events, and no dispatcher reads them.
    DispatcherMissing,
    /// A variable switches off at the target what is on at the source.
    SwitchedOff,
    /// The target has no server of a kind.
    ServerMissing,
    /// The target serves fewer transports.
    TransportsMissing,
    /// The target has not proven itself.
    NotProven,
    /// The target lacks apps, keys or endpoints.
    AppsMissing,
    /// Apps have other endpoints, or are switched off at the target.
    AppsChanged,
    /// Clients of the two clusters do not hear each other.
    FanoutSplit,
    /// Secrets of the two snapshots were digested under different keys.
    KeysDiffer,
    /// A value is off, empty or zero in both clusters.
    Suspicious,
    /// A value, or a setting of apps, differs.
    Changed,
    /// The target lacks a variable that the source has.
    Missing,
    /// The target has a variable that the source lacks.
    Extra,
    /// A value could not be read.
    Unread,
}

impl FindingCode {
    /// Whether a finding of this kind blocks a move until it is mended or accepted.
    #[must_use]
    pub fn is_blocking(self) -> bool {
        self <= Self::KeysDiffer
    }

    /// Every code, in their order.
    pub const ALL: [Self; 15] = [
        Self::WebhooksOff,
        Self::DispatcherMissing,
        Self::SwitchedOff,
        Self::ServerMissing,
        Self::TransportsMissing,
        Self::NotProven,
        Self::AppsMissing,
        Self::AppsChanged,
        Self::FanoutSplit,
        Self::KeysDiffer,
        Self::Suspicious,
        Self::Changed,
        Self::Missing,
        Self::Extra,
        Self::Unread,
    ];
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One difference between two clusters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of the finding.
    pub code: FindingCode,
    /// `SERVER/VARIABLE`, `app ID`, or the part of the cluster.
    pub subject: String,
    /// The value at the source.
    pub source: String,
    /// The value at the target.
    pub target: String,
    /// The consequence, or the next step.
    pub message: String,
    /// Whether it blocks a move.
    pub blocks: bool,
}

impl Finding {
    pub(super) fn new(code: FindingCode, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            subject: subject.into(),
            source: String::new(),
            target: String::new(),
            message: message.into(),
            blocks: code.is_blocking(),
        }
    }

    pub(super) fn with_values(self, source: impl Into<String>, target: impl Into<String>) -> Self {
        Self { source: source.into(), target: target.into(), ..self }
    }
}

/// Whether a text switches something off.
pub(super) fn is_switched_off(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    matches!(text.as_str(), "" | "0" | "off" | "no" | "none" | "false" | "disabled" | "null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_switches_off_is_found_in_every_spelling() {
        for text in ["", " ", "0", "Off", "FALSE", "no", "None", "disabled"] {
            assert!(is_switched_off(text), "{text}");
        }
        for text in ["on", "1", "kinesis", "00", "offline", "true"] {
            assert!(!is_switched_off(text), "{text}");
        }
    }

    #[test]
    fn the_codes_are_in_order_and_those_that_block_come_first() {
        assert!(FindingCode::ALL.is_sorted());
        assert_eq!(FindingCode::ALL.iter().filter(|code| code.is_blocking()).count(), 10);
        assert!(FindingCode::WebhooksOff.is_blocking() && !FindingCode::Suspicious.is_blocking());
    }
}
