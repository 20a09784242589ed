//! Dies in every way there is, so that one can see what its callers and its operator get.

use std::hint::black_box;

use cell_guest::{Reject, receptor, signal, signal_receptor};

/// How to die.
#[signal]
pub enum Crash {
    /// Not at all: the answer is the text.
    Not(String),
    /// A Rust panic, with this message in the log.
    Panic(String),
    /// The `unreachable` instruction.
    Unreachable,
    /// A read past the end of memory.
    OutOfBounds,
    /// A recursion that never ends.
    StackOverflow,
    /// `proc_exit` with this code.
    Exit(i32),
}

signal_receptor! {
    name: crash,
    input: Crash,
    output: String,
}

#[receptor]
fn crash(how: &ArchivedCrash) -> Result<String, Reject> {
    match how {
        ArchivedCrash::Not(text) => Ok(text.to_string()),
        ArchivedCrash::Panic(message) => panic!("{message}"),
        ArchivedCrash::Unreachable => unreachable(),
        ArchivedCrash::OutOfBounds => Ok(past_the_end().to_string()),
        ArchivedCrash::StackOverflow => Ok(deeper(0).to_string()),
        #[expect(clippy::exit, reason = "this is what the variant is for")]
        ArchivedCrash::Exit(code) => std::process::exit(code.to_native()),
    }
}

#[cfg(target_arch = "wasm32")]
fn unreachable() -> ! {
    std::arch::wasm32::unreachable()
}

#[cfg(not(target_arch = "wasm32"))]
fn unreachable() -> ! {
    std::process::abort()
}

#[expect(unsafe_code, reason = "safe code cannot leave its memory")]
fn past_the_end() -> u8 {
    let end = std::ptr::without_provenance::<u8>(black_box(u32::MAX as usize));
    // SAFETY: there is none, on purpose: on wasm no cell has memory at this address, so it traps.
    unsafe { end.read_volatile() }
}

#[expect(unconditional_recursion, reason = "this is what the variant is for")]
fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    deeper(depth + 1).wrapping_add(frame.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;

    #[test]
    fn lives_when_asked_to() {
        assert_eq!(crash(&Archive::of(&Crash::Not("alive".into()))), Ok("alive".into()));
    }
}
