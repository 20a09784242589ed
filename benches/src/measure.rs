//! Two sides measured in short interleaved slices, so that a busy moment of the machine hits both.
//!
//! It knows neither sockets nor wasm: a [`Side`] does the work and says what it saw.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::cli::Plan;

/// Largest value a histogram takes: a minute in nanoseconds, or as many calls per second.
const VALUE_MAX: u64 = 60_000_000_000;

/// How long and how often each side works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: u32,
    pub(crate) slice: Duration,
    pub(crate) warm_up: Duration,
}

impl Rounds {
    pub(crate) const FULL: Self =
        Self { count: 20, slice: Duration::from_millis(50), warm_up: Duration::from_millis(150) };
    pub(crate) const QUICK: Self =
        Self { count: 6, slice: Duration::from_millis(25), warm_up: Duration::from_millis(50) };
}

/// The floor, or ours.
pub(crate) trait Side {
    /// Works for about this long. What goes wrong is counted in the tally and ends the slice.
    fn slice(&mut self, length: Duration, tally: &mut Tally);
}

/// What one side was seen to do.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) histogram: Histogram<u64>,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, VALUE_MAX, 3)?;
        Ok(Self { histogram, errors: 0, first_error: None })
    }

    pub(crate) fn record(&mut self, value: u64) {
        self.histogram.saturating_record(value.max(1));
    }

    pub(crate) fn record_time(&mut self, time: Duration) {
        self.record(nanoseconds(time));
    }

    /// Records how many calls a second a slice came to.
    pub(crate) fn record_rate(&mut self, calls: u64, time: Duration) {
        let per_second = u128::from(calls) * 1_000_000_000 / time.as_nanos().max(1);
        self.record(u64::try_from(per_second).unwrap_or(u64::MAX));
    }

    /// Records how long something took, or that it failed; says whether it did not.
    pub(crate) fn take(&mut self, timed: anyhow::Result<Duration>) -> bool {
        timed.map(|time| self.record_time(time)).map_err(|e| self.error(format!("{e:#}"))).is_ok()
    }

    pub(crate) fn error(&mut self, error: impl ToString) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

/// Measures both sides in turn; in every second round ours goes first.
pub(crate) fn compare(
    plan: &Plan,
    floor: &mut dyn Side,
    ours: &mut dyn Side,
    mut after_slice: impl FnMut(),
) -> anyhow::Result<(Tally, Tally)> {
    let Rounds { count, slice, warm_up } = plan.rounds;
    let (mut floor_tally, mut ours_tally) = (Tally::new()?, Tally::new()?);
    // A warm-up's times are dropped, its errors are not.
    floor.slice(warm_up, &mut floor_tally);
    ours.slice(warm_up, &mut ours_tally);
    floor_tally.histogram.reset();
    ours_tally.histogram.reset();
    for round in 0..count {
        plan.check_interrupted()?;
        if round.is_multiple_of(2) {
            floor.slice(slice, &mut floor_tally);
            ours.slice(slice, &mut ours_tally);
        } else {
            ours.slice(slice, &mut ours_tally);
            floor.slice(slice, &mut floor_tally);
        }
        after_slice();
        // A side that fails again and again measures nothing.
        if floor_tally.errors + ours_tally.errors > 0 {
            break;
        }
    }
    Ok((floor_tally, ours_tally))
}

/// Something done again and again, timed in batches of `batch`.
pub(crate) struct Repeated<F> {
    pub(crate) batch: u32,
    pub(crate) work: F,
}

impl<F: FnMut() -> Result<(), String>> Side for Repeated<F> {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        loop {
            let start = Instant::now();
            for _ in 0..self.batch {
                if let Err(error) = (self.work)() {
                    return tally.error(error);
                }
            }
            let now = Instant::now();
            tally.record_time((now - start) / self.batch);
            if now >= end {
                return;
            }
        }
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
