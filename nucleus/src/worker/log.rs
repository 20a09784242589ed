//! A cell's log file: escaped, rate-limited, one record a line.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cell_host::LogLevel;

/// Bytes a cell may log per second, over time; what goes beyond is dropped and counted.
pub(super) const BYTES_PER_S_MAX: u64 = 256 << 10;
/// Bytes a cell may log at once after a silence.
pub(super) const BURST_BYTES_MAX: u64 = 1 << 20;

/// Bytes of records that wait for the log's file; what goes beyond is dropped and counted.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 10;

/// Where one cell's records go.
#[derive(Debug)]
pub(super) struct Log {
    /// Asked for when there is something to log: most cells have nothing to say.
    file: Option<File>,
    asked: bool,
    waiting: Vec<u8>,
    allowance: u64,
    refilled: Instant,
    dropped: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            file: None,
            asked: false,
            waiting: Vec::new(),
            allowance: BURST_BYTES_MAX,
            refilled: Instant::now(),
            dropped: 0,
        }
    }

    /// Writes there from now on.
    pub(super) fn open(&mut self, file: OwnedFd) {
        let waiting = std::mem::take(&mut self.waiting);
        self.file = Some(file.into());
        self.put(&waiting);
    }

    /// Whether a file is to be asked for now; tells it once.
    pub(super) const fn needs_file(&mut self) -> bool {
        let needs = self.file.is_none() && !self.asked;
        self.asked = true;
        needs
    }

    /// Writes one record, or counts it as dropped.
    pub(super) fn write(&mut self, level: LogLevel, line: &[u8]) {
        self.refill();
        // What is written counts: escaping may make it many times as long.
        let line = escape(line);
        let cost = line.len() as u64 + 32;
        let fits = self.file.is_some() || self.waiting.len() < WAITING_BYTES_MAX;
        if cost > self.allowance || !fits {
            self.dropped += 1;
            return;
        }
        self.allowance -= cost;
        if self.dropped > 0 {
            let note = format!(
                "{} records dropped: more than {BYTES_PER_S_MAX} bytes per second",
                self.dropped
            );
            self.dropped = 0;
            self.append(LogLevel::Warn, &note);
        }
        self.append(level, &line);
    }

    fn append(&mut self, level: LogLevel, line: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let level = match level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            _ => "debug",
        };
        let record = format!("{}.{:03} {level} {line}\n", since.as_secs(), since.subsec_millis());
        self.put(record.as_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        match &mut self.file {
            // A full disk must not stop the cell; the record is lost.
            Some(file) => drop(file.write_all(bytes)),
            None => self.waiting.extend_from_slice(bytes),
        }
    }

    fn refill(&mut self) {
        let millis = u64::try_from(self.refilled.elapsed().as_millis()).unwrap_or(u64::MAX);
        let earned = millis.saturating_mul(BYTES_PER_S_MAX) / 1000;
        if earned > 0 {
            self.allowance = self.allowance.saturating_add(earned).min(BURST_BYTES_MAX);
            self.refilled = Instant::now();
        }
    }
}

/// What a guest printed must not steer the terminal that shows it.
fn escape(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for c in String::from_utf8_lossy(line).chars() {
        if c.is_control() && c != '\t' {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape(b"a\x1b[2Jb\r\tc\xff"), "a\\u{1b}[2Jb\\r\tc\u{fffd}");
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut file = tempfile::tempfile().unwrap();
        let mut log = Log::new();
        assert!(log.needs_file() && !log.needs_file());
        log.write(LogLevel::Info, b"before there was a file");
        log.open(file.try_clone().unwrap().into());
        for _ in 0..2000 {
            log.write(LogLevel::Info, &[b'x'; 1000]);
        }
        assert!(log.dropped > 0);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.lines().next().unwrap().ends_with("before there was a file"));
        assert!(text.len() as u64 <= BURST_BYTES_MAX + BYTES_PER_S_MAX, "{}", text.len());
    }
}
