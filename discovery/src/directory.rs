//! The machines that are known, each by its newest record.
//!
//! It has no clock and reads nothing. A key costs nothing, so a directory can be filled with machines
//! that do not exist: it is as good as the places that its records come from.

use std::collections::BTreeMap;

use cell_abi::AccountId;

use crate::error::DiscoveryError;
use crate::record::{CLOCKS_APART_S_MAX, NodeRecord, VALID_S_MAX};

/// Machines in a directory.
pub(crate) const RECORDS_MAX: usize = 4096;

/// Records of machines, at most one of each.
///
/// An expired record is not shown, but its number is remembered until no older record of the same
/// machine can hold any more: otherwise a word that was taken back would count again. When there are too
/// many, the one that expires first makes room, and of those the one with the lowest key; that may be
/// the new one.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    records: BTreeMap<AccountId, NodeRecord>,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Added {
    /// It is the first of its machine.
    New,
    /// It took the place of an older one.
    Newer,
    /// It is there already.
    Same,
    /// One with a higher number is there.
    Older,
    /// Another with the same number is there and stays: the machine signed two words as one. This is
    /// the one that stays; both together prove it.
    Equivocation(Box<NodeRecord>),
    /// There is no room, and all others hold longer.
    NoRoom,
}

impl Directory {
    /// Takes a record if it is its machine's word and holds now, which is in seconds since 1970.
    pub fn add(&mut self, record: NodeRecord, now_s: u64) -> Result<Added, DiscoveryError> {
        record.check(now_s)?;
        let key = record.key;
        if let Some(known) = self.records.get(&key) {
            return Ok(match record.seq.cmp(&known.seq) {
                std::cmp::Ordering::Less => Added::Older,
                std::cmp::Ordering::Equal if record.says_same(known) => Added::Same,
                std::cmp::Ordering::Equal => Added::Equivocation(Box::new(known.clone())),
                std::cmp::Ordering::Greater => {
                    self.records.insert(key, record);
                    Added::Newer
                }
            });
        }
        self.records.insert(key, record);
        if self.records.len() > RECORDS_MAX {
            self.forget(now_s);
        }
        if self.records.len() > RECORDS_MAX
            && let Some((_, first)) = self.records.values().map(|r| (r.expires_s, r.key)).min()
        {
            self.records.remove(&first);
        }
        Ok(if self.records.contains_key(&key) { Added::New } else { Added::NoRoom })
    }

    /// Drops what neither holds now nor tells any more that something else is too old.
    pub fn forget(&mut self, now_s: u64) {
        let kept_s = VALID_S_MAX + CLOCKS_APART_S_MAX;
        self.records.retain(|_, record| record.issued_s.saturating_add(kept_s) >= now_s);
    }

    /// The record of this machine, if it holds now.
    pub fn find(&self, key: AccountId, now_s: u64) -> Option<&NodeRecord> {
        self.records.get(&key).filter(|record| !record.has_expired(now_s))
    }

    /// All that hold now, in the order of their keys.
    pub fn current(&self, now_s: u64) -> impl Iterator<Item = &NodeRecord> {
        self.records.values().filter(move |record| !record.has_expired(now_s))
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
