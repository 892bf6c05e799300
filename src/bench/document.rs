//! The page of a run, in Markdown: no part of it is written by hand.

use std::fmt::Write as _;

use super::plan::PeerKind;
use super::report::{BenchReport, RunSize, format_row};

const EDGE_PAGE_HEAD: &str = "\
# Performance

This page is written by a command, `realtime bench edge --write docs/performance.md`, which
[`benches/edge-against-sockudo`](../benches/edge-against-sockudo) runs with sockudo beside it. Run it on your own machine:
figures of another one are worth little.
";

const EDGE_PAGE_METHOD: &str = "\
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

const NCHAN_PAGE_HEAD: &str = "\
# Performance beside nchan

nginx with its module nchan is the fastest server of this kind that we know. It does less: it has no Pusher protocol, checks no
signature, and knows no members. This page is written by a command, `realtime bench edge --peer nchan=PATH --write
docs/performance-nchan.md`, which [`benches/edge-against-nchan`](../benches/edge-against-nchan) runs.
[docs/performance.md](performance.md) is beside sockudo.
";

const PODS_PAGE_HEAD: &str = "\
# Performance of several edges

What it costs that edges share a Redis: several of them, each a process as in a pod of its own, beside a single edge that
needs none. This page is written by a command, `realtime bench edge --pods 3 --write docs/performance-pods.md`, which
[`benches/pods`](../benches/pods) runs. [docs/performance.md](performance.md) is about a single edge.
";

const PODS_PAGE_METHOD: &str = "\
## How it is measured

Edges and Redis are processes of their own on loopback; the load comes from a client in another process, over WebSocket
and the signed HTTP API. Redis keeps nothing on disk. In each round a single edge with the memory bus and the edges that
share the round's Redis have the same subscribers and events, in turn; subscribers are spread over the edges, and each
channel's events are published at the edges in turn. A figure is the median of the rounds, a comparison is the median of the rounds'
own comparisons, and what was missed or repeated is the sum of all rounds.

- **Deliveries per CPU second**: events delivered by the CPU time of all edges together, from `/proc`, the HTTP requests
  with it; against the same of the single edge. Fan-out is one channel with many subscribers, the crowd has a hundred
  subscribers in each channel. The CPU of Redis is reported apart, from its INFO, and includes its
  background work.
- **Missed and repeated**: every event has a number, and every subscriber checks them. Each edge keeps the order of the
  events that are published at it; events that are published at two edges have no order.
- **Latency that the bus adds**: of the calm load, the 99th percentile with several edges less that with a single one.
  It counts only in rounds in which the host was less than 60 % busy on both sides: above it, processes wait for a core,
  and three edges wait more often than one.
- **A single delivery from edge to edge**: a publish over HTTP at one edge to its arrival over WebSocket at another, one
  at a time.
- **Subscribe and unsubscribe**: sixty sockets over all edges subscribe to channels that nobody else is in, one after
  another, and then unsubscribe from them. One is a pair of both; the CPU of Redis has everything in it that follows of
  them, also what is written a moment later.
- **Memory of Redis**: its `used_memory` with all channels occupied, less that before, by their number. After a channel was left,
  its counter is kept for an hour at most so that its order never goes back.
- **An edge is killed** (SIGKILL), with members in presence channels of a hundred. One other member of each channel is at
  one of the other edges and checks that the removal of every member is published once. The duration is from the first
  removal that any of them receives to the last. The longest command is the largest entry of Redis's SLOWLOG
  from the kill on. It is a time on the clock, so like latency it counts only where the host was less than 60 % busy, and Redis
  gets a higher priority than the others for it, where the system allows that (root), as on a machine of its own.
- **Beside joins and leaves**: the calm load's latency while twenty members of a presence channel of a hundred join and leave it, a
  thousand times a second together; each of the hundred hears of each.
- **All of its clients are back**: the sockets of an edge that is killed (SIGKILL) connect to the others and subscribe anew,
  spread evenly over ten seconds (two in the quick run); the calm load at the others goes on meanwhile.
";

const PIPELINE_PAGE_HEAD: &str = "\
# Performance of the webhook pipeline

From the recorder of an edge over the stream and a dispatcher to an endpoint. This page is written by a command, `realtime
bench pipeline --write docs/performance-pipeline.md`, which [`benches/pipeline`](../benches/pipeline) runs.
[docs/performance.md](performance.md) is about chat messages.
";

const PIPELINE_PAGE_METHOD: &str = "\
## How it is measured

The dispatcher is a process of its own, as in a pod; the recorder with a bus in memory, a Kinesis in process (ferrokinesis,
which limits no rate) and the receiver share a second one, and both share the machine. Each app has one endpoint. A figure is the
median of the rounds; what was missed or repeated is the sum of all rounds.

