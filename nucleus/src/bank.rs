//! This machine's accounts: who they belong to, and how work becomes transfers.
//!
//! Several processes may have the ledger open: the nucleus, and each `cell run`. Each is a
//! *session* with a locked file; holds of a session whose file nobody locks any more are void.
//! A ledger that several machines share is in [`shared`].

pub(crate) mod shared;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{
    Checkpoint, Hold, HoldId, Ledger, LedgerError, Outcome, Payment, SessionId, Settle, Transfer,
    TransferId,
};
use ed25519_dalek::SigningKey;
use rustix::fs::{FlockOperation, flock};

use crate::home::{Home, random};
use shared::Heartbeat;

/// What a fresh home grants its owner: 1,000 ATP.
const FIRST_GRANT: NanoAtp = NanoAtp(1_000_000_000_000);
/// A hold that nobody resolves is void after this time.
const HOLD_MS: u64 = 24 * 3600 * 1000;

/// How long a last payment is tried: less than it takes to be thought dead.
pub(crate) const SETTLE_TIME_MAX: Duration = Duration::from_secs(20);
/// How often.
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// The accounts that follow from this machine's identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accounts {
    /// The Ed25519 public key itself: the account of the user who owns this home.
    pub(crate) owner: AccountId,
    owner_uid: u32,
}

impl Accounts {
    /// Reads the identity, making one in a fresh home.
    pub(crate) fn open(home: &Home) -> anyhow::Result<Self> {
        let public = home.key()?.verifying_key().to_bytes();
        Ok(Self {
            owner: AccountId::from_bytes(public),
            owner_uid: rustix::process::geteuid().as_raw(),
        })
    }

    /// The one account that may go below zero.
    pub(crate) fn issuer(&self) -> AccountId {
        self.derive("issuer", "")
    }

    /// Earns what jobs burn on this machine.
    pub(crate) fn node(&self) -> AccountId {
        self.derive("node", "")
    }

    /// Earns what calls of this cell burn.
    pub(crate) fn cell(&self, name: &str) -> AccountId {
        self.derive("cell", name)
    }

    /// Pays for the calls of a local user.
    pub(crate) fn user(&self, uid: u32) -> AccountId {
        crate::worker::account_of(uid, (self.owner_uid, self.owner))
    }

    pub(crate) const fn owner_uid(&self) -> u32 {
        self.owner_uid
    }

    fn derive(&self, role: &str, name: &str) -> AccountId {
        let mut hasher = blake3::Hasher::new_derive_key("cell/account/v1/derived");
        hasher.update(self.owner.as_bytes());
        hasher.update(role.as_bytes());
        hasher.update(&[0]);
        hasher.update(name.as_bytes());
        AccountId::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// The ledger of a home, open for one session.
#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) ledger: Ledger,
    pub(crate) accounts: Accounts,
    session: SessionId,
    /// Ends before the session does.
    heartbeat: Option<Heartbeat>,
    // Locked for as long as the session lives.
    _lock: File,
    lock_path: PathBuf,
    next_hold: u64,
}

/// Money set aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) id: HoldId,
    pub(crate) amount: NanoAtp,
}

impl Bank {
    /// Opens the ledger; a fresh home gets one, and its owner the first grant.
    pub(crate) fn open(home: &Home) -> anyhow::Result<Self> {
        home.create()?;
        let accounts = Accounts::open(home)?;
        let (session, lock, lock_path) = begin_session(home)?;
        let (ledger, heartbeat) = match shared::url(home)? {
            Some(url) => {
                let (ledger, heartbeat) = shared::open(&url, accounts.issuer(), session)?;
                (ledger, Some(heartbeat))
            }
            None => {
                let path = home.ledger();
                let ledger = Ledger::open(&path, accounts.issuer());
                (ledger.with_context(|| format!("open {}", path.display()))?, None)
            }
        };
        let bank =
            Self { ledger, accounts, session, heartbeat, _lock: lock, lock_path, next_hold: 0 };
        // A shared ledger's money comes from whoever made it.
        if bank.ledger.issuer()? == accounts.issuer() {
            bank.grant_first()?;
        }
        bank.recover(home)?;
        Ok(bank)
    }

    pub(crate) const fn session(&self) -> SessionId {
        self.session
    }

    /// Sets money aside: as much as there is, up to `amount`, if it is at least `amount_min`.
    pub(crate) fn hold(
        &mut self,
        account: AccountId,
        amount_min: NanoAtp,
        amount: NanoAtp,
    ) -> Result<Held, LedgerError> {
        let hold = self.new_hold(account, amount_min, amount);
        self.open_hold(hold)
    }

