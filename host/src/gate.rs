//! Reads a module before any compiler does, and refuses what a cell or a job may not be.
//!
//! It looks at sections only: whether the code is valid is the compiler's to say.

use cell_abi::{Interface, InterfaceError, interface::INTERFACE_SECTION};
use wasmparser::{ExternalKind, Parser, Payload, TypeRef};

use crate::{host_calls, wasi};

/// Largest module, in bytes.
pub const MODULE_BYTES_MAX: usize = 32 << 20;
/// Most functions a module may define.
pub const FUNCTIONS_MAX: u32 = 50_000;
/// Largest body of one function, in bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Most globals a module may define.
pub const GLOBALS_MAX: u32 = 1_000;
/// Most data segments and most element segments.
pub const SEGMENTS_MAX: u32 = 100_000;
/// Most imports.
pub const IMPORTS_MAX: u32 = 200;

/// Why a module was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The bytes are not a core wasm module.
    #[error("not a WebAssembly module: {0}")]
    NotWasm(String),
    /// The file is a component, not a core module.
    #[error("this is a WebAssembly component; build a core module for wasm32-wasip1")]
    Component,
    /// A number in the module passes its limit.
    #[error("the module has {found} {what}; at most {max} are allowed")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// An import that no host of ours offers.
    #[error(
        "the module imports `{module}` `{name}`, which is not offered: a cell may import WASI preview 1 and cell_v1, a job WASI preview 1"
    )]
    UnknownImport {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
    },
    /// A start section runs code before the meter does.
    #[error("the module has a start section; export `_initialize` or `_start` instead")]
    StartSection,
    /// A cell or job must export its memory.
    #[error("the module exports no memory named `memory`")]
    NoMemory,
    /// Neither a cell nor a command.
    #[error(
        "the module is neither a cell (exports `cell_mailbox` and `cell_receive`) nor a command (exports `_start`)"
    )]
    NeitherCellNorCommand,
    /// The interface section is malformed.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// A cell without receptors answers nothing.
    #[error(
        "the module has no cell:interface section; build it with cell_guest, or see docs/GUEST-ABI.md"
    )]
    NoReceptors,
}

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

#[derive(Default)]
struct Found {
    names: Vec<String>,
    interface: Vec<u8>,
    memory_pages: u64,
    data_bytes: u64,
}

/// Reads the module's sections and checks them against the limits of this module.
pub fn inspect(wasm: &[u8]) -> Result<ModuleInfo, GateError> {
    at_most("bytes", wasm.len() as u64, MODULE_BYTES_MAX as u64)?;
    if !wasm.starts_with(b"\0asm") {
        return Err(GateError::NotWasm("it does not start with the bytes \\0asm".into()));
    }
    let mut found = Found::default();
    for payload in Parser::new(0).parse_all(wasm) {
        look_at(payload.map_err(not_wasm)?, &mut found)?;
    }
    let exports = |name: &str| found.names.iter().any(|export| export == name);
    let kind = if exports("cell_receive") && exports("cell_mailbox") {
        ModuleKind::Cell
    } else if exports("_start") {
        ModuleKind::Command
    } else {
        return Err(GateError::NeitherCellNorCommand);
    };
    if !exports("memory") {
        return Err(GateError::NoMemory);
    }
    let interface = Interface::parse(&found.interface)?;
    if kind == ModuleKind::Cell && interface.receptors().is_empty() {
        return Err(GateError::NoReceptors);
    }
    Ok(ModuleInfo {
        kind,
        interface,
        has_json: exports("cell_receive_json"),
        memory_pages: found.memory_pages,
        data_bytes: found.data_bytes,
    })
}

fn look_at(payload: Payload<'_>, found: &mut Found) -> Result<(), GateError> {
    match payload {
        Payload::Version { encoding: wasmparser::Encoding::Component, .. } => {
            return Err(GateError::Component);
        }
        Payload::ImportSection(imports) => {
            at_most("imports", imports.count().into(), IMPORTS_MAX.into())?;
            for import in imports.into_imports() {
                let import = import.map_err(not_wasm)?;
                check_import(import.module, import.name, import.ty)?;
            }
        }
        Payload::FunctionSection(functions) => {
            at_most("functions", functions.count().into(), FUNCTIONS_MAX.into())?
        }
        Payload::TableSection(tables) => at_most("tables", tables.count().into(), 1)?,
        Payload::MemorySection(memories) => {
            at_most("memories", memories.count().into(), 1)?;
            for memory in memories {
                found.memory_pages = memory.map_err(not_wasm)?.initial;
            }
        }
        Payload::GlobalSection(globals) => {
            at_most("globals", globals.count().into(), GLOBALS_MAX.into())?
        }
        Payload::ExportSection(exports) => {
            for export in exports {
                let export = export.map_err(not_wasm)?;
                if matches!(export.kind, ExternalKind::Func | ExternalKind::Memory) {
                    found.names.push(export.name.to_owned());
                }
            }
        }
        Payload::StartSection { .. } => return Err(GateError::StartSection),
        Payload::ElementSection(segments) => {
            at_most("element segments", segments.count().into(), SEGMENTS_MAX.into())?
        }
        Payload::DataSection(segments) => {
            at_most("data segments", segments.count().into(), SEGMENTS_MAX.into())?;
            for segment in segments {
                found.data_bytes += segment.map_err(not_wasm)?.data.len() as u64;
            }
        }
        Payload::CodeSectionEntry(body) => {
            at_most("bytes in one function", body.range().len() as u64, BODY_BYTES_MAX as u64)?;
        }
        Payload::CustomSection(section) if section.name() == INTERFACE_SECTION => {
            // The linker joins sections of one name; a file with several has them joined here.
            found.interface.extend_from_slice(section.data());
            found.interface.extend_from_slice(b"\n\n");
        }
        _ => {}
    }
    Ok(())
}

fn check_import(module: &str, name: &str, ty: TypeRef) -> Result<(), GateError> {
    let offered = match module {
        "wasi_snapshot_preview1" => wasi::FUNCTIONS,
        "cell_v1" => host_calls::FUNCTIONS,
        _ => &[],
    };
    if matches!(ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) && offered.contains(&name) {
        return Ok(());
    }
    let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(100).collect();
    Err(GateError::UnknownImport { module: shown(module), name: shown(name) })
}

fn at_most(what: &'static str, found: u64, max: u64) -> Result<(), GateError> {
    if found > max { Err(GateError::TooMany { what, found, max }) } else { Ok(()) }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn not_wasm(error: wasmparser::BinaryReaderError) -> GateError {
    GateError::NotWasm(format!("{} at byte {}", error.message(), error.offset()))
}
