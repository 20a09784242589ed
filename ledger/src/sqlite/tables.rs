//! The SQL: every statement that reads or writes the books.
//!
//! It decides nothing; the rules ask it through [`Tables`].

use cell_abi::{AccountId, NanoAtp};
use rusqlite::{Connection, OptionalExtension as _, Params, Row as SqlRow, params};

use crate::journal::{Head, Row};
use crate::rules::{Changes, Tables, Which};
use crate::verify::{Fold, Snapshot};
use crate::{
    Balance, Checkpoint, Entry, EntryHash, HoldId, HoldRecord, LedgerError, SessionId, TransferId,
    VerifyError,
};

/// The tables inside one write transaction, which alone may append and so knows the journal's end.
pub(super) struct Writing<'a> {
    connection: &'a Connection,
    issuer: AccountId,
    head: Head,
}

impl<'a> Writing<'a> {
    pub(super) fn new(connection: &'a Connection, issuer: AccountId) -> Result<Self, LedgerError> {
        let last = one(
            connection,
            "SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1",
            [],
            |row| Ok(Head { seq: row.get(0)?, hash: EntryHash::from_bytes(row.get(1)?) }),
        )?;
        Ok(Self { connection, issuer, head: last.unwrap_or_else(|| Head::empty(issuer)) })
    }
}

impl Tables for Writing<'_> {
    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn head(&self) -> Head {
        self.head
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        balance(self.connection, account)
    }

    fn transfer_seq(&self, id: TransferId) -> Result<Option<u64>, LedgerError> {
        one(self.connection, "SELECT seq FROM transfers WHERE id = ?1", [id.as_bytes()], |row| {
            row.get(0)
        })
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        hold(self.connection, id)
    }

    fn open_holds(&self, which: Which) -> Result<Vec<HoldRecord>, LedgerError> {
        match which {
            Which::Session(session) => {
                let sql =
                    "SELECT * FROM holds WHERE resolved_seq IS NULL AND session = ?1 ORDER BY id";
                all(self.connection, sql, [session.as_bytes()], hold_record)
            }
            Which::ExpiredAt(now_ms) => {
                let sql = "SELECT * FROM holds WHERE resolved_seq IS NULL AND expires_ms <= ?1 ORDER BY id";
                all(self.connection, sql, [now_ms], hold_record)
            }
        }
    }

    fn entry(&self, seq: u64) -> Result<Entry, LedgerError> {
        one(self.connection, "SELECT * FROM journal WHERE seq = ?1", [seq], journal_row)?
            .ok_or_else(|| LedgerError::Corrupt {
                reason: format!("journal entry {seq} is missing"),
            })?
            .entry()
    }

    fn write(&mut self, row: &Row, changes: &Changes) -> Result<(), LedgerError> {
        let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values))
        };
        run(
            "INSERT INTO journal (seq, time_ms, kind, content, prev_hash, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.seq,
                row.time_ms,
                row.kind,
                row.content,
                row.prev_hash.as_bytes(),
                row.hash.as_bytes()
            ],
        )?;
        for (account, balance) in &changes.balances {
            run(
                "INSERT INTO accounts (id, posted, held) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET posted = excluded.posted, held = excluded.held",
                params![account.as_bytes(), balance.posted_nano, balance.held.0],
            )?;
            run(
                "INSERT INTO touched (account, seq) VALUES (?1, ?2)",
                params![account.as_bytes(), row.seq],
            )?;
        }
        for id in &changes.transfers {
            run(
                "INSERT INTO transfers (id, seq) VALUES (?1, ?2)",
                params![id.as_bytes(), row.seq],
            )?;
        }
        for hold in &changes.holds {
            run(
                "INSERT INTO holds (id, account, amount, session, expires_ms, opened_seq, resolved_seq)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET resolved_seq = excluded.resolved_seq",
                params![
                    hold.id.as_bytes(),
                    hold.account.as_bytes(),
                    hold.amount.0,
                    hold.session.as_bytes(),
                    hold.expires_ms,
                    hold.opened_seq,
                    hold.resolved_seq,
                ],
            )?;
        }
        self.head = row.head();
        Ok(())
    }
}

pub(super) fn balance(connection: &Connection, account: AccountId) -> Result<Balance, LedgerError> {
    let sql = "SELECT posted, held FROM accounts WHERE id = ?1";
    let found = one(connection, sql, [account.as_bytes()], |row| {
        Ok(Balance { posted_nano: row.get(0)?, held: NanoAtp(row.get(1)?) })
    })?;
    Ok(found.unwrap_or_default())
}

pub(super) fn accounts(connection: &Connection) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
    all(connection, "SELECT id, posted, held FROM accounts ORDER BY id", [], |row| {
        let balance = Balance { posted_nano: row.get(1)?, held: NanoAtp(row.get(2)?) };
        Ok((AccountId::from_bytes(row.get(0)?), balance))
    })
}

pub(super) fn hold(connection: &Connection, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
    one(connection, "SELECT * FROM holds WHERE id = ?1", [id.as_bytes()], hold_record)
}

