//! The output of a rehearsal, for people or programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::super::{files::InputManifests, print};
use super::report::RehearsalReport;
use crate::api::cluster::TransportState;
use crate::gate::Hop;
use crate::prober::{HopResult, HopTick};
use crate::protocol::Transport;
use crate::rehearsal::{DeliveredWebhook, ManifestOverride, RunningRehearsal, Switch, host_port};

/// The output of one run.
pub struct ProgressScreen {
    json: bool,
    once: bool,
    /// Live lines, on a terminal.
    bars: Option<(MultiProgress, BTreeMap<Transport, ProgressBar>)>,
    /// The furthest that each transport came, and the hops that were shown.
    shown: BTreeMap<Transport, Vec<Hop>>,
}

impl ProgressScreen {
    /// A screen for standard output.
    pub fn new(json: bool, once: bool) -> Self {
        let live = !json && std::io::stdout().is_terminal();
        Self { json, once, bars: live.then(|| (MultiProgress::new(), BTreeMap::new())), shown: BTreeMap::new() }
    }

    /// Says what is about to happen.
    pub fn show_header(&mut self, input: &InputManifests, edits: &[ManifestOverride]) {
        if self.json {
            return;
        }
        let metadata = &input.cluster.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        self.print_line(&format!(
            "Rehearsing {namespace}/{} in this process.",
            metadata.name.as_deref().unwrap_or_default()
        ));
        for (place, edit) in edits.iter().enumerate() {
            self.print_line(&format!("  edited: {edit} ({})", Switch::Edit(place)));
        }
        for note in &input.notes {
            self.print_line(&format!("  note: {note}"));
        }
    }

