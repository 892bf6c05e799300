//! The report of a run, as JSON and as text.

use std::fmt::Write as _;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use super::figures::{Figure, FigureTarget, TargetOutcome};
use super::machine::{self, HostUsage, OTHERS_SHARE_MAX};
use super::plan::{EdgePlan, PipelinePlan, PodsPlan};
use crate::process::build;

/// Plan of a run, which decides the figures that were measured.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum RunSize {
    /// A single edge beside other servers.
    Edge(EdgePlan),
    /// Several edges that share a Redis, beside a single one.
    Pods(PodsPlan),
    /// The webhook pipeline, beside bare loops.
    Pipeline(PipelinePlan),
}

/// Report of one run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchReport {
    /// Whether other processes kept the host so busy that the figures are void.
    pub void: bool,
    /// Share of the host's CPU that other processes took.
    pub others: f64,
    /// Plan of the run.
    #[serde(flatten)]
    pub size: RunSize,
    /// Duration of each publishing, in seconds.
    pub seconds: u64,
    /// The measured program, with its release and build.
    pub program: String,
    /// The server that it was measured beside, or the Redis that edges shared.
    pub peer: Option<String>,
    /// Description of the machine.
    pub machine: String,
    /// Start of the run, in UTC.
    pub date: String,
    /// Duration of the run, in seconds.
    pub took: u64,
    /// Figures in the order of the report.
    pub figures: Vec<Figure>,
    /// Remarks that a reader must know beside the figures.
    pub notes: Vec<String>,
}

/// Creates the report of a run that begins now, on this machine and with this program.
pub async fn begin_report(size: RunSize, peer: Option<String>) -> BenchReport {
    let program = format!("realtime {}, build {}", env!("CARGO_PKG_VERSION"), build::read_build_id().await);
    let date = Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    BenchReport::without_figures(size, (program, peer), machine::describe_machine(), date)
}

