//! The benchmark of Cell: every figure next to a floor measured in the same run.
//!
//! It starts its own nucleus in a temporary home and removes it again. It tunes nothing: a work
//! that misses its target is reported as missed, and one wrong reply fails the whole run.

mod bare;
mod calibrate;
mod cli;
mod curves;
mod floor;
mod house;
mod instructions;
mod ledger;
mod measure;
mod nucleus;
mod ours;
mod payload;
mod placement;
mod plot;
mod process;
mod remote;
mod report;
mod row;
mod shared;
mod socket;
mod start;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
