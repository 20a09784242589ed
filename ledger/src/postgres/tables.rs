//! The SQL: every statement that reads or writes the books.
//!
//! A batch takes a fixed number of statements, however many commands it has: what the commands
//! name is read first, the rules work on that, and what they changed is written in the end.

use std::collections::{BTreeMap, BTreeSet};

use cell_abi::{AccountId, NanoAtp};
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::ToSql;
use postgres::{Client, GenericClient, Row as SqlRow, Transaction};

use super::Failure;
use crate::journal::{Head, Row};
use crate::rules::{Changes, Tables, Which};
use crate::verify::{Fold, Snapshot};
use crate::{
    Balance, Checkpoint, Command, Entry, EntryHash, Hold, HoldId, HoldRecord, LedgerError,
    SessionId, TransferId, VerifyError,
};

type Read<T> = Result<T, Failure>;

/// Waits until no other writer is at work, and finds the journal's end.
pub(super) fn lock(transaction: &mut Transaction<'_>, issuer: AccountId) -> Read<Head> {
    transaction.execute("SELECT 1 FROM ledger FOR UPDATE", &[])?;
    let last = "SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1";
    match transaction.query_opt(last, &[])? {
        None => Ok(Head::empty(issuer)),
        Some(row) => Ok(Head {
            seq: unsigned(row.try_get(0)?)?,
            hash: EntryHash::from_bytes(thirty_two(row.try_get(1)?)?),
        }),
    }
}

pub(super) fn begin_session(client: &mut Client, id: SessionId) -> Read<()> {
    // Asked again after a lost answer, it is there already.
    let sql = "INSERT INTO sessions VALUES ($1, 1, 0) ON CONFLICT DO NOTHING";
    client.execute(sql, &[&id.as_bytes().as_slice()])?;
    Ok(())
}

/// Whether the session's epoch is still this one; if so that is a beat.
pub(super) fn is_current(
    transaction: &mut Transaction<'_>,
    id: SessionId,
    epoch: i64,
) -> Read<bool> {
    let sql = "UPDATE sessions SET beats = beats + 1 WHERE id = $1 AND epoch = $2";
    Ok(transaction.execute(sql, &[&id.as_bytes().as_slice(), &epoch])? == 1)
}

/// The sessions that are not fenced, with their beats.
pub(super) fn sessions(client: &mut Client) -> Read<Vec<(SessionId, i64)>> {
    let rows = client.query("SELECT id, beats FROM sessions WHERE epoch = 1", &[])?;
    let session =
        |row: &SqlRow| Ok((SessionId::from_bytes(thirty_two(row.try_get(0)?)?), row.try_get(1)?));
    rows.iter().map(session).collect()
}

/// Fences those whose beats are still these; returns the fenced ones that hold something, and forgets
/// those that hold nothing: a session that is not there is not current either.
pub(super) fn fence(client: &mut Client, silent: &[(SessionId, i64)]) -> Read<Vec<SessionId>> {
    let mut transaction = client.transaction()?;
    // Behind the same lock as every batch, so that no batch of a fenced session is half done.
    transaction.execute("SELECT 1 FROM ledger FOR UPDATE", &[])?;
    let (ids, beats): (Vec<_>, Vec<_>) =
        silent.iter().map(|(id, beats)| (id.as_bytes().as_slice(), *beats)).unzip();
    transaction.execute(
        "UPDATE sessions SET epoch = 2 FROM unnest($1::BYTEA[], $2::BIGINT[]) AS silent (id, beats)
         WHERE sessions.id = silent.id AND sessions.beats = silent.beats",
        &[&ids, &beats],
    )?;
    let open = "EXISTS (SELECT 1 FROM holds WHERE session = sessions.id AND resolved_seq IS NULL)";
    transaction.execute(&format!("DELETE FROM sessions WHERE epoch = 2 AND NOT {open}"), &[])?;
    let rows = transaction.query("SELECT id FROM sessions WHERE epoch = 2 ORDER BY id", &[])?;
    let fenced = rows
        .iter()
        .map(|row| Ok(SessionId::from_bytes(thirty_two(row.try_get(0)?)?)))
        .collect::<Read<_>>()?;
    transaction.commit()?;
    Ok(fenced)
}

pub(super) fn now_ms(client: &mut Client) -> Read<u64> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT";
    Ok(unsigned(client.query_one(sql, &[])?.try_get(0)?)?)
}

