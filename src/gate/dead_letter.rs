//! The proof that lost events are kept: the letter of a test record comes out of the dead-letter stream.

/// State of the proof, for one fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeadLetterProof {
    /// The cluster keeps no dead letters, or its stream is only observed: nothing is claimed.
    #[default]
    NotApplicable,
    /// A test record is on its way.
    Pending,
    /// The letter of a test record was read.
    Proven,
    /// A call of the operator failed, with this error. It is no finding about the cluster.
    Unproven(String),
    /// A dispatcher read the test record, and no letter of it was written; the description.
    Broken(String),
}