impl BenchReport {
    /// Creates a report without figures.
    #[must_use]
    pub fn without_figures(
        size: RunSize,
        (program, peer): (String, Option<String>),
        machine: String,
        date: String,
    ) -> Self {
        let publishing = match &size {
            RunSize::Edge(plan) => plan.publishing,
            RunSize::Pods(plan) => plan.publishing,
            RunSize::Pipeline(plan) => plan.calm,
        };
        Self {
            void: false,
            others: 0.0,
            size,
            seconds: publishing.as_secs(),
            program,
            peer,
            machine,
            date,
            took: 0,
            figures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Ends the run now, and adds the host's usage to the report.
    pub fn finish_run(&mut self, watch: &HostUsage, began: Instant) {
        (self.void, self.others) = (watch.is_void(), watch.others_share());
        self.took = began.elapsed().as_secs();
    }

    /// Whether crowds were smaller and rounds fewer than the targets are worded for.
    pub(super) fn is_quick(&self) -> bool {
        match &self.size {
            RunSize::Edge(plan) => plan.quick,
            RunSize::Pods(plan) => plan.quick,
            RunSize::Pipeline(plan) => plan.quick,
        }
    }

    /// Whether a target that was measured is missed.
    #[must_use]
    pub fn has_missed_target(&self) -> bool {
        self.figures.iter().any(|figure| figure.outcome == TargetOutcome::Missed)
    }

    /// Describes the size of the run in a line.
    pub(super) fn describe_size(&self) -> String {
        let (sizes, rounds) = match &self.size {
            RunSize::Edge(plan) => (
                format!(
                    "{} sockets over {} channels with {} publishes/s, {} presence members, {} xhr_streaming sessions; \
                     fan-out to {} subscribers with {} events/s",
                    plan.sockets,
                    plan.channels,
                    plan.publishes_per_second,
                    plan.members,
                    plan.sessions,
                    plan.subscribers,
                    plan.events_per_second,
                ),
                plan.rounds,
            ),
            RunSize::Pods(plan) => (
                format!(
                    "{} edges beside a single one; fan-out to {} subscribers with {} events/s, crowd of {} sockets over \
                     {} channels with {} publishes/s, calm load of {} sockets over {} channels with {} publishes/s; {} \
                     occupied channels, {} presence members of the killed edge, {} sockets of another one",
                    plan.pods,
                    plan.subscribers,
                    plan.events_per_second,
                    plan.sockets,
                    plan.channels,
                    plan.publishes_per_second,
                    plan.calm_sockets,
                    plan.calm_channels,
                    plan.calm_per_second,
                    plan.occupied,
                    plan.members,
                    plan.storm_sockets,
                ),
                plan.rounds,
            ),
            RunSize::Pipeline(plan) => (
                format!(
                    "events of 300 bytes over {} channels, one in five of state; {} shards, {} endpoints; {} events in \
                     batches and {} each alone, {} events/s to time them, {} beside an endpoint that refuses its own, \
                     {} users, {} senders of 10 chat messages/s",
                    plan.channels,
                    plan.shards,
                    plan.endpoints,
                    plan.events,
                    plan.single_events,
                    plan.calm_per_second,
                    plan.refused_events,
                    plan.users,
                    plan.chat_senders,
                ),
                plan.rounds,
            ),
        };
        format!("{sizes}; {} s each, {rounds} round{}", self.seconds, if rounds == 1 { "" } else { "s" })
    }

    /// Describes in a sentence how busy other processes kept the host.
    pub(super) fn describe_host(&self) -> String {
        let share = |share: f64| format!("{:.0} %", share * 100.0);
        let usage = format!("Others took {} of the host's CPU while it was measured", share(self.others));
        if self.void {
            format!("{usage}, more than {}: this run is void. Run it again on a quieter host.", share(OTHERS_SHARE_MAX))
        } else {
            format!("{usage}; above {} a run is void.", share(OTHERS_SHARE_MAX))
        }
    }
}

/// Formats a value with at most two decimals, and fewer for larger values.
pub(super) fn format_number(value: f64) -> String {
    match value.abs() {
        whole if whole.fract() == 0.0 => format!("{value:.0}"),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats the cells of a figure's row: name, value with unit, target, outcome.
pub(super) fn format_row(figure: &Figure) -> [String; 4] {
    let with_unit = |value: f64| format!("{} {}", format_number(value), figure.unit).trim_end().to_owned();
    let target = match figure.target {
        None => String::new(),
        Some(FigureTarget::AtMost(most)) => format!("≤ {}", with_unit(most)),
        Some(FigureTarget::AtLeast(least)) => format!("≥ {}", with_unit(least)),
    };
    let outcome = match figure.outcome {
        TargetOutcome::Met => "met",
        TargetOutcome::Missed => "MISSED",
        TargetOutcome::NoTarget => "",
        TargetOutcome::NotMeasured => "not measured",
    };
    [figure.name.to_owned(), figure.value.map(with_unit).unwrap_or_default(), target, outcome.to_owned()]
}

/// Renders the report as text for a terminal.
#[must_use]
pub fn render_text(report: &BenchReport) -> String {
    let mut rows = vec![["figure", "value", "target", ""].map(str::to_owned)];
    rows.extend(report.figures.iter().map(format_row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [name, value, target, outcome] in &rows {
        let line = format!("{name:first$}  {value:>second$}  {target:third$}  {outcome}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let fewer = if report.is_quick() { " The quick run: the targets are worded for the full one." } else { "" };
    let word = if matches!(report.size, RunSize::Edge(_)) { "beside" } else { "over" };
    let _ = write!(
        text,
        "\n{}\n{}\n{} on {}, {} s.\n{}{fewer}\n",
        report.describe_size(),
        report.machine,
        report.peer.as_ref().map_or(report.program.clone(), |peer| format!("{} {word} {peer}", report.program)),
        report.date,
        report.took,
        report.describe_host(),
    );
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::figures::{EdgeRound, compute_edge_figures};
    use super::super::plan::PeerKind;
    use super::*;

    pub fn test_report(rounds: &[EdgeRound]) -> BenchReport {
        let versions = ("realtime 0.1.0".to_owned(), Some("sockudo 5.2.0".to_owned()));
        let report = BenchReport::without_figures(
            RunSize::Edge(EdgePlan::full_run()),
            versions,
            "a machine".to_owned(),
            "2026-01-02".to_owned(),
        );
        BenchReport { figures: compute_edge_figures(rounds, Some(20.5), PeerKind::Sockudo), ..report }
    }

    #[test]
    fn every_figure_has_its_row_with_value_unit_target_and_outcome() {
        let mut round = EdgeRound::default();
        (round.edge.plain_kib, round.edge.member_kib, round.edge.accept_us) = (9.876, 17.0, 123.4);
        let report = test_report(&[round]);
        let text = render_text(&report);
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
        assert!(report.has_missed_target(), "a target is missed");
    }

    #[test]
    fn a_void_run_says_so_and_what_to_do() {
        let void = BenchReport { void: true, others: 0.91, ..test_report(&[]) };
        assert!(
            render_text(&void).contains("91 %") && render_text(&void).contains("void. Run it again"),
            "{}",
            render_text(&void)
        );
        assert!(!void.has_missed_target(), "nothing was measured");
    }

    #[test]
    fn a_table_of_numbers() {
        for (value, expected) in
            [(0.0, "0"), (0.126, "0.13"), (12.34, "12.3"), (123.4, "123"), (2_000_000.0, "2000000")]
        {
            assert_eq!(format_number(value), expected);
        }
    }
}
