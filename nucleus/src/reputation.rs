//! What this home found out about other machines by checking their work.
//!
//! `reputation.json` is written by `cell run --on` after a check, and read to choose a machine and to decide
//! whether it is checked again. It is this home's own experience: nobody else's word goes in.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use cell_abi::{AccountId, EngineId};
use cell_peer::tunnel;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::home::{Home, read_file, replace_file};
use crate::peers::PEERS_MAX;

/// Largest `reputation.json`, in bytes: every machine at its longest.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;
/// Engines of one machine that are told apart.
pub(crate) const ENGINES_MAX: usize = 4;
/// Longest text of a problem, in characters.
pub(crate) const PROBLEM_CHARACTERS_MAX: usize = 300;

/// So many valid results in a row are needed before a machine is trusted without a check.
pub(crate) const PROVEN_AFTER: u64 = 10;
/// The version of the file.
const VERSION: u32 = 1;

/// All of them, as the file has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reputation {
    version: u32,
    machines: Vec<Standing>,
}

/// One machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Standing {
    /// Its identity.
    pub(crate) key: String,
    /// It signed a receipt that its own record disproves: it gets no work by itself any more.
    pub(crate) is_distrusted: bool,
    /// How often its line was lost in the middle of a job.
    pub(crate) lost: u64,
    /// The last thing that went wrong, unless something went right since.
    pub(crate) last_problem: Option<Problem>,
    /// When it last had a job from here, in seconds since 1970.
    pub(crate) seen_s: u64,
    /// By what its fuel counts depend on: results of another engine prove nothing about this one.
    pub(crate) engines: Vec<OfEngine>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Problem {
    /// When, in seconds since 1970.
    pub(crate) at_s: u64,
    pub(crate) text: String,
}

/// One machine under one engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfEngine {
    pub(crate) engine_id: String,
    /// Results that were checked and right since the last one that was not.
    pub(crate) valid: u64,
    /// Jobs that it ran, checked or not.
    pub(crate) jobs: u64,
    /// Results that were checked and wrong, in all.
    pub(crate) invalid: u64,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It ran, and nobody checked.
    Unchecked,
    /// It was checked, and right.
    Valid,
    /// It was wrong, as others say.
    Invalid(String),
    /// It was wrong, and the machine's own signature shows it.
    Proven(String),
    /// The line was lost.
    Lost(String),
}

impl Default for Reputation {
    fn default() -> Self {
        Self { version: VERSION, machines: Vec::new() }
    }
}

impl Reputation {
    /// That of a home; nobody has any where there is no file.
    pub(crate) fn read(home: &Home) -> anyhow::Result<Self> {
        let path = path(home);
        if !path.exists() {
            return Ok(Self::default());
        }
        let bytes = read_file(&path, FILE_BYTES_MAX)?;
        Self::parse(&bytes).with_context(|| {
            format!("in {}; without that file all machines begin anew", path.display())
        })
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let this: Self = serde_json::from_slice(bytes)?;
        anyhow::ensure!(this.version == VERSION, "version {} is not known", this.version);
        anyhow::ensure!(this.machines.len() <= PEERS_MAX, "there are more than {PEERS_MAX}");
        Ok(this)
    }

    /// Notes what was found, and keeps it. Of several commands that do so at once none loses another's word.
    pub(crate) fn note(
        home: &Home,
        findings: &[(AccountId, Option<EngineId>, Found)],
    ) -> anyhow::Result<()> {
        Self::change(home, |this| {
            for (key, engine, found) in findings {
                this.add(*key, *engine, found, tunnel::now_s());
            }
        })
    }

    /// Forgets a machine; whether it was there.
    pub(crate) fn forget(home: &Home, key: &str) -> anyhow::Result<bool> {
        if Self::read(home)?.machines.iter().all(|machine| machine.key != key) {
            return Ok(false);
        }
        Self::change(home, |this| this.machines.retain(|machine| machine.key != key))?;
        Ok(true)
    }

