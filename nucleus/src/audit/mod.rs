//! The audit bundle: everything that says what happened to money here, in one signed archive.
//!
//! It is a tar file whose `README.txt` says what it holds. [`check`] needs nothing but the file.

pub(crate) mod archive;
pub(crate) mod check;

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_host::Sandbox;
use cell_host::engine::WASMTIME_VERSION;
use cell_ledger::journal::Row;
use cell_ledger::receipts::{Filter, Leaf, Receipt, ReceiptStore};
use cell_ledger::signed::{self, from_hex, hex};
use cell_ledger::verify::Fold;
use cell_ledger::{EntryHash, Verified};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bank::Bank;
use crate::home::{Home, read_file};
use archive::{Listed, Writer};
pub(crate) use check::check;

const FORMAT: &str = "cell/audit/v1";
/// Rows of the journal that are read at once.
const ROWS: u32 = 1000;

const README: &str = "\
This is an audit bundle of Cell. `cell audit check FILE` checks all of it, on any machine.

about.json         who made it, when, with which program, and what the ledger adds up to
configuration/     nucleus.toml without the ledger's address; each cell's Cell.toml and its code's hash
checkpoints.jsonl  signed statements of how far the journal was
journal.jsonl      every command that the ledger applied, chained by hashes
accounts.jsonl     what the journal makes of each account, in nano-ATP
receipts.jsonl     signed receipts of calls, with their leaves as far as these are kept
manifest.json      BLAKE3 of each file, signed with Ed25519 by the key in about.json

Hashes, layouts and signatures are described in docs/RECEIPTS.md of the program.
";

/// One row of the journal, as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalLine {
    seq: u64,
    time_ms: u64,
    kind: u8,
    content: String,
    prev_hash: String,
    hash: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountLine {
    account: String,
    posted_nano_atp: i64,
    held_nano_atp: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiptLine {
    receipt: Receipt,
    /// All of its calls, or none if one is not kept any more.
    leaves: Option<Vec<Leaf>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: String,
    node: String,
    issuer: String,
    created_ms: u64,
    /// Versions of what made it.
    software: serde_json::Value,
    engine_id: String,
    entries: u64,
    head_hash: String,
    accounts: u64,
    issued_nano_atp: u64,
    open_holds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    node: String,
    files: Vec<Listed>,
    signature: String,
}

impl Manifest {
    fn unsigned(&self) -> serde_json::Value {
        json!({ "format": self.format, "node": self.node, "files": self.files })
    }
}

/// Writes the bundle of a home; nothing may be at the path.
pub(crate) fn export(home: &Home, to: &Path) -> anyhow::Result<Verified> {
    let bank = Bank::open(home)?;
    let key = home.key()?;
    // Tables against journal first: the bundle has the journal, and what it makes.
    bank.ledger.verify().context("verify the ledger")?;
    bank.checkpoint(&key).context("sign a checkpoint")?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.with_context(|| format!("create {}", to.display()))?;
    let written = write(home, &bank, &key, BufWriter::new(file));
    // Half a bundle is none.
    written.inspect_err(|_| drop(fs::remove_file(to)))
}

fn write(
    home: &Home,
    bank: &Bank,
    key: &SigningKey,
    to: BufWriter<File>,
) -> anyhow::Result<Verified> {
    let issuer = bank.ledger.issuer()?;
    let scratch = || tempfile::tempfile_in(home.root());
    let mut journal = BufWriter::new(scratch()?);
    let mut fold = Fold::new(issuer);
    loop {
        let rows = bank.ledger.rows(fold.next_seq() - 1, ROWS)?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            fold.push(&row)?;
            put_line(&mut journal, &journal_line(&row))?;
        }
    }
    let (verified, balances) = fold.conclude()?;
    let node = signed::node(key).to_string();
    let about = About {
        format: FORMAT.into(),
        node: node.clone(),
        issuer: issuer.to_string(),
        created_ms: bank.ledger.now_ms(),
        software: json!({ "cell": env!("CARGO_PKG_VERSION"), "wasmtime": WASMTIME_VERSION }),
        engine_id: Sandbox::engine_id().to_string(),
        entries: verified.entries,
        head_hash: verified.head_hash.to_string(),
        accounts: verified.accounts,
        issued_nano_atp: verified.issued.0,
        open_holds: verified.open_holds,
    };
    let mut archive = Writer::new(to);
    archive.add_bytes("README.txt", README.as_bytes())?;
    archive.add_bytes("about.json", &pretty(&about)?)?;
    configuration(home, &mut archive)?;
    let mut checkpoints = Vec::new();
    for checkpoint in bank.ledger.checkpoints()? {
        // One that was signed after the journal was read is of no use here.
        if checkpoint.entries <= verified.entries {
            put_line(&mut checkpoints, &checkpoint)?;
        }
    }
    archive.add_bytes("checkpoints.jsonl", &checkpoints)?;
    add_file(&mut archive, "journal.jsonl", journal)?;
    let mut accounts = Vec::new();
    for (account, balance) in balances {
        let line = AccountLine {
            account: account.to_string(),
            posted_nano_atp: balance.posted_nano,
            held_nano_atp: balance.held.0,
        };
        put_line(&mut accounts, &line)?;
    }
    archive.add_bytes("accounts.jsonl", &accounts)?;
    let mut receipts = BufWriter::new(scratch()?);
    if home.receipts().exists() {
        let store = ReceiptStore::open(&home.receipts(), u64::MAX)?;
        for receipt in store.receipts(&Filter::default())? {
            let leaves: Vec<_> = store.calls(&receipt)?.into_iter().map(|call| call.leaf).collect();
            let are_all = leaves.len() as u64 == receipt.calls();
            put_line(&mut receipts, &ReceiptLine { receipt, leaves: are_all.then_some(leaves) })?;
        }
    }
    add_file(&mut archive, "receipts.jsonl", receipts)?;
    let files = archive.files().to_vec();
    let mut manifest = Manifest { format: FORMAT.into(), node, files, signature: String::new() };
    manifest.signature = signed::sign(FORMAT, &manifest.unsigned(), key);
    archive.add_bytes("manifest.json", &pretty(&manifest)?)?;
    let file = archive.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(verified)
}

