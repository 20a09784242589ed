//! Wakes a loop from time to time.
//!
//! A timeout of its wait would do the same, but the kernel would set and stop a timer for each.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

#[derive(Debug)]
pub(super) struct Clock(OwnedFd);

impl Clock {
    /// One that stands still.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Wakes the loop once after this time, or with zero not at all.
    pub(super) fn set(&self, after: Duration) {
        let it_value = Timespec::try_from(after).unwrap_or_default();
        let timer = Itimerspec { it_interval: Timespec::default(), it_value };
        // It fails for times that are none, or for what is no timer.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &timer);
    }
}
