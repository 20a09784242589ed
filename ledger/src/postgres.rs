//! The ledger in PostgreSQL, which several nuclei on several machines may share.
//!
//! Every batch is one transaction that first locks the ledger's only row, so all writers of all
//! machines take turns and the rules see one state. It caches nothing between batches.
//!
//! A writer that names a [`SessionId`] is *fenced*: each of its transactions asserts that the
//! session's epoch is still the one it began with, and counts one beat more. Who [watches](Watch) a
//! session's beats stand still for too long raises the epoch; nothing of that session is applied any
//! more, and its holds can be released.
//!
//! A connection that is lost is made anew. Until that works, requests get
//! [`LedgerError::Unavailable`] at once; whether the last one was applied is then unknown, and asking
//! again with the same ids tells.

mod schema;
mod tables;
mod watch;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cell_abi::AccountId;
use postgres::config::SslMode;
use postgres::error::SqlState;
use postgres::{Client, Config, IsolationLevel, NoTls};

use crate::journal::Row;
use crate::rules;
use crate::{
    Balance, Checkpoint, Clock, Command, Entry, HoldId, HoldRecord, LedgerError, LedgerStore,
    Outcome, SessionId, Verified, VerifyError,
};
pub use watch::Watch;

/// How long connecting may take, and how long a server may leave bytes unacknowledged.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// After how long a silent connection is probed, and how often; three lost probes end it.
const PROBE_AFTER: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// What is not left to the server's configuration. A writer that stands still keeps the others
/// waiting for less than it takes to be thought dead.
const SETTINGS: &str = "
    SET application_name = 'cell';
    SET search_path = cell_ledger;
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '5s';
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') = 'off';
";
/// After a connection could not be made, the next attempt is not before this.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Times that a batch is tried again because the server asked for it.
const ATTEMPTS_MAX: u32 = 5;

/// A [`LedgerStore`] in a PostgreSQL database, in the schema `cell_ledger`.
pub struct PostgresStore {
    config: Config,
    issuer: AccountId,
    session: Option<Session>,
    connection: Connection,
}

/// Who writes, and since when nobody else has taken it over.
#[derive(Debug, Clone, Copy)]
struct Session {
    id: SessionId,
    epoch: i64,
}

impl PostgresStore {
    /// Opens the ledger at a URL such as `postgres://user@host/database`, or creates it with this
    /// issuer; one that exists keeps its own, see [`LedgerStore::issuer`].
    ///
    /// With a session, what this store writes is fenced; the session must be new.
    ///
    /// Connections are not encrypted: a URL that demands it is refused. Use a socket, or a network
    /// that is yours.
    pub fn open_or_create(
        url: &str,
        issuer: AccountId,
        session: Option<SessionId>,
    ) -> Result<Self, LedgerError> {
        let mut config: Config =
            // What the parser says may have a part of the password in it.
            url.parse().map_err(|_: postgres::Error| LedgerError::BadUrl {
                reason: "it does not read like postgres://user@host/database".into(),
            })?;
        if config.get_ssl_mode() == SslMode::Require {
            let reason = "this program does not encrypt connections to PostgreSQL".into();
            return Err(LedgerError::BadUrl { reason });
        }
        config
            .connect_timeout(CONNECT_TIME_MAX)
            .tcp_user_timeout(CONNECT_TIME_MAX)
            .keepalives_idle(PROBE_AFTER)
            .keepalives_interval(PROBE_EVERY)
            .keepalives_retries(3);
        let mut this = Self { config, issuer, session: None, connection: Connection::default() };
        this.issuer = this.run(|client| schema::open_or_create(client, issuer))?;
        if let Some(id) = session {
            this.run(|client| tables::begin_session(client, id))?;
            this.session = Some(Session { id, epoch: 1 });
        }
        Ok(this)
    }

    /// Every session that is not fenced, with its beats so far.
    pub fn sessions(&self) -> Result<Vec<(SessionId, i64)>, LedgerError> {
        self.run(tables::sessions)
    }

    /// Fences the sessions whose beats are still these, and returns all fenced ones whose holds are
    /// still open.
    pub fn fence(&self, silent: &[(SessionId, i64)]) -> Result<Vec<SessionId>, LedgerError> {
        self.run(|client| tables::fence(client, silent))
    }

    /// The server's time, in milliseconds since 1970.
    pub fn now_ms(&self) -> Result<u64, LedgerError> {
        self.run(tables::now_ms)
    }

    /// Does something on a connection; where one that was thought alive is gone, once more on another.
    fn run<T>(
        &self,
        mut work: impl FnMut(&mut Client) -> Result<T, Failure>,
    ) -> Result<T, LedgerError> {
        let (mut is_fresh, mut was_lost) = (false, false);
        let mut attempts = 0;
        loop {
            let mut client = match self.connection.take() {
                Some(client) => client,
                None => {
                    is_fresh = true;
                    self.connection.open(&self.config)?
                }
            };
            let result = work(&mut client);
            if !client.is_closed() {
                self.connection.keep(client);
            }
            match result {
                Ok(value) => return Ok(value),
                Err(Failure::Ledger(error)) => return Err(error),
                Err(Failure::Server(error)) => match verdict(&error) {
                    Verdict::Again if attempts < ATTEMPTS_MAX => attempts += 1,
                    // After a lost answer nobody knows whether nothing was applied.
                    Verdict::Again | Verdict::Busy if was_lost => {
                        return Err(LedgerError::Unavailable { reason: told(&error) });
                    }
                    Verdict::Again | Verdict::Busy => return Err(LedgerError::Busy),
                    Verdict::Lost if !is_fresh => {
                        was_lost = true;
                        self.connection.forget();
                    }
                    Verdict::Lost => {
                        self.connection.forget();
                        return Err(LedgerError::Unavailable { reason: told(&error) });
                    }
                    Verdict::Corrupt => {
                        return Err(LedgerError::Corrupt { reason: told(&error) });
                    }
                    Verdict::Failed => return Err(LedgerError::Storage { reason: told(&error) }),
                },
            }
        }
    }
}

