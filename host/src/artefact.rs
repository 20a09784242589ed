//! A private store of compiled modules: native code that this machine made and can prove it made.
//!
//! Each artefact is a file of its own, so that it can be mapped; beside it lies a keyed hash.
//! Files are written under another name and renamed, never changed in place. Whatever does not
//! verify is treated as absent and compiled again. What the compiler refused is kept too, as a
//! file with the reason, so that nobody pays or waits twice for the same refusal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cell_abi::CellHash;

use crate::engine::{Sandbox, WASMTIME_VERSION};

cell_abi::limits! {
    /// Refusals of the compiler that are remembered.
    ///
    /// The oldest is forgotten; its module would be tried again.
    pub const REFUSALS_MAX: usize = 1_000;

    /// Reason of a refusal that is remembered, in bytes.
    ///
    /// The rest is cut.
    pub const REASON_BYTES_MAX: usize = 1_024;
}

/// The end of a remembered refusal's file name.
const REFUSED: &str = "refused";

/// The end of a lock's file name.
const LOCK: &str = "lock";

/// The right to make one module's artefact.
#[derive(Debug)]
pub struct Alone {
    path: PathBuf,
    _locked: File,
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Who waits for it has it open, and finds the artefact.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the compiler said of a module once, and the file that remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why it was refused.
    pub reason: String,
    /// Without this file the module is tried again.
    pub file: PathBuf,
}

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

    /// Waits until nobody else makes this module's artefact, and keeps others from it as long as what comes back
    /// lives: of two that want the same, the second finds what the first has made.
    pub fn alone(&self, hash: CellHash) -> io::Result<Alone> {
        let path = self.path(hash).with_extension(LOCK);
        let mut open = OpenOptions::new();
        let file = open.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(Alone { path, _locked: file })
    }

    /// What this module's artefact takes of the disk; 0 if there is none.
    pub fn bytes(&self, hash: CellHash) -> u64 {
        fs::metadata(self.path(hash)).map_or(0, |about| about.len())
    }

    /// Drops an artefact; who needs it compiles the module again.
    pub fn forget(&self, hash: CellHash) {
        let path = self.path(hash);
        // What somebody else has just dropped is dropped.
        let _ = fs::remove_file(mac_path(&path));
        let _ = fs::remove_file(path);
    }

    /// What the compiler refused this module for, if this version of this host remembers it.
    pub fn refused(&self, hash: CellHash) -> Option<Refused> {
        let file = self.path(hash).with_extension(REFUSED);
        let mut bytes = Vec::new();
        let bytes_max = (blake3::OUT_LEN + REASON_BYTES_MAX) as u64;
        File::open(&file).ok()?.take(bytes_max).read_to_end(&mut bytes).ok()?;
        let (mac, reason) = bytes.split_at_checked(blake3::OUT_LEN)?;
        if blake3::Hash::from_slice(mac).ok()? != self.refusal_mac(&file, reason) {
            return None;
        }
        Some(Refused { reason: String::from_utf8_lossy(reason).into_owned(), file })
    }

    /// Remembers why the compiler refused this module; the reason is cut if it is long.
    pub fn refuse(&self, hash: CellHash, reason: &str) -> io::Result<Refused> {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default().to_owned();
        self.forget_oldest()?;
        let file = self.path(hash).with_extension(REFUSED);
        let mac = self.refusal_mac(&file, reason.as_bytes());
        replace(&file, &[mac.as_bytes(), reason.as_bytes()].concat())?;
        Ok(Refused { reason, file })
    }

    /// Makes room for one more refusal.
    fn forget_oldest(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == REFUSED) {
                let written = fs::metadata(&path).and_then(|found| found.modified());
                // One that somebody else has just removed is no longer there to be counted.
                files.extend(written.ok().map(|written| (written, path)));
            }
        }
        files.sort();
        let too_many = (files.len() + 1).saturating_sub(REFUSALS_MAX);
        for (_, path) in files.iter().take(too_many) {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// Another version of this host may have other limits, so it forgets the refusals of this one.
    fn refusal_mac(&self, file: &Path, reason: &[u8]) -> blake3::Hash {
        self.mac(file, &[env!("CARGO_PKG_VERSION").as_bytes(), &[0], reason].concat())
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
    // Cells of one module may be compiled at once, by threads of one process as well.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
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