/// What a batch of commands may look at, and what the rules have changed of it so far.
pub(super) struct Batch {
    issuer: AccountId,
    head: Head,
    accounts: BTreeMap<AccountId, Balance>,
    transfers: BTreeMap<TransferId, u64>,
    holds: BTreeMap<HoldId, HoldRecord>,
    entries: BTreeMap<u64, Row>,
    written: Written,
}

#[derive(Default)]
struct Written {
    rows: Vec<u64>,
    accounts: BTreeSet<AccountId>,
    transfers: Vec<TransferId>,
    holds: BTreeSet<HoldId>,
    touched: Vec<(AccountId, u64)>,
}

/// Everything that commands name.
#[derive(Default)]
struct Named {
    accounts: BTreeSet<AccountId>,
    transfers: Vec<TransferId>,
    holds: BTreeSet<HoldId>,
    sessions: Vec<SessionId>,
    expired_at: Option<u64>,
}

impl Named {
    fn by(commands: &[Command]) -> Self {
        let mut named = Self::default();
        for command in commands {
            match command {
                Command::Transfer(transfer) => {
                    named.transfers.push(transfer.id);
                    named.accounts.extend([transfer.debit, transfer.credit]);
                }
                Command::Hold(hold) => named.hold(hold),
                Command::Settle(settle) => {
                    named.holds.insert(settle.hold);
                    named.transfers.extend(settle.payments.iter().map(|payment| payment.id));
                    named.accounts.extend(settle.payments.iter().map(|payment| payment.credit));
                    settle.next.iter().for_each(|next| named.hold(next));
                }
                Command::Void { hold } => drop(named.holds.insert(*hold)),
                Command::VoidSession { session } => named.sessions.push(*session),
                Command::VoidExpired { now_ms } => {
                    named.expired_at = named.expired_at.max(Some(*now_ms));
                }
            }
        }
        named
    }

    fn hold(&mut self, hold: &Hold) {
        self.holds.insert(hold.id);
        self.accounts.insert(hold.account);
    }
}

impl Batch {
    pub(super) fn load(
        transaction: &mut Transaction<'_>,
        issuer: AccountId,
        head: Head,
        commands: &[Command],
    ) -> Read<Self> {
        let mut named = Named::by(commands);
        let mut holds = BTreeMap::new();
        let (ids, sessions) = (slices(&named.holds), slices(&named.sessions));
        let expired = named.expired_at.map_or(-1, |at| i64::try_from(at).unwrap_or(i64::MAX));
        let sql = "SELECT * FROM holds WHERE id = ANY($1)
                   OR (resolved_seq IS NULL AND (session = ANY($2) OR expires_ms <= $3))";
        for row in transaction.query(sql, &[&ids, &sessions, &expired])? {
            let hold = hold_record(&row)?;
            named.accounts.insert(hold.account);
            holds.insert(hold.id, hold);
        }
        let mut transfers = BTreeMap::new();
        let ids = slices(&named.transfers);
        for row in transaction.query("SELECT id, seq FROM transfers WHERE id = ANY($1)", &[&ids])? {
            let id = TransferId::from_bytes(thirty_two(row.try_get(0)?)?);
            transfers.insert(id, unsigned(row.try_get(1)?)?);
        }
        // The first answers of what is asked again.
        let answered = named.holds.iter().filter_map(|id| holds.get(id));
        let answered = answered.flat_map(|hold| [Some(hold.opened_seq), hold.resolved_seq]);
        let places: BTreeSet<u64> = answered.flatten().chain(transfers.values().copied()).collect();
        let places = places.into_iter().map(signed).collect::<Result<Vec<_>, _>>()?;
        let mut entries = BTreeMap::new();
        if !places.is_empty() {
            let sql = "SELECT * FROM journal WHERE seq = ANY($1)";
            for row in transaction.query(sql, &[&places])? {
                let row = journal_row(&row)?;
                entries.insert(row.seq, row);
            }
        }
        let named: Vec<_> = named.accounts.into_iter().collect();
        let accounts = balances(transaction, &named)?;
        let written = Written::default();
        Ok(Self { issuer, head, accounts, transfers, holds, entries, written })
    }

