//! How many sessions there are, of whom.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cell_abi::AccountId;

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    pub(super) all: usize,
    /// Of one peer.
    pub(super) of_peer: usize,
    /// Of one peer that nobody has named here.
    pub(super) of_stranger: usize,
    /// Of all of those.
    pub(super) of_strangers: usize,
}

/// Counts sessions.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    counts: Arc<Mutex<HashMap<AccountId, Count>>>,
    bounds: Bounds,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    sessions: usize,
    is_known: bool,
}

/// A session, for as long as this lives.
#[derive(Debug)]
pub(super) struct Counted {
    sessions: Sessions,
    peer: AccountId,
}

impl Sessions {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { counts: Arc::default(), bounds }
    }

    /// Counts one more; `None` when there are too many. Those of peers that nobody named leave room for
    /// the others.
    pub(super) fn enter(&self, peer: AccountId, is_known: bool) -> Option<Counted> {
        let (mut counts, bounds) = (self.lock(), self.bounds);
        let of_peer = counts.get(&peer).map_or(0, |count| count.sessions);
        let all = |known: Option<bool>| {
            let wanted = counts.values().filter(|count| known.is_none_or(|k| k == count.is_known));
            wanted.map(|count| count.sessions).sum::<usize>()
        };
        let fits = if is_known {
            of_peer < bounds.of_peer
        } else {
            of_peer < bounds.of_stranger && all(Some(false)) < bounds.of_strangers
        };
        if !fits || all(None) >= bounds.all {
            return None;
        }
        counts.insert(peer, Count { sessions: of_peer + 1, is_known });
        Some(Counted { sessions: self.clone(), peer })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.sessions.lock();
        if let Some(count) = counts.get_mut(&self.peer) {
            count.sessions -= 1;
            if count.sessions == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{
        SESSIONS, SESSIONS_MAX, SESSIONS_PER_PEER_MAX, SESSIONS_PER_STRANGER_MAX,
        STRANGER_SESSIONS_MAX,
    };
    use super::*;

    #[test]
    fn strangers_leave_room() {
        let sessions = Sessions::new(SESSIONS);
        let mut kept = Vec::new();
        for peer in 0..=u8::MAX {
            let peer = AccountId::from_bytes([peer; 32]);
            while let Some(counted) = sessions.enter(peer, false) {
                kept.push(counted);
            }
        }
        assert_eq!(kept.len(), STRANGER_SESSIONS_MAX);
        assert_eq!(sessions.lock().len(), STRANGER_SESSIONS_MAX / SESSIONS_PER_STRANGER_MAX);
        let friend = AccountId::from_bytes([99; 32]);
        let of_friend = (0..1000).map_while(|_| sessions.enter(friend, true)).collect::<Vec<_>>();
        assert_eq!(of_friend.len(), SESSIONS_PER_PEER_MAX);
        let mut friends = 0;
        for peer in 100..200 {
            let peer = AccountId::from_bytes([peer; 32]);
            while let Some(counted) = sessions.enter(peer, true) {
                kept.push(counted);
                friends += 1;
            }
        }
        assert_eq!(friends + SESSIONS_PER_PEER_MAX + STRANGER_SESSIONS_MAX, SESSIONS_MAX);
        drop((kept, of_friend));
        assert!(sessions.lock().is_empty());
    }
}
