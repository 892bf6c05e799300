//! Answers of the zone's servers as a sample: whether they fit two weights, and how many are needed to tell.

/// Fewest queries of a sample.
const QUERIES_MIN: u32 = 200;

/// Most queries of a sample: enough to see weight 1 beside 255 in all but one of 1000 samples.
const QUERIES_MAX: u32 = 2000;

/// Chance that a sample misses a record that is answered.
const MISS_CHANCE: f64 = 0.001;

/// Width of the band of 99.9 % in standard deviations.
const BAND_DEVIATIONS: f64 = 3.29;

/// Answers of the zone's authoritative servers to queries for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerSample {
    /// Number of queries that were sent.
    pub queries: u32,
    /// Answers that lead to the target.
    pub target: u32,
    /// Answers that lead to another record, the source's.
    pub source: u32,
    /// Time of the last query, in ms since 1970.
    pub at_ms: u64,
}

impl AnswerSample {
    /// Whether the answers fit a target's weight (`None` for no record) beside a source's weight.
    #[must_use]
    pub fn fits(&self, target: Option<u8>, source: u8) -> bool {
        if self.queries == 0 || self.target + self.source != self.queries {
            return false;
        }
        let weight = target.unwrap_or(0);
        if weight == 0 {
            return self.target == 0;
        }
        if self.target == 0 {
            return false;
        }
        let (queries, share) = (f64::from(self.queries), share_of(weight, source));
        let expected = queries * share;
        let band = BAND_DEVIATIONS * (expected * (1.0 - share)).sqrt() + 1.0;
        (f64::from(self.target) - expected).abs() <= band
    }
}

/// Share of lookups that a weight has beside another.
#[must_use]
pub fn share_of(weight: u8, other: u8) -> f64 {
    let sum = f64::from(weight) + f64::from(other);
    if sum == 0.0 { 0.0 } else { f64::from(weight) / sum }
}

/// Number of queries after which both records, if they are answered, were seen with a chance of 99.9 %.
#[must_use]
pub fn needed_queries(target: u8, source: u8) -> u32 {
    let rarer = share_of(target.min(source), target.max(source));
    if rarer <= 0.0 || rarer >= 1.0 {
        return QUERIES_MIN;
    }
    let wanted = (MISS_CHANCE.ln() / (1.0 - rarer).ln()).ceil();
    // The quotient is positive and small: a weight is 1 of 256 at least.
    let wanted = format!("{wanted:.0}").parse().unwrap_or(QUERIES_MAX);
    u32::clamp(wanted, QUERIES_MIN, QUERIES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(target: u32, queries: u32) -> AnswerSample {
        AnswerSample { queries, target, source: queries - target, at_ms: 0 }
    }

    #[test]
    fn answers_fit_a_weight_within_the_band_of_chance() {
        for (what, found, weight, source, fits) in [
            ("half of both", sample(100, 200), Some(20), 20, true),
            ("half, at the edge of chance", sample(120, 200), Some(20), 20, true),
            ("far from half", sample(140, 200), Some(20), 20, false),
            ("no answer at weight 0", sample(0, 200), Some(0), 20, true),
            ("one answer at weight 0", sample(1, 200), Some(0), 20, false),
            ("no answer without a record", sample(0, 200), None, 20, true),
            ("one answer without a record", sample(1, 200), None, 20, false),
            ("no answer at weight 1, which chance does not allow", sample(0, 200), Some(1), 20, false),
            ("a few at weight 1", sample(9, 200), Some(1), 20, true),
            ("all at the cutover, the source unseen by chance", sample(1760, 1760), Some(255), 1, true),
            ("the source still at its former weight", sample(1632, 1760), Some(255), 1, false),
            ("no query", sample(0, 0), Some(20), 20, false),
        ] {
            assert_eq!(found.fits(weight, source), fits, "{what}");
        }
        let foreign = AnswerSample { queries: 200, target: 90, source: 90, at_ms: 0 };
        assert!(!foreign.fits(Some(20), 20), "answers without a result fit nothing");
    }

    #[test]
    fn a_rarer_record_needs_more_queries() {
        assert_eq!(needed_queries(20, 20), QUERIES_MIN);
        assert_eq!(needed_queries(0, 20), QUERIES_MIN);
        assert_eq!(needed_queries(255, 1), needed_queries(1, 255));
        assert!((1700..1800).contains(&needed_queries(255, 1)), "{}", needed_queries(255, 1));
    }
}