    /// Writes what the rules changed.
    pub(super) fn store(&self, transaction: &mut Transaction<'_>) -> Read<()> {
        let Written { rows, accounts, transfers, holds, touched } = &self.written;
        if rows.is_empty() {
            return Ok(());
        }
        let rows: Vec<&Row> = rows.iter().filter_map(|seq| self.entries.get(seq)).collect();
        insert(
            transaction,
            "INSERT INTO journal SELECT * FROM unnest($1::BIGINT[], $2::BIGINT[], $3::SMALLINT[], $4::BYTEA[], $5::BYTEA[], $6::BYTEA[])",
            &[
                &column(&rows, |row| signed(row.seq))?,
                &column(&rows, |row| signed(row.time_ms))?,
                &column(&rows, |row| Ok(i16::from(row.kind)))?,
                &column(&rows, |row| Ok(row.content.as_slice()))?,
                &column(&rows, |row| Ok(row.prev_hash.as_bytes().as_slice()))?,
                &column(&rows, |row| Ok(row.hash.as_bytes().as_slice()))?,
            ],
        )?;
        let balances: Vec<(&AccountId, Balance)> = accounts
            .iter()
            .map(|id| (id, self.accounts.get(id).copied().unwrap_or_default()))
            .collect();
        insert(
            transaction,
            "INSERT INTO accounts SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BIGINT[])
             ON CONFLICT (id) DO UPDATE SET posted = excluded.posted, held = excluded.held",
            &[
                &column(&balances, |(id, _)| Ok(id.as_bytes().as_slice()))?,
                &column(&balances, |(_, balance)| Ok(balance.posted_nano))?,
                &column(&balances, |(_, balance)| signed(balance.held.0))?,
            ],
        )?;
        insert(
            transaction,
            "INSERT INTO touched SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[])",
            &[
                &column(touched, |(id, _)| Ok(id.as_bytes().as_slice()))?,
                &column(touched, |(_, seq)| signed(*seq))?,
            ],
        )?;
        insert(
            transaction,
            "INSERT INTO transfers SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[])",
            &[
                &column(transfers, |id| Ok(id.as_bytes().as_slice()))?,
                &column(transfers, |id| signed(self.transfers.get(id).copied().unwrap_or(0)))?,
            ],
        )?;
        let holds: Vec<&HoldRecord> = holds.iter().filter_map(|id| self.holds.get(id)).collect();
        insert(
            transaction,
            "INSERT INTO holds SELECT * FROM unnest($1::BYTEA[], $2::BYTEA[], $3::BIGINT[], $4::BYTEA[], $5::BIGINT[], $6::BIGINT[], $7::BIGINT[])
             ON CONFLICT (id) DO UPDATE SET resolved_seq = excluded.resolved_seq",
            &[
                &column(&holds, |hold| Ok(hold.id.as_bytes().as_slice()))?,
                &column(&holds, |hold| Ok(hold.account.as_bytes().as_slice()))?,
                &column(&holds, |hold| signed(hold.amount.0))?,
                &column(&holds, |hold| Ok(hold.session.as_bytes().as_slice()))?,
                &column(&holds, |hold| signed(hold.expires_ms))?,
                &column(&holds, |hold| signed(hold.opened_seq))?,
                &column(&holds, |hold| hold.resolved_seq.map(signed).transpose())?,
            ],
        )
    }
}

impl Tables for Batch {
    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn head(&self) -> Head {
        self.head
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        Ok(self.accounts.get(&account).copied().unwrap_or_default())
    }

    fn transfer_seq(&self, id: TransferId) -> Result<Option<u64>, LedgerError> {
        Ok(self.transfers.get(&id).copied())
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        Ok(self.holds.get(&id).copied())
    }

    fn open_holds(&self, which: Which) -> Result<Vec<HoldRecord>, LedgerError> {
        let wanted = |hold: &&HoldRecord| {
            hold.resolved_seq.is_none()
                && match which {
                    Which::Session(session) => hold.session == session,
                    Which::ExpiredAt(now_ms) => hold.expires_ms <= now_ms,
                }
        };
        Ok(self.holds.values().filter(wanted).copied().collect())
    }

    fn entry(&self, seq: u64) -> Result<Entry, LedgerError> {
        let row = self.entries.get(&seq);
        row.ok_or_else(|| LedgerError::Corrupt {
            reason: format!("journal entry {seq} is missing"),
        })?
        .entry()
    }

