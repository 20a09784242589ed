//! What a service manager is told: that the nucleus serves, that it lives, that it ends.
//!
//! It speaks systemd's protocol at `$NOTIFY_SOCKET`; without one, nothing is said.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// What was told, and what is due.
pub(super) struct Readiness {
    told: bool,
    /// How often the service manager wants a sign of life, and when the next one is due.
    watchdog: Option<(Duration, Instant)>,
}

impl Readiness {
    pub(super) fn new() -> Self {
        // Twice as often as asked for, so that one that comes late is no alarm.
        let every = sd_notify::watchdog_enabled().map(|every| every / 2);
        Self { told: false, watchdog: every.map(|every| (every, Instant::now())) }
    }

    /// Called again and again by the thread that decides: a sign of life is one of that thread.
    pub(super) fn tick(&mut self, is_ready: impl FnOnce() -> bool) {
        if !self.told && is_ready() {
            self.told = true;
            tell(&[NotifyState::Ready, NotifyState::Status("cells are served")]);
        }
        let now = Instant::now();
        if let Some((every, due)) = &mut self.watchdog
            && now >= *due
        {
            *due = now + *every;
            tell(&[NotifyState::Watchdog]);
        }
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "tell the service manager");
    }
}
