//! What a call or a job takes besides fuel, and what that costs.
//!
//! All of it counts against the one limit that a call has: a nano-ATP of memory leaves one less for
//! fuel. Fuel itself is counted as ever, so that it stays what a re-run finds. What ran out is seen at the
//! next host call, at the end of the slice, or at the end of the call; the bill is cut to the limit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// More time than this between two looks at a job is time in which its process was frozen, in microseconds.
const GAP_US: u64 = 1_000_000;

/// What is counted besides fuel, in the order in which it is billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    /// Instances started for one call or job and no other.
    Start,
    /// Bytes of replies and rejects; of a job, what it wrote to standard output and error.
    Egress,
    /// Linear memory by the time it was held: pages of 64 KiB times microseconds of the host's clock.
    Memory,
}

impl Dimension {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Start, Self::Egress, Self::Memory];

    /// In a word, as receipts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Egress => "egress",
            Self::Memory => "memory",
        }
    }

    /// How many of what is counted a [`Rates`] price is for: one start, a GiB, a GiB for a second.
    pub const fn per(self) -> u64 {
        match self {
            Self::Start => 1,
            Self::Egress => 1 << 30,
            Self::Memory => (1 << 30 >> 16) * 1_000_000,
        }
    }
}

/// Nano-ATP for [`Dimension::per`] of each dimension, in the order of [`Dimension::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates(pub [u64; 3]);

impl Rates {
    /// Whether fuel is all that is paid for.
    pub const fn are_zero(&self) -> bool {
        matches!(self.0, [0, 0, 0])
    }

    /// The price of this dimension.
    pub const fn of(&self, dimension: Dimension) -> u64 {
        let [start, egress, memory] = self.0;
        match dimension {
            Dimension::Start => start,
            Dimension::Egress => egress,
            Dimension::Memory => memory,
        }
    }
}

/// How much was taken of each dimension, in the order of [`Dimension::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken(pub [u64; 3]);

impl Taken {
    /// What is set against the limit of one call, each dimension rounded up.
    pub fn cost(&self, rates: Rates) -> u64 {
        self.sum(rates, |cost, per| cost.div_ceil(per))
    }

    /// What a total is charged, each dimension rounded down.
    pub fn charge(&self, rates: Rates) -> u64 {
        self.sum(rates, |cost, per| cost / per)
    }

    fn sum(&self, rates: Rates, round: impl Fn(u128, u128) -> u128) -> u64 {
        if rates.are_zero() {
            return 0;
        }
        let cost = |((dimension, count), rate): ((Dimension, u64), u64)| {
            round(u128::from(count) * u128::from(rate), dimension.per().into())
        };
        let costs = Dimension::ALL.into_iter().zip(self.0).zip(rates.0).map(cost);
        let sum = costs.fold(0, u128::saturating_add);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// As much of it as this many nano-ATP pay for; nothing of what is free.
    #[must_use]
    pub fn cut(mut self, rates: Rates, mut room: u64) -> Self {
        for (place, (dimension, rate)) in Dimension::ALL.into_iter().zip(rates.0).enumerate() {
            let Some(count) = self.0.get_mut(place) else { continue };
            let per = u128::from(dimension.per());
            let paid = (u128::from(room) * per).checked_div(rate.into()).unwrap_or(0);
            *count = u64::try_from(paid).unwrap_or(u64::MAX).min(*count);
            let cost = (u128::from(*count) * u128::from(rate)).div_ceil(per);
            room = room.saturating_sub(u64::try_from(cost).unwrap_or(u64::MAX));
        }
        self
    }

    /// Adds what another took.
    pub fn add(&mut self, other: Self) {
        for (mine, more) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(more);
        }
    }
}

/// What a call took besides fuel; seldom anything, so it is kept apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra {
    /// What its cell took, without its callees.
    pub taken: Taken,
    /// What that and its callees' cost, in nano-ATP.
    pub nano_atp: u64,
}

