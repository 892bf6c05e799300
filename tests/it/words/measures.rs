//! The rows of the table: a goal, a limit that only falls, and the figure of a tally.

use std::collections::BTreeMap;

use super::LIMITS_FILE;

/// A figure: tenths of a percent of a share, or a count.
pub(super) type Figure = u64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unit {
    Share,
    Count,
}

/// A row of the table. The file of limits and the variable `WORDS` refer to it by its key.
pub(super) struct Measure {
    pub(super) key: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    pub(super) goal: Figure,
}

const fn share(key: &'static str, title: &'static str, goal: Figure) -> Measure {
    Measure { key, title, unit: Unit::Share, goal }
}

const fn count(key: &'static str, title: &'static str) -> Measure {
    Measure { key, title, unit: Unit::Count, goal: 0 }
}

pub(super) const MEASURES: &[Measure] = &[
    share("functions", "function names of one word", 400),
    share("types", "type names of one word", 450),
    share("constants", "constants of one word", 200),
    share("pronouns", "doc sentences that begin with What/Who/Whose/Whoever/Those/Where", 10),
    share("tell", "doc sentences with tell/told", 3),
    count("short_comments", "doc comments of three words or fewer"),
    share("repeated_types", "methods that repeat their type's last word", 70),
    share("fillers", "function names with fillers", 20),
    count("ambiguous_types", "public types whose name another of their room has"),
    count("durations", "durations without their kind of bound at the end"),
    count("subjects", "commit subjects over 72 characters"),
];

/// Offenders of one measure, among all that it counts.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) total: usize,
    pub(super) offenders: Vec<String>,
}

impl Tally {
    pub(super) fn add(&mut self, is_offender: bool, offender: impl FnOnce() -> String) {
        self.total += 1;
        if is_offender {
            self.offenders.push(offender());
        }
    }
}

/// Tallies by the keys of their measures.
#[derive(Default)]
pub(super) struct Tallies(pub(super) BTreeMap<&'static str, Tally>);

impl Tallies {
    pub(super) fn entry(&mut self, key: &'static str) -> &mut Tally {
        self.0.entry(key).or_default()
    }
}

impl Measure {
    pub(super) fn figure(&self, tally: &Tally) -> Figure {
        let offenders = tally.offenders.len() as Figure;
        match self.unit {
            // Upwards: a share may not look smaller than it is.
            Unit::Share => (offenders * 1000).div_ceil((tally.total as Figure).max(1)),
            Unit::Count => offenders,
        }
    }

    pub(super) fn show(&self, figure: Figure) -> String {
        match self.unit {
            Unit::Share => format!("{}.{}", figure / 10, figure % 10),
            Unit::Count => figure.to_string(),
        }
    }

    fn read(&self, text: &str) -> Option<Figure> {
        match self.unit {
            Unit::Share => {
                let (whole, tenths) = text.split_once('.')?;
                let tenths = tenths.parse::<Figure>().ok().filter(|tenths| *tenths < 10)?;
                Some(whole.parse::<Figure>().ok()? * 10 + tenths)
            }
            Unit::Count => text.parse().ok(),
        }
    }

    /// How far below its limit a figure may be before the limit has to follow: half a point, or one in fifty.
    fn slack(&self, limit: Figure) -> Figure {
        match self.unit {
            Unit::Share => 5,
            Unit::Count => (limit / 50).max(2),
        }
    }

    /// The limit that follows from a figure: never above the old one, and not below the goal.
    pub(super) fn lowered(&self, figure: Figure, old: Option<Figure>) -> Figure {
        let new = figure.max(self.goal);
        old.map_or(new, |old| old.min(new))
    }

    /// An error when the figure is above its limit, or so far below that the limit has to follow.
    pub(super) fn check(&self, figure: Figure, limit: Option<Figure>) -> Option<String> {
        let Self { key, title, .. } = self;
        let lowered = self.show(self.lowered(figure, limit));
        let now = self.show(figure);
        let Some(limit) = limit else { return Some(format!("{title}: write `{key} {lowered}` into {LIMITS_FILE}")) };
        if figure > limit {
            let limit = self.show(limit);
            return Some(format!("{title}: {now}, at most {limit}. `WORDS={key}` lists them"));
        }
        let has_to_fall = limit > self.goal && figure + self.slack(limit) < limit;
        has_to_fall.then(|| format!("{title}: {now} now. Write `{key} {lowered}` into {LIMITS_FILE}, so that it stays"))
    }
}

/// Reads the limits: a key and a figure a line.
pub(super) fn read_limits(text: &str) -> BTreeMap<&'static str, Figure> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let limits = lines.filter_map(|(key, figure)| {
        let measure = MEASURES.iter().find(|measure| measure.key == key)?;
        Some((measure.key, measure.read(figure.trim())?))
    });
    limits.collect()
}

pub(super) fn write_limits(limits: &BTreeMap<&'static str, Figure>) -> String {
    let head =
        "# Limits of tests/it/words.rs, percent or counts. `UPDATE_LIMITS=1 cargo test --test it words` lowers them.\n";
    let lines = MEASURES.iter().filter_map(|measure| {
        let limit = limits.get(measure.key)?;
        Some(format!("{} {}\n", measure.key, measure.show(*limit)))
    });
    lines.fold(head.to_owned(), |text, line| text + &line)
}
