//! `cell`: the nucleus, its worker and its command line, in one binary.
//!
//! Only this crate knows everything; the crates it joins do not know one another.

mod bank;
mod cli;
mod compile;
mod config;
mod daemon;
mod home;
mod job_worker;
mod limits;
mod link;
mod manifest;
mod sdk;
mod toolchain;
mod walls;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