/// What a call or job costs, within its limit.
#[derive(Debug)]
pub(crate) struct Bill {
    /// Its fuel, callees included.
    pub(crate) fuel: u64,
    /// What it took besides.
    pub(crate) extra: Option<Box<Extra>>,
    /// Its limit is used up.
    pub(crate) is_out: bool,
}

impl Bill {
    /// What is said of one whose limit is used up, where that does not mean fuel alone.
    pub(crate) fn message(&self) -> &'static str {
        match self.extra {
            None => "",
            Some(_) => "fuel and what it took besides used up its limit",
        }
    }
}

/// Counts what one call or job takes. Only one thread touches it at a time.
#[derive(Debug)]
pub(crate) struct Extras {
    rates: Rates,
    /// Nothing of the call's own has a price.
    is_free: bool,
    /// Nano-ATP that other cells took on behalf of this call, fuel aside.
    callees: AtomicU64,
    start: AtomicU64,
    egress: AtomicU64,
    memory: AtomicU64,
    /// Pages that are held.
    pages: AtomicU64,
    made: Instant,
    /// More time than this at once is not counted, in microseconds: the process was frozen.
    gap: AtomicU64,
    /// Up to when memory is counted, in microseconds since `made`.
    counted: AtomicU64,
}

impl Extras {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            is_free: rates.are_zero(),
            callees: AtomicU64::default(),
            start: AtomicU64::default(),
            egress: AtomicU64::default(),
            memory: AtomicU64::default(),
            pages: AtomicU64::default(),
            gap: AtomicU64::new(u64::MAX),
            made: Instant::now(),
            counted: AtomicU64::default(),
        }
    }

    /// Starts a call.
    pub(crate) fn begin(&self) {
        self.callees.store(0, Relaxed);
        if !self.is_free {
            for counter in [&self.start, &self.egress, &self.memory] {
                counter.store(0, Relaxed);
            }
            self.counted.store(self.now(), Relaxed);
        }
    }

    /// Has time not count in which the process was frozen. Only for what is ticked all the time, as jobs are.
    pub(crate) fn spare_gaps(&self) {
        self.gap.store(GAP_US, Relaxed);
    }

    /// Counts a start.
    pub(crate) fn start(&self) {
        self.start.fetch_add(1, Relaxed);
    }

    /// Counts bytes that leave.
    pub(crate) fn egress(&self, bytes: u64) {
        self.egress.fetch_add(bytes, Relaxed);
    }

    /// Counts what memory has cost until now.
    pub(crate) fn tick(&self) {
        if !self.is_free {
            self.count_memory();
        }
    }

    #[cold]
    fn count_memory(&self) {
        let now = self.now();
        let held = now.saturating_sub(self.counted.swap(now, Relaxed));
        let held = held.min(self.gap.load(Relaxed));
        self.memory.fetch_add(held.saturating_mul(self.pages.load(Relaxed)), Relaxed);
    }

    /// Leaves the time since the last count out.
    pub(crate) fn skip(&self) {
        if !self.is_free {
            self.counted.store(self.now(), Relaxed);
        }
    }

    /// From now on memory has this many more pages.
    pub(crate) fn grow(&self, pages: u64) {
        self.tick();
        self.pages.fetch_add(pages, Relaxed);
    }

    /// Adds what another cell's call cost besides fuel.
    pub(crate) fn add_callee(&self, nano_atp: u64) {
        self.callees.fetch_add(nano_atp, Relaxed);
    }

    /// What callees cost besides fuel.
    pub(crate) fn of_callees(&self) -> u64 {
        self.callees.load(Relaxed)
    }

    /// What was counted of the call itself.
    pub(crate) fn taken(&self) -> Taken {
        Taken([&self.start, &self.egress, &self.memory].map(|counter| counter.load(Relaxed)))
    }

    /// What all of it costs so far, in nano-ATP.
    pub(crate) fn cost(&self) -> u64 {
        let own = if self.is_free { 0 } else { self.taken().cost(self.rates) };
        self.of_callees().saturating_add(own)
    }

    /// The bill of a call that burned so much; `is_out` if it was ended for it.
    pub(crate) fn bill(&self, burned: u64, limit: u64, is_out: bool) -> Bill {
        if self.cost() > 0 {
            return self.whole_bill(burned, limit, is_out);
        }
        let is_out = is_out || burned > limit;
        Bill { fuel: if is_out { limit } else { burned }, extra: None, is_out }
    }

    #[cold]
    fn whole_bill(&self, burned: u64, limit: u64, is_out: bool) -> Bill {
        let callees = self.of_callees();
        let is_out = is_out || burned.saturating_add(self.cost()) > limit;
        // A callee was given no more than what was left, so what it cost always fits.
        let fuel = burned.min(limit.saturating_sub(callees));
        let room = limit.saturating_sub(fuel).saturating_sub(callees);
        let taken = self.taken().cut(self.rates, room);
        let nano_atp = callees.min(limit).saturating_add(taken.cost(self.rates));
        Bill { fuel, extra: Some(Box::new(Extra { taken, nano_atp })), is_out }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices() {
        let rates = Rates([7, 1 << 30, 1_000_000_000]);
        assert_eq!(Taken([2, 5, 0]).cost(rates), 19);
        let gib_second = Taken([0, 0, Dimension::Memory.per()]);
        assert_eq!(
            (gib_second.cost(rates), gib_second.charge(rates)),
            (1_000_000_000, 1_000_000_000)
        );
        let little = Taken([0, 0, 1]);
        assert_eq!((little.cost(rates), little.charge(rates)), (1, 0));
        assert_eq!(Taken([u64::MAX; 3]).cost(Rates([u64::MAX; 3])), u64::MAX);
        assert_eq!(Taken([u64::MAX; 3]).cost(Rates::default()), 0);
    }

    /// A bill that is cut costs no more than there is, and all of it where nothing has to be cut.
    #[test]
    fn bills_are_cut_to_what_there_is() {
        let rates = Rates([7, 3 << 29, 999_999_937]);
        for taken in [Taken([1, 100, 1 << 40]), Taken([9, 0, 5]), Taken([u64::MAX; 3])] {
            for room in [0, 1, 6, 7, 8, 150, 156, 157, 158, 1 << 40, 1 << 62] {
                let cut = taken.cut(rates, room);
                assert!(cut.cost(rates) <= room, "{taken:?} {room} {cut:?}");
                assert!(taken.cost(rates) > room || cut == taken, "{taken:?} {room}");
            }
        }
        assert_eq!(Taken([1, 1, 1]).cut(Rates([0, 1, 0]), 9), Taken([0, 1, 0]));
    }

    #[test]
    fn memory_is_held_for_a_time() {
        let extras = Extras::new(Rates([0, 0, 1]));
        extras.begin();
        extras.grow(10);
        std::thread::sleep(std::time::Duration::from_millis(2));
        extras.tick();
        let Taken([start, egress, memory]) = extras.taken();
        assert!((start, egress) == (0, 0) && memory >= 20_000, "{memory}");
        extras.begin();
        assert_eq!(extras.taken(), Taken::default());
        let gap = |extras: &Extras| {
            extras.counted.store(0, Relaxed);
            let before = extras.taken().0[2];
            std::thread::sleep(std::time::Duration::from_millis(2));
            extras.gap.store(extras.gap.load(Relaxed).min(1000), Relaxed);
            extras.tick();
            extras.taken().0[2] - before
        };
        assert_eq!(gap(&extras), 10 * 1000, "a gap counts as the longest that may be");
        extras.begin();
        extras.add_callee(5);
        assert_eq!(extras.cost(), 5);
    }
}
