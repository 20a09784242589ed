//! A narrow door for the fuzzers, and no part of what this crate promises anyone.
//!
//! It adds no behaviour: each function hands its text to a parser that the product uses.

use crate::config::Config;
use crate::manifest::Manifest;

/// What a manifest that was taken says.
#[derive(Debug)]
pub struct Taken {
    /// The cell's name.
    pub name: cell_abi::CellName,
    /// File name of the module.
    pub wasm: String,
    /// What the host makes of it.
    pub options: cell_host::CellOptions,
    /// Wall-clock time of one call, in milliseconds.
    pub call_ms_max: u64,
    /// Seconds until an instance without calls is stopped.
    pub idle_s: u64,
}

/// Parses the text of a `Cell.toml`.
pub fn manifest(text: &str) -> Result<Taken, String> {
    let Manifest { name, wasm, settings, at: _ } =
        Manifest::parse(text).map_err(|error| format!("{error:#}"))?;
    let options = settings.options();
    let (call_ms_max, idle_s) = (settings.call_ms_max, settings.idle_s);
    Ok(Taken { name, wasm, options, call_ms_max, idle_s })
}

/// Parses the text of a `nucleus.toml`; what all guests together may take, in MiB.
pub fn config(text: &str) -> Result<u64, String> {
    let config = Config::parse(text).map_err(|error| format!("{error:#}"))?;
    Ok(config.worker.memory_mb_max)
}