    fn write(&mut self, row: &Row, changes: &Changes) -> Result<(), LedgerError> {
        self.head = row.head();
        self.entries.insert(row.seq, row.clone());
        self.written.rows.push(row.seq);
        for (account, balance) in &changes.balances {
            self.accounts.insert(*account, *balance);
            self.written.accounts.insert(*account);
            self.written.touched.push((*account, row.seq));
        }
        for id in &changes.transfers {
            self.transfers.insert(*id, row.seq);
            self.written.transfers.push(*id);
        }
        for hold in &changes.holds {
            self.holds.insert(hold.id, *hold);
            self.written.holds.insert(hold.id);
        }
        Ok(())
    }
}

pub(super) fn balances(
    client: &mut impl GenericClient,
    accounts: &[AccountId],
) -> Read<BTreeMap<AccountId, Balance>> {
    let ids: Vec<&[u8]> = accounts.iter().map(|id| id.as_bytes().as_slice()).collect();
    let sql = "SELECT id, posted, held FROM accounts WHERE id = ANY($1)";
    client.query(sql, &[&ids])?.iter().map(account).collect()
}

pub(super) fn accounts(client: &mut impl GenericClient) -> Read<BTreeMap<AccountId, Balance>> {
    client.query("SELECT id, posted, held FROM accounts", &[])?.iter().map(account).collect()
}

pub(super) fn hold(client: &mut impl GenericClient, id: HoldId) -> Read<Option<HoldRecord>> {
    let sql = "SELECT * FROM holds WHERE id = $1";
    client.query_opt(sql, &[&id.as_bytes().as_slice()])?.as_ref().map(hold_record).transpose()
}

pub(super) fn open_holds(client: &mut impl GenericClient) -> Read<Vec<HoldRecord>> {
    let sql = "SELECT * FROM holds WHERE resolved_seq IS NULL ORDER BY id";
    client.query(sql, &[])?.iter().map(hold_record).collect()
}

pub(super) fn history(
    client: &mut impl GenericClient,
    account: Option<AccountId>,
    before_seq: Option<u64>,
    limit: u32,
) -> Read<Vec<Row>> {
    // A place past the largest that a column holds is past every entry.
    let before = before_seq.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let limit = i64::from(limit);
    let rows = match account {
        None => {
            let sql = "SELECT * FROM journal WHERE seq < $1 ORDER BY seq DESC LIMIT $2";
            client.query(sql, &[&before, &limit])?
        }
        Some(account) => {
            let sql = "SELECT journal.* FROM touched JOIN journal USING (seq)
                       WHERE touched.account = $1 AND touched.seq < $2
                       ORDER BY touched.seq DESC LIMIT $3";
            client.query(sql, &[&account.as_bytes().as_slice(), &before, &limit])?
        }
    };
    rows.iter().map(journal_row).collect()
}

pub(super) fn rows(client: &mut Client, after_seq: u64, limit: u32) -> Read<Vec<Row>> {
    let after = i64::try_from(after_seq).unwrap_or(i64::MAX);
    let sql = "SELECT * FROM journal WHERE seq > $1 ORDER BY seq LIMIT $2";
    client.query(sql, &[&after, &i64::from(limit)])?.iter().map(journal_row).collect()
}

pub(super) fn keep_checkpoint(client: &mut Client, checkpoint: &Checkpoint) -> Read<()> {
    let text = serde_json::to_string(checkpoint)
        .map_err(|error| LedgerError::Storage { reason: error.to_string() })?;
    let entries = i64::try_from(checkpoint.entries).unwrap_or(i64::MAX);
    let node = checkpoint.node.as_bytes().as_slice();
    let sql = "INSERT INTO checkpoints VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    client.execute(sql, &[&entries, &node, &text])?;
    Ok(())
}

