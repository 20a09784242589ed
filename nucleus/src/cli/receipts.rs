//! `cell ledger receipts`: what was signed for calls, as a list or as a file to be checked elsewhere.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use cell_abi::NanoAtp;
use cell_ledger::receipts::{FUEL, Filter, Receipt};
use clap::Args;
use serde_json::{Value, json};

use super::job_receipt::put;
use super::verify::{export, find, open};
use super::{Exit, Output};
use crate::home::Home;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The first digits of a receipt: only this one.
    receipt: Option<String>,
    /// Only receipts of this cell.
    #[arg(long, value_name = "NAME")]
    cell: Option<String>,
    /// How many, the latest; 0 for all.
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
    lines: u32,
    /// As comma-separated values, with a heading.
    #[arg(long, conflicts_with = "export")]
    csv: bool,
    /// Write the receipt with its calls to this file, to be checked by `cell verify FILE` anywhere.
    #[arg(long, value_name = "FILE", requires = "receipt")]
    export: Option<PathBuf>,
    /// Export only this call.
    #[arg(long, value_name = "N", requires = "export")]
    call: Option<u64>,
}

pub(super) fn run(arguments: &Arguments, home: &Home, output: &Output) -> anyhow::Result<Exit> {
    let store = open(home)?;
    if let (Some(digits), Some(path)) = (&arguments.receipt, &arguments.export) {
        let exported = export(&store, find(home, digits)?, arguments.call)?;
        let text = serde_json::to_string_pretty(&exported)? + "\n";
        // Requests are in it.
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
        let calls = exported.calls.len();
        let value =
            json!({ "file": path, "receipt": exported.receipt.hash().to_string(), "calls": calls });
        output.result(&value, &format!("{}: {calls} calls", path.display()));
        return Ok(Exit::Done);
    }
    let receipts = match &arguments.receipt {
        Some(digits) => vec![find(home, digits)?],
        None => store.receipts(&Filter {
            cell: arguments.cell.clone(),
            payer: None,
            latest: arguments.lines,
        })?,
    };
    if arguments.csv {
        output.bytes(csv(&receipts).as_bytes())?;
        return Ok(Exit::Done);
    }
    let values: Vec<Value> = receipts.iter().map(value).collect();
    let lines: Vec<_> = receipts.iter().map(line).collect();
    output.result(&values, &lines.join("\n"));
    Ok(Exit::Done)
}

/// A receipt as it was signed, with its hash.
fn value(receipt: &Receipt) -> Value {
    let mut value = json!(receipt);
    put(&mut value, "hash", json!(receipt.hash().to_string()));
    value
}

fn line(receipt: &Receipt) -> String {
    format!(
        "{}  {}.{:03}  {:16} {:>6}  calls {} to {}  {} fuel and {} ATP so far",
        receipt.hash().short(),
        receipt.time_ms / 1000,
        receipt.time_ms % 1000,
        receipt.cell,
        format!("#{}", receipt.sequence),
        receipt.first_call,
        receipt.last_call,
        receipt.counters.get(FUEL).unwrap_or(&0),
        NanoAtp(receipt.charge_nano_atp),
    )
}

/// One line a receipt. No field can hold a comma: they are numbers, digits, and names of cells.
fn csv(receipts: &[Receipt]) -> String {
    let heading =
        "hash,time_ms,cell,payer,payee,sequence,first_call,last_call,fuel,charge_nano_atp\n";
    let line = |receipt: &Receipt| {
        format!(
            "{},{},{},{},{},{},{},{},{},{}\n",
            receipt.hash(),
            receipt.time_ms,
            receipt.cell,
            receipt.payer,
            receipt.payee,
            receipt.sequence,
            receipt.first_call,
            receipt.last_call,
            receipt.counters.get(FUEL).unwrap_or(&0),
            receipt.charge_nano_atp
        )
    };
    std::iter::once(heading.to_owned()).chain(receipts.iter().map(line)).collect()
}
