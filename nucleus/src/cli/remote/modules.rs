//! Modules that other machines sent, kept by their hash for the next job.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_host::ArtefactCache;
use cell_host::gate::MODULE_BYTES_MAX;
use rustix::fs::{FlockOperation, flock};

use super::parts::{self, Parts};
use crate::home::{Home, read_file, replace_file};
use crate::peers::Peers;

/// What is kept, with what it was compiled to, in bytes.
pub(super) const MODULES_BYTES_MAX: u64 = 1 << 30;
/// How many are kept.
pub(super) const MODULES_MAX: usize = 1024;
/// What the smallest file takes of a disk.
const BLOCK_BYTES: u64 = 4096;

/// How the name of a module's lock ends.
const LOCK: &str = "lock";

/// The directory that they are in.
pub(super) struct Modules {
    directory: PathBuf,
    bytes_max: u64,
    /// Those that have not come as a whole.
    pub(super) parts: Parts,
}

impl Modules {
    /// A machine that is lent may have named another size for all of them, in MiB.
    pub(super) fn open(home: &Home, lent_mb_max: Option<u64>) -> anyhow::Result<Self> {
        let bytes_max = lent_mb_max.map_or(MODULES_BYTES_MAX, |mb| mb.saturating_mul(1 << 20));
        let path = home.root().join("modules");
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let parts = Parts::open(&path, bytes_max);
        parts.renew(&Peers::read(home)?);
        let bytes_max = bytes_max - parts.bytes_max();
        Ok(Self { directory: path, bytes_max, parts })
    }

    /// The module with this hash, if it was kept and is still itself.
    pub(super) fn find(&self, hash: CellHash) -> Option<Vec<u8>> {
        let path = self.path(hash);
        let wasm = read_file(&path, MODULE_BYTES_MAX as u64).ok()?;
        if CellHash::of(&wasm) != hash {
            // Nobody else writes here, so the disk did.
            let _ = fs::remove_file(&path);
            return None;
        }
        // So that it is not the one that was used longest ago; where that fails it is.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(wasm)
    }

    /// Keeps a module that was compiled, and drops others, with what they were compiled to, if there are
    /// too many.
    pub(super) fn keep(
        &self,
        hash: CellHash,
        wasm: &[u8],
        cache: &ArtefactCache,
    ) -> anyhow::Result<()> {
        replace_file(&self.path(hash), wasm)?;
        let about = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let about = entry.metadata().ok()?;
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == parts::ENDING || ending == LOCK) {
                // Parts have limits of their own, and a lock is there for as long as somebody compiles.
                return None;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let hash = CellHash::parse(name).ok();
            let compiled = hash.map_or(0, |hash| cache.bytes(hash));
            // A small file takes a block as well.
            let bytes = about.len().max(BLOCK_BYTES).saturating_add(compiled);
            Some((about.modified().ok()?, bytes, path, hash))
        };
        let mut all: Vec<_> = fs::read_dir(&self.directory)?.filter_map(about).collect();
        all.sort_by_key(|(modified, ..)| *modified);
        let (mut bytes, mut count) =
            (all.iter().map(|(_, bytes, ..)| bytes).sum::<u64>(), all.len());
        for (_, length, path, hash) in all {
            if bytes <= self.bytes_max && count <= MODULES_MAX {
                break;
            }
            // Another job may have dropped it already.
            let _ = fs::remove_file(path);
            hash.into_iter().for_each(|hash| cache.forget(hash));
            (bytes, count) = (bytes - length, count - 1);
        }
        Ok(())
    }

    /// Has no other process compile this module as long as what comes back lives.
    pub(super) fn lock(&self, hash: CellHash) -> anyhow::Result<Alone> {
        let path = self.path(hash).with_extension(LOCK);
        let mut open = OpenOptions::new();
        let open = open.write(true).create(true).truncate(false).mode(0o600);
        let file = open.open(&path).with_context(|| format!("open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).context("lock a module")?;
        Ok(Alone { path, _file: file })
    }

    fn path(&self, hash: CellHash) -> PathBuf {
        self.directory.join(format!("{hash}.wasm"))
    }
}

/// The right to compile a module, for as long as this lives.
pub(super) struct Alone {
    path: PathBuf,
    _file: File,
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Who waits for it finds the module compiled, or refused, and needs no lock any more.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_compiles_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(directory.path().to_owned())).unwrap();
        let modules = Modules::open(&home, None).unwrap();
        let (hash, other) = (CellHash::of(b"a"), CellHash::of(b"b"));
        let alone = modules.lock(hash).unwrap();
        drop(modules.lock(other).unwrap());
        let (done, is_done) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let waiting = &modules;
            scope.spawn(move || {
                let _alone = waiting.lock(hash).unwrap();
                done.send(()).unwrap();
            });
            let free = File::open(&alone.path).unwrap();
            assert!(flock(&free, FlockOperation::NonBlockingLockExclusive).is_err());
            assert!(is_done.try_recv().is_err());
            drop(alone);
            is_done.recv().unwrap();
        });
        let left = fs::read_dir(home.root().join("modules")).unwrap();
        assert_eq!(left.count(), 0);
    }
}