/// Settings that say how the nucleus and its cells were run.
fn configuration(home: &Home, archive: &mut Writer<BufWriter<File>>) -> anyhow::Result<()> {
    let settings = read_file(&home.root().join("nucleus.toml"), crate::config::FILE_BYTES_MAX);
    if let Some(mut settings) = settings.ok().and_then(|text| parse_toml(&text)) {
        // The address may have a password in it.
        settings.remove("ledger");
        archive.add_bytes("configuration/nucleus.toml", settings.to_string().as_bytes())?;
    }
    let mut cells: Vec<_> = fs::read_dir(home.cells())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| cell_abi::CellName::parse(name).is_ok())
        .collect();
    cells.sort();
    let mut hashes = serde_json::Map::new();
    for cell in cells {
        let directory = home.cell(&cell);
        let Ok(manifest) = crate::manifest::Manifest::read(&directory) else { continue };
        let text =
            read_file(&directory.join(crate::manifest::FILE), crate::manifest::FILE_BYTES_MAX)?;
        archive.add_bytes(&format!("configuration/{cell}.toml"), &text)?;
        let wasm =
            read_file(&directory.join(manifest.wasm), cell_host::gate::MODULE_BYTES_MAX as u64);
        if let Ok(wasm) = wasm {
            hashes.insert(cell, json!(CellHash::of(&wasm).to_string()));
        }
    }
    archive.add_bytes("configuration/code.json", &pretty(&hashes)?)?;
    Ok(())
}

fn parse_toml(text: &[u8]) -> Option<toml::Table> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn journal_line(row: &Row) -> JournalLine {
    JournalLine {
        seq: row.seq,
        time_ms: row.time_ms,
        kind: row.kind,
        content: hex(&row.content),
        prev_hash: row.prev_hash.to_string(),
        hash: row.hash.to_string(),
    }
}

fn row_of(line: JournalLine) -> Option<Row> {
    Some(Row {
        seq: line.seq,
        time_ms: line.time_ms,
        kind: line.kind,
        content: from_hex(&line.content)?,
        prev_hash: EntryHash::parse(&line.prev_hash).ok()?,
        hash: EntryHash::parse(&line.hash).ok()?,
    })
}

fn put_line(to: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")?;
    Ok(())
}

fn pretty(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn add_file(
    archive: &mut Writer<BufWriter<File>>,
    name: &str,
    file: BufWriter<File>,
) -> anyhow::Result<()> {
    let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    let len = file.stream_position()?;
    file.rewind()?;
    Ok(archive.add(name, len, BufReader::new(file))?)
}
