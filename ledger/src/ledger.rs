//! The handle a program shares: one writer thread that commits in groups, and a reader beside it.
//!
//! It decides nothing about money, and it never retries: whoever asked knows whether to ask again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, mem};

use cell_abi::AccountId;

use crate::journal::{Head, Row};
use crate::{
    Balance, Checkpoint, Command, Entry, Hold, HoldId, HoldRecord, LedgerError, LedgerStore,
    Outcome, SessionId, Settle, SqliteStore, Transfer, Verified, VerifyError,
};

/// A ledger that is open; clones share it, from any thread.
///
/// Commands of one thread are applied in the order it asked. When the last clone is dropped, what is queued is
/// still applied and answered before the drop returns, unless that drop happens inside an answer.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

/// The limits of a [`Ledger`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerOptions {
    /// The most commands that wait for the writer. With more, [`Ledger::apply`] blocks and [`Ledger::submit`] is
    /// refused with [`LedgerError::QueueFull`]. Reads are not limited. The default is 4,096.
    pub queue_commands_max: usize,
    /// The most commands in one transaction, which bounds how long an answer waits for others. The default is 500:
    /// there one fsync is shared by so many that more gain nothing.
    pub batch_commands_max: usize,
}

/// Tells the ledger what time it is.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

struct Shared {
    /// `None` only while the last handle is dropped.
    queue: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
    reader: Mutex<Box<dyn LedgerStore>>,
    clock: Arc<dyn Clock>,
    /// Why the writer stopped; set once.
    stopped: Arc<OnceLock<String>>,
}

struct Request {
    command: Command,
    answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<Outcome, LedgerError>) + Send>;

impl Ledger {
    /// Opens the file, or creates it with this issuer, with the system's clock and default limits.
    pub fn open(path: &Path, issuer: AccountId) -> Result<Self, LedgerError> {
        let store = SqliteStore::open_or_create(path, issuer)?;
        Self::start(store, SystemClock, LedgerOptions::default())
    }

    /// Starts the writer thread on any store. A limit of zero counts as one.
    pub fn start(
        store: impl LedgerStore + 'static,
        clock: impl Clock + 'static,
        options: LedgerOptions,
    ) -> Result<Self, LedgerError> {
        let reader = store.reopen()?;
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let stopped = Arc::new(OnceLock::new());
        let (queue, requests) = sync_channel(options.queue_commands_max.max(1));
        let writer = Writer {
            store,
            clock: Arc::clone(&clock),
            requests,
            batch_commands_max: options.batch_commands_max.max(1),
            stopped: Arc::clone(&stopped),
        };
        let writer = thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| LedgerError::Storage {
                reason: format!("start the writer thread: {error}"),
            })?;
        let shared = Shared {
            queue: Some(queue),
            writer: Some(writer),
            reader: Mutex::new(reader),
            clock,
            stopped,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Applies one command and returns when it is durable. Blocks while the queue is full.
    ///
    /// Must not be called inside an answer of [`Ledger::submit`]: that runs on the writer, which would wait for itself.
    pub fn apply(&self, command: Command) -> Result<Outcome, LedgerError> {
        self.check_running()?;
        let (sender, receiver) = sync_channel(1);
        // A caller that is gone needs no answer.
        let answer: Answer = Box::new(move |result| drop(sender.send(result)));
        self.queue()?.send(Request { command, answer }).map_err(|_| self.stopped())?;
        receiver.recv().map_err(|_| self.stopped())?
    }

    /// Queues one command and returns at once; `answer` is called when the command is durable, or refused.
    ///
    /// On `Ok` the answer is called exactly once, on the writer thread, so it must be short: send, wake, count.
    /// On an error ([`LedgerError::QueueFull`] or [`LedgerError::Stopped`]) it is not called.
    pub fn submit(
        &self,
        command: Command,
        answer: impl FnOnce(Result<Outcome, LedgerError>) + Send + 'static,
    ) -> Result<(), LedgerError> {
        self.check_running()?;
        self.queue()?.try_send(Request { command, answer: Box::new(answer) }).map_err(|error| {
            match error {
                TrySendError::Full(_) => LedgerError::QueueFull,
                TrySendError::Disconnected(_) => self.stopped(),
            }
        })
    }

    /// [`Command::Transfer`].
    pub fn transfer(&self, transfer: Transfer) -> Result<Outcome, LedgerError> {
        self.apply(Command::Transfer(transfer))
    }

    /// [`Command::Hold`].
    pub fn hold(&self, hold: Hold) -> Result<Outcome, LedgerError> {
        self.apply(Command::Hold(hold))
    }

    /// [`Command::Settle`].
    pub fn settle(&self, settle: Settle) -> Result<Outcome, LedgerError> {
        self.apply(Command::Settle(settle))
    }

    /// [`Command::Void`].
    pub fn void(&self, hold: HoldId) -> Result<Outcome, LedgerError> {
        self.apply(Command::Void { hold })
    }

    /// [`Command::VoidSession`].
    pub fn void_session(&self, session: SessionId) -> Result<Outcome, LedgerError> {
        self.apply(Command::VoidSession { session })
    }

    /// [`Command::VoidExpired`] as of the ledger's clock.
    pub fn void_expired(&self) -> Result<Outcome, LedgerError> {
        self.apply(Command::VoidExpired { now_ms: self.now_ms() })
    }

    /// The ledger's clock, from which `expires_ms` is to be made.
    pub fn now_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    /// See [`LedgerStore::issuer`].
    pub fn issuer(&self) -> Result<AccountId, LedgerError> {
        self.read(|store| Ok(store.issuer()))
    }

    /// See [`LedgerStore::balance`]. Sees every command that was answered before.
    pub fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        self.read(|store| store.balance(account))
    }