    /// Opens a hold.
    pub(crate) fn open_hold(&self, hold: Hold) -> Result<Held, LedgerError> {
        let id = hold.id;
        match self.ledger.hold(hold)? {
            Outcome::Held { granted, .. } => Ok(Held { id, amount: granted }),
            _ => Ok(Held { id, amount: NanoAtp::ZERO }),
        }
    }

    /// Pays out of a hold and gives back the rest. Where the ledger does not answer it is asked again,
    /// word for word, for a while: what was worked for is to be paid, and once.
    pub(crate) fn settle(&self, held: Held, payments: Vec<Payment>) -> Result<(), LedgerError> {
        self.insist(&Settle { hold: held.id, payments, next: None }).map(drop)
    }

    /// Asks for a settlement, again and again while the ledger does not answer; returns what is set aside
    /// afterwards.
    pub(crate) fn insist(&self, settle: &Settle) -> Result<Option<Held>, LedgerError> {
        let started = Instant::now();
        loop {
            match self.apply(settle) {
                Err(error) if error.is_passing() && started.elapsed() < SETTLE_TIME_MAX => {
                    thread::sleep(SETTLE_AGAIN);
                }
                result => return result,
            }
        }
    }

    /// Asks for a settlement; returns what is set aside afterwards.
    pub(crate) fn apply(&self, settle: &Settle) -> Result<Option<Held>, LedgerError> {
        let id = settle.next.as_ref().map(|hold| hold.id);
        let granted = match self.ledger.settle(settle.clone())? {
            Outcome::Settled { next_granted, .. } => next_granted,
            _ => NanoAtp::ZERO,
        };
        Ok(id.filter(|_| granted > NanoAtp::ZERO).map(|id| Held { id, amount: granted }))
    }

    /// Signs where the journal is now, and keeps that beside it.
    pub(crate) fn checkpoint(&self, key: &SigningKey) -> Result<(), LedgerError> {
        let (issuer, now) = (self.ledger.issuer()?, self.ledger.now_ms());
        self.ledger.keep_checkpoint(&Checkpoint::sign(self.ledger.head()?, issuer, now, key))
    }

    /// Whether other machines use the ledger too.
    pub(crate) const fn is_shared(&self) -> bool {
        self.heartbeat.is_some()
    }

    /// Gives back what was set aside.
    pub(crate) fn void(&self, held: Held) -> Result<(), LedgerError> {
        self.ledger.void(held.id).map(drop)
    }

    /// A hold that nobody has asked for yet.
    pub(crate) fn new_hold(
        &mut self,
        account: AccountId,
        amount_min: NanoAtp,
        amount: NanoAtp,
    ) -> Hold {
        self.next_hold += 1;
        Hold {
            id: HoldId::derive(
                "cell/hold/v1",
                &[self.session.as_bytes(), &self.next_hold.to_le_bytes()],
            ),
            account,
            amount,
            amount_min,
            session: self.session,
            expires_ms: self.ledger.now_ms() + HOLD_MS,
        }
    }

    fn grant_first(&self) -> anyhow::Result<()> {
        let owner = self.accounts.owner;
        let grant = Transfer {
            id: TransferId::derive("cell/grant/v1", &[b"first", owner.as_bytes()]),
            debit: self.accounts.issuer(),
            credit: owner,
            amount: FIRST_GRANT,
            memo: "first grant".into(),
        };
        self.ledger.transfer(grant).context("grant the owner's first ATP")?;
        Ok(())
    }

    /// Voids the holds of sessions that ended without doing so.
    fn recover(&self, home: &Home) -> anyhow::Result<()> {
        for entry in fs::read_dir(home.sessions())? {
            let path = entry?.path();
            let Some(session) = path
                .file_stem()
                .and_then(|name| name.to_str())
                .and_then(|name| SessionId::parse(name).ok())
            else {
                continue;
            };
            let Ok(file) = File::open(&path) else { continue };
            if session != self.session
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                self.ledger.void_session(session).context("void the holds of an ended session")?;
                // Another process may have been as quick; the file is gone either way.
                let _ = fs::remove_file(&path);
            }
        }
        self.ledger.void_expired().context("void expired holds")?;
        Ok(())
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.heartbeat = None;
        // What is still held is void; a failure is left to the next session's recovery.
        if self.ledger.void_session(self.session).is_ok() {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}

fn begin_session(home: &Home) -> anyhow::Result<(SessionId, File, PathBuf)> {
    let session = SessionId::derive("cell/session/v1", &[&random::<32>()?]);
    let path = home.sessions().join(format!("{session}.lock"));
    // Under its name only once it is locked: a file that nobody locks is taken for a dead session's.
    let draft = home.sessions().join(format!(".{session}"));
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
    flock(&file, FlockOperation::LockExclusive)?;
    fs::rename(&draft, &path)?;
    Ok((session, file, path))
}
