//! Why calls failed, as words that stand in `cell ps --json` and in the metrics.

use cell_abi::Status;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A status other than `Ok` and `Rejected`, written as `out_of_fuel` is.
///
/// What does not name one is no message: a worker cannot invent causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause(Status);

impl Cause {
    /// Every cause there is.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Status::ALL.iter().filter_map(|status| Self::of(*status))
    }

    /// The cause of a call that ended so; `None` where the cell did what it was asked to, or said no.
    pub(crate) const fn of(status: Status) -> Option<Self> {
        match status {
            Status::Ok | Status::Rejected => None,
            status => Some(Self(status)),
        }
    }

    /// The word.
    pub(crate) fn word(self) -> String {
        let mut word = String::new();
        for c in format!("{:?}", self.0).chars() {
            if c.is_uppercase() && !word.is_empty() {
                word.push('_');
            }
            word.push(c.to_ascii_lowercase());
        }
        word
    }
}

impl Ord for Cause {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.code().cmp(&other.0.code())
    }
}

impl PartialOrd for Cause {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.word())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Self::all()
            .find(|cause| cause.word() == word)
            .ok_or_else(|| D::Error::custom("no cause of a failure"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn words() {
        let words: Vec<String> = Cause::all().map(Cause::word).collect();
        assert!(words.contains(&"out_of_fuel".into()) && words.contains(&"trapped".into()));
        assert!(!words.contains(&"ok".into()) && !words.contains(&"rejected".into()));
        let map: BTreeMap<Cause, u64> = Cause::all().map(|cause| (cause, 1)).collect();
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<BTreeMap<Cause, u64>>(&text).unwrap(), map);
        assert!(serde_json::from_str::<BTreeMap<Cause, u64>>("{\"ok\":1}").is_err());
    }
}
