//! `cell ledger`: balances, history, grants and the audit.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use cell_abi::{AccountId, CellName, NanoAtp};
use cell_ledger::{
    Checkpoint, Command as LedgerCommand, Entry, LedgerStore as _, SqliteStore, Transfer,
    TransferId,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::escape;
use super::{Exit, Failure, Global, Output, receipts};
use crate::bank::{Accounts, Bank};
use crate::home::Home;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show every account, or one, and the sum over all.
    Balance(AccountArguments),
    /// Give ATP to an account, from the issuer.
    Grant(GrantArguments),
    /// Show the latest entries of the journal.
    History(HistoryArguments),
    /// Fold the whole journal from the start and compare it with every balance.
    Verify,
    /// Copy the ledger as it is at one moment to a new file, while everything goes on.
    Backup(BackupArguments),
    /// Show what was signed for calls of cells that keep receipts; `cell verify` checks it.
    Receipts(receipts::Arguments),
}

#[derive(Debug, Args)]
pub(crate) struct AccountArguments {
    /// `owner`, `node`, `issuer`, `cell:NAME`, `uid:N` or 64 hexadecimal digits.
    account: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GrantArguments {
    /// How much, in ATP.
    #[arg(value_parser = NanoAtp::parse_atp)]
    amount: NanoAtp,
    /// Who gets it; as for `balance`.
    #[arg(default_value = "owner")]
    account: String,
    /// Makes a retry harmless: the same id grants once.
    #[arg(long)]
    id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// Where to; nothing may be there. To restore, put it in place of `ledger.db`, with `identity` beside.
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// Only entries of this account.
    account: Option<String>,
    /// How many.
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
    lines: u32,
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    // They are the home's, wherever its ledger is.
    if let Command::Receipts(arguments) = command {
        return receipts::run(arguments, &home, output);
    }
    let bank = Bank::open(&home)?;
    let names = Names::new(&home, &bank.accounts);
    match command {
        Command::Balance(arguments) => balance(&bank, &names, arguments, output),
        Command::Grant(arguments) => grant(&bank, &names, arguments, output),
        Command::History(arguments) => history(&bank, &names, arguments, output),
        Command::Verify => verify(&bank, output),
        Command::Backup(arguments) => backup(&home, &bank, arguments, output),
        Command::Receipts(_) => Ok(Exit::Done),
    }
}

fn balance(
    bank: &Bank,
    names: &Names<'_>,
    arguments: &AccountArguments,
    output: &Output,
) -> anyhow::Result<Exit> {
    let wanted = arguments.account.as_deref().map(|account| names.parse(account)).transpose()?;
    let mut rows = match wanted {
        Some(account) => vec![(account, bank.ledger.balance(account)?)],
        None => bank.ledger.accounts()?,
    };
    rows.sort_by_key(|(account, _)| names.of(*account));
    let sum: i128 = rows.iter().map(|(_, balance)| i128::from(balance.posted_nano)).sum();
    let values: Vec<Value> = rows
        .iter()
        .map(|(account, balance)| {
            json!({ "account": account.to_string(), "name": names.of(*account), "posted_nano_atp": balance.posted_nano,
                    "held_nano_atp": balance.held.0 })
        })
        .collect();
    let mut text = String::new();
    for (account, balance) in &rows {
        // Writing to a String cannot fail.
        let _ =
            write!(text, "{:24} {:>24} ATP", names.of(*account), atp(balance.posted_nano.into()));
        if balance.held > NanoAtp::ZERO {
            let _ = write!(text, "   {} held", balance.held);
        }
        text.push('\n');
    }
    if wanted.is_none() {
        let _ = write!(text, "{:24} {:>24} ATP", "sum", atp(sum));
    }
    let value =
        json!({ "accounts": values, "sum_nano_atp": i64::try_from(sum).unwrap_or(i64::MAX) });
    output.result(&value, text.trim_end());
    Ok(Exit::Done)
}

fn grant(
    bank: &Bank,
    names: &Names<'_>,
    arguments: &GrantArguments,
    output: &Output,
) -> anyhow::Result<Exit> {
    let account = names.parse(&arguments.account)?;
    let issuer = bank.ledger.issuer()?;
    if issuer != bank.accounts.issuer() {
        let message = format!(
            "only who made this ledger can grant; have them run `cell ledger grant {} {account}`",
            arguments.amount
        );
        return Err(Failure::new(Exit::Refused, message).into());
    }
    let id = match &arguments.id {
        Some(id) => TransferId::derive("cell/grant/v1", &[b"named", id.as_bytes()]),
        None => TransferId::derive("cell/grant/v1", &[b"once", bank.session().as_bytes()]),
    };
    let transfer = Transfer {
        id,
        debit: bank.accounts.issuer(),
        credit: account,
        amount: arguments.amount,
        memo: "grant".into(),
    };
    bank.ledger.transfer(transfer).context("grant")?;
    let balance = bank.ledger.balance(account)?;
    let value = json!({ "account": account.to_string(), "granted_nano_atp": arguments.amount.0,
                        "posted_nano_atp": balance.posted_nano });
    let text = format!(
        "granted {} ATP to {}; it has {} ATP",
        arguments.amount,
        names.of(account),
        atp(balance.posted_nano.into())
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

fn history(
    bank: &Bank,
    names: &Names<'_>,
    arguments: &HistoryArguments,
    output: &Output,
) -> anyhow::Result<Exit> {
    let account = arguments.account.as_deref().map(|account| names.parse(account)).transpose()?;
    let mut entries = bank.ledger.history(account, None, arguments.lines)?;
    entries.sort_by_key(|entry| entry.seq);
    let values: Vec<Value> = entries.iter().map(|entry| entry_json(entry, names)).collect();
    let lines: Vec<String> = entries.iter().map(|entry| entry_text(entry, names)).collect();
    output.result(&values, &lines.join("\n"));
    Ok(Exit::Done)
}

fn verify(bank: &Bank, output: &Output) -> anyhow::Result<Exit> {
    let bar = output.progress("folding the journal");
    let verified = bank.ledger.verify().map_err(|error| {
        Failure::new(
            Exit::NucleusFault,
            format!("the ledger does not verify: {error}; keep the file and do not use it"),
        )
    })?;
    let checkpoints = bank.ledger.checkpoints()?;
    for checkpoint in &checkpoints {
        check(bank, checkpoint, verified.entries)?;
    }
    bar.finish_and_clear();
    let value = json!({ "verified": true, "checkpoints": checkpoints.len(), "entries": verified.entries, "accounts": verified.accounts,
                        "open_holds": verified.open_holds, "issued_nano_atp": verified.issued.0, "sum_nano_atp": 0,
                        "head_hash": verified.head_hash.to_string() });
    let text = format!(
        "verified: {} entries, {} accounts, {} ATP issued, {} open holds, sum zero, {} checkpoints; head {}",
        verified.entries,
        verified.accounts,
        verified.issued,
        verified.open_holds,
        checkpoints.len(),
        verified.head_hash.short()
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

/// Whether the journal still begins with what was signed for.
fn check(bank: &Bank, checkpoint: &Checkpoint, entries: u64) -> anyhow::Result<()> {
    let at = checkpoint.entries;
    let row = match at.checked_sub(1) {
        Some(before) => bank.ledger.rows(before, 1)?.pop(),
        None => None,
    };
    // Entries that came while the journal was folded are as good.
    let holds = at <= entries.max(bank.ledger.head()?.seq)
        && checkpoint.is_signed()
        && checkpoint.issuer == bank.ledger.issuer()?
        && row.is_none_or(|row| row.seq == at && row.hash == checkpoint.head_hash);
    if holds {
        return Ok(());
    }
    let message = format!(
        "the journal is not the one whose first {at} entries {} signed for: it was rewritten, or is an older copy",
        checkpoint.node.short()
    );
    Err(Failure::new(Exit::NucleusFault, message).into())
}

fn backup(
    home: &Home,
    bank: &Bank,
    arguments: &BackupArguments,
    output: &Output,
) -> anyhow::Result<Exit> {
    if bank.is_shared() {
        let text = "the ledger is in PostgreSQL; back it up with `pg_dump --schema cell_ledger`";
        return Err(Failure::new(Exit::Usage, text).into());
    }
    let to = std::path::absolute(&arguments.file)?;
    SqliteStore::open(&home.ledger())?.backup(&to).context("back up the ledger")?;
    let copy = SqliteStore::open(&to)?.verify().context("verify the copy")?;
    let value =
        json!({ "file": to, "entries": copy.entries, "head_hash": copy.head_hash.to_string() });
    let text = format!(
        "{}: {} entries, verified, head {}; keep {} with it",
        to.display(),
        copy.entries,
        copy.head_hash.short(),
        home.identity().display()
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

/// Names for the accounts of this home.
struct Names<'a> {
    accounts: &'a Accounts,
    known: HashMap<AccountId, String>,
}

impl<'a> Names<'a> {
    fn new(home: &Home, accounts: &'a Accounts) -> Self {
        let mut known = HashMap::from([
            (accounts.owner, "owner".to_owned()),
            (accounts.node(), "node".to_owned()),
            (accounts.issuer(), "issuer".to_owned()),
        ]);
        for entry in std::fs::read_dir(home.cells()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            known.insert(accounts.cell(&name), format!("cell:{name}"));
        }
        Self { accounts, known }
    }

    fn of(&self, account: AccountId) -> String {
        self.known.get(&account).cloned().unwrap_or_else(|| account.short())
    }

    fn parse(&self, text: &str) -> anyhow::Result<AccountId> {
        match text.split_once(':') {
            None if text == "owner" => return Ok(self.accounts.owner),
            None if text == "node" => return Ok(self.accounts.node()),
            None if text == "issuer" => return Ok(self.accounts.issuer()),
            Some(("cell", name)) => return Ok(self.accounts.cell(CellName::parse(name)?.as_str())),
            Some(("uid", uid)) => {
                return Ok(self.accounts.user(uid.parse().context("uid:N takes a user's number")?));
            }
            _ => {}
        }
        match AccountId::parse(text) {
            Ok(account) => Ok(account),
            Err(_) => bail!(
                "`{}` is no account: write owner, node, issuer, cell:NAME, uid:N or 64 hexadecimal digits",
                escape(text)
            ),
        }
    }
}

fn entry_json(entry: &Entry, names: &Names<'_>) -> Value {
    json!({ "seq": entry.seq, "time_ms": entry.time_ms, "hash": entry.hash.to_string(), "text": describe(entry, names) })
}

fn entry_text(entry: &Entry, names: &Names<'_>) -> String {
    format!(
        "{:6}  {}.{:03}  {}",
        entry.seq,
        entry.time_ms / 1000,
        entry.time_ms % 1000,
        describe(entry, names)
    )
}

fn describe(entry: &Entry, names: &Names<'_>) -> String {
    match &entry.command {
        LedgerCommand::Transfer(t) => {
            format!(
                "{} ATP from {} to {}: {}",
                t.amount,
                names.of(t.debit),
                names.of(t.credit),
                escape(&t.memo)
            )
        }
        LedgerCommand::Hold(hold) => format!(
            "hold {} for up to {} ATP of {}",
            hold.id.short(),
            hold.amount,
            names.of(hold.account)
        ),
        LedgerCommand::Settle(settle) => {
            let mut text = format!("settle {}", settle.hold.short());
            for payment in &settle.payments {
                // Writing to a String cannot fail.
                let _ = write!(
                    text,
                    ", {} ATP to {} ({})",
                    payment.amount,
                    names.of(payment.credit),
                    escape(&payment.memo)
                );
            }
            text
        }
        LedgerCommand::Void { hold } => format!("void {}", hold.short()),
        LedgerCommand::VoidSession { session } => {
            format!("void the holds of session {}", session.short())
        }
        LedgerCommand::VoidExpired { .. } => "void expired holds".into(),
        _ => "an entry this version does not know".into(),
    }
}

/// Signed nano-ATP in ATP.
fn atp(nano: i128) -> String {
    let amount = NanoAtp(u64::try_from(nano.unsigned_abs()).unwrap_or(u64::MAX));
    format!("{}{amount}", if nano < 0 { "-" } else { "" })
}
