//! `cell audit`: one signed file with everything that says what happened to money here, and its check.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::escape;
use super::{Exit, Global, Output};
use crate::audit;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the bundle: journal, receipts, checkpoints, configuration, versions.
    Export(FileArguments),
    /// Check a bundle. Nothing but the file is needed: no home, no nucleus.
    Check(FileArguments),
}

#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// The bundle, a tar file; to export, nothing may be there.
    file: PathBuf,
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    match command {
        Command::Export(arguments) => export(arguments, global, output),
        Command::Check(arguments) => check(arguments, output),
    }
}

fn export(arguments: &FileArguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let bar = output.progress("writing the bundle");
    let path = std::path::absolute(&arguments.file)?;
    let verified = audit::export(&global.home()?, &path)?;
    bar.finish_and_clear();
    let value = json!({ "file": path, "entries": verified.entries, "head_hash": verified.head_hash.to_string() });
    let text = format!(
        "{}: {} entries, head {}; `cell audit check` checks it anywhere",
        path.display(),
        verified.entries,
        verified.head_hash.short()
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

fn check(arguments: &FileArguments, output: &Output) -> anyhow::Result<Exit> {
    let bar = output.progress("checking the bundle");
    let found = audit::check(&arguments.file)?;
    bar.finish_and_clear();
    let holds = found.problems.is_empty();
    let value = json!({
        "verified": holds,
        "problems": found.problems,
        "node": found.node,
        "entries": found.verified.as_ref().map(|verified| verified.entries),
        "accounts": found.verified.as_ref().map(|verified| verified.accounts),
        "issued_nano_atp": found.verified.as_ref().map(|verified| verified.issued.0),
        "head_hash": found.verified.as_ref().map(|verified| verified.head_hash.to_string()),
        "checkpoints": found.checkpoints, "receipts": found.receipts, "calls": found.calls,
    });
    let text = match (&found.verified, holds) {
        (Some(verified), true) => format!(
            "verified: signed by {}; {} entries, {} accounts, {} ATP issued, sum zero; {} checkpoints, {} receipts over {} calls",
            found.node.as_deref().unwrap_or_default(),
            verified.entries,
            verified.accounts,
            verified.issued,
            found.checkpoints,
            found.receipts,
            found.calls
        ),
        _ => found.problems.iter().map(|problem| format!("wrong: {problem}\n")).collect(),
    };
    output.result(&value, escape(&text).trim_end());
    Ok(if holds { Exit::Done } else { Exit::Failed })
}
