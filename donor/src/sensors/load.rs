//! Processor time that others use: all that is busy, without what is ours.

use std::collections::BTreeSet;
use std::path::Path;

use super::files;

/// Ticks of `/proc/stat` in a second. The kernel shows 100 to programs, whatever it counts in itself.
const TICKS_PER_S: u32 = 100;
/// Over less time than this a tick is too coarse.
const INTERVAL_MS_MIN: u64 = 500;

/// What the next reading is compared with.
#[derive(Debug, Default)]
pub(super) struct Load {
    last: Option<Sample>,
    others_cores: Option<f64>,
}

/// Ticks since the machine began.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    busy: u64,
    own: u64,
}

impl Load {
    /// Cores that others use since the last reading, and cores of the machine.
    pub(super) fn read(
        &mut self,
        proc: &Path,
        own: &BTreeSet<u32>,
        now_ms: u64,
    ) -> (Option<f64>, Option<u32>) {
        let Some(text) = files::text(&proc.join("stat")) else {
            *self = Self::default();
            return (None, None);
        };
        let is_core = |line: &&str| {
            let name = line.split_whitespace().next().and_then(|word| word.strip_prefix("cpu"));
            name.is_some_and(files::is_number)
        };
        let cores = u32::try_from(text.lines().filter(is_core).count()).ok();
        let cores = cores.filter(|cores| *cores > 0);
        if let Some(last) = self.last
            && (last.at_ms..last.at_ms.saturating_add(INTERVAL_MS_MIN)).contains(&now_ms)
        {
            return (self.others_cores, cores);
        }
        let sample =
            busy(&text).map(|busy| Sample { at_ms: now_ms, busy, own: own_ticks(proc, own) });
        self.others_cores = self.last.zip(sample).and_then(|(last, sample)| between(last, sample));
        self.last = sample;
        (self.others_cores, cores)
    }
}

/// Cores that others used from one sample to the next.
fn between(last: Sample, sample: Sample) -> Option<f64> {
    let busy = sample.busy.checked_sub(last.busy)?;
    // A process that vanished takes its ticks along.
    let own = sample.own.saturating_sub(last.own);
    let ticks = u32::try_from(busy.saturating_sub(own)).ok()?;
    let elapsed_ms = sample.at_ms.checked_sub(last.at_ms).filter(|elapsed_ms| *elapsed_ms > 0)?;
    let elapsed_s = f64::from(u32::try_from(elapsed_ms).ok()?) / 1000.0;
    Some(f64::from(ticks) / f64::from(TICKS_PER_S) / elapsed_s)
}

/// Ticks of all programs and of the kernel for them. What other machines took of a virtual one is not in it.
fn busy(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // The time of guests is within that of users.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else {
        return None;
    };
    [nice, system, irq, softirq].iter().try_fold(*user, |sum, ticks| sum.checked_add(**ticks))
}

/// Ticks of our processes, and of those that they waited for: work that ends between two readings is then in
/// its parent's.
fn own_ticks(proc: &Path, own: &BTreeSet<u32>) -> u64 {
    let of = |pid: &u32| {
        let text = files::text(&proc.join(pid.to_string()).join("stat"))?;
        // A program's name may hold anything, brackets too.
        let (_, rest) = text.rsplit_once(')')?;
        let ticks = rest.split_whitespace().skip(11).take(4).map(|word| word.parse::<u64>());
        ticks.flatten().reduce(u64::saturating_add)
    };
    own.iter().take(files::ENTRIES_MAX).filter_map(of).fold(0, u64::saturating_add)
}
