//! What this home keeps of its channels: `channels/ID.json`, one for each, written whole and durably.
//!
//! A process that works with a channel has its file locked, so that no two sign for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use cell_channel::{LedgerAt, Open, PayeeRecord, PayerRecord, Signed, Standing};
use cell_ledger::ContentHash;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::home::{Home, read_file, replace_file};

/// Largest file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 10;
/// Channels that a home keeps, of those that it pays by, and of those that it is paid by.
pub(super) const KEPT_MAX: usize = 1024;

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// Where the money is.
    pub(super) ledger: LedgerAt,
    /// This home's side.
    pub(super) side: Side,
    /// How it stood when the ledger was last asked.
    pub(super) standing: Option<Standing>,
}

/// This home's side of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Side {
    /// It pays a machine that listens there.
    Pays { record: PayerRecord, address: String },
    /// It is paid.
    IsPaid { record: PayeeRecord },
}

impl Kept {
    pub(super) const fn open(&self) -> &Signed<Open> {
        match &self.side {
            Side::Pays { record, .. } => &record.open,
            Side::IsPaid { record } => &record.open,
        }
    }

    /// Where the machine is that this home pays, if it does.
    pub(super) fn pays(&self) -> Option<&str> {
        match &self.side {
            Side::Pays { address, .. } => Some(address),
            Side::IsPaid { .. } => None,
        }
    }

    /// Whether nothing can be claimed any more.
    pub(super) fn is_over(&self) -> bool {
        self.standing.is_some_and(|standing| !standing.is_open)
    }

    /// What the last bill says, and the most that was agreed to.
    pub(super) fn charge_and_ceiling(&self) -> (u64, u64) {
        let last = match &self.side {
            Side::Pays { record, .. } => &record.last,
            Side::IsPaid { record } => &record.last,
        };
        (last.charge().0, last.ceiling().0)
    }
}

/// The directory.
pub(super) struct Store(PathBuf);

impl Store {
    pub(super) fn open(home: &Home) -> anyhow::Result<Self> {
        let path = home.root().join("channels");
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self, channel: ContentHash) -> PathBuf {
        self.0.join(format!("{channel}.json"))
    }

    /// The lock of a channel; `None` while another process works with it.
    pub(super) fn lock(&self, channel: ContentHash) -> anyhow::Result<Option<File>> {
        let path = self.0.join(format!("{channel}.lock"));
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    /// What is kept of a channel.
    pub(super) fn read(&self, channel: ContentHash) -> anyhow::Result<Option<Kept>> {
        let path = self.path(channel);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_file(&path, FILE_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("in {}", path.display()))
    }

    /// Keeps this, durably.
    pub(super) fn write(&self, kept: &Kept) -> anyhow::Result<()> {
        replace_file(&self.path(kept.open().channel()), &serde_json::to_vec(kept)?)
    }

    /// All channels; a file that cannot be read is named, and left alone.
    pub(super) fn all(&self) -> anyhow::Result<Vec<Kept>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(channel) = name.strip_suffix(".json") else { continue };
            let Ok(channel) = ContentHash::parse(channel) else { continue };
            match self.read(channel) {
                Ok(kept) => all.extend(kept),
                Err(error) => tracing::error!(error = %format!("{error:#}"), "read a channel"),
            }
        }
        Ok(all)
    }

    /// Makes room for one more on a side: what is over goes first, and of those that are paid, who never
    /// owed anything. `false` if everything else is still open.
    pub(super) fn make_room(&self, pays: bool) -> anyhow::Result<bool> {
        let mut all = self.all()?;
        all.retain(|kept| kept.pays().is_some() == pays);
        if all.len() < KEPT_MAX {
            return Ok(true);
        }
        let is_empty = |kept: &&Kept| !pays && kept.charge_and_ceiling().0 == 0;
        let over = all.iter().filter(|kept| kept.is_over()).chain(all.iter().filter(is_empty));
        for kept in over {
            if self.remove(kept.open().channel())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets a channel, unless another process works with it.
    pub(super) fn remove(&self, channel: ContentHash) -> anyhow::Result<bool> {
        let Some(_lock) = self.lock(channel)? else { return Ok(false) };
        self.forget(channel);
        Ok(true)
    }

    /// The same for who has its lock.
    pub(super) fn forget(&self, channel: ContentHash) {
        let path = self.path(channel);
        // Where one stays it is found over again.
        let _ = fs::remove_file(&path);
        let _ = fs::remove_file(path.with_extension("lock"));
    }
}
