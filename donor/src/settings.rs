//! What the owner of a machine allows: the part `[donate]` of `nucleus.toml`. What can never work is refused
//! when it is read, not noticed weeks later.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::schedule::Schedule;

/// Longest time without input that can be asked for, in seconds.
pub const IDLE_S_MAX: u64 = 24 * 3600;
/// Most cores that can be named.
pub const CORES_MAX: u32 = 1024;
/// Most memory that can be lent, in MiB.
pub const LENT_MEMORY_MB_MAX: u64 = 1 << 20;
/// Most disk that can be lent, in MiB.
pub const LENT_DISK_MB_MAX: u64 = 1 << 30;
/// The least that bandwidth can be limited to, in KiB a second: with less, what others wait for in silence would
/// not come in time.
pub const BANDWIDTH_KB_S_MIN: u64 = 64;
/// Most bandwidth that can be named, in KiB a second.
pub const BANDWIDTH_KB_S_MAX: u64 = 1 << 22;
/// Longest patience with load, in seconds.
pub const PATIENCE_S_MAX: u64 = 3600;
/// Most programs that pause the work.
pub const PROGRAMS_MAX: usize = 64;
/// Longest name of such a program, in bytes.
pub const PROGRAM_BYTES_MAX: usize = 64;

/// What the owner allows. Fit for a home PC as it is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Cores for others' work: 0.01 to 1024, rounded up to whole ones. Default: all there are.
    pub cores_max: Option<f64>,
    /// Memory for others' jobs together, in MiB: 64 to 1,048,576. Default 2048.
    pub memory_mb_max: u64,
    /// Disk for others' modules and what they were compiled to, in MiB: 64 to 1,073,741,824. Default 1024.
    pub disk_mb_max: u64,
    /// What all sessions of other machines together may take of the line in each direction, in KiB a second: 64 to
    /// 4,194,304. Default: no limit.
    pub bandwidth_kb_s_max: Option<u64>,
    /// Days and hours in local time, such as `"mon-fri 18:00-08:00"` or `"sat,sun"`. Default: always.
    pub schedule: Schedule,
    /// Whether work waits until nobody uses the machine. Default: yes.
    pub only_when_idle: bool,
    /// How long without input means that nobody does, in seconds: 1 to 86,400. Default 300.
    pub idle_s: u64,
    /// Whether work goes on without mains. Default: no.
    pub on_battery: bool,
    /// The charge below which it does not, in percent: 0 to 100. Default 50. Matters with `on_battery`.
    pub battery_percent_min: u8,
    /// The processor's temperature at which work stops, in °C: 40 to 150. Default 85. It goes on 5 °C below.
    pub temperature_c_max: f64,
    /// What other programs may use before work makes room for them, in cores: 0.05 to 1024. Default: half of
    /// the machine's.
    pub others_cores_max: Option<f64>,
    /// How long they must use it before it does, in seconds: 0 to 3600. Default 10: a page that loads is no
    /// reason.
    pub load_patience_s: u64,
    /// How long they must use less before work goes on, in seconds: 0 to 3600. Default 60.
    pub load_resume_s: u64,
    /// Programs beside which there is no work, such as games: names as `ps -e` shows them.
    pub never_beside: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cores_max: None,
            memory_mb_max: 2048,
            disk_mb_max: 1024,
            bandwidth_kb_s_max: None,
            schedule: Schedule::default(),
            only_when_idle: true,
            idle_s: 300,
            on_battery: false,
            battery_percent_min: 50,
            temperature_c_max: 85.0,
            others_cores_max: None,
            load_patience_s: 10,
            load_resume_s: 60,
            never_beside: Vec::new(),
        }
    }
}

/// What is wrong with settings, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// It is not TOML, or has keys or types that are not expected.
    #[error("{0}")]
    Toml(String),
    /// A number is out of its range.
    #[error("{key} = {found} must be between {least} and {most}")]
    Range {
        /// Which number.
        key: &'static str,
        /// What it is.
        found: String,
        /// The least that it may be.
        least: String,
        /// The most that it may be.
        most: String,
    },
    /// A span of the schedule cannot be read.
    #[error(
        "schedule has `{0}`; write days, hours or both, such as `mon-fri 18:00-08:00` or `sat,sun`"
    )]
    Span(String),
    /// A span of the schedule has no length.
    #[error("schedule has `{0}`, which ends when it begins; leave the hours out for the whole day")]
    SpanEmpty(String),
    /// A list is too long.
    #[error("{key} may have {most} entries")]
    TooMany {
        /// Which list.
        key: &'static str,
        /// How many it may have.
        most: usize,
    },
    /// No program can have this name.
    #[error(
        "never_beside has `{0}`; write a program's name as `ps -e` shows it, without its folder"
    )]
    Program(String),
    /// It would wait for itself.
    #[error("never_beside has `{0}`, which always runs beside the work; leave it out")]
    Itself(String),
}

