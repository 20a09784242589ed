//! The nucleus of Cell as a library, so that its parsers can be fuzzed; everything but that is for
//! the one binary, `cell`.
//!
//! Only this crate knows everything; the crates it joins do not know one another.

#[doc(hidden)]
pub mod allocations;
mod audit;
mod bank;
mod cli;
mod compile;
mod config;
mod counted;
mod daemon;
mod found;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod home;
mod job_worker;
mod limits;
mod link;
mod manifest;
mod memory_file;
mod peers;
mod prices;
mod processes;
mod reputation;
mod sdk;
mod signals;
mod toolchain;
mod walls;
mod worker;

use std::process::ExitCode;

/// Runs the program `cell`: parses its arguments, does what they say, and returns its exit code.
pub fn main() -> ExitCode {
    cli::main()
}
