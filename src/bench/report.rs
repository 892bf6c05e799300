//! The result of a run, as programs and people read it.

use std::fmt::Write as _;

use serde::Serialize;

use super::figures::{Figure, Goal, Standing};
use super::machine::VOID_ABOVE;
use super::plan::Plan;

/// What a run found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether others kept the host so busy that the figures say nothing.
    pub void: bool,
    /// The share of the host's CPU that others took.
    pub others: f64,
    /// Whether crowds were smaller and rounds fewer than the targets are worded for.
    pub quick: bool,
    /// Rounds.
    pub rounds: usize,
    /// Sockets of the crowd.
    pub sockets: usize,
    /// Its channels.
    pub channels: usize,
    /// Publishes a second to it.
    pub publishes_per_second: u32,
    /// Members of presence channels.
    pub members: usize,
    /// Sessions over `xhr_streaming`.
    pub sessions: usize,
    /// Subscribers of the fan-out.
    pub subscribers: usize,
    /// Its events a second.
    pub events_per_second: u32,
    /// Seconds of each publishing.
    pub seconds: u64,
    /// What was measured, with its release and build.
    pub program: String,
    /// What it was measured beside.
    pub peer: Option<String>,
    /// Where.
    pub machine: String,
    /// When, in UTC.
    pub date: String,
    /// How long the run took, in seconds.
    pub took: u64,
    /// What was found.
    pub figures: Vec<Figure>,
}

impl Report {
    /// A run with nothing found yet.
    #[must_use]
    pub fn of(plan: &Plan, (program, peer): (String, Option<String>), machine: String, date: String) -> Self {
        Self {
            void: false,
            others: 0.0,
            quick: plan.quick,
            rounds: plan.rounds,
            sockets: plan.sockets,
            channels: plan.channels,
            publishes_per_second: plan.publishes_per_second,
            members: plan.members,
            sessions: plan.sessions,
            subscribers: plan.subscribers,
            events_per_second: plan.events_per_second,
            seconds: plan.publishing.as_secs(),
            program,
            peer,
            machine,
            date,
            took: 0,
            figures: Vec::new(),
        }
    }

    /// Whether a target that was measured is missed.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.figures.iter().any(|figure| figure.standing == Standing::Missed)
    }

    /// How large the run was, in a line.
    pub(super) fn size(&self) -> String {
        format!(
            "{} sockets over {} channels with {} publishes/s, {} presence members, {} xhr_streaming sessions; \
             fan-out to {} subscribers with {} events/s; {} s each, {} round{}",
            self.sockets,
            self.channels,
            self.publishes_per_second,
            self.members,
            self.sessions,
            self.subscribers,
            self.events_per_second,
            self.seconds,
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
        )
    }

    /// How busy others were, in a sentence.
    pub(super) fn host(&self) -> String {
        let share = |share: f64| format!("{:.0} %", share * 100.0);
        let told = format!("Others took {} of the host's CPU while it was measured", share(self.others));
        if self.void {
            format!("{told}, more than {}: this run is void. Run it again on a quieter host.", share(VOID_ABOVE))
        } else {
            format!("{told}; above {} a run is void.", share(VOID_ABOVE))
        }
    }
}

/// A value with as many digits as mean something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        whole if whole.fract() == 0.0 => format!("{value:.0}"),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The cells of a figure's row: name, value with unit, target, how it stands.
pub(super) fn cells(figure: &Figure) -> [String; 4] {
    let with_unit = |value: f64| format!("{} {}", number(value), figure.unit).trim_end().to_owned();
    let target = match figure.target {
        None => String::new(),
        Some(Goal::AtMost(most)) => format!("≤ {}", with_unit(most)),
        Some(Goal::AtLeast(least)) => format!("≥ {}", with_unit(least)),
    };
    let standing = match figure.standing {
        Standing::Met => "met",
        Standing::Missed => "MISSED",
        Standing::Told => "",
        Standing::NotMeasured => "not measured",
    };
    [figure.name.to_owned(), figure.value.map(with_unit).unwrap_or_default(), target, standing.to_owned()]
}

/// The result for people.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut rows = vec![["figure", "value", "target", ""].map(str::to_owned)];
    rows.extend(report.figures.iter().map(cells));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [name, value, target, standing] in &rows {
        let line = format!("{name:first$}  {value:>second$}  {target:third$}  {standing}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let fewer = if report.quick { " The quick run: the targets are worded for the full one." } else { "" };
    let _ = write!(
        text,
        "\n{}\n{}\n{} on {}, {} s.\n{}{fewer}\n",
        report.size(),
        report.machine,
        report.peer.as_ref().map_or(report.program.clone(), |peer| format!("{} beside {peer}", report.program)),
        report.date,
        report.took,
        report.host(),
    );
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::figures::{Round, figures};
    use super::*;

    pub fn report(rounds: &[Round]) -> Report {
        let versions = ("realtime 0.1.0".to_owned(), Some("sockudo 5.2.0".to_owned()));
        let report = Report::of(&Plan::full(), versions, "a machine".to_owned(), "2026-01-02".to_owned());
        Report { figures: figures(rounds, Some(20.5)), ..report }
    }

    #[test]
    fn every_figure_has_its_row_with_value_unit_target_and_standing() {
        let mut round = Round::default();
        (round.edge.plain_kib, round.edge.member_kib, round.edge.accept_us) = (9.876, 17.0, 123.4);
        let report = report(&[round]);
        let text = text(&report);
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned).expect("a row");
        for (name, parts) in [
            ("memory of an idle subscribed socket", &["9.88 KiB", "≤ 12 KiB", "met"][..]),
            ("memory of an idle presence member", &["17 KiB", "≤ 16 KiB", "MISSED"]),
            ("CPU to take in", &["123 µs"]),
            ("idle xhr_polling", &["20.5 s", "≥ 20 s", "met"]),
            ("  ours to sockudo's", &["≤ 0.10 ×", "not measured"]),
        ] {
            for part in parts {
                assert!(row(name).contains(part), "{name}: {part}: {}", row(name));
            }
        }
        assert!(text.lines().count() > report.figures.len());
        assert!(report.missed(), "a target is missed");
    }

    #[test]
    fn a_void_run_says_so_and_what_to_do() {
        let void = Report { void: true, others: 0.91, ..report(&[]) };
        assert!(text(&void).contains("91 %") && text(&void).contains("void. Run it again"), "{}", text(&void));
        assert!(!void.missed(), "nothing was measured");
    }

    #[test]
    fn a_table_of_numbers() {
        for (value, expected) in
            [(0.0, "0"), (0.126, "0.13"), (12.34, "12.3"), (123.4, "123"), (2_000_000.0, "2000000")]
        {
            assert_eq!(number(value), expected);
        }
    }
}
