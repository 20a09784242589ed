//! The processes that run guests of other machines: who they are, and what is done to them as a whole.

use rustix::process::{Signal, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::processes::{LENT_NICE, Process, have_session_stand_up};

/// What was frozen.
#[derive(Debug)]
pub(super) struct Frozen(Vec<Process>);

impl Frozen {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Freezes those that are not yet.
    pub(super) fn freeze(&mut self, guests: &[Process]) {
        self.0.retain(|process| guests.contains(process));
        for guest in guests {
            if !self.0.contains(guest) {
                guest.signal(Signal::STOP);
                self.0.push(*guest);
            }
        }
    }

    /// Lets all go on.
    pub(super) fn thaw(&mut self) {
        self.0.drain(..).for_each(|process| process.signal(Signal::CONT));
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Has every thread of them come after the owner's programs, and stay on so many cores. Threads that they start
/// later are as those that start them.
pub(super) fn stand_back(guests: &[Process], cores_max: Option<f64>) {
    let cores = cores_max.and_then(some_cores);
    for thread in guests.iter().flat_map(|guest| guest.threads()) {
        // A thread that has just ended needs neither.
        let _ = setpriority_process(Some(thread), LENT_NICE);
        if let Some(cores) = &cores {
            let _ = sched_setaffinity(Some(thread), cores);
        }
    }
}

/// Has them end at once where the system allows that: few users may take back what they gave away.
pub(super) fn stand_up(guests: &[Process], jobs: &[Process]) {
    jobs.iter().for_each(|job| have_session_stand_up(*job));
    for thread in guests.iter().flat_map(|guest| guest.threads()) {
        let _ = setpriority_process(Some(thread), 0);
    }
}

/// The last of this machine's cores, rounded up to whole ones: on a machine with two kinds of them these are
/// the small ones.
fn some_cores(cores_max: f64) -> Option<CpuSet> {
    let usable = sched_getaffinity(None).ok()?;
    let all = (0..CpuSet::MAX_CPU).rev().filter(|core| usable.is_set(*core));
    let mut chosen = CpuSet::new();
    all.enumerate()
        .take_while(|(before, _)| u32::try_from(*before).is_ok_and(|n| f64::from(n) < cores_max))
        .for_each(|(_, core)| chosen.set(core));
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_rounded_up() {
        let all = sched_getaffinity(None).unwrap().count();
        for (most, expect) in [(0.01, 1), (1.0, 1), (1.2, 2), (2.0, 2), (1024.0, all)] {
            assert_eq!(some_cores(most).unwrap().count(), expect.min(all), "{most}");
        }
    }
}
