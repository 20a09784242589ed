//! Who of several sessions is silent: by watching, so that nobody's clock has a say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::SessionId;

/// How long a look may be after the one before for both to count as watching.
const GAP_MAX: Duration = Duration::from_secs(10);

/// Sees the beats of all sessions again and again, and tells whose stand still.
///
/// Only time counts in which it was looking: who could not look, because the server was away or this
/// process asleep, cannot say that others were silent meanwhile.
#[derive(Debug)]
pub struct Watch {
    silent_max: Duration,
    looked: Option<Instant>,
    /// What was seen last, and since when it is that.
    seen: BTreeMap<SessionId, (i64, Instant)>,
}

impl Watch {
    /// Tells those that stand still for this long.
    pub const fn new(silent_max: Duration) -> Self {
        Self { silent_max, looked: None, seen: BTreeMap::new() }
    }

    /// Takes the beats of all sessions at this moment; returns the silent ones.
    pub fn look(&mut self, now: Instant, sessions: &[(SessionId, i64)]) -> Vec<(SessionId, i64)> {
        let is_gap = self.looked.is_none_or(|at| now.saturating_duration_since(at) > GAP_MAX);
        self.looked = Some(now);
        let before = if is_gap { BTreeMap::new() } else { std::mem::take(&mut self.seen) };
        let since = |(id, beats): &(SessionId, i64)| match before.get(id) {
            Some((same, since)) if same == beats => (*id, (*beats, *since)),
            _ => (*id, (*beats, now)),
        };
        self.seen = sessions.iter().map(since).collect();
        let silent = self
            .seen
            .iter()
            .filter(|(_, (_, since))| now.saturating_duration_since(*since) >= self.silent_max);
        silent.map(|(id, (beats, _))| (*id, *beats)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> SessionId {
        SessionId::derive("session", &[name.as_bytes()])
    }

    #[test]
    fn who_stands_still_is_told() {
        let (start, mut watch) = (Instant::now(), Watch::new(Duration::from_secs(30)));
        for second in (0_i64..60).step_by(3) {
            let sessions = [(session("dead"), 7), (session("alive"), second)];
            let silent = watch.look(start + Duration::from_secs(second.unsigned_abs()), &sessions);
            let expected = if second < 30 { vec![] } else { vec![(session("dead"), 7)] };
            assert_eq!(silent, expected, "after {second} s");
        }
    }

    /// After an outage the first one back fenced all the others, whose beats the server had not heard either.
    #[test]
    fn who_did_not_look_tells_nobody() {
        let (start, mut watch) = (Instant::now(), Watch::new(Duration::from_secs(30)));
        let others = [(session("a"), 1), (session("b"), 1)];
        let mut silent_at = |second| watch.look(start + Duration::from_secs(second), &others);
        assert_eq!(silent_at(0), []);
        // The server was away for a minute.
        for second in (60..90).step_by(3) {
            assert_eq!(silent_at(second), [], "after {second} s");
        }
        assert_eq!(silent_at(90).len(), 2);
    }

    /// One that comes, or goes and comes, is as new.
    #[test]
    fn time_counts_from_the_first_look() {
        let (start, mut watch) = (Instant::now(), Watch::new(Duration::from_secs(6)));
        let late = [(session("late"), 1)];
        assert_eq!(watch.look(start, &[]), []);
        for (second, is_there, expected) in [
            (5, true, 0),
            (10, true, 0),
            (12, false, 0),
            (15, true, 0),
            (20, true, 0),
            (21, true, 1),
        ] {
            let now = start + Duration::from_secs(second);
            let sessions: &[_] = if is_there { &late } else { &[] };
            assert_eq!(watch.look(now, sessions).len(), expected, "after {second} s");
        }
    }
}
