//! A result that is believed: its streams, its bill and its receipts.

#![allow(clippy::indexing_slicing, reason = "a field that is not in a JSON value reads as null")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use cell_abi::NanoAtp;
use serde_json::Value;

use super::attempt::{Ran, Work};
use crate::cli::Exit;

/// Where receipts go: a file that is open, and its path, beside which others go.
pub(super) type Receipts<'a> = Option<(File, &'a Path)>;

impl Ran {
    /// Whether its budget was too small.
    pub(super) fn is_out_of_fuel(&self) -> bool {
        self.receipt["outcome"]["status"] == "OutOfFuel"
    }

    fn charge(&self) -> u64 {
        let compiled = self.receipt["compile_fuel"].as_u64().unwrap_or(0);
        self.receipt["charge_nano_atp"].as_u64().unwrap_or(0).saturating_add(compiled)
    }
}

/// Shows the result as the job would have, and keeps its receipt and those of others that ran.
pub(super) fn show(
    work: &Work<'_>,
    ran: &Ran,
    others: &[&Ran],
    receipts: Receipts<'_>,
) -> anyhow::Result<Exit> {
    let output = work.output;
    if let Some((file, path)) = receipts {
        write(file, &ran.receipt)?;
        for (number, other) in (1..).zip(others) {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            let file = File::create(&name)
                .with_context(|| format!("create {}", Path::new(&name).display()))?;
            write(file, &other.receipt)?;
        }
    }
    output.error_bytes(&ran.errors);
    if output.json() {
        output.machine_note(&ran.receipt);
    }
    output.bytes(&ran.output)?;
    output.note(&format!("{}: {}", ran.machine.name, ran.message));
    if !others.is_empty() {
        let all = others.iter().fold(ran.charge(), |sum, other| sum.saturating_add(other.charge()));
        let (all, count) = (NanoAtp(all), others.len() + 1);
        output.note(&format!("in all {all} ATP on {count} machines, with what was compiled"));
    }
    Ok(Exit::Job(ran.exit))
}

fn write(mut file: File, receipt: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(receipt)? + "\n";
    file.write_all(text.as_bytes()).context("write the receipt")
}
