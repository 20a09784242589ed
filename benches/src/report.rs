//! The one place that prints: the table to standard output, progress and errors to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is this module's job")]

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::cli::Plan;
use crate::placement::Cores;
use crate::row::{Row, Unit};

/// The rows so far; each is printed as soon as it is there.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Row>,
    machine: String,
}

impl Report {
    /// What is measured where, in a line.
    pub(crate) fn machine(&self) -> &str {
        &self.machine
    }

    /// Says what is measured where.
    pub(crate) fn new(plan: &Plan, cores: &Cores) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        let machine = format!(
            "{} rounds of {} ms for each side; {} cores, load {}, Linux {}",
            plan.rounds.count,
            plan.rounds.slice.as_millis(),
            cores.numbers().len(),
            load.split(' ').next().unwrap_or_default(),
            read("/proc/sys/kernel/osrelease").trim(),
        );
        println!("{machine}");
        println!();
        println!(
            "{:32} {:10} {:>10} {:>10} {:>10} {:>10} {:9} {:>6} {:>6} {:>13}  {:24} {:4} {:>6}",
            "work",
            "mode",
            "floor p50",
            "floor p99",
            "ours p50",
            "ours p99",
            "unit",
            "ratio",
            "r. p99",
            "MB/s",
            "target",
            "met",
            "errors"
        );
        Self { rows: Vec::new(), machine }
    }

    /// Prints and keeps a row.
    pub(crate) fn add(&mut self, row: Row) {
        let (scale, unit) = scale(&row);
        let bandwidth =
            row.megabytes_per_second().map(|(floor, ours)| format!("{floor:.0} {ours:.0}"));
        let met = match row.is_met() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        println!(
            "{:32} {:10} {:>10} {:>10} {:>10} {:>10} {unit:9} {:>6.2} {:>6.2} {:>13}  {:24} {met:4} {:>6}",
            row.work,
            row.mode,
            number(row.floor.p50 / scale),
            number(row.floor.p99 / scale),
            number(row.ours.p50 / scale),
            number(row.ours.p99 / scale),
            row.ratio(),
            row.ratio_p99(),
            bandwidth.unwrap_or_default(),
            row.target(),
            row.errors,
        );
        if let Some(error) = &row.first_error {
            println!("    failed: {error}");
        }
        self.rows.push(row);
    }

    /// Prints a line of another table.
    pub(crate) fn line(text: &str) {
        println!("{text}");
    }

    /// Prints a remark between rows.
    pub(crate) fn note(&self, text: &str) {
        println!("    {text}");
    }

    /// A bar on a terminal; nothing elsewhere. It is drawn between slices only.
    pub(crate) fn progress(&self, work: &str, rounds: u32) -> ProgressBar {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(rounds.into()), target);
        if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len}") {
            bar.set_style(style);
        }
        bar.with_message(work.to_owned())
    }

    /// Writes the rows; `false` if any reply was wrong or missing, or nothing was measured.
    pub(crate) fn finish(&self, json: Option<&Path>) -> anyhow::Result<bool> {
        if let Some(path) = json {
            let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
            fs::write(path, serde_json::to_vec(&rows)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
        let errors: u64 = self.rows.iter().map(|row| row.errors).sum();
        println!();
        if self.rows.is_empty() {
            println!("no work has such a name");
        } else if errors > 0 {
            println!("{errors} errors: these figures are worth nothing");
        } else {
            let judged: Vec<_> = self.rows.iter().filter_map(Row::is_met).collect();
            println!(
                "no errors; {} of {} targets met",
                judged.iter().filter(|met| **met).count(),
                judged.len()
            );
        }
        Ok(errors == 0 && !self.rows.is_empty())
    }

    /// Says why the run ended early.
    pub(crate) fn error(error: &anyhow::Error) {
        eprintln!("error: {error:#}");
    }
}

/// The unit in which a row is easiest to read, and how much of the row's own unit it is.
fn scale(row: &Row) -> (f64, &'static str) {
    match row.unit {
        Unit::Nanoseconds if row.floor.p50 < 2e3 => (1.0, "ns"),
        Unit::Nanoseconds if row.floor.p50 < 2e6 => (1e3, "µs"),
        Unit::Nanoseconds => (1e6, "ms"),
        Unit::CallsPerSecond if row.floor.p50 < 2e4 => (1.0, "calls/s"),
        Unit::CallsPerSecond => (1e3, "k calls/s"),
        Unit::Ratio => (1.0, ""),
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