pub(super) fn checkpoints(client: &mut Client) -> Read<Vec<String>> {
    let sql = "SELECT content FROM checkpoints ORDER BY entries, node";
    client.query(sql, &[])?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Folds the whole journal; the server sends it row by row.
pub(super) fn fold(
    transaction: &mut Transaction<'_>,
    issuer: AccountId,
) -> Read<Result<Fold, VerifyError>> {
    let mut fold = Fold::new(issuer);
    let none: [&(dyn ToSql + Sync); 0] = [];
    let mut rows = transaction.query_raw("SELECT * FROM journal ORDER BY seq", none)?;
    while let Some(row) = rows.next()? {
        let Ok(row) = journal_row(&row) else {
            return Ok(Err(VerifyError::Undecodable { seq: fold.next_seq() }));
        };
        if let Err(error) = fold.push(&row) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(fold))
}

/// Everything beside the journal.
pub(super) fn snapshot(transaction: &mut Transaction<'_>) -> Read<Snapshot> {
    let mut snapshot = Snapshot { accounts: accounts(transaction)?, ..Snapshot::default() };
    for row in transaction.query("SELECT id, seq FROM transfers", &[])? {
        let id = TransferId::from_bytes(thirty_two(row.try_get(0)?)?);
        snapshot.transfers.insert(id, unsigned(row.try_get(1)?)?);
    }
    for row in transaction.query("SELECT * FROM holds", &[])? {
        let hold = hold_record(&row)?;
        snapshot.holds.insert(hold.id, hold);
    }
    for row in transaction.query("SELECT account, seq FROM touched", &[])? {
        let account = AccountId::from_bytes(thirty_two(row.try_get(0)?)?);
        let seq = unsigned(row.try_get(1)?)?;
        snapshot.touched.insert((account, seq), seq);
    }
    Ok(snapshot)
}

fn insert(
    transaction: &mut Transaction<'_>,
    sql: &str,
    columns: &[&(dyn ToSql + Sync)],
) -> Read<()> {
    transaction.execute(sql, columns)?;
    Ok(())
}

fn column<'a, R, T>(
    rows: &'a [R],
    value: impl Fn(&'a R) -> Result<T, LedgerError>,
) -> Result<Vec<T>, LedgerError> {
    rows.iter().map(value).collect()
}

/// Ids as the parameter of an array.
fn slices<'a, I: AsSlice + 'a>(ids: impl IntoIterator<Item = &'a I>) -> Vec<&'a [u8]> {
    ids.into_iter().map(AsSlice::as_slice).collect()
}

trait AsSlice {
    fn as_slice(&self) -> &[u8];
}

macro_rules! as_slice {
    ($($id:ty),*) => { $(impl AsSlice for $id {
        fn as_slice(&self) -> &[u8] {
            self.as_bytes()
        }
    })* };
}

as_slice!(HoldId, SessionId, TransferId);

fn account(row: &SqlRow) -> Read<(AccountId, Balance)> {
    let balance =
        Balance { posted_nano: row.try_get(1)?, held: NanoAtp(unsigned(row.try_get(2)?)?) };
    Ok((AccountId::from_bytes(thirty_two(row.try_get(0)?)?), balance))
}

fn journal_row(row: &SqlRow) -> Read<Row> {
    let kind: i16 = row.try_get("kind")?;
    Ok(Row {
        seq: unsigned(row.try_get("seq")?)?,
        time_ms: unsigned(row.try_get("time_ms")?)?,
        kind: u8::try_from(kind).map_err(|_| corrupt(format!("an entry of kind {kind}")))?,
        content: row.try_get("content")?,
        prev_hash: EntryHash::from_bytes(thirty_two(row.try_get("prev_hash")?)?),
        hash: EntryHash::from_bytes(thirty_two(row.try_get("hash")?)?),
    })
}

fn hold_record(row: &SqlRow) -> Read<HoldRecord> {
    let resolved: Option<i64> = row.try_get("resolved_seq")?;
    Ok(HoldRecord {
        id: HoldId::from_bytes(thirty_two(row.try_get("id")?)?),
        account: AccountId::from_bytes(thirty_two(row.try_get("account")?)?),
        amount: NanoAtp(unsigned(row.try_get("amount")?)?),
        session: SessionId::from_bytes(thirty_two(row.try_get("session")?)?),
        expires_ms: unsigned(row.try_get("expires_ms")?)?,
        opened_seq: unsigned(row.try_get("opened_seq")?)?,
        resolved_seq: resolved.map(unsigned).transpose()?,
    })
}

pub(super) fn thirty_two(bytes: &[u8]) -> Result<[u8; 32], LedgerError> {
    bytes.try_into().map_err(|_| corrupt(format!("an id of {} bytes", bytes.len())))
}

fn unsigned(number: i64) -> Result<u64, LedgerError> {
    u64::try_from(number).map_err(|_| corrupt(format!("{number} is less than zero")))
}

/// The rules let nothing pass that a column does not hold.
fn signed(number: u64) -> Result<i64, LedgerError> {
    i64::try_from(number).map_err(|_| corrupt(format!("{number} is past the largest")))
}

const fn corrupt(reason: String) -> LedgerError {
    LedgerError::Corrupt { reason }
}
