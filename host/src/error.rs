//! Errors of the sandbox, by whose fault they are.

use cell_abi::{Status, limits::MESSAGE_BYTES_MAX};

/// Why a call or job was ended by the host rather than by the guest. Never seen outside this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("cancelled")]
    Cancelled,
    #[error("the fuel limit was reached")]
    OutOfFuel,
    #[error("a limit was passed")]
    OverLimit,
    #[error("timed out")]
    TimedOut,
    #[error("the guest exited with code {0}")]
    Exited(u32),
    #[error("the cell's state could not be read or written")]
    HostFault,
    #[error("it does not do what it did when it was recorded")]
    Diverged,
}

/// Why a module was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The module passed the gate but the compiler refused it.
    #[error("the compiler refuses the module: {0}")]
    Refused(String),
}

/// Why a compiled module or a cell made of it could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The artefact file cannot be read, or was made by another engine.
    #[error("the artefact cannot be loaded: {0}")]
    Artefact(String),
    /// The module's imports do not fit what the host offers.
    #[error("the module cannot be linked: {0}")]
    Link(String),
    /// An export that a cell needs is missing or has another type.
    #[error("a cell exports `{name}` as {expected}")]
    MissingExport {
        /// The export.
        name: &'static str,
        /// Its type in words.
        expected: &'static str,
    },
    /// The module is a command where a cell is needed, or the other way round.
    #[error("{0}")]
    WrongKind(&'static str),
    /// The instance could not be started.
    #[error("the cell does not start: {0}")]
    Start(String),
    /// All instances the engine may have are in use.
    #[error("every instance slot of this worker is in use")]
    NoSlot,
    /// All guests of the engine together have the memory they may have.
    #[error("the memory that all cells of this worker may have is in use")]
    NoMemory,
}

/// How a guest's end is told to its caller: a status and a message.
pub(crate) fn classify(error: &wasmtime::Error) -> (Status, String) {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let status = match stop {
            Stop::Cancelled => Status::Cancelled,
            Stop::OutOfFuel => Status::OutOfFuel,
            Stop::OverLimit => Status::OverLimit,
            Stop::TimedOut => Status::TimedOut,
            Stop::Exited(_) => Status::Exited,
            Stop::HostFault | Stop::Diverged => Status::HostFault,
        };
        // For a limit or a stop the status says it all.
        let message =
            if let Stop::Exited(code) = stop { format!("with code {code}") } else { String::new() };
        return (status, message);
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::OutOfFuel) => (Status::OutOfFuel, String::new()),
        Some(trap) => (Status::Trapped, format!("{trap}{}", place(error))),
        None => (Status::Trapped, format!("{}{}", causes(error), place(error))),
    }
}

/// What went wrong, in one bounded line for people, without the backtrace: that holds the guest's own
/// names, as many and as long as it likes.
fn causes(error: &wasmtime::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !cause.starts_with("error while executing at wasm backtrace") {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.extend(cause.chars().filter(|c| !c.is_control()));
        }
    }
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX / 2));
    text
}

/// The innermost function with a name, for people.
fn place(error: &wasmtime::Error) -> String {
    let Some(trace) = error.downcast_ref::<wasmtime::WasmBacktrace>() else {
        return String::new();
    };
    let name = trace.frames().iter().find_map(wasmtime::FrameInfo::func_name);
    name.map_or_else(String::new, |name| {
        let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
        format!(" in {name}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal by WASI came with the whole backtrace: a function's name of a megabyte, or one that
    /// clears the screen, reached whoever had called the cell.
    #[test]
    fn a_refusal_is_told_in_one_short_line() {
        let error = wasmtime::Error::msg(format!("too\nmuch {}", "\u{e9}".repeat(2000)))
            .context("In func random_get")
            .context(format!(
                "error while executing at wasm backtrace:\n 0: \u{1b}[2J{}",
                "x".repeat(9000)
            ));
        let (status, message) = classify(&error);
        assert_eq!(status, Status::Trapped);
        assert!(message.starts_with("In func random_get: toomuch \u{e9}"), "{message}");
        assert!(message.len() <= MESSAGE_BYTES_MAX, "{} bytes", message.len());
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}
