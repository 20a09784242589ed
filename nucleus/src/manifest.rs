//! `Cell.toml`: what a cell is called and how it is run.

use std::path::Path;

use anyhow::{Context as _, bail};
use cell_abi::CellName;
use cell_host::{CellOptions, Isolation, Limits};
use serde::{Deserialize, Serialize};

use crate::home::read_file;

/// Name of the file.
pub(crate) const FILE: &str = "Cell.toml";

cell_abi::limits! {
    /// Largest `Cell.toml`, in bytes.
    ///
    /// The cell is refused.
    pub(crate) const FILE_BYTES_MAX: u64 = 64 << 10;

    /// Largest `replicas_max`: instances of one cell at once.
    ///
    /// The manifest is refused; a call beyond the manifest's number waits, and then answers `Busy`.
    ///
    /// Changed in `Cell.toml`, 1 to this; 16 by default.
    pub(crate) const REPLICAS_MAX: u32 = 64;

    /// Largest `memory_mb_max`: linear memory of one instance, in MiB.
    ///
    /// The manifest is refused; `memory.grow` past the manifest's number gives the guest -1.
    ///
    /// Changed in `Cell.toml`, 1 to this; 64 by default.
    pub(crate) const MEMORY_MB_MAX: u32 = 64;

    /// Largest `state_mb_max`: key-value state of one cell, in MiB.
    ///
    /// The manifest is refused; a write past the manifest's number fails, as the guest is told.
    ///
    /// Changed in `Cell.toml`, 0 to this; 16 by default.
    pub(crate) const STATE_MB_MAX: u32 = 1024;

    /// Largest `call_ms_max`: time of one call on the wall clock, in ms.
    ///
    /// The manifest is refused; a call past the manifest's number answers `TimedOut`.
    ///
    /// Changed in `Cell.toml`, 1 to this; 30,000 by default.
    pub(crate) const CALL_MS_MAX: u64 = 3_600_000;

    /// Largest `idle_s`: time without calls after which an instance is stopped, in seconds.
    ///
    /// The manifest is refused.
    ///
    /// Changed in `Cell.toml`, 1 to this; 60 by default.
    pub(crate) const IDLE_S_MAX: u64 = 86_400;

    /// Machines that `at` may name.
    ///
    /// The manifest is refused.
    pub(crate) const MACHINES_MAX: usize = 8;

    /// Longest name or address in `at`, in bytes.
    ///
    /// The manifest is refused.
    pub(crate) const MACHINE_BYTES_MAX: usize = 512;
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cell: Section,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    name: String,
    #[serde(default = "default_wasm")]
    wasm: String,
    #[serde(default = "default_isolation")]
    isolation: String,
    #[serde(default = "default_replicas_max")]
    replicas_max: u32,
    #[serde(default = "default_memory_mb_max")]
    memory_mb_max: u32,
    #[serde(default = "default_state_mb_max")]
    state_mb_max: u32,
    #[serde(default = "default_call_ms_max")]
    call_ms_max: u64,
    #[serde(default = "default_idle_s")]
    idle_s: u64,
    #[serde(default)]
    receipts: bool,
    #[serde(default)]
    peers: bool,
    #[serde(default)]
    at: Option<Vec<String>>,
}

fn default_wasm() -> String {
    "cell.wasm".into()
}
fn default_isolation() -> String {
    "instance".into()
}
const fn default_replicas_max() -> u32 {
    16
}
const fn default_memory_mb_max() -> u32 {
    64
}
const fn default_state_mb_max() -> u32 {
    16
}
const fn default_call_ms_max() -> u64 {
    30_000
}
const fn default_idle_s() -> u64 {
    60
}

/// A manifest whose every value was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: CellName,
    /// File name of the module, beside the manifest.
    pub(crate) wasm: String,
    pub(crate) settings: Settings,
    /// Machines that run it, and then there is no module here: names or KEY@HOST:PORT, or with
    /// another name for it there, cell://MACHINE/CELL. With `peers`, calls that come from other machines may
    /// go on to it.
    pub(crate) at: Vec<String>,
}

/// How a cell is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Every call gets a fresh instance.
    pub(crate) fresh: bool,
    /// Most instances at once, 1 to 64.
    pub(crate) replicas_max: u32,
    /// Memory of one instance, 1 to 64 MiB.
    pub(crate) memory_mb_max: u32,
    /// Key-value state, 0 to 1024 MiB.
    pub(crate) state_mb_max: u32,
    /// Wall-clock time of one call, 1 ms to 1 h.
    pub(crate) call_ms_max: u64,
    /// An instance without calls for this long is stopped.
    pub(crate) idle_s: u64,
    /// Every call is recorded and gets a place in a signed receipt.
    pub(crate) receipts: bool,
    /// Other machines that the owner knows may call it.
    pub(crate) peers: bool,
}

impl Settings {
    /// The host's options, without a place for state.
    pub(crate) fn options(&self) -> CellOptions {
        let mut options = CellOptions::default();
        options.isolation = if self.fresh { Isolation::Call } else { Isolation::Instance };
        options.replicas_max = usize::try_from(self.replicas_max).unwrap_or(1);
        options.limits = Limits::CELL;
        options.limits.memory_bytes_max = usize::try_from(self.memory_mb_max).unwrap_or(1) << 20;
        options.receipts = self.receipts;
        options.state_bytes_max = u64::from(self.state_mb_max) << 20;
        options
    }
}

