//! The decision: may this machine work for others now? A pure function, so that every case is a row of a
//! table.
//!
//! Two things pause at once and let go at once: the owner's word and the schedule. Everything else has a
//! gate, which closes on what is seen and opens only when that has been gone for a while; a machine whose
//! fan starts and stops every few seconds is worse than one that does nothing.

use std::collections::BTreeSet;
use std::fmt;

use crate::clock::Moment;
use crate::schedule::Opening;
use crate::settings::Settings;

/// How long a reason must be gone before work goes on.
pub const GONE_MS: u64 = 10_000;
/// The same for heat, which work itself may bring back.
pub const GONE_COOL_MS: u64 = 60_000;
/// How far the temperature must fall below its limit, in °C.
pub const COOLER_C: f64 = 5.0;
/// How far the charge must rise above its limit, in percent.
pub const CHARGE_RISE_PERCENT: u8 = 5;
/// The part of their limit that others must stay under before work goes on.
pub const LOAD_RESUME: f64 = 0.75;
/// Memory that must be available while there is work, in MiB: the owner's programs grow too.
pub const MEMORY_SPARE_MB_MIN: u64 = 512;
/// Memory that must be available before work goes on, in MiB.
pub const MEMORY_RESUME_MB_MIN: u64 = 768;
/// Disk that must be free while there is work, in MiB.
pub const DISK_SPARE_MB_MIN: u64 = 1024;
/// Disk that must be free before work goes on, in MiB.
pub const DISK_RESUME_MB_MIN: u64 = 2048;

/// What is seen of a machine. What cannot be seen is `None`, and no reason to pause, with two exceptions: a
/// machine that might be in use is in use, and the charge of a battery that works might be low.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signals {
    /// Whether the owner asked for a pause.
    pub owner_paused: bool,
    /// Seconds since the last input.
    pub input_idle_s: Option<u64>,
    /// Where the current comes from; `None` on a machine without a battery.
    pub power: Option<Power>,
    /// The hottest sensor of the processor, in °C.
    pub temperature_c: Option<f64>,
    /// Processor time that other programs use, in cores.
    pub others_cores: Option<f64>,
    /// Cores of the machine.
    pub cores: Option<u32>,
    /// Which programs of `never_beside` run.
    pub running: BTreeSet<String>,
    /// Memory that programs can still have, in MiB.
    pub memory_available_mb: Option<u64>,
    /// Free space where work is kept, in MiB.
    pub disk_free_mb: Option<u64>,
}

/// Where the current of a machine with a battery comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Power {
    /// Whether it is the battery.
    pub on_battery: bool,
    /// The charge, in percent.
    pub percent: Option<u8>,
}

/// Whether a machine may work for others.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It may.
    Work,
    /// It may not, and this is what the owner is shown.
    Pause(Reason),
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work => f.write_str("working"),
            Self::Pause(reason) => write!(f, "paused: {reason}"),
        }
    }
}

/// Why a machine does not work for others. Numbers are those last seen while the reason held.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The owner asked for it.
    Owner,
    /// The schedule allows it later.
    Schedule(Opening),
    /// There is no mains.
    OnBattery,
    /// There is no mains, and this charge, in percent, is to be kept.
    BatteryLow(u8),
    /// Somebody uses the machine.
    InUse,
    /// Nobody knows whether somebody does.
    InputUnknown,
    /// This program runs.
    Program(String),
    /// The processor has this temperature, in °C.
    Hot(f64),
    /// Others use so many cores.
    Load(f64),
    /// The owner's programs would lack memory.
    MemoryShort,
    /// The disk would be full.
    DiskFull,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner => f.write_str("you paused it"),
            Self::Schedule(opening) => write!(f, "outside the schedule until {opening}"),
            Self::OnBattery => f.write_str("on battery"),
            Self::BatteryLow(percent) => write!(f, "on battery, which is at {percent} %"),
            Self::InUse => f.write_str("you are using the computer"),
            Self::InputUnknown => f.write_str(
                "no input device is seen; say only_when_idle = false on a machine that nobody sits at",
            ),
            Self::Program(name) => write!(f, "{name} is running"),
            Self::Hot(celsius) => write!(f, "the processor is at {celsius:.0} °C"),
            Self::Load(cores) => write!(f, "other programs are using {cores:.1} cores"),
            Self::MemoryShort => f.write_str("memory is short"),
            Self::DiskFull => f.write_str("the disk is nearly full"),
        }
    }
}

/// What one decision must know of those before it. It means nothing to another run of the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    gates: [Gate; WATCHES.len()],
}

impl Memory {
    /// Whether memory or disk is short, whatever else is in the way: work that waits does not help then.
    pub fn is_short(&self) -> bool {
        let of_gate =
            |gate: &Gate| matches!(gate.closed, Some(Reason::MemoryShort | Reason::DiskFull));
        self.gates.iter().any(of_gate)
    }
}

/// Whether there may be work now, and what to bring along to the next decision.
///
/// The first reason that holds is the one given, in this order: the owner's word, the schedule, the battery,
/// whether the machine is in use, programs beside it, temperature, load, memory, disk. It begins with what
/// the owner decided, and ends with what the owner can do least about.
pub fn decide(
    settings: &Settings,
    signals: &Signals,
    memory: &Memory,
    now: Moment,
) -> (Decision, Memory) {
    let mut memory = memory.clone();
    // Every gate moves every time, or one behind another would be late.
    for (gate, watch) in memory.gates.iter_mut().zip(&WATCHES) {
        let waits = (watch.waits_ms)(settings);
        gate.step((watch.level)(settings, signals), waits, now.monotonic_ms);
    }
    let owner = signals.owner_paused.then_some(Reason::Owner);
    let reason = owner
        .or_else(|| settings.schedule.opening(now).map(Reason::Schedule))
        .or_else(|| memory.gates.iter().find_map(|gate| gate.closed.clone()));
    (reason.map_or(Decision::Work, Decision::Pause), memory)
}

