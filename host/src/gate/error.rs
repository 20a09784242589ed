//! Why a module was refused, and where in it.

use std::fmt;

use cell_abi::InterfaceError;
use wasmparser::{KnownCustom, Name, Parser, Payload};

/// Longest function name that a refusal shows, in characters.
const NAME_CHARS_SHOWN: usize = 80;

/// Where in a module something stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Bytes from the start of the module.
    pub offset: usize,
    /// Index of the function, imported ones counted.
    pub function: Option<u32>,
    /// Its name, if the module's name section has one; without control characters.
    pub name: Option<String>,
}

impl Place {
    pub(crate) const fn at(offset: usize) -> Self {
        Self { offset, function: None, name: None }
    }

    /// Looks the function's name up. A malformed name section gives none.
    pub(crate) fn name_in(&mut self, wasm: &[u8]) {
        self.name = self.function.and_then(|function| name_of(wasm, function));
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(function) = self.function {
            write!(f, " in function {function}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        write!(f, " at byte {}", self.offset)
    }
}

/// Why a module was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The bytes are not a core wasm module.
    #[error("not a WebAssembly module: {0}")]
    NotWasm(String),
    /// The module begins as one and cannot be read on.
    #[error("the module is malformed: {message}{place}")]
    Malformed {
        /// What is wrong.
        message: String,
        /// Where.
        place: Place,
    },
    /// The file is a component, not a core module.
    #[error("this is a WebAssembly component; build a core module for wasm32-wasip1")]
    Component,
    /// A number in the module passes its limit.
    #[error("the module has {found} {what}{place}; at most {max} are allowed ({limit})")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// The limit's name in the table of limits.
        limit: &'static str,
        /// How many there are.
        found: u64,
        /// The limit's value.
        max: u64,
        /// Where the count stands or the limit is passed.
        place: Place,
    },
    /// The module needs a part of WebAssembly that is off here.
    #[error(
        "the module uses {feature}{place}, which is off here; build it for wasm32-wasip1 without"
    )]
    Feature {
        /// The part, in words.
        feature: &'static str,
        /// Where.
        place: Place,
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
    /// An import that is offered under another type.
    #[error("the module imports `{module}` `{name}` as {found}; it is offered as {offered}")]
    ImportType {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
        /// The type the module wants.
        found: String,
        /// The type there is.
        offered: String,
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

impl GateError {
    /// The error with its place in this function of the module.
    pub(crate) fn in_function(mut self, function: u32, wasm: &[u8]) -> Self {
        if let Self::Malformed { place, .. }
        | Self::TooMany { place, .. }
        | Self::Feature { place, .. } = &mut self
        {
            place.function = Some(function);
            place.name_in(wasm);
        }
        self
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
pub(crate) fn malformed(error: wasmparser::Error) -> GateError {
    GateError::Malformed { message: error.message().to_owned(), place: Place::at(error.offset()) }
}

/// What a stranger called something, fit to be shown.
pub(crate) fn shown(text: &str, chars: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars).collect()
}

/// Reads the name section for one function. This is done once, for a module that is refused.
fn name_of(wasm: &[u8], function: u32) -> Option<String> {
    for payload in Parser::new(0).parse_all(wasm) {
        let Payload::CustomSection(section) = payload.ok()? else { continue };
        let KnownCustom::Name(names) = section.as_known() else { continue };
        for subsection in names {
            let Name::Function(map) = subsection.ok()? else { continue };
            for naming in map {
                let naming = naming.ok()?;
                if naming.index == function {
                    return Some(shown(naming.name, NAME_CHARS_SHOWN));
                }
            }
        }
    }
    None
}
