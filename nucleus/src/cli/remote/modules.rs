//! Modules that other machines sent, kept by their hash for the next job.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_host::gate::MODULE_BYTES_MAX;

use crate::home::{Home, read_file};

/// What is kept, in bytes.
pub(super) const MODULES_BYTES_MAX: u64 = 1 << 30;

/// The directory that they are in.
pub(super) struct Modules(PathBuf);

impl Modules {
    pub(super) fn open(home: &Home) -> anyhow::Result<Self> {
        let path = home.root().join("modules");
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
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
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(wasm)
    }

    /// Keeps a module, and drops others if there are too many.
    pub(super) fn keep(&self, hash: CellHash, wasm: &[u8]) -> anyhow::Result<()> {
        let path = self.path(hash);
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&beside, wasm)
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("write {}", path.display()))?;
        let mut all: Vec<_> = fs::read_dir(&self.0)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let about = entry.metadata().ok()?;
                Some((about.modified().ok()?, about.len(), entry.path()))
            })
            .collect();
        all.sort();
        let mut bytes: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in all {
            if bytes <= MODULES_BYTES_MAX {
                break;
            }
            // Another job may have dropped it already.
            let _ = fs::remove_file(path);
            bytes -= length;
        }
        Ok(())
    }

    fn path(&self, hash: CellHash) -> PathBuf {
        self.0.join(format!("{hash}.wasm"))
    }
}