    fn change(home: &Home, change: impl FnOnce(&mut Self)) -> anyhow::Result<()> {
        home.create()?;
        let path = path(home);
        let mut open = OpenOptions::new();
        let lock = open.create(true).append(true).mode(0o600).open(path.with_extension("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("lock reputation.json")?;
        let mut this = Self::read(home)?;
        change(&mut this);
        replace_file(&path, &serde_json::to_vec(&this)?)
    }

    fn add(&mut self, key: AccountId, engine: Option<EngineId>, found: &Found, now_s: u64) {
        let key = key.to_string();
        if self.machines.iter().all(|machine| machine.key != key) {
            self.make_room();
            self.machines.push(Standing { key: key.clone(), ..Standing::default() });
        }
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.key == key) {
            machine.add(engine, found, now_s);
        }
    }

    /// Drops whom nobody has heard of for longest; a cheat that is known stays as long as there are others.
    fn make_room(&mut self) {
        if self.machines.len() < PEERS_MAX {
            return;
        }
        let oldest = self.machines.iter().enumerate();
        let oldest = oldest.min_by_key(|(_, machine)| (machine.is_distrusted, machine.seen_s));
        if let Some((at, _)) = oldest {
            self.machines.swap_remove(at);
        }
    }

    /// What is known of a machine.
    pub(crate) fn of(&self, key: &str) -> Option<&Standing> {
        self.machines.iter().find(|machine| machine.key == key)
    }

    /// Every machine that is known.
    pub(crate) fn all(&self) -> &[Standing] {
        &self.machines
    }
}

impl Standing {
    fn add(&mut self, engine: Option<EngineId>, found: &Found, now_s: u64) {
        self.seen_s = now_s;
        let problem = |text: &str| {
            let text = text.chars().take(PROBLEM_CHARACTERS_MAX).collect();
            Some(Problem { at_s: now_s, text })
        };
        match found {
            Found::Unchecked => {}
            Found::Valid => self.last_problem = None,
            Found::Invalid(text) => self.last_problem = problem(text),
            Found::Proven(text) => {
                self.is_distrusted = true;
                self.last_problem = problem(text);
            }
            Found::Lost(text) => {
                self.lost = self.lost.saturating_add(1);
                self.last_problem = problem(text);
                return;
            }
        }
        let is_wrong = matches!(found, Found::Invalid(_) | Found::Proven(_));
        if is_wrong {
            // Whose word is false under one engine is not believed under another.
            self.engines.iter_mut().for_each(|engine| engine.valid = 0);
        }
        let Some(engine) = engine else { return };
        let of = self.engine(engine);
        of.jobs = of.jobs.saturating_add(1);
        of.valid = of.valid.saturating_add(u64::from(*found == Found::Valid));
        of.invalid = of.invalid.saturating_add(u64::from(is_wrong));
    }

    /// The last in the list is the one that was used last.
    fn engine(&mut self, engine: EngineId) -> &mut OfEngine {
        let engine_id = engine.to_string();
        let known = self.engines.iter().position(|known| known.engine_id == engine_id);
        let known = known.map(|at| self.engines.remove(at));
        if self.engines.len() >= ENGINES_MAX {
            self.engines.remove(0);
        }
        let of = known.unwrap_or_else(|| OfEngine { engine_id, ..OfEngine::default() });
        self.engines.push_mut(of)
    }

    /// Valid results in a row under this engine.
    pub(crate) fn valid(&self, engine: EngineId) -> u64 {
        let engine = engine.to_string();
        self.engines.iter().find(|of| of.engine_id == engine).map_or(0, |of| of.valid)
    }

