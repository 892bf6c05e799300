//! The page of a run, in Markdown: nothing in it is written by hand.

use std::fmt::Write as _;

use super::report::{Report, cells};

const HEAD: &str = "\
# Performance

This page is written by a command, `realtime bench edge --write docs/performance.md`, which
[`benches/edge-against-sockudo`](../benches/edge-against-sockudo) runs with sockudo beside it. Run it on your own machine:
figures of another one are worth little.
";

const HOW: &str = "\
## How it is measured

Every server is a process of its own on loopback, with its release build and one app; the load comes from a client in
another process, over WebSocket, the HTTP fallbacks and the signed HTTP API. Servers run in turn within each round, each
measurement with a fresh process; a figure is the median of the rounds, and a comparison is the median of the rounds' own
comparisons. Missed and repeated events are the sum of all rounds. CPU and memory are the server's own, from `/proc`.

- **Memory of a socket**: resident memory with the crowd subscribed and at rest, less that of the same process before, by
  the number of sockets. The process has met a hundred sockets and some publishes before. Plain sockets are each in one
  private channel, members each in one presence channel of a hundred.
- **Memory after they left**: resident memory once it is back, 20 s after the last one left at the latest, to that before.
- **CPU to take in a socket**: from the connection to the answer to its signed subscription.
- **CPU per delivery**: of the whole server while it publishes, the HTTP requests with it, by the events delivered. The
  bare broadcast is axum's WebSocket with the same buffers and a channel of tokio's; it writes each event by itself and
  checks no signature.
- **Latency**: from when an event was due at its publisher until a subscriber has read it, in an HDR histogram, so that a
  server that falls behind shows it. Client and server share the machine.
- **Missed and repeated**: every event has a number, and every subscriber checks them.
- **Distance to the echo**: a publish over HTTP to its arrival over WebSocket, one at a time, less the round trip of as
  many bytes through a process that only echoes.
";

/// The page.
#[must_use]
pub fn document(report: &Report) -> String {
    let mut text = format!("{HEAD}\n## Where and when\n\n");
    let beside = report.peer.as_deref().unwrap_or("nothing: rows of sockudo are not measured");
    let fewer = if report.quick { " This was the quick run; the targets are worded for the full one." } else { "" };
    for (name, value) in [
        ("Machine", report.machine.as_str()),
        ("Date", &report.date),
        ("Measured", &report.program),
        ("Beside", beside),
        ("Size", &report.size()),
        ("Host", &format!("{}{fewer}", report.host())),
    ] {
        let _ = writeln!(text, "- {name}: {value}");
    }
    let _ = write!(text, "\n## Figures\n\n| figure | value | target | |\n|---|---:|---|---|\n");
    for figure in &report.figures {
        let [name, value, target, standing] = cells(figure);
        let name = name.strip_prefix("  ").map_or(name.clone(), |name| format!("– {name}"));
        let standing = if standing == "MISSED" { "**missed**".to_owned() } else { standing };
        let _ = writeln!(text, "| {name} | {value} | {target} | {standing} |");
    }
    let _ = write!(text, "\n{HOW}");
    text
}

#[cfg(test)]
mod tests {
    use super::super::figures::Round;
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_holds_every_figure_and_where_it_comes_from() {
        let mut round = Round::default();
        round.edge.plain_kib = 13.0;
        let report = report(&[round]);
        let page = document(&report);
        for part in ["a machine", "2026-01-02", "realtime 0.1.0", "sockudo 5.2.0", "10000 sockets over 100 channels"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.contains("| memory of an idle subscribed socket | 13 KiB | ≤ 12 KiB | **missed** |"), "{page}");
        assert_eq!(page.lines().filter(|line| line.starts_with("| ")).count(), report.figures.len() + 1);
    }
}
