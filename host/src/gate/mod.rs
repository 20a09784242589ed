//! Reads a module before any compiler does, and refuses what a cell or a job may not be.
//!
//! It reads every section and every operator once, against the [limits], in time that grows with
//! the module's bytes and in bounded memory. Whether the code is valid is the compiler's to say.

mod code;
mod error;
mod features;
pub mod limits;
mod module;
pub(crate) mod offered;

use cell_abi::Interface;

pub use error::{GateError, Place};
pub use limits::MODULE_BYTES_MAX;

/// Refuses more than a limit allows, by the limit's name.
macro_rules! at_most {
    ($limit:ident, $what:literal, $found:expr, $offset:expr) => {{
        #[allow(trivial_numeric_casts, reason = "limits and counts have different types")]
        let (found, max) = ($found as u64, $limit as u64);
        if found > max {
            let place = $crate::gate::error::Place::at($offset);
            let limit = stringify!($limit);
            return Err($crate::gate::error::GateError::TooMany {
                what: $what,
                limit,
                found,
                max,
                place,
            });
        }
    }};
}
use at_most;

/// Whether a module answers calls or runs once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// Exports `cell_receive`.
    Cell,
    /// Exports `_start`.
    Command,
}

/// What the gate found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModuleInfo {
    /// Cell or command.
    pub kind: ModuleKind,
    /// The receptors of a cell; empty for a command.
    pub interface: Interface,
    /// Whether the cell has the JSON adapter.
    pub has_json: bool,
    /// Pages of memory the module starts with, 64 KiB each.
    pub memory_pages: u64,
    /// Bytes of all data segments.
    pub data_bytes: u64,
}

impl ModuleInfo {
    /// The findings for a cell that was inspected elsewhere, so that its wasm need not be at hand.
    pub const fn of_cell(
        interface: Interface,
        has_json: bool,
        memory_pages: u64,
        data_bytes: u64,
    ) -> Self {
        Self { kind: ModuleKind::Cell, interface, has_json, memory_pages, data_bytes }
    }

    /// The findings for a command that was inspected elsewhere.
    pub fn of_command(memory_pages: u64, data_bytes: u64) -> Self {
        let kind = ModuleKind::Command;
        Self { kind, interface: Interface::default(), has_json: false, memory_pages, data_bytes }
    }
}

/// Reads a whole module and checks it against the [limits].
pub fn inspect(wasm: &[u8]) -> Result<ModuleInfo, GateError> {
    at_most!(MODULE_BYTES_MAX, "bytes", wasm.len(), 0);
    if !wasm.starts_with(b"\0asm") {
        return Err(GateError::NotWasm("it does not start with the bytes \\0asm".into()));
    }
    let mut module = module::Module::new(wasm);
    module.read()?;
    module.finish()
}