impl Settings {
    /// Reads and checks the content of `[donate]`.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self =
            toml::from_str(text).map_err(|error| SettingsError::Toml(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    /// Refuses what can never work. Who reads settings as a part of a larger file calls it once.
    pub fn check(&self) -> Result<(), SettingsError> {
        let cores = f64::from(CORES_MAX);
        within("cores_max", self.cores_max.unwrap_or(1.0), 0.01..=cores)?;
        within("memory_mb_max", self.memory_mb_max, 64..=LENT_MEMORY_MB_MAX)?;
        within("disk_mb_max", self.disk_mb_max, 64..=LENT_DISK_MB_MAX)?;
        let bandwidth = self.bandwidth_kb_s_max.unwrap_or(BANDWIDTH_KB_S_MAX);
        within("bandwidth_kb_s_max", bandwidth, BANDWIDTH_KB_S_MIN..=BANDWIDTH_KB_S_MAX)?;
        within("idle_s", self.idle_s, 1..=IDLE_S_MAX)?;
        within("battery_percent_min", self.battery_percent_min, 0..=100)?;
        within("temperature_c_max", self.temperature_c_max, 40.0..=150.0)?;
        within("others_cores_max", self.others_cores_max.unwrap_or(1.0), 0.05..=cores)?;
        within("load_patience_s", self.load_patience_s, 0..=PATIENCE_S_MAX)?;
        within("load_resume_s", self.load_resume_s, 0..=PATIENCE_S_MAX)?;
        if self.never_beside.len() > PROGRAMS_MAX {
            return Err(SettingsError::TooMany { key: "never_beside", most: PROGRAMS_MAX });
        }
        self.never_beside.iter().try_for_each(|name| check_program(name))
    }
}

fn check_program(name: &str) -> Result<(), SettingsError> {
    let is_name = !name.trim().is_empty()
        && name.trim() == name
        && name.len() <= PROGRAM_BYTES_MAX
        && !name.contains(|c: char| c == '/' || c.is_control());
    if !is_name {
        return Err(SettingsError::Program(name.into()));
    }
    if name.eq_ignore_ascii_case("cell") {
        return Err(SettingsError::Itself(name.into()));
    }
    Ok(())
}

fn within<T: PartialOrd + Display>(
    key: &'static str,
    found: T,
    range: RangeInclusive<T>,
) -> Result<(), SettingsError> {
    if range.contains(&found) {
        return Ok(());
    }
    let (least, most) = (range.start().to_string(), range.end().to_string());
    Err(SettingsError::Range { key, found: found.to_string(), least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(text: &str, expect: &str) {
        let error = Settings::parse(text).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn accepted() {
        assert_eq!(Settings::parse(""), Ok(Settings::default()));
        assert_eq!(Settings::default().check(), Ok(()));
        let text = r#"
            cores_max = 2
            memory_mb_max = 4096
            disk_mb_max = 64
            bandwidth_kb_s_max = 64
            schedule = ["mon-fri 18:00-08:00", "sat,sun"]
            only_when_idle = false
            idle_s = 86400
            on_battery = true
            battery_percent_min = 100
            temperature_c_max = 70.5
            others_cores_max = 0.5
            load_patience_s = 0
            load_resume_s = 3600
            never_beside = ["zoom", "Civ VI"]
        "#;
        let spans = ["mon-fri 18:00-08:00", "sat,sun"].map(String::from).to_vec();
        let expect = Settings {
            cores_max: Some(2.0),
            memory_mb_max: 4096,
            disk_mb_max: 64,
            bandwidth_kb_s_max: Some(64),
            schedule: spans.try_into().unwrap(),
            only_when_idle: false,
            idle_s: 86400,
            on_battery: true,
            battery_percent_min: 100,
            temperature_c_max: 70.5,
            others_cores_max: Some(0.5),
            load_patience_s: 0,
            load_resume_s: 3600,
            never_beside: vec!["zoom".into(), "Civ VI".into()],
        };
        assert_eq!(Settings::parse(text), Ok(expect));
    }

    #[test]
    fn refused() {
        check_refused("cores = 2", "unknown field `cores`");
        check_refused("cores_max = 0", "cores_max = 0 must be between 0.01 and 1024");
        check_refused("cores_max = nan", "between 0.01");
        check_refused("cores_max = 1025", "and 1024");
        check_refused("memory_mb_max = 0", "between 64 and 1048576");
        check_refused("memory_mb_max = -1", "memory_mb_max");
        check_refused("disk_mb_max = 63", "disk_mb_max = 63 must be between 64");
        check_refused("upload_kb_s_max = 1", "unknown field");
        check_refused("bandwidth_kb_s_max = 63", "bandwidth_kb_s_max = 63 must be between 64");
        check_refused("bandwidth_kb_s_max = 4194305", "and 4194304");
        check_refused("load_patience_s = 3601", "between 0 and 3600");
        check_refused("load_resume_s = 3601", "between 0 and 3600");
        check_refused("idle_s = 0", "between 1 and 86400");
        check_refused("idle_s = 86401", "between 1 and 86400");
        check_refused("battery_percent_min = 101", "between 0 and 100");
        check_refused("battery_percent_min = 256", "battery_percent_min");
        check_refused("temperature_c_max = 39", "between 40 and 150");
        check_refused("temperature_c_max = inf", "between 40 and 150");
        check_refused("others_cores_max = 0", "between 0.05 and 1024");
        check_refused("others_cores_max = -nan", "between 0.05");
        check_refused("schedule = \"sat\"", "schedule");
        check_refused("schedule = [\"weekend\"]", "write days, hours or both");
        check_refused("schedule = [\"mon 08:00-08:00\"]", "leave the hours out");
        check_refused(&format!("schedule = {:?}", vec!["mon"; SPANS + 1]), "may have 32 entries");
        check_refused(&format!("never_beside = {:?}", vec!["a"; PROGRAMS_MAX + 1]), "64 entries");
        check_refused("never_beside = [\"\"]", "as `ps -e` shows it");
        check_refused("never_beside = [\"/usr/bin/zoom\"]", "without its folder");
        check_refused("never_beside = [\" zoom\"]", "as `ps -e` shows it");
        check_refused("never_beside = [\"a\\u0000b\"]", "as `ps -e` shows it");
        check_refused(&format!("never_beside = [{:?}]", "x".repeat(65)), "as `ps -e` shows it");
        check_refused("never_beside = [\"Cell\"]", "always runs beside the work");
    }

    const SPANS: usize = crate::schedule::SPANS_MAX;
}
