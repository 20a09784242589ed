//! A ledger that several machines share: opening it, and showing again and again that its user lives.
//!
//! It watches the other sessions too, and releases what dead ones hold.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_ledger::postgres::{ServerClock, Watch};
use cell_ledger::{Ledger, LedgerError, LedgerOptions, PostgresStore, SessionId};

use crate::config::Config;
use crate::home::Home;

/// How often a session is heard of.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long a session may be silent, seen by one that watches all the time; then its holds are void,
/// and it can do nothing more.
pub(crate) const SESSION_SILENT_MAX: Duration = Duration::from_secs(30);

/// The database that keeps the ledger, if it is not a file of the home.
pub(super) fn url(home: &Home) -> anyhow::Result<Option<String>> {
    match home.ledger_url() {
        Some(url) => Ok(Some(url.to_owned())),
        None => Ok(Config::read(home)?.ledger),
    }
}

pub(super) fn open(
    url: &str,
    issuer: AccountId,
    session: SessionId,
) -> anyhow::Result<(Ledger, Heartbeat)> {
    let store = PostgresStore::open_or_create(url, issuer, Some(session))
        .context("open the shared ledger")?;
    let clock = ServerClock::at(store.now_ms().context("ask the shared ledger's clock")?);
    let watching = PostgresStore::open_or_create(url, issuer, None)?;
    let ledger = Ledger::start(store, clock.clone(), LedgerOptions::default())?;
    let heart = Heart { ledger: ledger.clone(), watching, clock };
    Ok((ledger, Heartbeat::start(heart)?))
}

struct Heart {
    ledger: Ledger,
    watching: PostgresStore,
    clock: ServerClock,
}

impl Heart {
    /// Is heard of, and looks who else is.
    fn beat(&self, watch: &mut Watch) -> Result<(), LedgerError> {
        self.clock.set(self.watching.now_ms()?);
        self.ledger.void_expired()?;
        let silent = watch.look(Instant::now(), &self.watching.sessions()?);
        for session in self.watching.fence(&silent)? {
            tracing::warn!(%session, "a session was silent for too long; its holds are void");
            self.ledger.void_session(session)?;
        }
        Ok(())
    }
}

/// Keeps a session alive for as long as it is not dropped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    /// Dropped to end the thread.
    running: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    fn start(heart: Heart) -> anyhow::Result<Self> {
        let (running, stopped) = mpsc::channel();
        let mut watch = Watch::new(SESSION_SILENT_MAX);
        let beats = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(HEARTBEAT) {
                // The next beat tries again; a ledger that stopped is noticed by who pays.
                if let Err(error) = heart.beat(&mut watch) {
                    tracing::debug!(%error, "a heartbeat is missed");
                }
            }
        };
        let thread = thread::Builder::new().name("ledger-heartbeat".into()).spawn(beats)?;
        Ok(Self { running: Some(running), thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