/// How a signal compares with its limit.
enum Level {
    /// Past it.
    Over(Reason),
    /// Too near to it to begin, and no cause to stop.
    Near(Reason),
    /// Well within, or not seen.
    Fine,
}

/// What a gate looks at, and how long that must last before the gate closes and before it opens, in
/// milliseconds.
struct Watch {
    level: fn(&Settings, &Signals) -> Level,
    waits_ms: fn(&Settings) -> (u64, u64),
}

/// In the order of [`decide`].
const WATCHES: [Watch; 7] = [
    Watch { level: battery, waits_ms: |_| (0, GONE_MS) },
    Watch { level: input, waits_ms: |_| (0, GONE_MS) },
    Watch { level: program, waits_ms: |_| (0, GONE_MS) },
    Watch { level: temperature, waits_ms: |_| (0, GONE_COOL_MS) },
    Watch { level: load, waits_ms: |s| (s.load_patience_s * 1000, s.load_resume_s * 1000) },
    Watch { level: free_memory, waits_ms: |_| (0, GONE_MS) },
    Watch { level: free_disk, waits_ms: |_| (0, GONE_MS) },
];

/// One reason's past.
#[derive(Debug, Clone, Default, PartialEq)]
struct Gate {
    /// Why it is closed.
    closed: Option<Reason>,
    /// Since when it should have moved.
    turning_ms: Option<u64>,
}

impl Gate {
    fn step(&mut self, level: Level, (close_ms, open_ms): (u64, u64), now_ms: u64) {
        let (turns, wait_ms) = match (&self.closed, &level) {
            (None, Level::Over(_)) => (true, close_ms),
            (Some(_), Level::Fine) => (true, open_ms),
            _ => (false, 0),
        };
        let since_ms = self.turning_ms.take().map_or(now_ms, |since| since.min(now_ms));
        if turns && now_ms - since_ms < wait_ms {
            self.turning_ms = Some(since_ms);
            return;
        }
        self.closed = match level {
            Level::Over(reason) => Some(reason),
            Level::Near(reason) => self.closed.is_some().then_some(reason),
            Level::Fine => None,
        };
    }
}

fn battery(settings: &Settings, signals: &Signals) -> Level {
    let Some(Power { on_battery: true, percent }) = signals.power else { return Level::Fine };
    // A charge that nobody knows is not worth the risk.
    let Some(percent) = percent.filter(|_| settings.on_battery) else {
        return Level::Over(Reason::OnBattery);
    };
    let least = settings.battery_percent_min;
    if percent < least {
        Level::Over(Reason::BatteryLow(percent))
    } else if percent < least.saturating_add(CHARGE_RISE_PERCENT).min(100) {
        Level::Near(Reason::BatteryLow(percent))
    } else {
        Level::Fine
    }
}

fn input(settings: &Settings, signals: &Signals) -> Level {
    match signals.input_idle_s {
        _ if !settings.only_when_idle => Level::Fine,
        None => Level::Over(Reason::InputUnknown),
        Some(idle_s) if idle_s < settings.idle_s => Level::Over(Reason::InUse),
        Some(_) => Level::Fine,
    }
}

fn program(_: &Settings, signals: &Signals) -> Level {
    let first = signals.running.first().cloned();
    first.map_or(Level::Fine, |name| Level::Over(Reason::Program(name)))
}

fn temperature(settings: &Settings, signals: &Signals) -> Level {
    let most = settings.temperature_c_max;
    match signals.temperature_c {
        Some(celsius) if celsius >= most => Level::Over(Reason::Hot(celsius)),
        Some(celsius) if celsius >= most - COOLER_C => Level::Near(Reason::Hot(celsius)),
        _ => Level::Fine,
    }
}

fn load(settings: &Settings, signals: &Signals) -> Level {
    let half = signals.cores.map(|cores| f64::from(cores) / 2.0);
    let (Some(used), Some(most)) = (signals.others_cores, settings.others_cores_max.or(half))
    else {
        return Level::Fine;
    };
    if used > most {
        Level::Over(Reason::Load(used))
    } else if used >= most * LOAD_RESUME {
        Level::Near(Reason::Load(used))
    } else {
        Level::Fine
    }
}

fn free_memory(_: &Settings, signals: &Signals) -> Level {
    let bounds = (MEMORY_SPARE_MB_MIN, MEMORY_RESUME_MB_MIN);
    free(signals.memory_available_mb, bounds, Reason::MemoryShort)
}

fn free_disk(_: &Settings, signals: &Signals) -> Level {
    free(signals.disk_free_mb, (DISK_SPARE_MB_MIN, DISK_RESUME_MB_MIN), Reason::DiskFull)
}

fn free(free_mb: Option<u64>, (spare_mb, resume_mb): (u64, u64), reason: Reason) -> Level {
    match free_mb {
        Some(free_mb) if free_mb < spare_mb => Level::Over(reason),
        Some(free_mb) if free_mb < resume_mb => Level::Near(reason),
        _ => Level::Fine,
    }
}

#[cfg(test)]
mod tests;
