//! What came of modules whose line was lost, so that only the rest is sent again.
//!
//! A part is for the machine that sent it, and for nobody else. Nothing is believed of it: who reads one
//! checks the hash of the whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cell_abi::{AccountId, CellHash};
use cell_host::gate::MODULE_BYTES_MAX;
use rustix::fs::statvfs;

use crate::peers::Peers;

/// Parts that are kept.
pub(super) const PARTS_MAX: usize = 8;
/// Parts of one other machine: as many as it may have jobs at once.
pub(super) const PARTS_PER_PEER_MAX: usize = 2;
/// How long one is kept.
pub(super) const PART_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// What stays free of the disk, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// How the name of a part ends.
pub(super) const ENDING: &str = "part";

/// The parts in a directory.
pub(super) struct Parts {
    directory: PathBuf,
    count_max: usize,
}

/// One that is on its way.
pub(super) struct Upload {
    /// All that came of it, until now and before.
    pub(super) wasm: Vec<u8>,
    path: PathBuf,
    /// Where it is kept; `None` where no more is.
    file: Option<File>,
}

impl Parts {
    /// Those of a machine that has so many bytes for all that others send: parts take a quarter at most.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> Self {
        let fit = usize::try_from(bytes_max / 4 / MODULE_BYTES_MAX as u64).unwrap_or(PARTS_MAX);
        Self { directory: directory.to_owned(), count_max: fit.min(PARTS_MAX) }
    }

    /// What they may take together, in bytes.
    pub(super) const fn bytes_max(&self) -> u64 {
        (self.count_max * MODULE_BYTES_MAX) as u64
    }

    /// Goes on with what this machine sent of a module, which has so many bytes.
    ///
    /// Where no part can be kept it begins anew. Two that bring the same write the same bytes to the same
    /// place.
    pub(super) fn upload(
        &self,
        (peer, peers): (AccountId, &Peers),
        hash: CellHash,
        length: usize,
    ) -> Upload {
        let path = self.path(peer, hash);
        let mut upload = Upload { wasm: Vec::new(), path, file: None };
        // Whatever fails here, the module is sent whole.
        if let Ok(file) = self.claim(&upload.path, peers) {
            let most = length as u64 + 1;
            let read = (&file).take(most).read_to_end(&mut upload.wasm);
            upload.file = Some(file);
            if read.is_err() || upload.wasm.len() > length {
                upload.discard();
            }
        }
        upload
    }

    /// Drops what is too old, though nobody sends anything more.
    pub(super) fn renew(&self, peers: &Peers) {
        let renew = || {
            let _alone = self.alone()?;
            self.tidy(peers, free_bytes(&self.directory)?)
        };
        // Where that fails it is done another time.
        let _: io::Result<()> = renew();
    }

    /// Until this is dropped no other process makes room.
    fn alone(&self) -> io::Result<File> {
        let directory = File::open(&self.directory)?;
        directory.lock()?;
        Ok(directory)
    }

    /// Opens a part, and makes room for it.
    fn claim(&self, path: &Path, peers: &Peers) -> io::Result<File> {
        let _alone = self.alone()?;
        let free = free_bytes(&self.directory)?;
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open.open(path)?;
        file.set_modified(SystemTime::now())?;
        self.tidy(peers, free)?;
        // It may have been one too many itself.
        fs::metadata(path).map(|_| file)
    }

    /// Drops what is too old and what is too much, with so many bytes of the disk free. Who was named here
    /// loses nothing to those who were not.
    fn tidy(&self, peers: &Peers, free_bytes: u64) -> io::Result<()> {
        let now = SystemTime::now();
        let about = |entry: io::Result<fs::DirEntry>| {
            let path = entry.ok()?.path();
            let peer = sender(&path)?;
            Some((peer, fs::metadata(&path).ok()?.modified().ok()?, path))
        };
        let mut all: Vec<_> = fs::read_dir(&self.directory)?.filter_map(about).collect();
        // The newest of those that were named come first.
        all.sort_by_key(|(peer, modified, _)| (peers.knows(*peer), *modified));
        let count_max = if free_bytes < FREE_BYTES_MIN { 0 } else { self.count_max };
        let mut kept = Vec::new();
        for (peer, modified, path) in all.into_iter().rev() {
            // One of the future would be kept until then.
            let is_new = now.duration_since(modified).is_ok_and(|age| age <= PART_TIME_MAX);
            let of_peer = kept.iter().filter(|kept| **kept == peer).count();
            if !is_new || of_peer >= PARTS_PER_PEER_MAX || kept.len() >= count_max {
                // Another process may have dropped it already; one that still writes to it is not hurt.
                let _ = fs::remove_file(path);
            } else {
                kept.push(peer);
            }
        }
        Ok(())
    }

    /// Drops what a machine sent of a module that is kept as a whole now.
    pub(super) fn forget(&self, peer: AccountId, hash: CellHash) {
        // There may be none.
        let _ = fs::remove_file(self.path(peer, hash));
    }

    fn path(&self, peer: AccountId, hash: CellHash) -> PathBuf {
        self.directory.join(format!("{peer}-{hash}.{ENDING}"))
    }
}

fn free_bytes(directory: &Path) -> io::Result<u64> {
    let disk = statvfs(directory)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Who sent this part, if it is one.
fn sender(path: &Path) -> Option<AccountId> {
    let stem = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    AccountId::parse(stem.split_once('-')?.0).ok()
}

impl Upload {
    /// Takes what follows.
    pub(super) fn add(&mut self, content: &[u8]) {
        let at = self.wasm.len() as u64;
        self.wasm.extend_from_slice(content);
        let is_kept = |file: &File| file.write_all_at(content, at).is_ok();
        if self.file.as_ref().is_some_and(|file| !is_kept(file)) {
            // A full disk: the job goes on without, and what is in the way goes.
            self.file = None;
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Drops all that came, which is wrong; no more is kept.
    pub(super) fn discard(&mut self) {
        self.wasm.clear();
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
