//! Machines that were found: their own signed records, kept in `nodes.jsonl` of the home.
//!
//! A record says where a machine is and what it asks for; that it is kept is no reason to trust it.

use std::path::PathBuf;

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_discovery::{Added, Directory, Rendezvous};

use crate::cli::{Exit, Failure};
use crate::home::{Home, replace_file};
use crate::reputation::{Found, Reputation};

/// Largest `nodes.jsonl`, in bytes; less than a rendezvous may have, for it is read as one.
pub(crate) const NODES_BYTES_MAX: usize = 4 << 20;

/// Those that hold now, which is in seconds since 1970. A file that cannot be read holds nobody.
pub(crate) fn read(home: &Home, now_s: u64) -> Directory {
    let mut directory = Directory::default();
    let place = path(home).to_str().and_then(|path| format!("file://{path}").parse().ok());
    let reading = place.and_then(|place: Rendezvous| place.read(now_s).ok());
    for record in reading.into_iter().flat_map(|reading| reading.records) {
        // What does not fit any more is found again.
        let _ = directory.add(record, now_s);
    }
    directory
}

/// What a place had to say.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Whose records are there, and are the newest that are known.
    pub(crate) keys: Vec<AccountId>,
    /// Who signed two records as one: they prove that it speaks with two tongues.
    pub(crate) two_faced: Vec<AccountId>,
    /// How many lines are no records; the first of them, and what is wrong with it.
    pub(crate) wrong: Option<(usize, usize, String)>,
}

/// Adds what is at a place, a file or a URL; no line of it spoils another.
pub(crate) fn look(place: &str, directory: &mut Directory, now_s: u64) -> anyhow::Result<Looked> {
    let rendezvous: Rendezvous =
        place.parse().map_err(|error| Failure::new(Exit::Usage, format!("--from: {error}")))?;
    let reading = rendezvous.read(now_s).with_context(|| format!("read {place}"))?;
    let wrong = reading.first_wrong.map(|(line, error)| (reading.wrong, line, error.to_string()));
    let mut looked = Looked { wrong, ..Looked::default() };
    for record in reading.records {
        let key = record.key;
        match directory.add(record, now_s) {
            Ok(Added::Equivocation(_)) => looked.two_faced.push(key),
            Ok(Added::NoRoom) | Err(_) => {}
            Ok(_) => looked.keys.push(key),
        }
    }
    looked.keys.retain(|key| !looked.two_faced.contains(key));
    Ok(looked)
}

impl Looked {
    /// Keeps who cannot be trusted any more.
    pub(crate) fn note(&self, home: &Home) -> anyhow::Result<()> {
        let problem = || Found::Proven("it signed two records of itself as one".into());
        let found: Vec<_> = self.two_faced.iter().map(|key| (*key, None, problem())).collect();
        if found.is_empty() { Ok(()) } else { Reputation::note(home, &found) }
    }
}

/// Keeps them, wholly or not at all; more than fit are left out.
pub(crate) fn write(home: &Home, directory: &Directory, now_s: u64) -> anyhow::Result<()> {
    home.create()?;
    let mut text = String::new();
    for record in directory.current(now_s) {
        let line = record.to_json();
        if text.len() + line.len() < NODES_BYTES_MAX {
            text.push_str(&line);
            text.push('\n');
        }
    }
    replace_file(&path(home), text.as_bytes())
}

fn path(home: &Home) -> PathBuf {
    home.root().join("nodes.jsonl")
}

#[cfg(test)]
mod tests {
    use cell_discovery::{NodeRecord, Offer, publish};
    use cell_peer::tunnel;
    use ed25519_dalek::SigningKey;

    use super::*;

    fn record(seed: u8, address: &str, seq: u64) -> NodeRecord {
        let offer = Offer { addresses: vec![address.parse().unwrap()], ..Offer::default() };
        let (now_s, key) = (tunnel::now_s(), SigningKey::from_bytes(&[seed; 32]));
        NodeRecord::sign(offer, seq, now_s, now_s + 3600, &key).unwrap()
    }

    /// One that says two things under one number is told from one that says something new.
    #[test]
    fn who_speaks_with_two_tongues_is_distrusted() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(directory.path().join("home"))).unwrap();
        let now_s = tunnel::now_s();
        let place = |name: &str, records: &[NodeRecord]| {
            let path = directory.path().join(name);
            records.iter().for_each(|record| publish(&path, record, now_s).unwrap());
            path.to_str().unwrap().to_owned()
        };
        let one = place("one", &[record(1, "h:1", 5), record(2, "h:2", 5)]);
        let two = place("two", &[record(1, "other:1", 5), record(2, "other:2", 6)]);
        let mut found = Directory::default();
        assert_eq!(look(&one, &mut found, now_s).unwrap().keys.len(), 2);
        write(&home, &found, now_s).unwrap();
        let mut found = read(&home, now_s);
        let looked = look(&two, &mut found, now_s).unwrap();
        let (liar, honest) = (record(1, "h:1", 5).key, record(2, "h:2", 5).key);
        assert_eq!(
            (looked.two_faced.as_slice(), looked.keys.as_slice()),
            (&[liar][..], &[honest][..])
        );
        looked.note(&home).unwrap();
        let reputation = Reputation::read(&home).unwrap();
        assert!(reputation.of(&liar.to_string()).unwrap().is_distrusted);
        assert!(reputation.of(&honest.to_string()).is_none());
        let current = found.find(honest, now_s).unwrap();
        assert_eq!(current.addresses[0].as_str(), "other:2");
    }
}
