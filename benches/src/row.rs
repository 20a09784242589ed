//! One line of the result: what the floor took, what ours took, and whether that is enough.

use serde_json::{Value, json};

use crate::measure::Tally;

/// What a row's numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Less is better.
    Nanoseconds,
    /// More is better; each recorded value is the rate of one slice.
    CallsPerSecond,
    /// The mean of other rows' ratios; the floor is 1.
    Ratio,
}

/// A requirement on a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) text: &'static str,
    pub(crate) is_met: fn(&Row) -> bool,
}

/// One side's figures.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) p50: f64,
    /// What 99 of 100 do not miss: of times the 99th percentile, of rates the first.
    pub(crate) p99: f64,
    /// Recorded values and how often each was seen.
    counts: Vec<(u64, u64)>,
}

/// A line of the table, and an element of the JSON array.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) mode: String,
    pub(crate) unit: Unit,
    pub(crate) floor: Figures,
    pub(crate) ours: Figures,
    /// Wrong or missing replies, of the floor and of ours.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    target: Option<Target>,
    /// Payload bytes of one call.
    bytes: Option<usize>,
}

impl Row {
    pub(crate) fn new(work: String, mode: String, unit: Unit, floor: Tally, ours: Tally) -> Self {
        let errors = floor.errors + ours.errors;
        let first_error = match (&floor.first_error, &ours.first_error) {
            (Some(error), _) => Some(format!("floor: {error}")),
            (None, Some(error)) => Some(format!("ours: {error}")),
            (None, None) => None,
        };
        let figures = |tally: &Tally| Figures::of(tally, unit);
        let (floor, ours) = (figures(&floor), figures(&ours));
        Self { work, mode, unit, floor, ours, errors, first_error, target: None, bytes: None }
    }

    /// The geometric mean of other rows' ratios.
    pub(crate) fn mean(work: &str, rows: &[Self]) -> Self {
        let mean = |ratio: fn(&Self) -> f64| {
            (rows.iter().map(|row| ratio(row).ln()).sum::<f64>() / rows.len() as f64).exp()
        };
        Self {
            work: work.to_owned(),
            mode: rows.first().map(|row| row.mode.clone()).unwrap_or_default(),
            unit: Unit::Ratio,
            floor: Figures { p50: 1.0, p99: 1.0, counts: Vec::new() },
            ours: Figures {
                p50: mean(Self::ratio),
                p99: mean(Self::ratio_p99),
                counts: Vec::new(),
            },
            errors: rows.iter().map(|row| row.errors).sum(),
            first_error: None,
            target: None,
            bytes: None,
        }
    }

    pub(crate) fn with_target(mut self, target: Option<Target>) -> Self {
        self.target = target;
        self
    }

    pub(crate) fn with_bytes(mut self, bytes: usize) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Ours divided by the floor: of times at most 1 is best, of rates at least 1.
    pub(crate) fn ratio(&self) -> f64 {
        self.ours.p50 / self.floor.p50
    }

    /// The same of the p99.
    pub(crate) fn ratio_p99(&self) -> f64 {
        self.ours.p99 / self.floor.p99
    }

    pub(crate) fn target(&self) -> &'static str {
        self.target.map_or("", |target| target.text)
    }

    /// Whether the target is met; `None` without one. Wrong replies meet nothing.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.target.map(|target| self.errors == 0 && (target.is_met)(self))
    }

    /// Payload megabytes per second in one direction, of the floor and of ours.
    pub(crate) fn megabytes_per_second(&self) -> Option<(f64, f64)> {
        let bytes = self.bytes? as f64;
        let rate = |p50: f64| match self.unit {
            Unit::Nanoseconds => bytes * 1e3 / p50,
            Unit::CallsPerSecond | Unit::Ratio => bytes * p50 / 1e6,
        };
        Some((rate(self.floor.p50), rate(self.ours.p50)))
    }

    pub(crate) fn to_json(&self) -> Value {
        let bandwidth = self.megabytes_per_second();
        json!({
            "work": self.work,
            "mode": self.mode,
            "floor": self.floor.p50,
            "ours": self.ours.p50,
            "unit": match self.unit {
                Unit::Nanoseconds => "ns",
                Unit::CallsPerSecond => "calls/s",
                Unit::Ratio => "ratio",
            },
            "ratio": self.ratio(),
            "target": self.target.map(|target| target.text),
            "met": self.is_met(),
            "errors": self.errors,
            "first_error": self.first_error,
            "floor_p99": self.floor.p99,
            "ours_p99": self.ours.p99,
            "ratio_p99": self.ratio_p99(),
            "floor_mb_per_s": bandwidth.map(|(floor, _)| floor),
            "ours_mb_per_s": bandwidth.map(|(_, ours)| ours),
            "floor_histogram": self.floor.counts,
            "ours_histogram": self.ours.counts,
        })
    }
}

impl Figures {
    fn of(tally: &Tally, unit: Unit) -> Self {
        let histogram = &tally.histogram;
        let worst = match unit {
            Unit::CallsPerSecond => 0.01,
            _ => 0.99,
        };
        let counts = histogram
            .iter_recorded()
            .map(|v| (v.value_iterated_to(), v.count_at_value()))
            .collect();
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64;
        Self { p50: at(0.5), p99: at(worst), counts }
    }
}