    /// See [`LedgerStore::accounts`].
    pub fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
        self.read(|store| store.accounts())
    }

    /// See [`LedgerStore::history`].
    pub fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError> {
        self.read(|store| store.history(account, before_seq, limit))
    }

    /// A hold, open or resolved. See [`LedgerStore::hold`].
    pub fn find_hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        self.read(|store| store.hold(id))
    }

    /// See [`LedgerStore::holds`].
    pub fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError> {
        self.read(|store| store.holds())
    }

    /// See [`LedgerStore::verify`]. Takes a handle of its own, so that other reads go on.
    pub fn verify(&self) -> Result<Verified, VerifyError> {
        self.read(|store| store.reopen())?.verify()
    }

    /// Where the journal ends.
    pub fn head(&self) -> Result<Head, LedgerError> {
        let last = self.history(None, None, 1)?.pop();
        let empty = || Ok(Head::empty(self.issuer()?));
        last.map_or_else(empty, |last| Ok(Head { seq: last.seq, hash: last.hash }))
    }

    /// See [`LedgerStore::rows`].
    pub fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError> {
        self.read(|store| store.rows(after_seq, limit))
    }

    /// See [`LedgerStore::checkpoints`].
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        self.read(|store| store.checkpoints())
    }

    /// See [`LedgerStore::keep_checkpoint`]. It is on the disk when this returns.
    pub fn keep_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        self.read(|store| store.reopen())?.keep_checkpoint(checkpoint)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&dyn LedgerStore) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.check_running()?;
        // A reader that panicked left nothing half done.
        let reader = self.shared.reader.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        read(reader.as_ref())
    }

    fn queue(&self) -> Result<&SyncSender<Request>, LedgerError> {
        self.shared.queue.as_ref().ok_or_else(|| self.stopped())
    }

    fn check_running(&self) -> Result<(), LedgerError> {
        if self.shared.stopped.get().is_some() { Err(self.stopped()) } else { Ok(()) }
    }

    fn stopped(&self) -> LedgerError {
        stopped(self.shared.stopped.get().map_or("the writer thread ended", String::as_str))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("stopped", &self.shared.stopped.get())
            .finish_non_exhaustive()
    }
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { queue_commands_max: 4_096, batch_commands_max: 500 }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 is wrong whatever it says; the ledger's order does not depend on it.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.queue.take());
        let Some(writer) = self.writer.take() else { return };
        // The last handle may die inside an answer; the writer cannot wait for itself, and ends right after.
        if writer.thread().id() != thread::current().id() {
            // A writer that panicked has no work left to wait for.
            let _ = writer.join();
        }
    }
}

struct Writer<S> {
    store: S,
    clock: Arc<dyn Clock>,
    requests: Receiver<Request>,
    batch_commands_max: usize,
    stopped: Arc<OnceLock<String>>,
}

impl<S: LedgerStore> Writer<S> {
    /// Runs until all handles are gone and the queue is empty.
    fn run(mut self) {
        let mut commands = Vec::new();
        let mut answers = Vec::new();
        while let Ok(first) = self.requests.recv() {
            let more = self.requests.try_iter().take(self.batch_commands_max.saturating_sub(1));
            for request in std::iter::once(first).chain(more) {
                commands.push(request.command);
                answers.push(request.answer);
            }
            let results = self.commit(&commands);
            commands.clear();
            for (answer, result) in mem::take(&mut answers).into_iter().zip(results) {
                // Someone else's answer must not take the books down with it.
                let _ = catch_unwind(AssertUnwindSafe(|| answer(result)));
            }
        }
    }

    /// One result for each command. After an error of the store that may have lost data there is no going on:
    /// the operating system may report a failed fsync once and then pretend that all is well.
    fn commit(&mut self, commands: &[Command]) -> Vec<Result<Outcome, LedgerError>> {
        let results = match self.stopped.get() {
            Some(reason) => Err(stopped(reason)),
            // A panic would leave the queued commands without an answer.
            None => {
                catch_unwind(AssertUnwindSafe(|| self.store.apply(commands, self.clock.now_ms())))
                    .unwrap_or_else(|_| {
                        Err(LedgerError::Storage { reason: "the writer panicked".into() })
                    })
            }
        };
        let error = match results {
            Ok(results) if results.len() == commands.len() => return results,
            Ok(_) => LedgerError::Corrupt { reason: "the store lost a result".into() },
            Err(
                error @ (LedgerError::Busy
                | LedgerError::Unavailable { .. }
                | LedgerError::Stopped { .. }),
            ) => {
                return vec![Err(error); commands.len()];
            }
            Err(error) => error,
        };
        let reason = self.stopped.get_or_init(|| error.to_string());
        vec![Err(stopped(reason)); commands.len()]
    }
}

fn stopped(reason: &str) -> LedgerError {
    LedgerError::Stopped { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