impl LedgerStore for PostgresStore {
    fn apply(
        &mut self,
        commands: &[Command],
        now_ms: u64,
    ) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError> {
        let (issuer, session) = (self.issuer, self.session);
        self.run(|client| {
            let mut transaction = client.transaction()?;
            let head = tables::lock(&mut transaction, issuer)?;
            if let Some(session) = session
                && !tables::is_current(&mut transaction, session.id, session.epoch)?
            {
                return Err(LedgerError::Fenced { session: session.id }.into());
            }
            let mut batch = tables::Batch::load(&mut transaction, issuer, head, commands)?;
            let results = rules::apply_all(&mut batch, commands, now_ms)?;
            batch.store(&mut transaction)?;
            transaction.commit()?;
            Ok(results)
        })
    }

    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        let found = self.run(|client| tables::balances(client, &[account]))?;
        Ok(found.get(&account).copied().unwrap_or_default())
    }

    fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
        Ok(self.run(tables::accounts)?.into_iter().collect())
    }

    fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError> {
        let rows = self.run(|client| tables::history(client, account, before_seq, limit))?;
        rows.iter().map(Row::entry).collect()
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        self.run(|client| tables::hold(client, id))
    }

    fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError> {
        self.run(tables::open_holds)
    }

    fn verify(&self) -> Result<Verified, VerifyError> {
        let issuer = self.issuer;
        // One snapshot, so that all tables are seen at one moment while others write.
        self.run(|client| {
            let mut transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()?;
            // It reads everything, and nobody waits for it.
            transaction.batch_execute("SET LOCAL statement_timeout = 0")?;
            let fold = match tables::fold(&mut transaction, issuer)? {
                Ok(fold) => fold,
                Err(error) => return Ok(Err(error)),
            };
            Ok(fold.finish(&tables::snapshot(&mut transaction)?))
        })?
    }

    fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError> {
        self.run(|client| tables::rows(client, after_seq, limit))
    }

    fn keep_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        self.run(|client| tables::keep_checkpoint(client, checkpoint))
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        self.run(tables::checkpoints)?.iter().map(|text| crate::checkpoint::read(text)).collect()
    }

    fn reopen(&self) -> Result<Box<dyn LedgerStore>, LedgerError> {
        Ok(Box::new(Self {
            config: self.config.clone(),
            issuer: self.issuer,
            session: None,
            connection: Connection::default(),
        }))
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL: it may hold a password.
        f.debug_struct("PostgresStore").field("session", &self.session).finish_non_exhaustive()
    }
}

/// The server's time: what it was when it was asked last, and how long ago that is. This machine's
/// own time of day has no part in it.
#[derive(Debug, Clone)]
pub struct ServerClock(Arc<Mutex<(u64, Instant)>>);

impl ServerClock {
    /// A clock that shows this time, which the server told just now.
    pub fn at(now_ms: u64) -> Self {
        Self(Arc::new(Mutex::new((now_ms, Instant::now()))))
    }

    /// Sets it, and its clones, to the time that the server told just now.
    pub fn set(&self, now_ms: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (now_ms, Instant::now());
    }
}

impl Clock for ServerClock {
    fn now_ms(&self) -> u64 {
        let (told_ms, at) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told_ms.saturating_add(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// The connection, where there is one, and when the last attempt failed where there is none.
#[derive(Default)]
struct Connection {
    client: RefCell<Option<Client>>,
    failed: Cell<Option<Instant>>,
}

impl Connection {
    fn take(&self) -> Option<Client> {
        self.client.take().filter(|client| !client.is_closed())
    }

    fn keep(&self, client: Client) {
        self.client.replace(Some(client));
    }

    fn forget(&self) {
        self.client.take();
    }

    fn open(&self, config: &Config) -> Result<Client, LedgerError> {
        if self.failed.get().is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(LedgerError::Unavailable { reason: "no connection to the server".into() });
        }
        let opened = config.connect(NoTls).and_then(|mut client| {
            client.batch_execute(SETTINGS)?;
            Ok(client)
        });
        match opened {
            Ok(client) => {
                self.failed.set(None);
                Ok(client)
            }
            Err(error) => {
                self.failed.set(Some(Instant::now()));
                Err(LedgerError::Unavailable { reason: told(&error) })
            }
        }
    }
}

/// Why something on a connection did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    Ledger(LedgerError),
    Server(postgres::Error),
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        Self::Server(error)
    }
}

/// What an error of the server means for who asked.
enum Verdict {
    /// It was rolled back for others' sake.
    Again,
    /// Others kept a lock too long.
    Busy,
    /// The server is gone, goes, or has no room for one more.
    Lost,
    Corrupt,
    Failed,
}

fn verdict(error: &postgres::Error) -> Verdict {
    let Some(code) = error.code() else { return Verdict::Lost };
    match *code {
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Verdict::Again,
        SqlState::LOCK_NOT_AVAILABLE | SqlState::QUERY_CANCELED => Verdict::Busy,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT | SqlState::READ_ONLY_SQL_TRANSACTION => {
            Verdict::Lost
        }
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => Verdict::Corrupt,
        _ => match code.code().get(..2) {
            // Connections; resources, such as a full disk; an operator; integrity.
            Some("08" | "53" | "57") => Verdict::Lost,
            Some("22" | "23") => Verdict::Corrupt,
            _ => Verdict::Failed,
        },
    }
}

/// The error with its causes; the library keeps what the server said in a cause.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
