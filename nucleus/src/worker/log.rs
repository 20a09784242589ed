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

/// Where one cell's records go.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    allowance: u64,
    refilled: Instant,
    dropped: u64,
}

impl Log {
    pub(super) fn new(file: OwnedFd) -> Self {
        Self { file: file.into(), allowance: BURST_BYTES_MAX, refilled: Instant::now(), dropped: 0 }
    }

    /// Writes there from now on.
    pub(super) fn reopen(&mut self, file: OwnedFd) {
        self.file = file.into();
    }

    /// Writes one record, or counts it as dropped.
    pub(super) fn write(&mut self, level: LogLevel, line: &[u8]) {
        self.refill();
        let cost = line.len() as u64 + 32;
        if cost > self.allowance {
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
            self.append(LogLevel::Warn, note.as_bytes());
        }
        self.append(level, line);
    }

    fn append(&mut self, level: LogLevel, line: &[u8]) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let level = match level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            _ => "debug",
        };
        let record =
            format!("{}.{:03} {level} {}\n", since.as_secs(), since.subsec_millis(), escape(line));
        // A full disk must not stop the cell; the record is lost.
        let _ = self.file.write_all(record.as_bytes());
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
        let mut log = Log::new(file.try_clone().unwrap().into());
        for _ in 0..2000 {
            log.write(LogLevel::Info, &[b'x'; 1000]);
        }
        assert!(log.dropped > 0);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.len() as u64 <= BURST_BYTES_MAX + BYTES_PER_S_MAX, "{}", text.len());
    }
}
