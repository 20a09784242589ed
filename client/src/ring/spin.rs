//! How long it pays to look again and again before one sleeps.

use std::thread;
use std::time::{Duration, Instant};

/// Longest time a side looks for its peer before it sleeps. An idle connection costs no processor
/// time after that.
pub const SPIN_TIME_MAX: Duration = Duration::from_micros(50);
/// Looks before the processor is offered to others: some microseconds, in which a peer that runs on
/// another one has answered.
const LOOKS: u32 = 400;
/// The same where the peer seems to need this very processor.
const LOOKS_TOGETHER: u32 = 10;
/// One wait in so many is tried as if the peer had a processor of its own.
const TRIED_APART: u32 = 64;
/// Waits in vain that halve the time, each.
const HALVINGS: u32 = 6;

/// Spins less the more often it was in vain.
#[derive(Debug, Default)]
pub struct Spin {
    in_vain: u32,
    looks: Looks,
}

/// How often to look before offering the processor to others.
#[derive(Debug, Default)]
pub struct Looks {
    /// What was found last was found after that.
    together: bool,
    waits: u32,
}

impl Spin {
    /// Looks until there is something or it does not pay any more; says which.
    pub fn until(&mut self, found: impl Fn() -> bool) -> bool {
        if self.looks.look(&found) {
            return true;
        }
        let started = Instant::now();
        while started.elapsed() < self.patience() {
            thread::yield_now();
            if self.looks.look_again(&found) {
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
        self.in_vain = (self.in_vain + 1).min(HALVINGS);
    }

    /// What was waited for came after this time, asleep: had it paid to look longer?
    pub fn slept(&mut self, time: Duration) {
        if time < SPIN_TIME_MAX {
            self.in_vain = self.in_vain.saturating_sub(1);
        }
    }
}

impl Looks {
    /// Looks for the first time in a wait.
    pub fn look(&mut self, found: &impl Fn() -> bool) -> bool {
        self.waits = self.waits.wrapping_add(1);
        let apart = !self.together || self.waits.is_multiple_of(TRIED_APART);
        let looks = if apart { LOOKS } else { LOOKS_TOGETHER };
        let found = look(looks, found);
        self.together &= !found;
        found
    }

    /// Looks once more, after others had the processor.
    pub fn look_again(&mut self, found: &impl Fn() -> bool) -> bool {
        let found = look(LOOKS_TOGETHER, found);
        self.together |= found;
        found
    }
}

fn look(times: u32, found: &impl Fn() -> bool) -> bool {
    (0..times).any(|_| {
        std::hint::spin_loop();
        found()
    })
}
