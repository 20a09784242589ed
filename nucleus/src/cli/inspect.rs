//! `cell inspect` and `cell id`: what things are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use cell_abi::{CellHash, Fuel};
use cell_host::{ModuleKind, Sandbox, gate, price};
use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Global, Output};
use crate::bank::Accounts;
use crate::home::{Home, read_file};
use crate::manifest::Manifest;
use crate::prices::Prices;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A .wasm file, a directory with Cell.toml, or the name of a deployed cell.
    #[arg(required_unless_present_any = ["limits", "sandbox"])]
    target: Option<String>,
    /// Show which walls the operating system puts around guests on this machine, and try them.
    #[arg(long, conflicts_with_all = ["target", "limits"])]
    sandbox: bool,
    /// Show every limit of this build instead: its value, and what is seen when it is passed.
    #[arg(long, conflicts_with = "target")]
    limits: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let Some(target) = &arguments.target else {
        if arguments.sandbox {
            return super::sandbox::run(&home, output);
        }
        super::limits::print(output);
        return Ok(Exit::Done);
    };
    let path = find(&home, target)?;
    let wasm = read_file(&path, gate::MODULE_BYTES_MAX as u64)?;
    let info = gate::inspect(&wasm)
        .map_err(|error| Failure::new(Exit::Refused, format!("refused by the gate: {error}")))?;
    let hash = CellHash::of(&wasm);
    let start = Fuel(price::start(info.memory_pages, info.data_bytes));
    let compile = Fuel(price::compile(wasm.len() as u64));
    let kind = match info.kind {
        ModuleKind::Cell => "cell",
        ModuleKind::Command => "command",
    };
    let receptors: Vec<_> = info
        .interface
        .receptors()
        .iter()
        .map(|r| json!({ "name": r.name.as_str(), "fingerprint": r.fingerprint.to_string(), "schema": r.schema }))
        .collect();
    let prices = Prices::of(&home)?;
    let value = json!({
        "file": path, "kind": kind, "hash": hash.to_string(), "bytes": wasm.len(), "memory_pages": info.memory_pages,
        "data_bytes": info.data_bytes, "json": info.has_json, "start_fuel": start.0, "compile_fuel": compile.0,
        "engine_id": Sandbox::engine_id().to_string(), "receptors": receptors, "rates": prices.json(),
    });
    let mut text = format!(
        "{kind} {hash}\nfile    {} ({} bytes)\nmemory  {} pages of 64 KiB at start, {} bytes of data\nstart   {start} fuel\ncompile {compile} fuel, once on each machine\nengine  {}\nprices{}",
        path.display(),
        wasm.len(),
        info.memory_pages,
        info.data_bytes,
        Sandbox::engine_id(),
        prices.text()
    );
    for receptor in info.interface.receptors() {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n\n{}fingerprint {}", receptor.schema, receptor.fingerprint);
    }
    output.result(&value, &text);
    Ok(Exit::Done)
}

/// `cell id`: who this machine is.
pub(crate) fn id(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    home.create()?;
    let accounts = Accounts::open(&home)?;
    let value = json!({
        "owner": accounts.owner.to_string(), "node": accounts.node().to_string(),
        "issuer": accounts.issuer().to_string(), "engine_id": Sandbox::engine_id().to_string(), "home": home.root(),
    });
    let text = format!(
        "owner   {}   pays for your calls and jobs; the Ed25519 key of this home\nnode    {}   earns what jobs burn here\nissuer  {}   grants ATP\nengine  {}   what fuel counts depend on",
        accounts.owner,
        accounts.node(),
        accounts.issuer(),
        Sandbox::engine_id()
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

fn find(home: &Home, target: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(target);
    if path.is_file() {
        return Ok(path.to_owned());
    }
    for directory in [path.to_owned(), home.cell(target)] {
        if directory.join(crate::manifest::FILE).is_file() {
            let manifest = Manifest::read(&directory)?;
            if !manifest.at.is_empty() {
                bail!("`{}` is run by other machines: {}", manifest.name, manifest.at.join(", "));
            }
            let built =
                directory.join("target/cell").join(manifest.name.as_str()).join(&manifest.wasm);
            let direct = directory.join(&manifest.wasm);
            return Ok(if direct.is_file() { direct } else { built });
        }
    }
    bail!("`{target}` is neither a file, nor a directory with Cell.toml, nor a deployed cell")
}