pub(super) fn open_holds(connection: &Connection) -> Result<Vec<HoldRecord>, LedgerError> {
    all(connection, "SELECT * FROM holds WHERE resolved_seq IS NULL ORDER BY id", [], hold_record)
}

pub(super) fn history(
    connection: &Connection,
    account: Option<AccountId>,
    before_seq: Option<u64>,
    limit: u32,
) -> Result<Vec<Entry>, LedgerError> {
    // A place past the largest that a column holds is past every entry.
    let before = before_seq.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let rows = match account {
        None => {
            let sql = "SELECT * FROM journal WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
            all(connection, sql, params![before, limit], journal_row)?
        }
        Some(account) => {
            let sql = "SELECT journal.* FROM touched JOIN journal USING (seq)
                       WHERE touched.account = ?1 AND touched.seq < ?2 ORDER BY touched.seq DESC LIMIT ?3";
            all(connection, sql, params![account.as_bytes(), before, limit], journal_row)?
        }
    };
    rows.iter().map(Row::entry).collect()
}

/// Folds the whole journal, one row in memory at a time.
pub(super) fn fold(connection: &Connection, issuer: AccountId) -> Result<Fold, VerifyError> {
    let mut fold = Fold::new(issuer);
    let mut statement =
        connection.prepare("SELECT * FROM journal ORDER BY seq").map_err(LedgerError::from)?;
    let rows = statement.query_map([], journal_row).map_err(LedgerError::from)?;
    for row in rows {
        match row.map_err(LedgerError::from) {
            Ok(row) => fold.push(&row)?,
            Err(LedgerError::Corrupt { .. }) => {
                return Err(VerifyError::Undecodable { seq: fold.next_seq() });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(fold)
}

/// Everything beside the journal.
pub(super) fn snapshot(connection: &Connection) -> Result<Snapshot, LedgerError> {
    let transfers = all(connection, "SELECT id, seq FROM transfers", [], |row| {
        Ok((TransferId::from_bytes(row.get(0)?), row.get(1)?))
    })?;
    let holds = all(connection, "SELECT * FROM holds", [], hold_record)?;
    let touched = all(connection, "SELECT account, seq FROM touched", [], |row| {
        Ok(((AccountId::from_bytes(row.get(0)?), row.get(1)?), row.get(1)?))
    })?;
    Ok(Snapshot {
        accounts: accounts(connection)?.into_iter().collect(),
        transfers: transfers.into_iter().collect(),
        holds: holds.into_iter().map(|hold| (hold.id, hold)).collect(),
        touched: touched.into_iter().collect(),
    })
}

pub(super) fn rows(
    connection: &Connection,
    after_seq: u64,
    limit: u32,
) -> Result<Vec<Row>, LedgerError> {
    // A place past the largest that a column holds is past every entry.
    let after = i64::try_from(after_seq).unwrap_or(i64::MAX);
    let sql = "SELECT * FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    all(connection, sql, params![after, limit], journal_row)
}

pub(super) fn keep_checkpoint(
    connection: &Connection,
    checkpoint: &Checkpoint,
) -> Result<(), LedgerError> {
    let text = serde_json::to_string(checkpoint)
        .map_err(|error| LedgerError::Storage { reason: error.to_string() })?;
    let sql = "INSERT INTO checkpoints (entries, node, content) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    connection.execute(sql, params![checkpoint.entries, checkpoint.node.as_bytes(), text])?;
    Ok(())
}

pub(super) fn checkpoints(connection: &Connection) -> Result<Vec<Checkpoint>, LedgerError> {
    let sql = "SELECT content FROM checkpoints ORDER BY entries, node";
    let texts = all(connection, sql, [], |row| row.get::<_, String>(0))?;
    texts.iter().map(|text| crate::checkpoint::read(text)).collect()
}

fn journal_row(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        seq: row.get("seq")?,
        time_ms: row.get("time_ms")?,
        kind: row.get("kind")?,
        content: row.get("content")?,
        prev_hash: EntryHash::from_bytes(row.get("prev_hash")?),
        hash: EntryHash::from_bytes(row.get("hash")?),
    })
}

fn hold_record(row: &SqlRow<'_>) -> rusqlite::Result<HoldRecord> {
    Ok(HoldRecord {
        id: HoldId::from_bytes(row.get("id")?),
        account: AccountId::from_bytes(row.get("account")?),
        amount: NanoAtp(row.get("amount")?),
        session: SessionId::from_bytes(row.get("session")?),
        expires_ms: row.get("expires_ms")?,
        opened_seq: row.get("opened_seq")?,
        resolved_seq: row.get("resolved_seq")?,
    })
}

fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnOnce(&SqlRow<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, LedgerError> {
    Ok(connection.prepare_cached(sql)?.query_row(params, map).optional()?)
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&SqlRow<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, LedgerError> {
    Ok(connection.prepare_cached(sql)?.query_map(params, map)?.collect::<Result<_, _>>()?)
}
