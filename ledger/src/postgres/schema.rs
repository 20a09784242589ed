//! The tables, and how they came to be: one step for each version.

use cell_abi::AccountId;
use postgres::Client;

use super::Failure;
use crate::LedgerError;

/// What makes each version from the one before it. A step that was released is never changed.
const STEPS: [&str; 2] = [
    "
CREATE TABLE journal (
    seq BIGINT PRIMARY KEY CHECK (seq >= 1),
    time_ms BIGINT NOT NULL CHECK (time_ms >= 0),
    kind SMALLINT NOT NULL,
    content BYTEA NOT NULL,
    prev_hash BYTEA NOT NULL CHECK (length(prev_hash) = 32),
    hash BYTEA NOT NULL CHECK (length(hash) = 32)
);
CREATE TABLE accounts (
    id BYTEA PRIMARY KEY CHECK (length(id) = 32),
    posted BIGINT NOT NULL,
    held BIGINT NOT NULL CHECK (held >= 0)
);
CREATE TABLE transfers (
    id BYTEA PRIMARY KEY CHECK (length(id) = 32),
    seq BIGINT NOT NULL REFERENCES journal
);
CREATE TABLE holds (
    id BYTEA PRIMARY KEY CHECK (length(id) = 32),
    account BYTEA NOT NULL REFERENCES accounts,
    amount BIGINT NOT NULL CHECK (amount > 0),
    session BYTEA NOT NULL CHECK (length(session) = 32),
    expires_ms BIGINT NOT NULL CHECK (expires_ms >= 0),
    opened_seq BIGINT NOT NULL REFERENCES journal,
    resolved_seq BIGINT REFERENCES journal
);
CREATE INDEX holds_open_by_session ON holds (session) WHERE resolved_seq IS NULL;
CREATE INDEX holds_open_by_expiry ON holds (expires_ms) WHERE resolved_seq IS NULL;
CREATE TABLE touched (
    account BYTEA NOT NULL REFERENCES accounts,
    seq BIGINT NOT NULL REFERENCES journal,
    PRIMARY KEY (account, seq)
);
-- Who writes. A session is fenced when its epoch is no longer the one it began with.
CREATE TABLE sessions (
    id BYTEA PRIMARY KEY CHECK (length(id) = 32),
    epoch BIGINT NOT NULL,
    seen TIMESTAMPTZ NOT NULL
);
-- Against mistakes, not against attackers: those are what the hash chain is for.
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE EXCEPTION ''append-only''; END';
CREATE TRIGGER journal_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();
CREATE TRIGGER transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();
",
    "
-- How often a session wrote, in place of when: nobody's clock has a say.
ALTER TABLE sessions DROP COLUMN seen, ADD COLUMN beats BIGINT NOT NULL DEFAULT 0;
CREATE TABLE checkpoints (
    entries BIGINT NOT NULL CHECK (entries >= 0),
    node BYTEA NOT NULL CHECK (length(node) = 32),
    content TEXT NOT NULL,
    PRIMARY KEY (entries, node)
);
",
];

/// Any number, as long as all who create or upgrade a ledger use the same: they take turns.
const TURN: i64 = 0x4365_6c6c;

/// Makes the tables or brings them to the newest version; returns the ledger's issuer.
pub(super) fn open_or_create(client: &mut Client, issuer: AccountId) -> Result<AccountId, Failure> {
    open_at(client, issuer, STEPS.len())
}

/// The same, as a program did that knew only so many versions.
pub(super) fn open_at(
    client: &mut Client,
    issuer: AccountId,
    newest: usize,
) -> Result<AccountId, Failure> {
    let fsync: String = client.query_one("SHOW fsync", &[])?.try_get(0)?;
    if fsync == "off" {
        let reason = "the server runs with fsync = off, so nothing it says is durable".into();
        return Err(LedgerError::Storage { reason }.into());
    }
    let mut transaction = client.transaction()?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&TURN])?;
    transaction.batch_execute(
        "CREATE SCHEMA IF NOT EXISTS cell_ledger;
         CREATE TABLE IF NOT EXISTS ledger (
             one SMALLINT PRIMARY KEY CHECK (one = 1),
             version BIGINT NOT NULL,
             issuer BYTEA NOT NULL CHECK (length(issuer) = 32)
         );",
    )?;
    transaction.execute(
        "INSERT INTO ledger VALUES (1, 0, $1) ON CONFLICT DO NOTHING",
        &[&issuer.as_bytes().as_slice()],
    )?;
    let row = transaction.query_one("SELECT version, issuer FROM ledger", &[])?;
    let (version, issuer): (i64, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
    let issuer = AccountId::from_bytes(super::tables::thirty_two(issuer)?);
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > newest {
        let known = i64::try_from(newest).unwrap_or(i64::MAX);
        return Err(LedgerError::NewerSchema { found: version, known }.into());
    }
    for step in STEPS.iter().take(newest).skip(done) {
        transaction.batch_execute(step)?;
        transaction.execute("UPDATE ledger SET version = version + 1", &[])?;
    }
    transaction.commit()?;
    Ok(issuer)
}