- **Throughput**: events by the time from the first to be recorded to the last to arrive. The recorder is fed as fast as it
  writes, with 20,000 events waiting at most. *Each event alone*: no linger, one event per record, and endpoints that take one
  event per webhook.
- **Bare loops**: in the same round, records of the same bytes. One has eight concurrent `PutRecords` calls of 500 records, as many
  as the recorder has lanes. The other reads each shard without a pause and posts the bytes of a hundred records at a time,
  without a signature; it parses nothing.
- **Missed and repeated**: client events of each channel are numbered, state events have the bus's order; the receiver checks both.
- **Memory and CPU**: the dispatcher's own, from `/proc`; at full load the largest of samples every 100 ms.
- **From event to webhook**: client events at a steady rate, from the call of the recorder to the parsed webhook, in an HDR
  histogram. By design an event waits for the linger (20 ms) and the next read (every 250 ms).
- **Chat message**: a client event at an edge with a recorder, from its sender to two subscribers, while the stream works, answers
  500, takes 5 s for each call, or throttles each call, in alternating windows. Each figure is the median of the windows' 99th
  percentiles, and the ratio is to that of the stream that works.
- **Calls**: counted at the stream; at the steady rate unless stated otherwise. A PUT payload unit is 25 KiB of one record. Prices are
  in no figure: multiply.
";

/// Renders the report as a page of the documentation.
#[must_use]
pub fn render_page(report: &BenchReport) -> String {
    let (head, how, with) = match &report.size {
        RunSize::Edge(plan) if plan.peer.as_ref().is_some_and(|peer| peer.kind == PeerKind::Nchan) => {
            (NCHAN_PAGE_HEAD, EDGE_PAGE_METHOD, "Beside")
        }
        RunSize::Edge(_) => (EDGE_PAGE_HEAD, EDGE_PAGE_METHOD, "Beside"),
        RunSize::Pods(_) => (PODS_PAGE_HEAD, PODS_PAGE_METHOD, "Over"),
        RunSize::Pipeline(_) => (PIPELINE_PAGE_HEAD, PIPELINE_PAGE_METHOD, "Over"),
    };
    let mut text = format!("{head}\n## Where and when\n\n");
    let without_peer = match report.size {
        RunSize::Pipeline(_) => "a Kinesis in process, with bare loops beside",
        _ => "nothing: rows of sockudo are not measured",
    };
    let beside = report.peer.as_deref().unwrap_or(without_peer);
    let fewer =
        if report.is_quick() { " This was the quick run; the targets are worded for the full one." } else { "" };
    for (name, value) in [
        ("Machine", report.machine.as_str()),
        ("Date", &report.date),
        ("Measured", &report.program),
        (with, beside),
        ("Size", &report.describe_size()),
        ("Host", &format!("{}{fewer}", report.describe_host())),
    ] {
        let _ = writeln!(text, "- {name}: {value}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "- Note: {note}");
    }
    let _ = write!(text, "\n## Figures\n\n| figure | value | target | |\n|---|---:|---|---|\n");
    for figure in &report.figures {
        let [name, value, target, outcome] = format_row(figure);
        let name = name.strip_prefix("  ").map_or(name.clone(), |name| format!("– {name}"));
        let outcome = if outcome == "MISSED" { "**missed**".to_owned() } else { outcome };
        let _ = writeln!(text, "| {name} | {value} | {target} | {outcome} |");
    }
    let _ = write!(text, "\n{how}");
    text
}

#[cfg(test)]
mod tests {
    use super::super::figures::EdgeRound;
    use super::super::plan::PodsPlan;
    use super::super::report::tests::test_report;
    use super::*;

    #[test]
    fn the_page_of_several_edges_names_the_redis_and_the_notes() {
        let versions = ("realtime 0.1.0".to_owned(), Some("Redis 7.0.15".to_owned()));
        let size = RunSize::Pods(PodsPlan::full_run(3));
        let report = BenchReport::without_figures(size, versions, "a machine".to_owned(), "2026-01-02".to_owned());
        let page = render_page(&BenchReport { notes: vec!["nothing was counted".to_owned()], ..report });
        for part in
            ["# Performance of several edges", "- Over: Redis 7.0.15", "- Note: nothing was counted", "- Size: 3 edges"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("sockudo"), "{page}");
    }

    #[test]
    fn the_page_has_every_figure_and_its_origin() {
        let mut round = EdgeRound::default();
        round.edge.plain_kib = 13.0;
        let report = test_report(&[round]);
        let page = render_page(&report);
        for part in ["a machine", "2026-01-02", "realtime 0.1.0", "sockudo 5.2.0", "10000 sockets over 100 channels"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.contains("| memory of an idle subscribed socket | 13 KiB | ≤ 12 KiB | **missed** |"), "{page}");
        assert_eq!(page.lines().filter(|line| line.starts_with("| ")).count(), report.figures.len() + 1);
    }
}
