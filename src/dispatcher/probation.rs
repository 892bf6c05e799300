//! The probation of a member that is not proven: it holds a shard until it fails to deliver.

use std::time::Duration;

use tokio::time::Instant;

use super::leases::MemberStatus;
use super::metrics::AttemptCounts;

/// Bounds the failed attempts without a success before an unproven member releases its shard.
const PROBATION_FAILURES_MAX: u64 = 3;
/// Time for which that member then leaves shards to others.
const PROBATION_BACKOFF: Duration = Duration::from_secs(30);

/// The record of a member that is not proven yet.
#[derive(Debug, Default)]
pub struct MemberProbation {
    /// Number of failed attempts when the member last acquired a shard.
    failed_before: u64,
    /// Time until which the member leaves shards to others.
    backs_off_until: Option<Instant>,
}

impl MemberProbation {
    /// The status of this member. An unproven member that fails three times without a success releases its shard and
    /// backs off, if another member can take it.
    pub fn assess(&mut self, proven: bool, holds_shards: bool, counts: AttemptCounts) -> MemberStatus {
        if proven || !holds_shards {
            self.failed_before = counts.failed;
        } else if counts.delivered == 0 && counts.failed.saturating_sub(self.failed_before) >= PROBATION_FAILURES_MAX {
            self.failed_before = counts.failed;
            self.backs_off_until = Some(Instant::now() + PROBATION_BACKOFF);
        }
        let backing_off = !proven && self.backs_off_until.is_some_and(|until| Instant::now() < until);
        MemberStatus { proven, backing_off }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unproven_member_backs_off_after_failures_without_a_success() {
        let mut probation = MemberProbation::default();
        let mut backs_off = |proven, holds, delivered, failed| {
            probation.assess(proven, holds, AttemptCounts { delivered, failed }).backing_off
        };
        assert!(!backs_off(false, false, 0, 5), "without a shard nothing counts");
        assert!(!backs_off(false, true, 0, 7));
        assert!(!backs_off(false, true, 1, 9), "it delivers");
        assert!(backs_off(false, true, 0, 8));
        assert!(backs_off(false, false, 0, 8), "for a while");
        assert!(!backs_off(true, true, 0, 99), "it is proven");
    }
}