    /// Says what runs and where.
    pub fn show_started(&mut self, rehearsal: &RunningRehearsal) {
        if self.json {
            if !self.once {
                print_json_line("serving", describe_serving(rehearsal));
            }
            return;
        }
        if !rehearsal.stand_ins.is_empty() {
            self.print_line(&format!("  stood in for what the files do not hold: {}", rehearsal.stand_ins.join("; ")));
        }
        self.print_line("");
        if let Some((all, bars)) = &mut self.bars {
            for transport in &rehearsal.transports {
                let bar = all.add(ProgressBar::new_spinner());
                let style = ProgressStyle::with_template("  {spinner} {prefix:21} {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(transport.name());
                bar.enable_steady_tick(std::time::Duration::from_millis(100));
                bars.insert(*transport, bar);
            }
        }
    }

    /// Shows a hop when a transport passes it for the first time, and every failure.
    pub fn show_hop(&mut self, tick: &HopTick) {
        let seen = self.shown.entry(tick.transport).or_default();
        match &tick.result {
            HopResult::Passed(_) | HopResult::Proven | HopResult::NotApplicable => {
                if self.json || seen.contains(&tick.hop) {
                    return;
                }
                seen.push(tick.hop);
                let latency = match &tick.result {
                    HopResult::Passed(ms) => format!("{ms} ms"),
                    HopResult::NotApplicable => "n/a".to_owned(),
                    _ => "proven".to_owned(),
                };
                let passed = format!("{:<21} {:<12} {latency:>8}  {}", tick.transport, tick.hop.name(), tick.pod);
                let of = Hop::ALL.len();
                let ticks = format!("{:·<of$} {:>2}/{of} {}", "✓".repeat(seen.len()), seen.len(), tick.hop);
                match &self.bars {
                    Some((_, bars)) => {
                        if let Some(bar) = bars.get(&tick.transport) {
                            bar.set_message(ticks);
                        }
                    }
                    None => self.print_line(&format!("  {passed}")),
                }
            }
            HopResult::Broken(detail) if !self.json => {
                self.print_line(&format!("  {:<21} {:<12} ✗ {}: {detail}", tick.transport, tick.hop.name(), tick.pod));
            }
            HopResult::Broken(_) => {}
        }
    }

    /// Shows the verdict, and after a good one where to try the cluster.
    pub fn show_verdict(&mut self, report: &RehearsalReport, rehearsal: &RunningRehearsal) {
        if self.json {
            if self.once {
                print::print_text(&format!("{}\n", report.to_json()));
            } else {
                print_json_line("verdict", report.to_json());
            }
            return;
        }
        self.clear_bars();
        self.print_line("");
        for transport in &report.transports {
            let mark = match transport.state {
                TransportState::Passing => "✓ Passing",
                TransportState::Failing => "✗ Failing",
                TransportState::Unknown => "? Unknown",
            };
            let more = if transport.hop.is_empty() {
                let delivery = transport.latency_ms.get(&Hop::Delivery);
                delivery.map_or_else(String::new, |ms| format!("webhook after {ms} ms"))
            } else {
                format!("at hop {}", transport.hop)
            };
            self.print_line(&format!("  {:<21} {mark}  {more}", transport.name));
        }
        self.print_line("");
        let seconds = f64::from(u32::try_from(report.elapsed_ms).unwrap_or(u32::MAX)) / 1000.0;
        let word = if report.ready { "Ready" } else { "Refused" };
        self.print_line(&format!("{word} after {seconds:.1} s ({}): {}", report.reason, report.message));
        if !self.once {
            self.print_line(&describe_addresses(rehearsal));
        }
    }

    /// Shows a later change of the verdict.
    pub fn show_change(&mut self, report: &RehearsalReport) {
        if self.json {
            print_json_line("verdict", report.to_json());
        } else {
            let word = if report.ready { "Ready" } else { "Not Ready" };
            self.print_line(&format!("{word} ({}): {}", report.reason, report.message));
        }
    }

    /// Shows a fault or an edit that was switched.
    pub fn show_switch(&mut self, switch: Switch, on: bool) {
        if self.json {
            print_json_line("fault", json!({ "name": switch.to_string(), "on": on }));
            return;
        }
        let word = if on { "on" } else { "off" };
        match switch {
            Switch::Fault(fault) if on => self.print_line(&format!("fault {fault} is on: {}", fault.help())),
            Switch::Fault(fault) => self.print_line(&format!("fault {fault} is off: mended")),
            Switch::Edit(_) => self.print_line(&format!("{switch} is {word}")),
        }
    }

    /// Shows a delivered webhook.
    pub fn show_webhook(&mut self, webhook: &DeliveredWebhook) {
        if self.json {
            print_json_line("webhook", serde_json::to_value(webhook).unwrap_or_default());
            return;
        }
        for event in webhook.body["events"].as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().unwrap_or_default();
            let answer = webhook.status.map_or_else(|| webhook.error.clone(), |status| status.to_string());
            let mut line = format!(
                "webhook → {}/{}  {answer}  {:<17} {}",
                webhook.app,
                webhook.endpoint,
                text("name"),
                text("channel")
            );
            for field in ["user_id", "event", "data"] {
                if !text(field).is_empty() {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "  {field}={}", shorten_text(text(field)));
                }
            }
            self.print_line(&line);
        }
    }

    /// Says that webhooks were not shown.
    pub fn show_missed(&mut self, webhooks: u64) {
        if !self.json {
            self.print_line(&format!("({webhooks} webhooks came faster than they could be shown)"));
        }
    }

    /// Clears the live lines of the display.
    pub fn clear_bars(&mut self) {
        if let Some((all, bars)) = self.bars.take() {
            bars.values().for_each(ProgressBar::finish_and_clear);
            // A terminal that went away is no error.
            let _ = all.clear();
        }
    }

    fn print_line(&self, text: &str) {
        match &self.bars {
            Some((all, _)) => {
                // As above.
                let _ = all.println(text);
            }
            None => {
                print::print_text(&format!("{text}\n"));
            }
        }
    }
}

/// A line of JSON for a program.
fn print_json_line(kind: &str, mut value: Value) {
    value["type"] = kind.into();
    print::print_text(&format!("{value}\n"));
}

fn shorten_text(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(59).chain(['…']).collect() }
}

fn describe_serving(rehearsal: &RunningRehearsal) -> Value {
    let serving = &rehearsal.serving;
    let apps: Vec<Value> =
        serving.apps.iter().map(|(id, key, secret)| json!({ "id": id, "key": key, "secret": secret })).collect();
    json!({
        "page": serving.page.map(|address| format!("http://{address}/")),
        "websocket": serving.websocket.map(host_port),
        "sockjs": serving.sockjs.map(host_port),
        "api": serving.websocket.or(serving.sockjs).map(host_port),
        "apps": apps,
    })
}

fn describe_addresses(rehearsal: &RunningRehearsal) -> String {
    let serving = &rehearsal.serving;
    let mut text = String::from("\n");
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    if let Some(page) = serving.page {
        row("page", format!("http://{page}/"));
    }
    if let Some(address) = serving.websocket {
        row("websocket", format!("ws://{address}"));
    }
    if let Some(address) = serving.sockjs {
        row("fallbacks", format!("http://{address}"));
    }
    if let Some(address) = serving.websocket.or(serving.sockjs) {
        row("HTTP API", format!("http://{address}"));
    }
    for (id, key, secret) in &serving.apps {
        row(&format!("app {id}"), format!("key {key}  secret {secret}"));
    }
    text.push_str("\nWebhooks are printed as they arrive. Faults are switched on the page. Ctrl-C stops.\n");
    text
}
