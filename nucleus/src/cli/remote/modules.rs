//! Modules that other machines sent, kept by their hash for the next job.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_host::ArtefactCache;
use cell_host::gate::MODULE_BYTES_MAX;

use super::parts::{self, Parts};
use crate::home::{Home, read_file, replace_file};
use crate::peers::Peers;

/// What is kept, with what it was compiled to, in bytes.
pub(super) const MODULES_BYTES_MAX: u64 = 1 << 30;
/// How many are kept.
pub(super) const MODULES_MAX: usize = 1024;
/// What the smallest file takes of a disk.
const BLOCK_BYTES: u64 = 4096;

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
            if path.extension().is_some_and(|ending| ending == parts::ENDING) {
                // They have limits of their own.
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

    fn path(&self, hash: CellHash) -> PathBuf {
        self.directory.join(format!("{hash}.wasm"))
    }
}
