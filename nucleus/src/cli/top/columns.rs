//! The columns of `cell top`: what each shows, how wide it is, how it sorts.

use std::cmp::Ordering;

use super::state::descending;
use crate::cli::figures::{atp, bytes, count, one_line, rough, time};
use crate::daemon::control::CellRow;

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Cell,
    State,
    CallsPerS,
    P50,
    P99,
    FuelPerS,
    Instances,
    Waiting,
    Memory,
    Atp,
    Failed,
    Crashed,
}

/// Every column, from left to right.
pub(super) const COLUMNS: [Column; 12] = [
    Column::Cell,
    Column::State,
    Column::CallsPerS,
    Column::P50,
    Column::P99,
    Column::FuelPerS,
    Column::Instances,
    Column::Waiting,
    Column::Memory,
    Column::Atp,
    Column::Failed,
    Column::Crashed,
];

/// Those that a narrow screen lacks, the first to go first.
const EXPENDABLE: [Column; 8] = [
    Column::Crashed,
    Column::Waiting,
    Column::FuelPerS,
    Column::Memory,
    Column::Instances,
    Column::P50,
    Column::Failed,
    Column::Atp,
];

/// Characters of a name that are always shown, if the screen has any columns besides.
const NAME_MIN: usize = 12;

/// The columns that a screen of this width has, and how wide its names are.
pub(super) fn fitting(width: usize) -> (Vec<Column>, usize) {
    let mut columns = COLUMNS.to_vec();
    let others = |columns: &[Column]| columns.iter().map(|column| column.width() + 1).sum();
    for expendable in EXPENDABLE {
        let taken: usize = others(&columns);
        if taken + NAME_MIN <= width {
            break;
        }
        columns.retain(|column| *column != expendable);
    }
    let taken: usize = others(&columns);
    (columns, width.saturating_sub(taken).max(1))
}

impl Column {
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Cell => "CELL",
            Self::State => "STATE",
            Self::CallsPerS => "CALLS/S",
            Self::P50 => "P50",
            Self::P99 => "P99",
            Self::FuelPerS => "FUEL/S",
            Self::Instances => "INST",
            Self::Waiting => "WAIT",
            Self::Memory => "MEM",
            Self::Atp => "ATP",
            Self::Failed => "FAILED",
            Self::Crashed => "TRAPS",
        }
    }

    /// Characters, without the gap before it; the name takes what is left.
    pub(super) const fn width(self) -> usize {
        match self {
            Self::Cell => 0,
            Self::State | Self::CallsPerS | Self::Memory | Self::Atp => 8,
            Self::P50 | Self::P99 | Self::FuelPerS | Self::Failed | Self::Crashed => 7,
            Self::Instances | Self::Waiting => 5,
        }
    }

    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Cell | Self::State)
    }

    pub(super) fn value(self, row: &CellRow) -> String {
        let stats = &row.stats;
        match self {
            Self::Cell => one_line(&row.cell),
            Self::State => one_line(&row.state),
            Self::CallsPerS => count(stats.calls_per_s),
            Self::P50 => time(stats.p50_us),
            Self::P99 => time(stats.p99_us),
            Self::FuelPerS => count(stats.fuel_per_s),
            Self::Instances => whole(stats.instances),
            Self::Waiting => whole(stats.waiting),
            Self::Memory => bytes(stats.memory_bytes),
            Self::Atp => atp(rough(stats.fuel)),
            Self::Failed => whole(stats.failed),
            Self::Crashed => whole(stats.crashed),
        }
    }

    /// What an operator looks for comes first: names from a, troubled states, large figures.
    pub(super) fn order(self, a: &CellRow, b: &CellRow) -> Ordering {
        let figure = |of: fn(&CellRow) -> u64| of(b).cmp(&of(a));
        match self {
            Self::Cell => a.cell.cmp(&b.cell),
            Self::State => urgency(&a.state).cmp(&urgency(&b.state)),
            Self::CallsPerS => descending(a.stats.calls_per_s, b.stats.calls_per_s),
            Self::P50 => figure(|row| row.stats.p50_us),
            Self::P99 => figure(|row| row.stats.p99_us),
            Self::FuelPerS => descending(a.stats.fuel_per_s, b.stats.fuel_per_s),
            Self::Instances => figure(|row| row.stats.instances),
            Self::Waiting => figure(|row| row.stats.waiting),
            Self::Memory => figure(|row| row.stats.memory_bytes),
            Self::Atp => figure(|row| row.stats.fuel),
            Self::Failed => figure(|row| row.stats.failed),
            Self::Crashed => figure(|row| row.stats.crashed),
        }
    }
}

fn urgency(state: &str) -> usize {
    let known = ["failed", "resting", "loading", "unknown", "live", "away", "stopped"];
    known.iter().position(|known| *known == state).unwrap_or(known.len())
}

fn whole(value: u64) -> String {
    if value < 10_000 { value.to_string() } else { count(rough(value)) }
}
