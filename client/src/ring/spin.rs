//! How long it pays to look again and again before one sleeps.

use std::thread;
use std::time::{Duration, Instant};

/// Longest time a side looks for its peer before it sleeps. An idle connection costs no processor
/// time after that.
pub const SPIN_TIME_MAX: Duration = Duration::from_micros(50);
/// Looks before the clock is asked: about a microsecond, in which a peer that runs has answered.
pub const LOOKS: u32 = 100;
/// Waits in vain that halve the time, each.
const HALVINGS_MAX: u32 = 6;

/// Spins less the more often it was in vain.
#[derive(Debug, Default)]
pub struct Spin {
    in_vain: u32,
}

impl Spin {
    /// Looks until there is something or it does not pay any more; says which.
    pub fn until(&mut self, found: impl Fn() -> bool) -> bool {
        if look(LOOKS, &found) {
            return true;
        }
        let started = Instant::now();
        while started.elapsed() < self.patience() {
            // The peer may be waiting for this very processor.
            thread::yield_now();
            if look(LOOKS, &found) {
                self.found();
                return true;
            }
        }
        self.gave_up();
        false
    }

    /// How long to look.
    pub fn patience(&self) -> Duration {
        SPIN_TIME_MAX / (1 << self.in_vain)
    }

    /// Looking paid.
    pub const fn found(&mut self) {
        self.in_vain = 0;
    }

    /// Nothing came as long as was looked for it.
    pub fn gave_up(&mut self) {
        self.in_vain = (self.in_vain + 1).min(HALVINGS_MAX);
    }

    /// What was waited for came after this time, asleep: had it paid to look longer?
    pub fn slept(&mut self, time: Duration) {
        if time < SPIN_TIME_MAX {
            self.in_vain = self.in_vain.saturating_sub(1);
        }
    }
}

/// Looks so many times, until something is found.
pub fn look(times: u32, found: &impl Fn() -> bool) -> bool {
    (0..times).any(|_| {
        std::hint::spin_loop();
        found()
    })
}