    /// Jobs under all engines.
    pub(crate) fn jobs(&self) -> u64 {
        self.engines.iter().fold(0, |sum, of| sum.saturating_add(of.jobs))
    }
}

/// Whether a result is to be checked, of a machine with so many valid ones in a row: always before it has
/// ten, then once in so many as it has. `random` decides. The rule is BOINC's adaptive replication.
pub(crate) const fn is_due(valid: u64, random: u64) -> bool {
    valid < PROVEN_AFTER || random.is_multiple_of(valid)
}

fn path(home: &Home) -> PathBuf {
    home.root().join("reputation.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: usize) -> AccountId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        AccountId::from_bytes(bytes)
    }

    fn engine(byte: char) -> EngineId {
        EngineId::parse(&byte.to_string().repeat(64)).unwrap()
    }

    /// Fewer than ten: always. Then one in as many as there are.
    #[test]
    fn the_more_it_was_right_the_less_it_is_checked() {
        let due = |valid| (0..1000).filter(|random| is_due(valid, *random)).count();
        for (valid, expect) in [(0, 1000), (9, 1000), (10, 100), (20, 50), (100, 10), (1000, 1)] {
            assert_eq!(due(valid), expect, "{valid}");
        }
    }

    #[test]
    fn one_wrong_result_ends_the_row() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(directory.path().join("home"))).unwrap();
        let (a, key) = (account(1), account(1).to_string());
        let note = |engine: Option<EngineId>, found: Found| {
            Reputation::note(&home, &[(a, engine, found)]).unwrap();
            Reputation::read(&home).unwrap().of(&key).unwrap().clone()
        };
        let (one, two) = (engine('a'), engine('b'));
        for count in 1..=11 {
            assert_eq!(note(Some(one), Found::Valid).valid(one), count);
        }
        let after = note(Some(one), Found::Unchecked);
        assert_eq!((after.valid(one), after.valid(two), after.jobs()), (11, 0, 12));
        let after = note(None, Found::Lost("gone".into()));
        assert_eq!((after.valid(one), after.lost, after.jobs()), (11, 1, 12));
        assert_eq!(after.last_problem.unwrap().text, "gone");
        assert_eq!(note(Some(two), Found::Valid).last_problem, None);
        let after = note(Some(two), Found::Invalid("x".repeat(5000)));
        assert_eq!((after.valid(one), after.valid(two), after.is_distrusted), (0, 0, false));
        assert_eq!(after.last_problem.unwrap().text.len(), PROBLEM_CHARACTERS_MAX);
        assert!(note(Some(one), Found::Proven("it lied".into())).is_distrusted);
        assert!(note(Some(one), Found::Valid).is_distrusted, "that is not forgotten");
        assert!(Reputation::forget(&home, &key).unwrap());
        assert!(!Reputation::forget(&home, &key).unwrap());
    }

    /// Keys and engines cost nothing to make, and take no more room than this.
    #[test]
    fn a_crowd_takes_no_more_room() {
        let mut all = Reputation::default();
        all.add(account(0), Some(engine('a')), &Found::Proven("it lied".into()), 0);
        for number in 1..PEERS_MAX + 10 {
            for digit in "abcdef".chars() {
                let text = "\u{1f980}".repeat(PROBLEM_CHARACTERS_MAX);
                all.add(account(number), Some(engine(digit)), &Found::Invalid(text), number as u64);
            }
        }
        assert_eq!(all.machines.len(), PEERS_MAX);
        assert!(all.of(&account(0).to_string()).unwrap().is_distrusted);
        assert!(all.of(&account(1).to_string()).is_none());
        let last = all.of(&account(PEERS_MAX).to_string()).unwrap();
        assert_eq!(last.engines.len(), ENGINES_MAX);
        assert_eq!(last.engines.last().unwrap().engine_id, engine('f').to_string());
        let bytes = serde_json::to_vec(&all).unwrap();
        assert!((bytes.len() as u64) < FILE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Reputation::parse(&bytes).unwrap(), all);
    }

    #[test]
    fn a_broken_file_is_named() {
        let wrong =
            [r#"{"version":2,"machines":[]}"#, "{}", "", r#"{"version":1,"machines":[{}]}"#];
        for wrong in wrong {
            assert!(Reputation::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
