//! Numbers of jobs: one that was taken once is not run again, however often it comes.
//!
//! Where a line was lost, whoever sent the job cannot know whether it ran; so it may send it again anywhere,
//! and here it runs and is charged once.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_ledger::signed::{from_hex, hex};
use rustix::fs::{FlockOperation, flock};

use crate::cli::{Exit, Failure};
use crate::home::{Home, random};

/// Numbers that a machine remembers.
pub(super) const JOB_IDS_KEPT_MAX: usize = 16_384;
/// Bytes of one: a hash of who sent it and its number.
const ENTRY_BYTES: usize = 32;

/// A number that nobody has used.
pub(super) fn fresh() -> anyhow::Result<String> {
    Ok(hex(&random::<32>()?))
}

/// Takes a payer's number, or refuses if it was taken before. Of two processes that try, one gets it.
pub(super) fn take(home: &Home, payer: AccountId, id: &str) -> anyhow::Result<()> {
    let refuse = |message: &str| anyhow::Error::from(Failure::new(Exit::Refused, message));
    let id = from_hex(id).filter(|id| id.len() == 32);
    let id = id.ok_or_else(|| refuse("a job's number has 64 hexadecimal digits"))?;
    let mut hasher = blake3::Hasher::new_derive_key("cell/job-id/v1");
    hasher.update(payer.as_bytes()).update(&id);
    let entry = hasher.finalize();
    let path = home.root().join("job-ids");
    let mut open = OpenOptions::new();
    let open = open.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = open.open(&path).with_context(|| format!("open {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).context("lock job-ids")?;
    match add(&mut file, entry.as_bytes()).with_context(|| format!("write {}", path.display()))? {
        true => Ok(()),
        false => Err(refuse("this machine has run that job already; send it under a new number")),
    }
}

/// Whether it was not there. When there are too many, the older half goes.
fn add(file: &mut File, entry: &[u8; ENTRY_BYTES]) -> std::io::Result<bool> {
    let mut known = Vec::new();
    let bytes_max = (JOB_IDS_KEPT_MAX * ENTRY_BYTES) as u64;
    Read::by_ref(file).take(bytes_max).read_to_end(&mut known)?;
    // What a crash left half written is written over.
    known.truncate(known.len() / ENTRY_BYTES * ENTRY_BYTES);
    if known.chunks_exact(ENTRY_BYTES).any(|known| known == entry) {
        return Ok(false);
    }
    let mut kept = known.as_slice();
    if known.len() >= JOB_IDS_KEPT_MAX * ENTRY_BYTES {
        kept = known.get(known.len() / 2..).unwrap_or_default();
        file.rewind()?;
        file.write_all(kept)?;
    }
    file.seek(SeekFrom::Start(kept.len() as u64))?;
    file.write_all(entry)?;
    file.set_len((kept.len() + ENTRY_BYTES) as u64)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(directory.path().to_owned())).unwrap();
        let (a, b) = (AccountId::from_bytes([1; 32]), AccountId::from_bytes([2; 32]));
        let id = fresh().unwrap();
        take(&home, a, &id).unwrap();
        let error = take(&home, a, &id).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
        // Another's job may have the same number, by chance or not.
        take(&home, b, &id).unwrap();
        take(&home, a, &fresh().unwrap()).unwrap();
        for wrong in ["", "7", "xy", &"7".repeat(66), &"g".repeat(64)] {
            assert!(take(&home, a, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_so_many_are_kept() {
        let mut file = tempfile::tempfile().unwrap();
        let entry = |number: usize| {
            let mut entry = [0; ENTRY_BYTES];
            entry[..8].copy_from_slice(&number.to_le_bytes());
            entry
        };
        let all: Vec<u8> = (0..JOB_IDS_KEPT_MAX).flat_map(entry).collect();
        file.write_all(&all).unwrap();
        // Half of one more, as a crash leaves it.
        file.write_all(&[7; 9]).unwrap();
        let mut put = |number: usize| {
            file.rewind().unwrap();
            add(&mut file, &entry(number)).unwrap()
        };
        assert!(!put(JOB_IDS_KEPT_MAX - 1) && !put(0));
        assert!(put(JOB_IDS_KEPT_MAX));
        assert!(!put(JOB_IDS_KEPT_MAX) && !put(JOB_IDS_KEPT_MAX - 1));
        assert!(put(0), "the oldest is forgotten");
        assert_eq!(
            file.metadata().unwrap().len(),
            ((JOB_IDS_KEPT_MAX / 2 + 2) * ENTRY_BYTES) as u64
        );
    }
}