impl Manifest {
    /// Reads the manifest of a cell's directory.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let text = String::from_utf8(read_file(&path, FILE_BYTES_MAX)?)
            .with_context(|| format!("{} is not text", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let File { cell } = toml::from_str(text)?;
        let name =
            CellName::parse(&cell.name).with_context(|| format!("name = {:?}", cell.name))?;
        let at = match &cell.at {
            Some(at) => machines(text, at)?,
            None => Vec::new(),
        };
        if cell.wasm.contains('/') || cell.wasm.starts_with('.') || cell.wasm.is_empty() {
            bail!("wasm = {:?} must be a file name beside {FILE}", cell.wasm);
        }
        let fresh = match cell.isolation.as_str() {
            "instance" => false,
            "call" => true,
            other => bail!("isolation = {other:?} must be \"instance\" or \"call\""),
        };
        if cell.receipts && !fresh {
            // What an instance remembers of earlier calls is in nobody's receipt.
            bail!("receipts = true needs isolation = \"call\"");
        }
        let settings = Settings {
            fresh,
            replicas_max: within("replicas_max", cell.replicas_max.into(), 1, REPLICAS_MAX.into())?,
            memory_mb_max: within(
                "memory_mb_max",
                cell.memory_mb_max.into(),
                1,
                MEMORY_MB_MAX.into(),
            )?,
            state_mb_max: within("state_mb_max", cell.state_mb_max.into(), 0, STATE_MB_MAX.into())?,
            call_ms_max: within("call_ms_max", cell.call_ms_max, 1, CALL_MS_MAX)?,
            idle_s: within("idle_s", cell.idle_s, 1, IDLE_S_MAX)?,
            receipts: cell.receipts,
            peers: cell.peers,
        };
        Ok(Self { name, wasm: cell.wasm, settings, at })
    }
}

/// The machines of a manifest that names some, which says nothing else: how the cell is run is their affair.
fn machines(text: &str, at: &[String]) -> anyhow::Result<Vec<String>> {
    let table: toml::Table = toml::from_str(text)?;
    let mut keys =
        table.get("cell").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
    if let Some(key) = keys.find(|key| !matches!(key.as_str(), "name" | "at" | "peers")) {
        bail!("{key} has no meaning beside at: the machines that `at` names run the cell");
    }
    if at.is_empty() || at.len() > MACHINES_MAX {
        bail!("at names {} machines, and it must be 1 to {MACHINES_MAX}", at.len());
    }
    for machine in at {
        if machine.is_empty()
            || machine.len() > MACHINE_BYTES_MAX
            || machine.contains(char::is_control)
        {
            bail!("at = {machine:?} must be names of peers, or KEY@HOST:PORT");
        }
    }
    Ok(at.to_vec())
}

fn within<T: TryFrom<u64>>(key: &str, value: u64, min: u64, max: u64) -> anyhow::Result<T> {
    match T::try_from(value) {
        Ok(fits) if (min..=max).contains(&value) => Ok(fits),
        _ => bail!("{key} = {value} must be between {min} and {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, expect: &str) {
        let error = format!("{:#}", Manifest::parse(text).unwrap_err());
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn manifests() {
        let manifest = Manifest::parse("[cell]\nname = \"a\"\n").unwrap();
        assert_eq!(manifest.wasm, "cell.wasm");
        assert_eq!(manifest.settings.replicas_max, 16);
        refused("", "cell");
        refused("[cell]\nname = \"../a\"", "name = \"../a\"");
        refused("[cell]\nname = \"a\"\nwasm = \"../x.wasm\"", "beside");
        refused("[cell]\nname = \"a\"\nreplica_max = 1", "replica_max");
        refused("[cell]\nname = \"a\"\nreplicas_max = 0", "between 1 and 64");
        refused("[cell]\nname = \"a\"\nmemory_mb_max = 4096", "between 1 and 64");
        refused("[cell]\nname = \"a\"\nisolation = \"none\"", "isolation");
        refused("[cell]\nname = \"a\"\nreceipts = true", "needs isolation = \"call\"");
        let manifest = Manifest::parse("[cell]\nname = \"a\"\nat = [\"den\", \"attic\"]").unwrap();
        assert_eq!(manifest.at, ["den", "attic"]);
        refused("[cell]\nname = \"a\"\nat = []", "0 machines");
        refused("[cell]\nname = \"a\"\nat = [\"\"]", "names of peers");
        refused("[cell]\nname = \"a\"\nat = [\"a\\nb\"]", "names of peers");
        refused("[cell]\nname = \"a\"\nat = [\"den\"]\nidle_s = 9", "idle_s has no meaning");
        let many = ["\"den\""; MACHINES_MAX + 1].join(", ");
        refused(&format!("[cell]\nname = \"a\"\nat = [{many}]"), "9 machines");
        let long = "d".repeat(MACHINE_BYTES_MAX + 1);
        refused(&format!("[cell]\nname = \"a\"\nat = [\"{long}\"]"), "names of peers");
    }
}
