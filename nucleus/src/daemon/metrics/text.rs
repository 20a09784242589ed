//! How the nucleus fares, in Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use crate::daemon::control::{CellRow, NucleusRow, Snapshot, WorkerRow};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric: what it is called, what it means, and its samples.
pub(super) fn exposition(snapshot: &Snapshot) -> String {
    let mut text = Text(String::new());
    if let Some(nucleus) = &snapshot.nucleus {
        of_nucleus(&mut text, nucleus);
    }
    of_cells(&mut text, &snapshot.cells);
    text.0
}

fn of_nucleus(text: &mut Text, nucleus: &NucleusRow) {
    text.family("cell_nucleus_info", "gauge", "The version of the nucleus that runs.");
    text.sample("cell_nucleus_info", &[("version", &nucleus.version)], 1);
    text.family("cell_nucleus_uptime_seconds", "gauge", "Time since the nucleus came up.");
    text.sample("cell_nucleus_uptime_seconds", &[], nucleus.up_s);
    text.family("cell_walls_missing", "gauge", "Walls around the worker that do not stand.");
    text.sample("cell_walls_missing", &[], nucleus.walls_missing.len());
    text.family(
        "cell_worker_restarts_total",
        "counter",
        "Times the worker that listens died and was started again.",
    );
    text.sample("cell_worker_restarts_total", &[], nucleus.worker_restarts);
    for (name, kind, help, value) in WORKER_FIGURES {
        text.family(name, kind, help);
        for worker in &nucleus.workers {
            text.sample(name, &[("uid", &worker.uid.to_string())], value(worker));
        }
    }
}

type WorkerFigure = (&'static str, &'static str, &'static str, fn(&WorkerRow) -> u64);

const WORKER_FIGURES: [WorkerFigure; 5] = [
    ("cell_worker_ready", "gauge", "Whether the worker of this user takes calls.", |w| {
        u64::from(w.ready)
    }),
    ("cell_worker_connections", "gauge", "Connections of clients to this user's worker.", |w| {
        w.connections
    }),
    ("cell_worker_guest_memory_bytes", "gauge", "Memory and tables of its instances.", |w| {
        w.memory_bytes
    }),
    ("cell_worker_resident_bytes", "gauge", "Memory that the worker's process occupies.", |w| {
        w.resident_bytes
    }),
    ("cell_worker_allocations_total", "counter", "Allocations of threads that serve calls.", |w| {
        w.allocations
    }),
];

type CellFigure = (&'static str, &'static str, &'static str, fn(&CellRow) -> u64);

const CELL_FIGURES: [CellFigure; 5] = [
    ("cell_calls_total", "counter", "Calls that ended, however they ended.", |c| c.stats.calls),
    ("cell_fuel_total", "counter", "Fuel burned; 1 fuel earns 1 nano-ATP.", |c| c.stats.fuel),
    ("cell_instances", "gauge", "Instances that serve or are idle.", |c| c.stats.instances),
    ("cell_waiting_calls", "gauge", "Calls that wait for an instance.", |c| c.stats.waiting),
    ("cell_memory_bytes", "gauge", "Memory and tables of the cell's instances.", |c| {
        c.stats.memory_bytes
    }),
];

fn of_cells(text: &mut Text, cells: &[CellRow]) {
    text.family("cell_state", "gauge", "The state a cell is in, as the label says.");
    for row in cells {
        text.sample("cell_state", &[("cell", &row.cell), ("state", &row.state)], 1);
    }
    for (name, kind, help, value) in CELL_FIGURES {
        text.family(name, kind, help);
        for row in cells {
            text.sample(name, &[("cell", &row.cell)], value(row));
        }
    }
    text.family("cell_failures_total", "counter", "Calls that failed, by what they failed of.");
    for row in cells {
        for (cause, failed) in &row.stats.failures {
            let labels = [("cell", row.cell.as_str()), ("cause", &cause.word())];
            text.sample("cell_failures_total", &labels, failed);
        }
    }
    text.family(
        "cell_call_duration_seconds",
        "summary",
        "Time from a call's frame to its reply; the quantiles are over the last 5 to 10 seconds.",
    );
    for row in cells.iter().filter(|row| row.stats.timed > 0) {
        durations(text, row);
    }
}

fn durations(text: &mut Text, row: &CellRow) {
    let (cell, stats) = (row.cell.as_str(), &row.stats);
    for (quantile, micros) in [("0.5", stats.p50_us), ("0.99", stats.p99_us)] {
        let labels = [("cell", cell), ("quantile", quantile)];
        // Without calls there is no quantile, which the format calls so.
        let value = if micros == 0 { "NaN".to_owned() } else { seconds(micros) };
        text.sample("cell_call_duration_seconds", &labels, value);
    }
    let labels = [("cell", cell)];
    text.sample("cell_call_duration_seconds_sum", &labels, seconds(stats.timed_us));
    text.sample("cell_call_duration_seconds_count", &labels, stats.timed);
}

/// Exactly, where a float would round.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, content)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"");
            self.label(content);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A directory in `cells/` may have any name, also one that is no cell's.
    fn label(&mut self, content: &str) {
        for c in content.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Cause, CellStats};

    #[test]
    fn labels_and_quantiles() {
        let trapped = Cause::of(cell_abi::Status::Trapped).unwrap();
        let stats = CellStats {
            calls: 3,
            timed: 3,
            timed_us: 2_000_001,
            p50_us: 17,
            failures: [(trapped, 2)].into(),
            ..CellStats::default()
        };
        let row = CellRow {
            cell: "a\"b\\c\nd".into(),
            state: "failed".into(),
            stats,
            ..CellRow::default()
        };
        let text = exposition(&Snapshot { nucleus: None, cells: vec![row] });
        let name = r#"cell="a\"b\\c\nd""#;
        for line in [
            format!("cell_state{{{name},state=\"failed\"}} 1"),
            format!("cell_calls_total{{{name}}} 3"),
            format!("cell_failures_total{{{name},cause=\"trapped\"}} 2"),
            format!("cell_call_duration_seconds{{{name},quantile=\"0.5\"}} 0.000017"),
            format!("cell_call_duration_seconds{{{name},quantile=\"0.99\"}} NaN"),
            format!("cell_call_duration_seconds_sum{{{name}}} 2.000001"),
            format!("cell_call_duration_seconds_count{{{name}}} 3"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("cell_") || line.starts_with("# ")));
    }
}
