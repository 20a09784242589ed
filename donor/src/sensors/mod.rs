//! What a machine shows of itself, read from `/proc`, `/sys` and `/dev` without any rights.
//!
//! Nothing here fails: what is missing, or is nonsense, is not seen, and [`decide`](crate::decide) knows what
//! that means. No read is longer than its bound.

mod files;
mod input;
mod load;
mod power;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::clock::Moment;
use crate::policy::Signals;
use crate::settings::Settings;

pub use files::{ENTRIES_MAX, FILE_BYTES_MAX};

/// Bytes of a program's name that Linux keeps; a longer one is cut.
const COMM_BYTES: usize = 15;

/// Reads [`Signals`], and keeps what the next reading is compared with.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    kept: PathBuf,
    load: load::Load,
    input: input::Input,
}

impl Sensors {
    /// Sensors below `root`, which is `/` but in tests. Work is kept at `kept`, whose file system should not
    /// become full.
    pub fn new(root: &Path, kept: &Path) -> Self {
        Self {
            root: root.to_owned(),
            kept: kept.to_owned(),
            load: load::Load::default(),
            input: input::Input::default(),
        }
    }

    /// What is seen now. `own` are the processes that work for others, and those that started them: their
    /// processor time is not that of other programs.
    ///
    /// The first reading has no load, and where interrupts tell of input it takes that for just now: what was
    /// before is not known. Whether the owner asked for a pause is not seen here.
    pub fn read(&mut self, settings: &Settings, own: &BTreeSet<u32>, now: Moment) -> Signals {
        let proc = self.root.join("proc");
        let (others_cores, cores) = self.load.read(&proc, own, now.monotonic_ms);
        Signals {
            owner_paused: false,
            input_idle_s: self.input.read(&self.root, now.monotonic_ms),
            power: power::power(&self.root.join("sys/class/power_supply")),
            temperature_c: temperature(&self.root.join("sys/class")),
            others_cores,
            cores,
            running: running(&proc, &settings.never_beside),
            memory_available_mb: memory_available_mb(&proc),
            disk_free_mb: disk_free_mb(&self.kept),
        }
    }
}

/// The hottest sensor of the processor, or where there is none, the hottest zone.
fn temperature(class: &Path) -> Option<f64> {
    const PROCESSOR: [&str; 5] = ["coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz"];
    let of_processor = files::entries(&class.join("hwmon"))
        .map(|(_, path)| path)
        .filter(|path| {
            files::word(&path.join("name")).is_some_and(|name| PROCESSOR.contains(&&*name))
        })
        .flat_map(|path| files::entries(&path))
        .filter(|(name, _)| name.starts_with("temp") && name.ends_with("_input"))
        .filter_map(|(_, path)| celsius(&path));
    hottest(of_processor).or_else(|| {
        let zones = files::entries(&class.join("thermal"))
            .filter(|(name, _)| name.starts_with("thermal_zone"))
            .filter_map(|(_, path)| celsius(&path.join("temp")));
        hottest(zones)
    })
}

fn hottest(celsius: impl Iterator<Item = f64>) -> Option<f64> {
    celsius.reduce(f64::max)
}

/// Sensors that are not connected say 0 K or the largest number they have.
fn celsius(path: &Path) -> Option<f64> {
    let millidegrees: i32 = files::number(path)?;
    (-50_000..=150_000).contains(&millidegrees).then(|| f64::from(millidegrees) / 1000.0)
}

/// Those of the named programs that run, as the owner names them.
fn running(proc: &Path, named: &[String]) -> BTreeSet<String> {
    if named.is_empty() {
        return BTreeSet::new();
    }
    let runs: BTreeSet<Vec<u8>> = files::entries(proc)
        .filter(|(name, _)| files::is_number(name))
        .filter_map(|(_, path)| files::bytes(&path.join("comm")))
        .map(|comm| comm.trim_ascii_end().to_ascii_lowercase())
        .collect();
    let is_running = |name: &&String| {
        let name = name.to_ascii_lowercase().into_bytes();
        // What is cut may end with a space.
        let cut = name.get(..COMM_BYTES).unwrap_or(&name);
        runs.contains(cut.trim_ascii_end())
    };
    named.iter().filter(is_running).cloned().collect()
}

fn memory_available_mb(proc: &Path) -> Option<u64> {
    let text = files::text(&proc.join("meminfo"))?;
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

fn disk_free_mb(kept: &Path) -> Option<u64> {
    let found = statvfs(kept).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize) >> 20)
}

#[cfg(test)]
mod tests;
