//! Keeps the nucleus's own log within bounds.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

/// Size at which `nucleus.log` is emptied; what was in it is kept as `nucleus.log.1`.
pub(super) const LOG_BYTES_MAX: u64 = 8 << 20;

/// Empties a log that has grown too large. It is open for appending here and in workers, so it is
/// copied and cut short rather than renamed; lines written in between are lost.
pub(super) fn bound(log: &Path) {
    let bounded = (|| {
        if fs::metadata(log)?.len() <= LOG_BYTES_MAX {
            return Ok(());
        }
        fs::copy(log, log.with_extension("log.1"))?;
        OpenOptions::new().write(true).open(log)?.set_len(0)
    })();
    match bounded {
        // In the foreground there is none.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "bound the nucleus's log");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_too_large_is_kept_beside_and_cut() {
        let home = tempfile::tempdir().expect("a directory");
        let log = home.path().join("nucleus.log");
        bound(&log);
        let mut open = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        open.set_len(LOG_BYTES_MAX).expect("a size");
        bound(&log);
        assert_eq!(fs::metadata(&log).expect("a log").len(), LOG_BYTES_MAX);
        open.write_all(b"\n").expect("a line");
        bound(&log);
        open.write_all(b"next\n").expect("a line");
        assert_eq!(fs::read(&log).expect("a log"), b"next\n");
        let kept = fs::metadata(home.path().join("nucleus.log.1")).expect("the old log");
        assert_eq!(kept.len(), LOG_BYTES_MAX + 1);
    }
}
