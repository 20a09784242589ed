//! Ctrl-C while a channel pays for a job elsewhere: the line is hung up, which ends the job, what it did is
//! paid, and the rest of the deposit comes back. A second one ends this process at once.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cli::{Exit, Failure};
use crate::signals::{self, Hearing, SignalKind};

/// Whether this command was interrupted, and what hangs up then.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupts(Arc<State>);

#[derive(Debug, Default)]
struct State {
    happened: AtomicBool,
    lines: Mutex<Vec<UnixStream>>,
}

impl Interrupts {
    /// Hears of signals for as long as what comes back lives.
    pub(super) fn hear(&self) -> anyhow::Result<Hearing> {
        let this = self.clone();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        Ok(signals::hear(&kinds, move |kind| {
            if this.has_happened() {
                std::process::exit(128 + kind.as_raw_value());
            }
            this.happen();
        })?)
    }

    /// This line is hung up, then or now.
    pub(super) fn watch(&self, line: &UnixStream) -> anyhow::Result<()> {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line.try_clone()?);
        if self.has_happened() {
            let _ = line.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    pub(super) fn has_happened(&self) -> bool {
        self.0.happened.load(Relaxed)
    }

    fn happen(&self) {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.happened.store(true, Relaxed);
        for line in lines.iter() {
            // One that is over needs not be hung up.
            let _ = line.shutdown(Shutdown::Both);
        }
    }
}

/// How a command ends that was interrupted.
pub(super) fn failure(why: &str) -> Failure {
    Failure::new(Exit::Job(130), format!("interrupted; {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn lines_are_hung_up_before_and_after() {
        let interrupts = Interrupts::default();
        let (early, mut at_early) = UnixStream::pair().unwrap();
        interrupts.watch(&early).unwrap();
        assert!(!interrupts.has_happened());
        interrupts.happen();
        let (late, mut at_late) = UnixStream::pair().unwrap();
        interrupts.watch(&late).unwrap();
        for end in [&mut at_early, &mut at_late] {
            assert_eq!(end.read(&mut [0]).unwrap(), 0);
        }
        assert!(interrupts.has_happened());
    }
}
