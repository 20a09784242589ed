#![allow(unused)]

use cell_guest::{Context, Reject, receptor, signal_receptor};

signal_receptor! { name: worker, input: Work { id: u32 }, output: Done { id: u32 } }

#[receptor(name = "other")]
fn worker(job: &ArchivedWork) -> Result<Done, Reject> {
    Ok(Done { id: 1 })
}

fn main() {}
