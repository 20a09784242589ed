//! A place where machines leave their records and look for those of others: one record a line, in a file
//! or on the web.
//!
//! Who keeps the place can leave records out, and show old ones as long as they hold; it can make none.
//! How a file comes onto the web is not known here.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::error::{DiscoveryError, printable};
use crate::record::NodeRecord;
use crate::web;

/// Bytes of one rendezvous.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where records are: a path, `file:///PATH`, `https://HOST/PATH` or `http://HOST/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous(Place);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Web(String),
}

/// What was in a rendezvous.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reading {
    /// The records that are their machines' word and hold now.
    pub records: Vec<NodeRecord>,
    /// How many more did hold once.
    pub expired: usize,
    /// How many lines are something else.
    pub wrong: usize,
    /// The number of the first of those, from 1, and what is wrong with it.
    pub first_wrong: Option<(usize, DiscoveryError)>,
}

impl Rendezvous {
    /// The file that it is, where one can [`publish`]; `None` of one on the web.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Place::File(path) => Some(path),
            Place::Web(_) => None,
        }
    }

    /// Reads the place as it is now, which is in seconds since 1970. A wrong line does not spoil others.
    ///
    /// On the web this takes at most ten seconds.
    pub fn read(&self, now_s: u64) -> Result<Reading, DiscoveryError> {
        let bytes = match &self.0 {
            Place::File(path) => read_file(path)?,
            Place::Web(url) => web::fetch(url, web::FETCH_TIME_MAX)?,
        };
        let mut reading = Reading::default();
        for (number, line) in lines(&bytes) {
            let record = NodeRecord::parse(line);
            match record.and_then(|record| record.check(now_s).map(|()| record)) {
                Ok(record) => reading.records.push(record),
                Err(DiscoveryError::Expired(_)) => reading.expired += 1,
                Err(error) => {
                    reading.wrong += 1;
                    reading.first_wrong.get_or_insert((number, error));
                }
            }
        }
        Ok(reading)
    }
}

impl FromStr for Rendezvous {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let wrong = || DiscoveryError::Rendezvous(printable(text));
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        let place = match scheme.as_deref() {
            Some("http" | "https") => Place::Web(text.to_owned()),
            Some("file") => {
                let path = text.get("file://".len()..).filter(|path| path.starts_with('/'));
                Place::File(path.ok_or_else(wrong)?.into())
            }
            None if !text.is_empty() => Place::File(text.into()),
            _ => return Err(wrong()),
        };
        Ok(Self(place))
    }
}

/// Puts a record into a rendezvous that is a file, in the place of its machine's older one.
///
/// What has expired goes; lines that this program does not understand stay, they may be of a newer one.
/// Readers see the file before or after. Of several programs that publish at once, none loses another's
/// record: they wait for each other at a file beside it, `.lock`.
pub fn publish(path: &Path, record: &NodeRecord, now_s: u64) -> Result<(), DiscoveryError> {
    record.check(now_s)?;
    let _lock = lock(path)?;
    let old = match read_file(path) {
        Err(DiscoveryError::File { kind: ErrorKind::NotFound, .. }) => Vec::new(),
        other => other?,
    };
    let mut new = Vec::with_capacity(old.len());
    for (_, line) in lines(&old) {
        let known = NodeRecord::parse(line).ok();
        if let Some(known) =
            known.filter(|known| known.key == record.key || known.has_expired(now_s))
        {
            let differs = known.seq >= record.seq && !known.says_same(record);
            if differs && known.key == record.key && known.check(now_s).is_ok() {
                return Err(DiscoveryError::Outdated { seq: known.seq });
            }
            continue;
        }
        new.extend([line, b"\n"].concat());
    }
    new.extend(record.to_json().into_bytes());
    new.push(b'\n');
    if new.len() as u64 > FILE_BYTES_MAX {
        return Err(DiscoveryError::ListTooLong);
    }
    replace(path, &new)
}

/// Lines that are not empty, with their numbers.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (1..).zip(lines).filter(|(_, line)| !line.is_empty())
}

fn read_file(path: &Path) -> Result<Vec<u8>, DiscoveryError> {
    let failed = |error| in_file(path, error);
    // Of a pipe, the open would wait for the other end.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(ErrorKind::InvalidInput.into()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(DiscoveryError::ListTooLong);
    }
    Ok(bytes)
}

/// Holds until what comes back is dropped. The rendezvous itself cannot be locked: it is replaced.
fn lock(path: &Path) -> Result<File, DiscoveryError> {
    let path = beside(path, ".lock");
    let failed = |error| in_file(&path, error);
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// Wholly or not at all, and as accessible as before.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), DiscoveryError> {
    let new = beside(path, ".new");
    let write = || {
        // One that a crash left behind; who has the lock owns it.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| in_file(path, error))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn in_file(path: &Path, error: std::io::Error) -> DiscoveryError {
    DiscoveryError::File { path: path.to_owned(), kind: error.kind() }
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;
