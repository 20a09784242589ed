//! Clients that share memory: a loop looks for their bytes, as no event tells of them.

use std::thread;
use std::time::{Duration, Instant};

use super::EventLoop;

/// How long clients that share memory keep a loop from its sockets, apart from their last turn.
const LOOK_TIME: Duration = Duration::from_micros(50);

impl EventLoop {
    pub(super) fn is_shared(&self, at: usize) -> bool {
        let place = self.connections.get(at).and_then(Option::as_ref);
        place.is_some_and(|(connection, _)| connection.shares_memory())
    }

    /// Serves clients that share memory, for as long as they keep this loop busy and there is nothing
    /// else to do; lets those sleep that do not.
    pub(super) fn look_at_shared(&mut self) {
        if self.awake.is_empty() {
            return;
        }
        let has_work = |this: &Self, at: usize| {
            let place = this.connections.get(at).and_then(Option::as_ref);
            place.is_some_and(|(connection, _)| connection.has_shared_work())
        };
        let mut looks = std::mem::take(&mut self.looks);
        let (mut found, mut began) = (true, None);
        while found {
            let any_has = || self.awake.iter().any(|at| has_work(self, *at));
            found = match (self.is_busy(), self.yielded) {
                // With other work at hand nobody is waited for.
                (true, _) => any_has(),
                (false, true) => looks.look_again(&any_has),
                (false, false) => looks.look(&any_has),
            };
            self.yielded = false;
            let now = Instant::now();
            for place in 0..self.awake.len() {
                if let Some(at) = self.awake.get(place).copied()
                    && has_work(self, at)
                {
                    self.connection_ready(at, true, false, now);
                    // No event came that would have seen to it.
                    self.watch();
                }
            }
            let since = *began.get_or_insert(now);
            if self.is_busy() || now.saturating_duration_since(since) > LOOK_TIME {
                break;
            }
        }
        self.looks = looks;
        if !found && !self.is_busy() {
            let (now, connections) = (Instant::now(), &mut self.connections);
            self.awake.retain(|at| match connections.get_mut(*at) {
                Some(Some((connection, _))) => !connection.goes_to_sleep(now),
                _ => false,
            });
            // Clients may be waiting for this very processor.
            thread::yield_now();
            self.yielded = true;
        }
    }

    /// The bell of a client that shares memory rang.
    pub(super) fn wake_shared(&mut self, at: usize, now: Instant) {
        let Some(Some((connection, _))) = self.connections.get_mut(at) else { return };
        if !connection.wire_mut().hear_bell(now) {
            return self.disconnect(at);
        }
        self.keep_awake(at);
        self.connection_ready(at, true, false, now);
    }

    pub(super) fn keep_awake(&mut self, at: usize) {
        if !self.awake.contains(&at) {
            self.awake.push(at);
        }
    }
}
