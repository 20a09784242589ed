//! A private store of compiled modules: native code that this machine made and can prove it made.
//!
//! Each artefact is a file of its own, so that it can be mapped; beside it lies a keyed hash.
//! Files are written under another name and renamed, never changed in place. Whatever does not
//! verify is treated as absent and compiled again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cell_abi::CellHash;

use crate::engine::{Sandbox, WASMTIME_VERSION};

/// A directory of artefacts.
#[derive(Debug)]
pub struct ArtefactCache {
    directory: PathBuf,
    key: [u8; 32],
}

impl ArtefactCache {
    /// Opens the cache, making its directory readable by this user alone.
    ///
    /// The key must be secret and kept by the caller; with another key every artefact is stale.
    pub fn open(directory: PathBuf, key: [u8; 32]) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(&directory)?;
        Ok(Self { directory, key })
    }

    /// This module's artefact, open, if there is one that this machine made.
    ///
    /// The bytes that were verified are the bytes of this open file, whatever takes its name later.
    pub fn find(&self, hash: CellHash) -> Option<File> {
        let path = self.path(hash);
        let mut file = File::open(&path).ok()?;
        let mut artefact = Vec::new();
        file.read_to_end(&mut artefact).ok()?;
        let mac = fs::read(mac_path(&path)).ok()?;
        let expected = self.mac(&path, &artefact);
        // blake3's comparison takes the same time wherever the bytes differ.
        (blake3::Hash::from_slice(&mac).ok()? == expected).then_some(file)
    }

    /// Keeps an artefact.
    pub fn store(&self, hash: CellHash, artefact: &[u8]) -> io::Result<()> {
        let path = self.path(hash);
        let mac = self.mac(&path, artefact);
        replace(&path, artefact)?;
        replace(&mac_path(&path), mac.as_bytes())
    }

    /// The name says what the artefact depends on besides its module.
    fn path(&self, hash: CellHash) -> PathBuf {
        let engine = Sandbox::engine_id().short();
        self.directory.join(format!("{hash}-{WASMTIME_VERSION}-{engine}.cwasm"))
    }

    fn mac(&self, path: &Path, artefact: &[u8]) -> blake3::Hash {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(artefact);
        hasher.finalize()
    }
}

fn mac_path(path: &Path) -> PathBuf {
    path.with_extension("mac")
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = |mut file: File| file.write_all(bytes);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(write)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}
